"""A few rounds of what `python -m tests.gateway.pauses` does fifty times."""

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.guarded import Guarded
from tests.gateway.pauses import STEPS, apart, pause_client, pause_gateway
from tests.stores import Database


@pytest.fixture
async def house(postgres: Database, tmp_path: Path) -> AsyncIterator[Guarded]:
    """Give real guardrails and gateway with two targets, published."""
    async with apart(tmp_path / "house", postgres) as made:
        yield made


async def test_a_gateway_that_was_paused_past_its_lease_starts_nothing(house: Guarded) -> None:
    """Paused before each step, killed or cut off meanwhile: KILLED or LEASE_STALE, and nothing in the tool's record."""
    rounds = 2 * len(STEPS)
    seen = await pause_gateway(house, rounds, random.Random(1))  # noqa: S311  no secret
    assert seen.late == 0
    assert set(seen.answers) <= {"KILLED", "LEASE_STALE"}
    assert seen.answers.total() == rounds


async def test_a_client_that_was_paused_past_its_lock_starts_nothing(house: Guarded) -> None:
    """Its lock lapsed and another acted: FENCE_STALE, whatever grant it still holds."""
    seen = await pause_client(house, 3)
    assert seen.late == 0
    assert dict(seen.answers) == {"FENCE_STALE": 3}
