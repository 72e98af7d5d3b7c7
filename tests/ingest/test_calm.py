"""One effect of what is told twice, late, or in another order: on plain data and on the real store."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.ingest.book import HOLD, Book
from services.ingest.domain import Disposition, SignalFacts, State, Tally
from services.ingest.signal import Status
from tests.ingest.house import House, alert, entry, notification
from tests.ingest.test_domain import book, facts, judged

OPENED, JOINED, DUPLICATE, STALE = Disposition.OPENED, Disposition.JOINED, Disposition.DUPLICATE, Disposition.STALE
RESOLVED = Status.RESOLVED
ENDS = ("firing", "resolved")
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def untimed(status: Status = Status.FIRING, at: int = 100) -> SignalFacts:
    """Return a signal of a sender that tells no times; AT is when it came in."""
    return replace(facts(status, at, None), timed=False)


@pytest.mark.parametrize(
    ("signals", "wanted"),
    [
        # the firing that a resolve has overtaken is old news; one of a later time is another one
        ([facts(RESOLVED, 200, None), facts(at=200, start=None)], [STALE, STALE]),
        ([facts(RESOLVED, 200, None), facts(at=201, start=None)], [STALE, OPENED]),
        ([facts(RESOLVED, 200, None), facts(at=100, start=100)], [STALE, STALE]),
        ([facts(RESOLVED, 200, None), facts(at=300, start=300)], [STALE, OPENED]),
        ([facts(), facts(RESOLVED, 200), facts(at=150, start=None)], [OPENED, JOINED, STALE]),
        ([facts(), facts(RESOLVED, 200), facts(at=250, start=None)], [OPENED, JOINED, OPENED]),
        # a whole story told backwards and twice opens nothing
        ([facts(RESOLVED, 200), facts(RESOLVED, 200), facts(), facts()], [STALE, DUPLICATE, STALE, DUPLICATE]),
        # without times the order of arrival is all there is
        ([untimed(), untimed(RESOLVED, 200), untimed(at=300)], [OPENED, JOINED, OPENED]),
    ],
)
def test_source_time_and_state_decide_not_arrival(signals: list[SignalFacts], wanted: list[Disposition]) -> None:
    """What is older than the last known state never opens anything, what is newer always does."""
    assert judged(book(), *signals) == wanted


@pytest.mark.parametrize(("late", "wanted"), [(HOLD, STALE), (HOLD + timedelta(seconds=1), OPENED)])
def test_a_resolve_waits_five_minutes_for_a_firing_without_a_time(late: timedelta, wanted: Disposition) -> None:
    """Within the hold the firing that comes is the one that was overtaken; after it, it is the next one."""
    one = book()
    assert judged(one, untimed(RESOLVED, 200)) == [STALE]
    one.now += late
    assert judged(one, untimed(at=900)) == [wanted]


def test_a_redelivery_of_an_old_firing_hours_later_opens_nothing() -> None:
    """Senders retry for two days: what they told before the resolve stays old news after the dedupe window."""
    one = book()
    judged(one, facts(start=None), facts(RESOLVED, 200, None))
    one.now += timedelta(hours=30)
    assert judged(one, facts(start=None), facts(at=300, start=None)) == [DUPLICATE, OPENED]


@pytest.mark.parametrize("state", [State.RESOLVED, State.STALE])
@pytest.mark.parametrize("start", [300, None])
def test_a_closed_incident_never_swallows_what_fires_anew(state: State, start: int | None) -> None:
    """After the resolve the next firing is a new incident, with and without a start time."""
    first = book()
    incident = first.judge(facts(start=start and 100)).incident_id or ""
    judged(first, facts(RESOLVED, 200, start and 100))
    one = Book(NOW + timedelta(minutes=1), timedelta(hours=1))
    one.load(first.alerts.values(), [Tally(incident, "a", state)])
    verdict = one.judge(facts(at=300, start=start))
    assert verdict.disposition is OPENED
    assert verdict.incident_id != incident


async def test_a_pair_of_senders_has_one_effect_and_its_copies_are_counted(house: House) -> None:
    """Two Alertmanagers tell the same firing and resolve, in any order: one incident, each copy counted on it."""
    told = [notification(*(alert(pod=str(number), status=status) for number in range(3))) for status in ENDS]
    for body in (*told, *reversed(told)):
        await house.take(entry(body))
    rows = await house.rows("SELECT signal_count, duplicate_count, revision FROM incidents")
    assert [tuple(row) for row in rows] == [(12, 6, 1)]
    found = await house.dispositions()
    assert (found.count("OPENED"), found.count("JOINED"), found.count("DUPLICATE")) == (1, 5, 6)


async def test_copies_of_a_resolved_incident_are_still_counted_on_it(house: House) -> None:
    """The late peer of a pair neither opens nor revises anything."""
    await house.take(entry(notification(alert())))
    await house.pool.execute("UPDATE incidents SET state = 'RESOLVED', needs_decision = false")
    await house.take(entry(notification(alert())))
    rows = await house.rows("SELECT state, duplicate_count, needs_decision FROM incidents")
    assert [tuple(row) for row in rows] == [("RESOLVED", 1, False)]


async def test_a_firing_that_a_resolve_has_overtaken_is_kept_and_opens_nothing(house: House) -> None:
    """Both have their rows, there is no incident, and the next firing opens one."""
    await house.take(entry(notification(alert(status="resolved"))))
    await house.take(entry(notification(alert())))
    assert await house.dispositions() == ["STALE", "STALE"]
    await house.take(entry(notification(alert(start="2026-03-01T11:00:00Z"))))
    assert await house.dispositions() == ["STALE", "STALE", "OPENED"]
