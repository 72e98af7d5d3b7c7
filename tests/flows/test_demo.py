"""The demo tells the truth: exit 0 and the facts when all of it happened, exit 1 when a part of it did not."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.world import leftovers
from tests.mesh.world import ROOT

TELLS = (
    "a real workload runs under a supervisord of its own",
    "checkout is broken: it answers 503",
    "webhook 3: 202",
    "checkout answers 200 again",
    "two of three signals were duplicates; rule checkout-down (rule set 1) decided, no model was called",
    "RestartWorkload",
    "INTENT",
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


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the demo by these words, with its temporary files under FOLDER."""
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"}
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False
    )


def test_the_demo_tells_what_happened(folder: Path) -> None:
    """`opsmesh demo` exits 0, tells every act, and leaves neither a process nor a file."""
    done = run(folder, "-m", "services.cli", "demo")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = " ".join(done.stdout.split())
    assert [fact for fact in TELLS if fact not in said] == []
    assert leftovers(folder) == []
    assert list(folder.iterdir()) == []


def test_a_demo_whose_restart_is_denied_fails(folder: Path) -> None:
    """Where policy denies the restart, the demo says what did not come, exits 1, and leaves no process."""
    done = run(folder, "-m", "tests.flows.sabotaged_demo")
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    assert "The demo failed: the repair of checkout did not come" in done.stdout
    assert "webhook 3: 202" in done.stdout
    assert leftovers(folder) == []
