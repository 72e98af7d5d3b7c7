"""Occurrences: no resolve will come, so one is over when it was not told again; on plain data and on the real store."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from opsmesh.config.v1 import correlation_pb2
from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from services.ingest import backlog, stream
from services.ingest.book import Book
from services.ingest.correlating import correlation_of
from services.ingest.correlation import OCCURRENCE, Calm, Correlation, Grouping, Rule
from services.ingest.domain import REVISIONS_MAX, Disposition, SignalFacts
from services.ingest.occurrences import EXPIRED_MAX, span
from services.ingest.signal import Status
from services.ingest.store import PostgresIncidents
from services.mesh.config import load_yaml
from tests.ingest.house import House, entry, eventually

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)
BEGUN = int(NOW.timestamp())
WHY = "not told again for 1 h: occurrences have no resolve"


def told(status: Status, seconds: int, start: int | None = None, silence: timedelta = HOUR) -> SignalFacts:
    """Return word of an alert, SECONDS after noon by its sender's clock, of what began START seconds after noon."""
    at, began = (BEGUN + seconds) * 10**9, None if start is None else (BEGUN + start) * 10**9
    grouping = Grouping(occurrence=silence)
    return SignalFacts("s", "sentry", "a", status, at, began, "k", f"incident-{at}-{start}", grouping=grouping)


def until(book: Book) -> list[datetime | None]:
    """Return until when each alert that is not over is kept."""
    return [one.expire_time for one in book.alerts.values() if not one.over]


def sweep(book: Book) -> None:
    """End what the store's sweep would end by now."""
    for key, one in book.alerts.items():
        if not one.over and one.expire_time and one.expire_time <= book.now:
            book.alerts[key] = replace(one, over=True)
            book.incidents[one.incident_id or ""].active -= 1


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([Status.OCCURRENCE], True),
        ([Status.OCCURRENCE, Status.OCCURRENCE], True),
        ([Status.FIRING], False),
        ([Status.FIRING, Status.OCCURRENCE], True),
        ([Status.OCCURRENCE, Status.FIRING], False),
        ([Status.OCCURRENCE, Status.FIRING, Status.OCCURRENCE], True),
        ([Status.FIRING, Status.OCCURRENCE, Status.FIRING], False),
        ([Status.OCCURRENCE, Status.SUPPRESSED], True),
        ([Status.OCCURRENCE, Status.NO_DATA], False),
        ([Status.OCCURRENCE, Status.ACKNOWLEDGED], False),
    ],
)
def test_the_newest_word_says_whether_a_resolve_will_come(words: list[Status], wanted: bool) -> None:  # noqa: FBT001  a parameter of a test
    """Only an occurrence is over by itself, so long after it was told last by our clock; what was told late is none."""
    book = Book(NOW, HOUR)
    for number, status in enumerate(words):
        book.now = NOW + number * SECOND
        book.judge(told(status, number))
    (found,) = until(book)
    last = max(number for number, status in enumerate(words) if status is not Status.SUPPRESSED)
    assert found == (NOW + last * SECOND + HOUR if wanted else None)
    late = Status.FIRING if wanted else Status.OCCURRENCE
    book.judge(told(late, -5))
    assert until(book) == [found]


def test_zero_is_never() -> None:
    """Then a person ends it, as before."""
    book = Book(NOW, HOUR)
    book.judge(told(Status.OCCURRENCE, 0, silence=timedelta()))
    assert until(book) == [None]


