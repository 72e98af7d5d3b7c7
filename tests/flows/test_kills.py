"""Kill -9 at random points of running playbooks: everything ends, and no effect happens twice or is forgotten."""

import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence

import asyncpg
import pytest

from services.gateway.domain import Key, intent_id, outcome_id
from tests.flows.storm import KILLS, Storm
from tests.flows.world import RESTART, TILLS, Event, World

pytestmark = pytest.mark.timeout(300 + 5 * KILLS)


@pytest.fixture(scope="module")
async def starts(world: World) -> dict[str, int]:
    """Give how often each workload was started before the storm, by its process manager's own record."""
    return {name: world.workloads[name].start_count() for name in TILLS}


@pytest.fixture(scope="module")
async def storm(world: World, starts: dict[str, int]) -> AsyncIterator[Storm]:
    """Give a storm that is over."""
    assert starts
    raged = Storm(world)
    await raged.rage()
    await raged.settled()
    yield raged
    await world.whole()


async def restarts(storm: Storm) -> Sequence[asyncpg.Record]:
    """Return the effects of the storm; other stories have restarted the same workloads before it."""
    query = "SELECT request_id, tries, state, target_id, execution_id FROM gateway.effects WHERE incident_id = ANY($1)"
    return await storm.world.rows(query + " AND method = $2", list(storm.ends), RESTART)


async def test_everything_ends(storm: Storm) -> None:
    """Every incident of the storm ends, almost all repaired, and no execution hangs."""
    assert storm.kills.total() >= KILLS
    assert set(storm.ends.values()) <= {"RESOLVED", "AWAITING_MODEL", "AWAITING_PERSON"}
    assert list(storm.ends.values()).count("RESOLVED") >= 0.8 * len(storm.ends)


async def test_no_restart_is_repeated_or_lost(
    storm: Storm, starts: dict[str, int], record_property: Callable[[str, object], None]
) -> None:
    """The process managers' own records count exactly the restarts that the gateway says succeeded."""
    effects = await restarts(storm)
    done = Counter(row["target_id"] for row in effects if row["state"] == "SUCCEEDED")
    said = {name: done[f"svc:demo/{name}"] for name in TILLS}
    counted = {name: storm.world.workloads[name].start_count() - starts[name] - storm.mends[name] for name in TILLS}
    wrong = sum(abs(counted[name] - said[name]) for name in TILLS)
    for line in storm.summary(Counter(row["state"] for row in effects), wrong):
        record_property("figures", line)
    assert counted == said


async def test_an_execution_restarts_at_most_once(storm: Storm) -> None:
    """No execution has two restarts that succeeded: what was sent before a kill is asked for, not sent again."""
    done = Counter(row["execution_id"] for row in await restarts(storm) if row["state"] == "SUCCEEDED")
    assert set(done.values()) == {1}


async def test_every_intent_has_its_outcome(storm: Storm) -> None:
    """Each try that audit knows the intent of has exactly one outcome, and the other way round."""
    query = "SELECT event_id, phase FROM audit.events WHERE action = $1 AND incident_id::text = ANY($2)"
    events = await storm.world.rows(query, RESTART, list(storm.ends))
    intents = {row["event_id"] for row in events if row["phase"] == Event.PHASE_INTENT}
    outcomes = {row["event_id"] for row in events if row["phase"] == Event.PHASE_OUTCOME}
    tries = [
        (Key(RESTART, uuid.UUID(str(row["request_id"]))), number)
        for row in await restarts(storm)
        for number in range(1, row["tries"] + 1)
    ]
    assert intents == {intent_id(*one) for one in tries if intent_id(*one) in intents}
    assert outcomes == {outcome_id(*one) for one in tries if intent_id(*one) in intents}
    assert len(intents) + len(outcomes) == len(events)


async def test_every_signal_has_one_row_and_every_revision_one_decision(storm: Storm) -> None:
    """What was accepted during the storm is there once, and each incident was decided once per revision."""
    rows = await storm.world.rows(
        "SELECT signal_id FROM ingest.signals WHERE signal_id = ANY($1::uuid[])", storm.signals
    )
    assert sorted(str(row["signal_id"]) for row in rows) == sorted(storm.signals)
    for incident_id in storm.ends:
        incident = await storm.world.incident(incident_id)
        decisions = await storm.world.decisions(incident_id)
        assert [one.revision for one in decisions] == list(range(1, incident.revision + 1))


async def test_nobody_is_told_twice(storm: Storm) -> None:
    """A notice that was on its way during a kill is in the inbox once."""
    told = Counter(one["notice_id"] for incident_id in storm.ends for one in storm.world.notices(incident_id))
    assert set(told.values()) == {1}
