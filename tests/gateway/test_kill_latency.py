"""I6 in its short form: `make bench` has the long one, with its histogram."""

from pathlib import Path

from tests.bench.kill import CLIENTS, NEVER_ABOVE, measure
from tests.gateway.guarded import guarded
from tests.stores import Database

ROUNDS = 6


async def test_no_effect_starts_later_than_two_seconds_after_a_kill(postgres: Database, tmp_path: Path) -> None:
    """Real guardrails and gateway, clients with good grants, every other round cut off: never above 2 s."""
    async with postgres.fresh() as database, guarded(tmp_path, database, CLIENTS) as house:
        found = await measure(house, ROUNDS)
    late = [*found.late[False], *found.late[True]]
    assert len(late) == ROUNDS
    assert max(late) <= NEVER_ABOVE
    assert found.effects >= ROUNDS * CLIENTS
    assert set(found.reasons) <= {"KILLED", "LEASE_STALE"}
    assert {"KILLED", "LEASE_STALE"} <= set(found.reasons)
