"""The demo tells the truth: exit 0 and the facts when all of it happened, exit 1 when a part of it did not."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.flows.world import leftovers, until
from tests.mesh.world import ROOT

# seconds; alone on two cores the whole demo takes less than a quarter of it, but here it shares them
LONGEST = 600
pytestmark = pytest.mark.timeout(LONGEST + 30)
TELLS = (
    "a real workload runs under a supervisord of its own",
    "checkout is broken: it answers 503",
    "webhook 3: 202",
    "checkout answers 200 again",
    "two of three signals were duplicates; rule checkout-down (rule set 1) decided, no model was called",
    "RestartWorkload",
    "INTENT",
    "the same rule, the same playbook, but it stopped",
    "`opsmesh status` says who waits for whom",
    "whoever asked may not approve; the operator took the request back",
    "approved by approver, it ran, once: production answers 200 again, resolved",
    "approved, but refused: STATE_CHANGED",
    "the playbook in the middle of its work is CANCELLED, and the approval it waited for is void",
    "a new alert is accepted, its incident is HELD",
    "the operator releases it: RELEASE_PENDING",
    "two people let go: the held incident's playbook ran and repaired checkout",
    "no model is asked here: its replies are recordings",
    "no rule matched; the routing model chose delegate to an agent",
    "approved, executed once, and verified by a health read, not by the agent's word: resolved",
    "[replayed from a file]",
    "both were refused before anything was sent, and the process managers started nothing",
    "intact: ",
    "the mesh has stopped cleanly",
    "no process was left behind",
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give the demo its temporary folder: a short path that PostgreSQL's user can be let through to."""
    path = Path(tempfile.mkdtemp(prefix="opsmesh-tale-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a demo with its temporary files under FOLDER."""
    return os.environ | {"TMPDIR": str(folder), "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"}


def meshes(folder: Path) -> list[Path]:
    """Return the endpoint files of the meshes that run under FOLDER."""
    return list(folder.glob("**/endpoints.json"))


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the demo by these words."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )


def test_the_demo_tells_what_happened(folder: Path) -> None:
    """`opsmesh demo` exits 0, tells every act, and leaves neither a process nor a file."""
    done = run(folder, "-m", "services.cli", "demo")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = " ".join(done.stdout.split())
    assert [fact for fact in TELLS if fact not in said] == []
    assert leftovers(folder) == []
    assert list(folder.iterdir()) == []


async def test_a_demo_that_is_killed_leaves_no_process(folder: Path) -> None:
    """Kill -9 in the middle of it: mesh, stores and workloads end by themselves."""
    quiet = asyncio.subprocess.DEVNULL
    demo = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "demo"), cwd=ROOT, env=environment(folder), stdout=quiet, stderr=quiet
    )

    async def is_up() -> bool:
        return bool(meshes(folder)) or demo.returncode is not None

    async def is_gone() -> bool:
        return not leftovers(folder)

    try:
        await until(is_up, "the mesh", 150)
        assert demo.returncode is None
    finally:
        with suppress(ProcessLookupError):
            demo.kill()
        await demo.wait()
    await until(is_gone, "the end of all", 120)


@pytest.mark.parametrize(
    ("sabotage", "words", "webhooks"),
    [
        ("denied", "The demo failed: the repair of checkout did not come", 3),
        ("unasked", "The demo failed: the restart in production did not stop for approval", 4),
        ("unstopped", "The demo failed: the end of the execution that was killed did not come", 1),
    ],
)
def test_a_demo_that_is_sabotaged_fails(folder: Path, sabotage: str, words: str, webhooks: int) -> None:
    """Where policy denies or asks nobody, or the kill hits nothing, it says what did not come and exits 1."""
    done = run(folder, "-m", "tests.flows.sabotaged_demo", sabotage)
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    assert words in done.stdout
    assert done.stdout.count(": 202 after") == webhooks
    assert leftovers(folder) == []
