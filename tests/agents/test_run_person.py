"""Whose a run is: of the person who started it, or whom guardrails read in a token; registering it does not take it."""

from collections.abc import AsyncIterator

import pytest

from tests.agents.run_house import Runs, running
from tests.mesh.world import World
from tests.stores import Database


@pytest.fixture
async def runs(mesh: World, database: Database) -> AsyncIterator[Runs]:
    """Run the engine."""
    async with running(mesh, database) as one:
        yield one


async def test_a_run_stays_its_persons(runs: Runs) -> None:
    """Guardrails knows only the service that registered it; the person is told with every action."""
    run = await runs.until(await runs.start(requester="human/operator"))
    assert (run.state, run.requester) == ("SUCCEEDED", "human/operator")


async def test_the_person_of_a_token_is_the_requester(runs: Runs) -> None:
    """The router started it; for whom is what guardrails read in the token."""
    runs.outside.person = "human/approver"
    run = await runs.until(await runs.start(requester="service/router", identity_token=b"token"))
    assert run.requester == "human/approver"
