"""Incidents whose work a kill holds back: shown as HELD, never lost, and signals go on being accepted."""

import pytest

from opsmesh.router.v1 import decision_service_pb2 as router_pb
from services.ingest.decisions import Decided, DecisionState, Outcome, Result, follow, poll_delay
from services.ingest.domain import REVISIONS_MAX, State
from tests.ingest.house import House, alert, eventually
from tests.ingest.test_lanes import MemoryRouter, arrive, following, reached

Decision = router_pb.Decision
WORDS = "rule restart matches; held: kill 1 (everything) stops it"
COUNT = 40


@pytest.fixture
def router() -> MemoryRouter:
    """Give a router in memory whose every decision is held."""
    made = MemoryRouter()
    made.next = Decision(
        state=Decision.STATE_DECIDED,
        outcome=Decision.OUTCOME_TRIGGER_AUTOMATION,
        rule_id="restart",
        reason=WORDS,
        held=True,
    )
    return made


async def test_many_held_incidents_all_come_out_again(house: House, router: MemoryRouter) -> None:
    """Each is HELD with the kill in its detail, over a restart of the lanes; released they run or are STALE."""
    async with following(house, router):
        for number in range(COUNT):
            await arrive(house, alert(f"a{number}", service=f"s{number}"))
        rows = await eventually(lambda: of_state(house, "HELD"))
        assert {row["state_detail"] for row in rows} == {WORDS}
    for number, one in enumerate(router.decisions.values()):
        if number % 2:
            one.MergeFrom(Decision(state=Decision.STATE_CLOSED, result=Decision.RESULT_STALE, reason="too old"))
        else:
            one.reason, one.execution_id = "rule restart matches", "e-1"
        one.held = False
    async with following(house, router):
        await eventually(lambda: of_state(house, "RUNNING", COUNT // 2))
        stale = await eventually(lambda: of_state(house, "STALE", COUNT // 2))
    assert {row["state_detail"] for row in stale} == {"too old"}
    assert len(router.decisions) == COUNT


async def of_state(house: House, state: str, count: int = COUNT) -> object:
    """Return the incidents in a state once there are so many."""
    rows = await house.rows("SELECT state_detail FROM incidents WHERE state = $1", state)
    return rows if len(rows) == count else None


async def test_signals_join_a_held_incident_and_its_resolve_ends_it(house: House, router: MemoryRouter) -> None:
    """A held incident takes further alerts without a new revision, and the last resolve closes it at once."""
    async with following(house, router):
        await arrive(house, alert("a"))
        await reached(house, "HELD")
        await arrive(house, alert("a", pod="2"))
        await arrive(house, alert("a"))
        row = await reached(house, "HELD", signal_count=3, duplicate_count=1)
        assert row["revision"] == 1
        await arrive(house, alert("a", "resolved"), alert("a", "resolved", pod="2"))
        row = await reached(house, "RESOLVED")
    assert row["revision"] == 2


def test_a_resolve_just_before_the_hold_is_decided_now() -> None:
    """Resolved while it seemed to run, then held: a new revision, as long as there may be one."""
    held = Decided(
        DecisionState.DECIDED,
        Outcome.TRIGGER_AUTOMATION,
        Result.UNSPECIFIED,
        awaiting_approval=False,
        reason="",
        held=True,
    )
    step = follow(State.RUNNING, 1, held, firing=False)
    assert (step.state, step.revise) == (State.OPEN, True)
    step = follow(State.RUNNING, REVISIONS_MAX, held, firing=False)
    assert (step.state, step.revise, step.following) == (State.HELD, False, True)
    assert follow(State.HELD, 1, held, firing=True).state is State.HELD
    assert follow(State.RESOLVED, 1, held, firing=False).state is State.RESOLVED
    assert poll_delay(State.HELD, 100) == 5
