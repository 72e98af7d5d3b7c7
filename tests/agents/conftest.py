"""Fixtures of the agents' tests."""

import pytest

from tests.mesh.world import World


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Give certificates for every service and person."""
    return World(tmp_path_factory.mktemp("mesh"))
