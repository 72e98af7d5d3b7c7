"""One mesh for both harnesses: first what attackers try, then the storm; starting it costs more than either."""

from collections.abc import AsyncIterator

import pytest

from tests.faults.reading import Outside, note_starts
from tests.faults.world import running, short_folder
from tests.flows.world import World


@pytest.fixture(scope="session")
async def world() -> AsyncIterator[World]:
    """Give the running mesh; its folder is kept, to look at, when it does not stop cleanly."""
    async with running(short_folder()) as running_world:
        yield running_world


@pytest.fixture(scope="session")
async def outside(world: World) -> Outside:
    """Give what only the outside knows, from the mesh's first moment on."""
    kept = Outside()
    await note_starts(world, kept)
    return kept
