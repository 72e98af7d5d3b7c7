"""Fixtures of automation's tests."""

from collections.abc import AsyncIterator

import pytest

from services.local.temporal import Temporal
from tests.automation.playbooks import ALL
from tests.automation.world import Mesh, running_mesh
from tests.stores import Database


@pytest.fixture(scope="module")
async def running(
    tmp_path_factory: pytest.TempPathFactory, database: Database, temporal: Temporal
) -> AsyncIterator[Mesh]:
    """Give a running automation with the shipped playbooks, one for each test module."""
    async with running_mesh(tmp_path_factory.mktemp("automation"), database, temporal) as mesh:
        for name in ("restart-workload", "notify-person", "health-report"):
            await mesh.publish(name)
        for playbook in ALL:
            await mesh.publish(playbook)
        yield mesh


@pytest.fixture
def mesh(running: Mesh) -> Mesh:
    """Give the running automation, its fakes as new."""
    running.guardrails.reset()
    running.gateway.__dict__ |= type(running.gateway)().__dict__
    running.audit.__dict__ |= type(running.audit)().__dict__
    return running
