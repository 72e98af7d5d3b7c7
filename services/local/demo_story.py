"""`make demo` on this machine, for real: a repair, an approval, a drift, the kill switch, an agent, and a poisoned log.

The first thing that did not truly happen ends it with exit code 1. It leaves no process behind; its folder is kept when
it failed.
"""

import asyncio
import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from services.local import demo, demo_acts, demo_agents
from services.local.checkout import Workload, start_workload, stop_workload
from services.local.demo import DemoError, World, check, health
from services.local.files import free_port

# Of what is written to a file or a pipe, where no terminal says how wide it is.
WIDTH = 150


def tell(world: World, workload: Workload, production: Workload) -> None:
    """Tell and check the whole story on running workloads."""
    config = world.folder / "config"
    demo.write_config(config, workload, production)
    demo.write_models(config)
    mesh = demo.start_mesh(world, config)
    try:
        services = ", ".join(sorted(json.loads((world.state / "endpoints.json").read_text())["services"]))
        world.say(f"the mesh runs, each service a process with its own certificate: {services}")
        demo.first_act(world, workload)
        demo_acts.approval(world, production)
        demo_acts.drift(world, production)
        demo_acts.kill(world, workload, production)
        demo_agents.diagnosis(world, production)
        demo_agents.poison(world, workload, production)
        world.show("audit", "verify")
    finally:
        code = demo.stop_mesh(mesh)
    check(code == 0, f"the mesh stopped with exit code {code}; see {world.folder / 'up.log'}")
    world.say("the mesh has stopped cleanly")


def leftovers(world: World) -> list[str]:
    """Return the processes that name the demo's folder in their command or environment and still run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            said = [*process.cmdline(), *process.environ().values()]
            if any(str(world.folder) in text for text in said):
                found.append(f"{process.pid} {process.name()}")
    return found


@contextlib.contextmanager
def workload(world: World, name: str) -> Iterator[Workload]:
    """Run one healthy checkout under a supervisord of its own."""
    running = asyncio.run(start_workload(world.folder / name, free_port()))
    try:
        check(health(running) == httpx.codes.OK, f"checkout in {name} did not start")
        world.say(f"a real workload runs under a supervisord of its own: checkout in {name} on {running.health_url}")
        yield running
    finally:
        asyncio.run(stop_workload(running))


def run_demo() -> int:
    """Run the whole demo; return the exit code."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    world = World(console, Path(tempfile.mkdtemp(prefix="opsmesh-demo-")), time.monotonic())
    # Embedded PostgreSQL runs as an ordinary user even when root starts it: it must be able to pass through.
    world.folder.chmod(0o755)
    console.print(
        Panel(
            "opsmesh: a real alert repaired, an approval, a drift, the kill switch, an agent, and a poisoned log",
            subtitle="models are recordings; no Docker, no root",
        )
    )
    try:
        with workload(world, "demo") as ours, workload(world, "production") as theirs:
            tell(world, ours, theirs)
        remaining = leftovers(world)
        check(not remaining, f"processes were left behind: {remaining}")
    except DemoError as error:
        console.print(f"[red]The demo failed:[/red] {error}\nWhat it left to look at: {world.folder}", soft_wrap=True)
        return 1
    shutil.rmtree(world.folder, ignore_errors=True)
    world.say("no process was left behind")
    summary = Table.grid(padding=(0, 2))
    summary.add_row("Keep a mesh running:", "make up")
    summary.add_row("Look into it:", ".venv/bin/opsmesh incidents list")
    console.print(summary)
    return 0