@given(
    # When it says that it began: never, at each moment itself, or at one of two times, for one key may be of two.
    st.sampled_from([("",), ("moment",), (0, 60)]).flatmap(
        lambda starts: st.lists(
            st.tuples(
                st.integers(0, 3600),  # seconds since the last one by our clock
                st.integers(-7200, 7200),  # how far the sender's clock, or its tries, put it elsewhere
                st.sampled_from(starts),
            ),
            max_size=30,
        )
    )
)
def test_an_occurrence_that_keeps_coming_never_ends(repeats: list[tuple[int, int, int | str]]) -> None:
    """Told often enough it stays, however its events overtake each other, and whatever is called a duplicate."""
    book = Book(NOW, HOUR)
    first = ""
    for pause, aside, start in [(0, 0, repeats[0][2] if repeats else ""), *repeats]:
        book.now += timedelta(seconds=pause)
        sweep(book)
        at = int((book.now - NOW).total_seconds()) + aside
        began = None if start == "" else at if start == "moment" else int(start)
        verdict = book.judge(told(Status.OCCURRENCE, at, began, silence=HOUR + SECOND))
        first = first or verdict.incident_id or ""
        assert set(book.incidents) == {first}
        assert book.incidents[first].active >= 1


@pytest.mark.parametrize("start", [None, 0])
def test_what_is_told_again_after_its_end_is_another_one(start: int | None) -> None:
    """The same event delivered once more is a duplicate of what is over; one of a later moment opens an incident."""
    book = Book(NOW, HOUR)
    first = book.judge(told(Status.OCCURRENCE, 0, start))
    book.now += HOUR
    sweep(book)
    book = _closed(book, first.incident_id or "")
    assert book.judge(told(Status.OCCURRENCE, 0, start)).disposition is Disposition.DUPLICATE
    again = book.judge(told(Status.OCCURRENCE, 4000, start))
    assert (again.disposition, again.incident_id != first.incident_id) == (Disposition.OPENED, True)
    assert until(book) == [book.now + HOUR]


def _closed(book: Book, incident_id: str) -> Book:
    """Return the book as it is loaded once the incident is closed."""
    found = Book(book.now, book.window)
    tally = book.incidents[incident_id]
    tally.state = type(tally.state).RESOLVED
    found.load(book.alerts.values(), [tally])
    return found


def test_the_file_says_when_occurrences_are_over(tmp_path: Path) -> None:
    """For all, and for one rule; zero is never; without a word it is an hour."""
    path = tmp_path / "correlation.yaml"
    path.write_text(
        "occurrence_duration: 600s\n"
        "rules:\n"
        "  - {rule_id: a, by: [rule], grouping: {occurrence_duration: 30s}}\n"
        "  - {rule_id: b, by: [alert], grouping: {occurrence_duration: 0s}}\n"
        "  - {rule_id: c, by: [alert]}\n"
    )
    found = correlation_of(load_yaml(path, correlation_pb2.Correlation))
    assert [rule.grouping.occurrence.total_seconds() for rule in found.rules] == [30, 0, 600]
    assert found.otherwise.occurrence == timedelta(seconds=600)
    assert correlation_of(correlation_pb2.Correlation()).otherwise.occurrence == OCCURRENCE == HOUR


@pytest.mark.parametrize(("seconds", "wanted"), [(3600, "1 h"), (5400, "90 min"), (45, "45 s"), (86400, "1 d")])
def test_a_silence_is_told_as_people_say_it(seconds: int, wanted: str) -> None:
    """In the largest unit it is made of."""
    assert span(timedelta(seconds=seconds)) == wanted


def event(issue: str = "1", second: int = 0) -> pb.StreamEntry:
    """Return an event alert of Sentry about an issue."""
    about = {
        "event_id": f"e{issue}-{second}",
        "issue_id": issue,
        "title": f"Error {issue}",
        "level": "error",
        "datetime": f"2026-03-01T10:00:{second:02}.000000Z",
    }
    body = {"action": "triggered", "data": {"event": about, "triggered_rule": "any error"}}
    return entry(json.dumps(body).encode(), "sentry")


def resolved(issue: str = "1") -> pb.StreamEntry:
    """Return Sentry's word that the issue is resolved."""
    about = {"id": issue, "title": f"Error {issue}", "status": "resolved", "lastSeen": "2026-03-01T10:05:00.000000Z"}
    return entry(json.dumps({"action": "resolved", "data": {"issue": about}}).encode(), "sentry")


