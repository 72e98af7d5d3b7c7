"""Fixtures of the agents' tests."""

from collections.abc import AsyncIterator

import pytest

from tests.mesh.world import World
from tests.stores import Database


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Give certificates for every service and person."""
    return World(tmp_path_factory.mktemp("mesh"))


@pytest.fixture
async def database(postgres: Database) -> AsyncIterator[Database]:
    """Give a database that belongs to one test: a run that one test leaves open is not worked on in the next."""
    async with postgres.fresh() as fresh:
        yield fresh
