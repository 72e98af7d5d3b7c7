"""Fixtures for every test folder: the real stores, started once per test process."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler.loadfile import LoadFileScheduling  # type: ignore[import-untyped]  # it ships no types

from services.local.temporal import Temporal
from services.local.valkey import Valkey
from tests.stores import Database, running_postgres, running_temporal, running_valkey

FLOWS = "tests/flows"
# A flow that brings up meshes of its own need not wait for the shared one.
ALONE = ("tests/flows/test_agents.py", "tests/flows/test_demo.py", "tests/flows/test_kill_survives.py")
# The two harnesses share a mesh, too; the other files beside them do not need it.
FAULTS = ("tests/faults/test_containment.py", "tests/faults/test_runs.py", "tests/faults/test_storm.py")
FIGURES = "figures"
# The same examples in every run, however slow the machine is: new ones are `make fuzz`'s to find.
settings.load_profile("ci")


class _Files(LoadFileScheduling):  # type: ignore[misc]  # xdist is not typed
    """Keeps a file on one worker, the flows together on one and the harnesses on one: they share a mesh.

    xdist's own groups by mark do nothing under a pytest that computes node ids (xdist 3.8.0, pytest 9.2).
    """

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        if file in FAULTS:
            return FAULTS[0]
        return FLOWS if file.startswith(FLOWS) and file not in ALONE else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Files | None:
    """Deal files out to the workers in the order of collection, when asked for groups."""
    if config.getoption("dist") != "loadgroup":
        return None
    config.option.loadscopereorder = False
    return _Files(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the flows first, then the harnesses: they take longest."""
    root = Path(__file__).parents[1]

    def place(item: pytest.Item) -> int:
        file = str(item.path.relative_to(root))
        return 0 if file.startswith(FLOWS) else 1 if file in FAULTS else 2

    items.sort(key=place)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests have recorded, whichever worker they ran on."""
    for report in (*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")):
        for name, value in getattr(report, "user_properties", ()):
            if name == FIGURES:
                terminalreporter.write_line(f"{report.nodeid.partition('::')[0]}: {value}")


@pytest.fixture(scope="session")
def store_folder() -> Iterator[Path]:
    """Give the session's stores a folder with a short path, outside pytest's own that nobody else may enter."""
    folder = Path(tempfile.mkdtemp(prefix="opsmesh-test-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
async def postgres(store_folder: Path) -> AsyncIterator[Database]:
    """Give the session's PostgreSQL, migrated: `.dsn(role)`, `.password(role)`, `.password_file(role)`, `.fresh()`."""
    async with running_postgres(store_folder) as running:
        yield running


@pytest.fixture(scope="module")
async def database(postgres: Database) -> AsyncIterator[Database]:
    """Give a migrated, empty database that belongs to one test module."""
    async with postgres.fresh() as fresh:
        yield fresh


@pytest.fixture(scope="session")
async def valkey(store_folder: Path) -> AsyncIterator[Valkey]:
    """Give the session's Valkey: `.url("ingest")`, `.url("observer")`."""
    async with running_valkey(store_folder) as running:
        yield running


@pytest.fixture(scope="session")
async def temporal(store_folder: Path) -> AsyncIterator[Temporal]:
    """Give the session's Temporal: `.address`, namespace default."""
    async with running_temporal(store_folder) as running:
        yield running
