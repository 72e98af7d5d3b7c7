"""Fixtures of the router's tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.mesh.world import World
from tests.router.house import Router, Town
from tests.stores import Database


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Give certificates for every service and person."""
    folder: Path = tmp_path_factory.mktemp("world")
    return World(folder)


@pytest.fixture
async def town(world: World, postgres: Database) -> AsyncIterator[Town]:
    """Give a town with an empty database of its own, where nobody runs yet."""
    async with postgres.fresh() as database:
        yield Town(world, database)


@pytest.fixture
async def router(town: Town) -> AsyncIterator[Router]:
    """Give a running router among running peers, without rules."""
    async with town.serve_automation(), town.serve_agents(), town.serve_audit(), town.router() as running:
        yield running
