"""A mesh for the harnesses: the stories' world caps out of the way, and programs replaced by their doubles."""

import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import yaml

from services.local.layout import Mesh
from services.local.process import HOUSE
from services.local.reach import credentials
from services.mesh.client import MeshChannel, connect
from tests.faults import slow_fsync
from tests.faults.gateway_that_dies import PLAN
from tests.flows.world import World, connected, lay_out, leftovers, running_mesh, running_workloads
from tests.gateway import aws

# How long an approval waits for an answer: longer than any one service is away.
APPROVAL_SECONDS = 20
MANY = 10_000


def widen(config: Path) -> None:
    """Change the stories' configuration: caps must not end a storm, approvals wait until a person has looked."""
    path = config / "policies" / "demo.yaml"
    policies = yaml.safe_load(path.read_text(encoding="utf-8"))
    for rule in policies["rules"]:
        if "approval" in rule:
            rule["approval"]["ttl_duration"] = f"{APPROVAL_SECONDS}s"
    for cap in policies["notice_caps"]:
        cap["per_hour"] = MANY
    policies["effect_caps"] = [
        {"cap_id": scope.lower(), "scope": f"SCOPE_{scope}", "effects_per_hour": MANY}
        for scope in ("TARGET", "ENVIRONMENT")
    ]
    path.write_text(yaml.safe_dump(policies), encoding="utf-8")
    loop = {
        "template_id": "loop",
        "title": "Start oneself",
        "description": "A template whose runs may start runs of itself: only depth and number bound them.",
        "role": "You hand everything on.",
        "tools": ["ListRunbooks"],
        "max_steps": 10,
        "max_depth": 3,
        "child_templates": ["loop", "take-action"],
        "timeout_duration": "60s",
        "token_budget": 10000,
    }
    (config / "agents" / "loop.yaml").write_text(yaml.safe_dump(loop), encoding="utf-8")


@contextmanager
def groups(config: Path) -> Iterator[None]:
    """Give every workload a group of machines, too: one of none, so that what is asked for blindly is right."""
    with aws.aws() as cloud:
        aws.make_group(cloud, desired=0, least=0)
        path = config / "backends.yaml"
        backends = yaml.safe_load(path.read_text(encoding="utf-8"))
        targets = [one["target_id"] for one in backends["workloads"]]
        backends["autoscaling"] = [aws.entry(cloud, config, target) for target in targets]
        path.write_text(yaml.safe_dump(backends), encoding="utf-8")
        yield


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[World]:
    """Run workloads and mesh; at the end everything is stopped and nothing is left behind."""
    async with AsyncExitStack() as stack:
        workloads = await stack.enter_async_context(running_workloads(folder / "workloads"))
        lay_out(folder / "config", workloads)
        widen(folder / "config")
        stack.enter_context(groups(folder / "config"))
        async with (
            running_mesh(folder / "mesh", folder / "config", folder / "up.log") as mesh,
            connected(mesh, workloads) as world,
        ):
            yield world
    assert leftovers(folder) == []
    shutil.rmtree(folder)


def short_folder() -> Path:
    """Make a folder with a short path, for sockets, that PostgreSQL's user, who is not root, can be let through to."""
    path = Path(tempfile.mkdtemp(prefix="opsmesh-faults-"))
    path.chmod(0o755)
    return path


def channel(mesh: Mesh, service: str, name: str) -> MeshChannel:
    """Connect to a service with the certificate of a service or person NAME."""
    return connect(mesh.peers()[service], service, credentials(mesh, name))


def plan_file(mesh: Mesh) -> Path:
    """Return the file that tells the next gateway where to die."""
    return mesh.state / "run" / "faults.plan"


def stall_file(mesh: Mesh) -> Path:
    """Return the file while which exists no fsync of Valkey returns."""
    return mesh.state / "run" / "faults.stall"


def replace_programs(mesh: Mesh) -> None:
    """Make the gateway that dies, and Valkey on a disk that may stall, what the supervisor starts from now on."""
    _respecify(mesh, "gateway", [sys.executable, "-m", "tests.faults.gateway_that_dies"], {PLAN: str(plan_file(mesh))})
    if slow_fsync.supported():
        script = str(HOUSE / "tests" / "faults" / "slow_fsync.py")
        _respecify(mesh, "valkey", [sys.executable, "-I", "-S", script, str(stall_file(mesh))], {}, before=True)


def _respecify(
    mesh: Mesh, name: str, command: Sequence[str], environment: dict[str, str], *, before: bool = False
) -> None:
    """Rewrite what a program's leash reads at each start; `before` keeps its own command as arguments."""
    path = mesh.supervisor.run / f"{name}.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    spec["argv"] = [*command, *(spec["argv"] if before else ())]
    spec["env"] |= environment
    path.write_text(json.dumps(spec), encoding="utf-8")