async def wait_for(house: House, seconds: int) -> None:
    """Let so much time go by in the store: all that was told is so much older."""
    await house.pool.execute(
        "UPDATE alerts SET told_time = told_time - $1::interval, expire_time = expire_time - $1::interval, "
        "first_seen = first_seen - $1::interval",
        timedelta(seconds=seconds),
    )


async def decided(house: House, state: str, revision: int = 1) -> None:
    """Have the router decide what waits, with this state as the end of it."""
    await house.pool.execute(
        "UPDATE incidents SET state = $1, needs_decision = false, revision = $2, following = true", state, revision
    )


async def stands(house: House) -> list[tuple[Any, ...]]:
    """Return how the incidents stand, the oldest first."""
    rows = await house.rows(
        "SELECT state, state_detail, revision, needs_decision, firing FROM incidents ORDER BY open_time"
    )
    return [tuple(row) for row in rows]


async def shown(house: House) -> pb.Incident:
    """Return the one incident as it is shown."""
    (one,) = await house.store.list_incidents(pb.ListIncidentsRequest(), 50, None)
    incident, _ = await house.store.get(one.incident_id)
    assert incident.expire_time == one.expire_time
    return incident


@pytest.mark.parametrize(
    ("state", "revision", "wanted"),
    [
        ("AWAITING_PERSON", 2, ("OPEN", WHY, 3, True, False)),
        ("HELD", 2, ("OPEN", WHY, 3, True, False)),
        ("OBSERVED", 1, ("OPEN", WHY, 2, True, False)),
        ("AWAITING_PERSON", REVISIONS_MAX, ("RESOLVED", WHY, REVISIONS_MAX, False, False)),
        ("RESOLVED", 2, ("RESOLVED", "", 2, False, False)),
        ("RUNNING", 2, ("RUNNING", "", 2, False, True)),
        ("AWAITING_APPROVAL", 2, ("AWAITING_APPROVAL", "", 2, False, True)),
    ],
)
async def test_what_was_not_told_again_goes_the_way_of_what_was_resolved(
    house: House, state: str, revision: int, wanted: tuple[Any, ...]
) -> None:
    """Not before its time, once, decided anew or closed; what acts on an incident ends first."""
    await house.take(event())
    await decided(house, state, revision)
    await wait_for(house, 3500)
    assert await house.store.expire() == 0
    assert (await stands(house))[0][:1] == (state,)
    await wait_for(house, 100)
    assert await house.store.expire() == (0 if wanted[-1] else 1)
    assert await stands(house) == [wanted]
    assert await house.store.expire() == 0
    if wanted[-1]:
        await decided(house, "AWAITING_PERSON", revision)
        assert await house.store.expire() == 1
        assert await stands(house) == [("OPEN", WHY, revision + 1, True, False)]


async def test_an_undecided_incident_is_told_over_when_it_is_decided(house: House) -> None:
    """It is decided once, and as what it is by then."""
    await house.take(event())
    await wait_for(house, 3600)
    assert await house.store.expire() == 1
    assert await stands(house) == [("OPEN", WHY, 1, True, False)]


async def test_a_flapping_one_stays_open_until_calm(house: House) -> None:
    """Then it is decided anew, and as over."""
    await house.take(event())
    await decided(house, "AWAITING_PERSON")
    await house.pool.execute("UPDATE incidents SET flapping = true, calm_time = now() + interval '1 minute'")
    await wait_for(house, 3600)
    assert await house.store.expire() == 1
    assert await stands(house) == [("AWAITING_PERSON", WHY, 1, False, False)]
    await house.pool.execute("UPDATE incidents SET calm_time = now()")
    assert await house.store.calm_down() == 1
    ((state, why, *rest),) = await stands(house)
    assert (state, rest) == ("OPEN", [2, True, False])
    assert why.endswith("its occurrences were not told again")


