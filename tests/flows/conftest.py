"""One mesh for all stories of a test run: starting it costs more than any story."""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.flows.world import World, running_world

HERE = Path(__file__).parent
# Seconds: the first story also waits for the mesh, and each waits for other processes, on cores that are shared.
LONGEST = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every story that says nothing else the time that a whole mesh may take."""
    for item in items:
        if item.path.is_relative_to(HERE) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LONGEST))


@pytest.fixture(scope="session")
def folder() -> Path:
    """Give a folder with a short path that PostgreSQL's user, who is not root, can be let through to."""
    path = Path(tempfile.mkdtemp(prefix="opsmesh-flows-"))
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
async def world(folder: Path) -> AsyncIterator[World]:
    """Give the running mesh; its folder is kept, to look at, when it does not stop cleanly."""
    async with running_world(folder) as running:
        yield running
