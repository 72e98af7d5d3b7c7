"""A firing after the end is a new incident, however quick or slow the router is; what it left ends as it would have."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from opsmesh.router.v1 import decision_service_pb2 as router_pb
from services.ingest.correlation import Calm, Correlation, Grouping
from services.ingest.domain import REVISIONS_MAX, Disposition, SignalFacts, State, Tally
from services.ingest.signal import Status
from services.ingest.store import PostgresIncidents
from tests.ingest.house import House, alert, entry, eventually, notification
from tests.ingest.test_domain import book, facts, judged
from tests.ingest.test_lanes import MemoryRouter, arrive, following

Decision = router_pb.Decision
LATER = "2026-03-01T11:00:00Z"
HOUR = timedelta(hours=1)
OPENS = sorted(set(State) - {State.RESOLVED, State.STALE})


def calm(house: House, grouping: Grouping) -> None:
    """Give a house this grouping for all alerts."""
    house.store = PostgresIncidents(house.pool, Calm(HOUR, timedelta(), Correlation((), grouping)))


def again(**changes: Any) -> SignalFacts:
    """Return the same alert, firing anew after its end."""
    made = facts(at=300, start=300)
    return SignalFacts(**{name: changes.get(name, getattr(made, name)) for name in made.__slots__})


@pytest.mark.parametrize("state", OPENS, ids=lambda state: state.name)
def test_what_is_over_takes_nothing_new_in_any_state(state: State) -> None:
    """Its firing joins nothing, the old incident is told nothing of it, and a third alert joins the new one."""
    one = book()
    one.load([], [Tally("old", "a", state, decided=True)])
    first, second = one.judge(again()), one.judge(facts(key="b", where="a"))
    assert first.disposition is Disposition.OPENED
    assert second.incident_id == first.incident_id != "old"
    assert (one.incidents["old"].signals, one.incidents["old"].reopened) == (0, False)


@pytest.mark.parametrize("held", [{"flapping": True}, {"gathers": True}, {"active": 1}])
def test_what_flaps_gathers_or_fires_takes_more(held: dict[str, Any]) -> None:
    """These hold it open: no revision of their own, for nobody has been told that it is over."""
    one = book()
    one.load([], [Tally("old", "a", State.OPEN, **held)])
    assert one.judge(again()).incident_id == "old"
    assert not one.incidents["old"].reopened


@pytest.mark.parametrize(
    ("state", "revision", "joins", "revised"),
    [
        (State.OPEN, 2, True, True),
        (State.HELD, 2, True, True),
        (State.RUNNING, 2, True, False),
        (State.AWAITING_APPROVAL, 2, True, False),
        (State.OPEN, REVISIONS_MAX, False, False),
    ],
)
def test_a_rule_that_opens_again_does_so_before_the_close_as_after_it(
    *, state: State, revision: int, joins: bool, revised: bool
) -> None:
    """With a revision of its own, unless something acts on it or none is left: then it is another incident."""
    one = book()
    one.load([], [Tally("old", "a", state, revision=revision)])
    assert (one.judge(again(grouping=Grouping(reopen=HOUR))).incident_id == "old") is joins
    assert one.incidents["old"].reopened is revised


def test_a_batch_decides_as_single_deliveries_do() -> None:
    """Fired, over and fired again in one batch are two incidents, or one that gathers."""
    story = [facts(), facts(Status.RESOLVED, 200), again()]
    one = book()
    assert judged(one, *story)[-1] is Disposition.OPENED
    other = book()
    other.debounce = timedelta(seconds=5)
    assert judged(other, *story)[-1] is Disposition.JOINED


class SlowRouter(MemoryRouter):
    """Has decided what it was asked, and tells it when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.decided = asyncio.Event()
        self.answers = asyncio.Event()

    async def DecideIncident(self, request: router_pb.DecideIncidentRequest) -> router_pb.DecideIncidentResponse:  # noqa: N802  the IDL's name
        """Decide at once and answer late."""
        found = await super().DecideIncident(request)
        self.decided.set()
        await self.answers.wait()
        return found


