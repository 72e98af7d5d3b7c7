"""Fixtures for every test folder: the real stores, started once per test process."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.local.temporal import Temporal
from services.local.valkey import Valkey
from tests.stores import Database, running_postgres, running_temporal, running_valkey

FLOWS = "tests/flows"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file on one worker, and all flows together on one, first: they share a mesh and take longest."""
    root = Path(__file__).parents[1]
    for item in items:
        file = str(item.path.relative_to(root))
        item.add_marker(pytest.mark.xdist_group("mesh" if file.startswith(FLOWS) else file))
    items.sort(key=lambda item: not str(item.path.relative_to(root)).startswith(FLOWS))


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