async def test_each_one_that_is_told_again_moves_the_time(house: House) -> None:
    """Also a duplicate within the window does, and the last of several alerts decides; it is shown until when."""
    one_for_all = Correlation((Rule("all", ("source",)),))
    house.store = PostgresIncidents(house.pool, Calm(HOUR, timedelta(), one_for_all))
    await house.take(event(), event("2"))
    await decided(house, "AWAITING_PERSON")
    for second in range(1, 6):
        await wait_for(house, 3000)
        await house.take(event(second=second))
        await house.store.expire()
        one = await shown(house)
        assert (one.firing, one.revision) == (True, 1)
        age = await house.pool.fetchval("SELECT extract(epoch FROM $1::timestamptz - now())", _time(one))
        assert 3500 < age <= 3600
    assert (await house.dispositions()).count("DUPLICATE") >= 1
    await wait_for(house, 3601)
    assert await house.store.expire() == 1
    one = await shown(house)
    assert (one.firing, one.state, _time(one) < one.update_time.ToDatetime(UTC)) == (
        False,
        pb.Incident.STATE_OPEN,
        True,
    )


def _time(incident: pb.Incident) -> datetime:
    assert incident.HasField("expire_time")
    return incident.expire_time.ToDatetime(UTC)


async def test_a_resolve_ends_it_at_once(house: House) -> None:
    """Sentry tells of an issue what it never tells of an event; then nothing is said of silence."""
    await house.take(event())
    await decided(house, "AWAITING_PERSON")
    await house.take(resolved())
    assert await stands(house) == [("OPEN", "the sender resolved every alert", 2, True, False)]
    assert not (await shown(house)).HasField("expire_time")
    await wait_for(house, 9000)
    assert await house.store.expire() == 0


async def test_silence_is_counted_by_the_rule_and_never_ends_what_shall_stay(house: House) -> None:
    """Zero is never; what is no occurrence is not looked at."""
    never = Correlation((), Grouping(occurrence=timedelta()))
    house.store = PostgresIncidents(house.pool, Calm(HOUR, timedelta(), never))
    await house.take(event())
    await wait_for(house, 10**7)
    assert await house.store.expire() == 0
    assert not (await shown(house)).HasField("expire_time")
    assert [row[-1] for row in await stands(house)] == [True]


async def test_a_sweep_is_bounded_and_two_at_once_revise_once(house: House) -> None:
    """What is left is for the next sweep; an incident is over with the last of its alerts only."""
    await house.take(event())
    await decided(house, "AWAITING_PERSON")
    await house.pool.execute(
        "INSERT INTO alerts (source, dedup_key, episode, incident_id, seen, over, event_time, first_seen, told_time, "
        "expire_time) SELECT source, 'more-' || number, '', incident_id, seen, over, event_time, first_seen, "
        "told_time, expire_time FROM alerts CROSS JOIN generate_series(1, $1) AS number",
        EXPIRED_MAX,
    )
    await wait_for(house, 3600)
    assert await house.store.expire() == 0
    assert [row[-1] for row in await stands(house)] == [True]
    assert sorted(await asyncio.gather(*(house.store.expire() for _ in range(3)))) == [0, 0, 1]
    assert await stands(house) == [("OPEN", WHY, 2, True, False)]


async def test_what_waits_to_be_recorded_may_tell_it_again(house: House) -> None:
    """After an hour without us nothing ends before what came in meanwhile is recorded, nor while that is not known."""
    await house.take(event())
    await decided(house, "AWAITING_PERSON")
    again = event(second=9)
    await house.appender.append([again.SerializeToString()])
    oldest = partial(backlog.oldest, house.client)
    assert await oldest() is not None
    later = "UPDATE alerts SET expire_time = $1::timestamptz + interval '1 millisecond'"
    await house.pool.execute(later, await oldest())
    await eventually(lambda: house.pool.fetchval("SELECT every(expire_time <= now()) FROM alerts"))
    assert await house.store.expire(oldest) == 0
    await house.take(again)
    await house.client.delete(*await stream.lanes(house.client))
    assert await oldest() is None
    assert [row[-1] for row in await stands(house)] == [True]
    await wait_for(house, 3601)
    async with Redis(port=1, socket_timeout=0.1) as nobody:
        assert await house.store.expire(partial(backlog.oldest, nobody)) == 0
    assert await house.store.expire(oldest) == 1
