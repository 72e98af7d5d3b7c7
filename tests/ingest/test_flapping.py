"""Alerts that fire and are over again and again: recognised, shown, held until calm, and decided as usual after it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from opsmesh.config.v1 import correlation_pb2
from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from services.ingest.book import Book
from services.ingest.correlating import correlation_of
from services.ingest.correlation import Calm, Correlation, Grouping
from services.ingest.domain import REVISIONS_MAX, SignalFacts, Tally
from services.ingest.flapping import USUAL, Flapping, Turns, turned
from services.ingest.signal import Status
from services.ingest.store import PostgresIncidents
from services.mesh.config import load_yaml
from tests.ingest.house import House, alert, entry, notification

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SECOND = 1_000_000_000
BEGUN = int(NOW.timestamp()) * SECOND


def told(status: Status, seconds: int, begun: int | None, flapping: Flapping = USUAL, key: str = "a") -> SignalFacts:
    """Return word of alert KEY, SECONDS after noon, of the firing that BEGUN so many seconds after noon."""
    at = BEGUN + seconds * SECOND
    start = None if begun is None else BEGUN + begun * SECOND
    grouping = Grouping(flapping=flapping)
    return SignalFacts("s", "alertmanager", key, status, at, start, "k", f"incident-{at}-{key}", grouping=grouping)


def flap(one: Book, times: int, pause: int, flapping: Flapping = USUAL, *, starts: bool = True) -> Tally:
    """Have an alert change its state so often, every PAUSE seconds; return the incident it is in."""
    incident, begun = "", 0
    for number in range(times + 1):
        seconds = number * pause
        one.now = NOW + timedelta(seconds=seconds)
        if number % 2 == 0:
            begun = seconds
        status = Status.RESOLVED if number % 2 else Status.FIRING
        incident = one.judge(told(status, seconds, begun if starts else None, flapping)).incident_id or ""
    return one.incidents[incident]


@pytest.mark.parametrize("starts", [True, False], ids=["start times", "no start times"])
@pytest.mark.parametrize(
    ("times", "pause", "flapping", "flaps"),
    [
        (6, 60, USUAL, True),
        (5, 60, USUAL, False),
        (6, 121, USUAL, False),
        (7, 121, USUAL, False),
        (2, 60, Flapping(2, 5 * MINUTE), True),
        (4, 5, Flapping(4, timedelta(seconds=15)), True),
        (4, 6, Flapping(4, timedelta(seconds=15)), False),
        (40, 1, Flapping(0), False),
    ],
)
def test_flapping_is_so_many_changes_within_a_window(
    *, times: int, pause: int, flapping: Flapping, flaps: bool, starts: bool
) -> None:
    """Each firing after the first and each end is a change; the window slides, and both are as configured."""
    found = flap(Book(NOW, timedelta(hours=1)), times, pause, flapping, starts=starts)
    assert found.flapping is flaps
    assert (found.calm_time is not None) is flaps


def test_copies_and_old_news_are_no_changes() -> None:
    """A pair of senders that tells each change twice, and late, flaps no earlier."""
    one = Book(NOW + MINUTE, timedelta(hours=1))
    history = [told(Status.FIRING, 0, 0), told(Status.RESOLVED, 10, 0), told(Status.FIRING, 20, 20)]
    for _ in range(5):
        for signal in (*history, *reversed(history)):
            one.judge(signal)
    assert len(one.turns["alertmanager", "a"].times) == 2
    assert not any(incident.flapping for incident in one.incidents.values())


def test_many_alerts_that_end_once_are_no_flapping() -> None:
    """A thousand alerts of one incident that fire and are over change nothing back, and leave no row."""
    one = Book(NOW, timedelta(hours=1))
    for number in range(1000):
        one.judge(told(Status.FIRING, 0, 0, key=str(number)))
        one.judge(told(Status.RESOLVED, 5, 0, key=str(number)))
    assert not one.turns
    assert not any(incident.flapping for incident in one.incidents.values())


def test_what_is_remembered_of_an_alert_is_bounded() -> None:
    """As many changes as it takes to say that it flaps, however often it changes."""
    found = Turns()
    for number in range(1000):
        found = turned(found, [NOW + number * MINUTE], Flapping(7))
    assert len(found.times) == 7
    assert found.times[-1] == NOW + 999 * MINUTE


def test_the_file_says_what_flapping_is(tmp_path: Path) -> None:
    """For all, and for one rule; what is absent is as for all, and that as usual; zero turns it off."""
    path = tmp_path / "correlation.yaml"
    path.write_text(
        "flapping: {change_count: 4, calm_duration: 60s}\n"
        "rules:\n"
        "  - {rule_id: a, by: [rule], grouping: {flapping: {window_duration: 30s}}}\n"
        "  - {rule_id: b, by: [alert], grouping: {flapping: {change_count: 0}}}\n"
    )
    found = correlation_of(load_yaml(path, correlation_pb2.Correlation))
    assert [rule.grouping.flapping for rule in found.rules] == [
        Flapping(4, timedelta(seconds=30), MINUTE),
        Flapping(0, USUAL.window, MINUTE),
    ]
    assert found.otherwise.flapping == Flapping(4, USUAL.window, MINUTE)
    assert correlation_of(correlation_pb2.Correlation()) == Correlation()


@pytest.fixture
def flappy(house: House) -> House:
    """Give a house where four changes within ten minutes are flapping, of incidents that open again until then."""
    grouping = Grouping(flapping=Flapping(4), reopen=timedelta(hours=1))
    house.store = PostgresIncidents(house.pool, Calm(timedelta(hours=1), timedelta(), Correlation((), grouping)))
    return house


async def change(house: House, *minutes: int) -> None:
    """Have the alert fire (even minutes) or be over (odd ones)."""
    for minute in minutes:
        start = f"2026-03-01T11:{minute - minute % 2:02}:00Z"
        one = alert(status="resolved" if minute % 2 else "firing", start=start)
        if minute % 2:
            one["endsAt"] = f"2026-03-01T11:{minute:02}:00Z"
        await house.take(entry(notification(one)))


async def decided(house: House, state: str) -> None:
    """Have the router decide what waits, with this state as the end of it."""
    await house.pool.execute(
        "UPDATE incidents SET state = $1, needs_decision = false WHERE needs_decision AND state = 'OPEN'", state
    )


async def shown(house: House) -> list[pb.Incident]:
    """Return the incidents as they are listed, the oldest first."""
    return list(reversed(await house.store.list_incidents(pb.ListIncidentsRequest(), 50, None)))


async def test_what_flaps_is_decided_anew_at_once_and_stays_open(flappy: House) -> None:
    """The change that makes it flap makes a revision; later ends and firings join it, and make none."""
    await change(flappy, 0)
    await decided(flappy, "AWAITING_MODEL")
    for minute in (1, 2, 3):
        await change(flappy, minute)
        await flappy.pool.execute("UPDATE incidents SET state = 'AWAITING_MODEL', needs_decision = false")
    (before,) = await shown(flappy)
    assert (before.flapping, before.HasField("calm_time")) == (False, False)
    revision = before.revision
    await change(flappy, 4)
    (one,) = await shown(flappy)
    assert (one.flapping, one.revision, one.state) == (True, revision + 1, pb.Incident.STATE_OPEN)
    assert one.calm_time.ToDatetime() > one.update_time.ToDatetime()
    assert "flaps" in one.state_detail
    await decided(flappy, "AWAITING_PERSON")
    await change(flappy, 5, 6, 7)
    (later,) = await shown(flappy)
    assert (later.state, later.revision, later.firing) == (pb.Incident.STATE_AWAITING_PERSON, one.revision, False)
    assert later.calm_time.ToDatetime() > one.calm_time.ToDatetime()
    incident, _ = await flappy.store.get(later.incident_id)
    assert incident.flapping


async def test_an_incident_that_opens_while_its_alert_flaps_begins_so(flappy: House) -> None:
    """Somebody closed the last one long ago: the next is flapping before its first decision."""
    await change(flappy, 0, 1, 2, 3)
    await flappy.pool.execute(
        "UPDATE incidents SET state = 'RESOLVED', needs_decision = false, resolve_time = now() - interval '2 hours'"
    )
    await change(flappy, 4)
    _, new = await shown(flappy)
    assert (new.flapping, new.revision, new.state) == (True, 1, pb.Incident.STATE_OPEN)


@pytest.mark.parametrize(
    ("last", "state", "revision", "wanted"),
    [
        (4, "AWAITING_PERSON", 2, ("OPEN", 3, True)),
        (5, "AWAITING_PERSON", 2, ("OPEN", 3, True)),
        (4, "RUNNING", 2, ("RUNNING", 2, False)),
        (5, "AWAITING_PERSON", REVISIONS_MAX, ("RESOLVED", REVISIONS_MAX, False)),
        (4, "AWAITING_PERSON", REVISIONS_MAX, ("AWAITING_PERSON", REVISIONS_MAX, False)),
        (5, "RESOLVED", 2, ("RESOLVED", 2, False)),
    ],
)
async def test_calm_is_when_nothing_changed_for_so_long(
    flappy: House, last: int, state: str, revision: int, wanted: tuple[str, int, bool]
) -> None:
    """Then flapping is cleared, and it is decided as usual: what fires by the rules, what is over is over."""
    await change(flappy, *range(last + 1))
    await flappy.pool.execute("UPDATE incidents SET state = $1, revision = $2, needs_decision = false", state, revision)
    assert await flappy.store.calm_down() == 0
    await flappy.pool.execute("UPDATE incidents SET calm_time = now()")
    assert await flappy.store.calm_down() == 1
    rows = await flappy.rows("SELECT state, revision, needs_decision, flapping, calm_time FROM incidents")
    assert [tuple(row) for row in rows] == [(*wanted, False, None)]
    assert await flappy.store.calm_down() == 0


async def test_two_that_calm_down_at_once_revise_once(flappy: House) -> None:
    """Replicas look at the same time: one of them does it."""
    await change(flappy, *range(5))
    await flappy.pool.execute("UPDATE incidents SET calm_time = now(), needs_decision = false, revision = 2")
    async with flappy.pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT FROM incidents FOR UPDATE")
        assert await flappy.store.calm_down() == 0
    assert await flappy.store.calm_down() == 1
    assert [row["revision"] for row in await flappy.rows("SELECT revision FROM incidents")] == [3]


@pytest.mark.parametrize("state", ["RUNNING", "AWAITING_APPROVAL", "AWAITING_PERSON"])
async def test_what_works_on_an_incident_goes_on_when_it_begins_to_flap(flappy: House, state: str) -> None:
    """Nothing is pulled from under a playbook, and a person who was asked is not asked once more."""
    await change(flappy, *range(4))
    await flappy.pool.execute("UPDATE incidents SET state = $1, needs_decision = false, revision = 2", state)
    await change(flappy, 4)
    rows = await flappy.rows("SELECT state, revision, needs_decision, flapping FROM incidents")
    assert [tuple(row) for row in rows] == [(state, 2, False, True)]
