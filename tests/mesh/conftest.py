"""Fixtures of the mesh's own tests."""

from pathlib import Path

import pytest

from tests.mesh.world import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Give certificates for every service and person."""
    folder: Path = tmp_path_factory.mktemp("world")
    return World(folder)