async def states(house: House) -> list[tuple[str, bool]]:
    """Return (state, firing) of all incidents, the oldest first."""
    return [tuple(row) for row in await house.rows("SELECT state, firing FROM incidents ORDER BY open_time")]


async def told(house: House, state: str) -> None:
    """Have the first revision decided so, by whoever did."""
    await house.pool.execute("UPDATE incidents SET state = $1, needs_decision = false, attempts = 0", state)


@pytest.mark.parametrize("grouping", [Grouping(), Grouping(reopen=HOUR)], ids=["new", "open again"])
async def test_no_firing_is_swallowed_by_a_close_that_is_on_its_way(house: House, grouping: Grouping) -> None:
    """The router has decided that it is over, and it fires again before that is known: what fires stays open."""
    calm(house, grouping)
    router = SlowRouter()
    await house.take(entry(notification(alert())))
    await told(house, "AWAITING_PERSON")
    async with following(house, router):
        await arrive(house, alert(status="resolved"))
        await asyncio.wait_for(router.decided.wait(), 60)
        await arrive(house, alert(start=LATER))
        router.answers.set()
        wanted = [("AWAITING_MODEL", True)] if grouping.reopen else [("RESOLVED", False), ("AWAITING_MODEL", True)]

        async def settled() -> bool:
            return await states(house) == wanted

        await eventually(settled)


async def test_a_running_playbook_goes_on_beside_the_new_incident(house: House) -> None:
    """What was started ends on the incident it was started for, which then is resolved; the new one is its own."""
    router = MemoryRouter()
    router.next = Decision(
        state=Decision.STATE_DECIDED, outcome=Decision.OUTCOME_TRIGGER_AUTOMATION, rule_id="restart", execution_id="e-1"
    )
    async with following(house, router):
        await arrive(house, alert())

        async def settled(*wanted: tuple[str, bool]) -> bool:
            return await states(house) == list(wanted)

        await eventually(lambda: settled(("RUNNING", True)))
        await arrive(house, alert(status="resolved"))
        await arrive(house, alert(start=LATER))
        await eventually(lambda: settled(("RUNNING", False), ("RUNNING", True)))
        first = next(iter(router.decisions.values()))
        first.MergeFrom(Decision(state=Decision.STATE_CLOSED, result=Decision.RESULT_SUCCEEDED))
        await eventually(lambda: settled(("RESOLVED", False), ("RUNNING", True)))


async def test_within_its_debounce_an_incident_gathers_what_fires_again(house: House) -> None:
    """Nobody has been asked about it: fired, over and fired is one incident; once asked, it is not."""
    calm(house, Grouping(debounce=HOUR))
    await house.take(entry(notification(alert())))
    await house.take(entry(notification(alert(status="resolved"))))
    await house.take(entry(notification(alert(start=LATER))))
    assert await states(house) == [("OPEN", True)]
    await house.take(entry(notification(alert(status="resolved", start=LATER))))
    await house.pool.execute("UPDATE incidents SET due_time = now()")
    assert len(await house.store.claim_undecided(10)) == 1
    await house.take(entry(notification(alert(start="2026-03-01T12:00:00Z"))))
    assert await states(house) == [("OPEN", False), ("OPEN", True)]


@pytest.mark.parametrize("outcome", ["STATE_AWAITING_MODEL", "OUTCOME_ASK_HUMAN"])
async def test_an_end_that_comes_while_the_router_decides_is_not_forgotten(house: House, outcome: str) -> None:
    """The router has decided about what fired, and answers after its end: it is decided anew, and resolved."""
    router = SlowRouter()
    if outcome.startswith("OUTCOME"):
        router.next = Decision(state=Decision.STATE_DECIDED, outcome=Decision.OUTCOME_ASK_HUMAN, reason="ask")
    async with following(house, router):
        await arrive(house, alert())
        await asyncio.wait_for(router.decided.wait(), 60)
        await arrive(house, alert(status="resolved"))
        router.answers.set()

        async def settled() -> bool:
            return await states(house) == [("RESOLVED", False)]

        await eventually(settled)
