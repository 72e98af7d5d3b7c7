"""The whole mesh as `opsmesh up` brings it up: how soon it is ready, what it weighs, and how quickly it acts."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import psutil
import yaml

from services.local import demo, supervise
from services.local.checkout import NAME, Workload, start_workload, stop_workload
from services.local.files import free_port
from services.local.layout import Mesh
from tests.bench import actions, signals
from tests.bench.quiet import settle
from tests.bench.stub import Manager, serving
from tests.bench.table import Row
from tests.flows.world import World, connected, running_mesh

COLD_MAX: Final = 15.0
WARM_MAX: Final = 8.0
MEMORY_MAX: Final = 900.0
IDLE_SECONDS: Final = 5.0
MEBIBYTE: Final = 1024 * 1024


def lay_out(config: Path, workload: Workload, manager: Manager) -> None:
    """Write the demo's configuration, with a target more whose process manager answers at once."""
    demo.write_config(config, workload)
    inventory = yaml.safe_load((config / "inventory.yaml").read_text(encoding="utf-8"))
    backends = yaml.safe_load((config / "backends.yaml").read_text(encoding="utf-8"))
    inventory["entries"].append({"target_id": actions.TARGET, "kind": "service", "environment": "demo"})
    backend = {"server_url": manager.url, "program": "stub"}
    backends["workloads"].append(
        {"target_id": actions.TARGET, "health_url": workload.health_url, "supervisord": backend}
    )
    policies = yaml.safe_load((config / "policies" / "demo.yaml").read_text(encoding="utf-8"))
    # Measured is what a grant costs, not that it ends after sixty.
    policies["effect_caps"] = [{"cap_id": "bench", "scope": "SCOPE_TARGET", "effects_per_hour": 100000}]
    named = (("inventory.yaml", inventory), ("backends.yaml", backends), ("policies/demo.yaml", policies))
    for name, content in named:
        (config / name).write_text(yaml.safe_dump(content), encoding="utf-8")


@asynccontextmanager
async def running_workload(folder: Path) -> AsyncIterator[Workload]:
    """Run the demo's checkout."""
    workload = await start_workload(folder, free_port())
    try:
        yield workload
    finally:
        await stop_workload(workload)


async def rows(folder: Path) -> list[Row]:
    """Bring a mesh up cold, take it down, bring it up warm, and measure it, first of all while it idles."""
    async with running_workload(folder / "workload") as workload:
        with serving() as manager:
            lay_out(folder / "config", workload, manager)
            began = time.monotonic()
            async with running_mesh(folder / "mesh", folder / "config", folder / "up.log"):
                cold = time.monotonic() - began
            began = time.monotonic()
            async with (
                running_mesh(folder / "mesh", folder / "config", folder / "up.log") as mesh,
                connected(mesh, {NAME: workload}) as world,
            ):
                warm = time.monotonic() - began
                await settle(IDLE_SECONDS)
                return [
                    ready_row("mesh ready, cold (with initdb and migrations)", cold, COLD_MAX),
                    ready_row("mesh ready, warm", warm, WARM_MAX),
                    memory_row(mesh),
                    *await measured(world),
                ]


async def measured(world: World) -> list[Row]:
    """Measure what takes traffic, the quietest first."""
    return [await signals.start_row(world), await actions.row(world), await signals.model_row(world)]


def ready_row(what: str, seconds: float, bar: float) -> Row:
    """Return a row about the time until endpoints.json appeared."""
    return Row(what, f"{seconds:.1f} s", bar=f"< {bar:g} s", met=seconds < bar)


def memory_row(mesh: Mesh) -> Row:
    """Add up the proportional set size of every process of a mesh."""
    names = {one.pid: one.name for one in supervise.status(mesh.supervisor)}
    top = psutil.Process(int((mesh.state / "run" / "lock").read_text()))
    found: dict[str, float] = {}

    def weigh(process: psutil.Process, name: str) -> None:
        """Add a process and what it started: PostgreSQL is many."""
        found[name] = found.get(name, 0.0) + process.memory_full_info().pss / MEBIBYTE
        for child in process.children():
            weigh(child, names.get(child.pid, "supervisord" if process.pid == top.pid else name))

    weigh(top, "up")
    total = sum(found.values())
    parts = ", ".join(f"{name} {size:.0f}" for name, size in sorted(found.items(), key=lambda one: -one[1]))
    return Row(
        "memory of the idle mesh (Pss)", f"{total:.0f} MB", parts, bar=f"< {MEMORY_MAX:g} MB", met=total < MEMORY_MAX
    )
