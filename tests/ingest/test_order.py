"""Order is decided by source time and state: whatever order an alert's history arrives in, it ends where it ended."""

import itertools
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ingest.book import Book
from services.ingest.domain import CLOSED, Alert, SignalFacts, State, Tally
from services.ingest.signal import Status
from tests.ingest.house import House, alert, entry, notification

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
STEP = 10


@dataclass
class Shelf:
    """A store of alerts and incidents that knows what PostgreSQL gives a batch, and closes what is over."""

    alerts: dict[tuple[str, str, str], Alert] = field(default_factory=dict)
    incidents: dict[str, Tally] = field(default_factory=dict)

    def take(self, signal: SignalFacts) -> None:
        """Judge one signal as a batch of its own."""
        book = Book(NOW, timedelta(hours=1))
        own = [one for one in self.alerts.values() if (one.source, one.dedup_key) == signal.alert]
        exact = [one for one in own if one.start_time == signal.start_time]
        newest = sorted(own, key=lambda one: (one.start_time is not None, one.start_time or 0))[-1:]
        loaded = {one.key: one for one in (*exact, *newest)}.values()
        wanted = {one.incident_id for one in loaded}
        book.load(
            loaded,
            [
                self._fresh(one)
                for one in self.incidents.values()
                if one.incident_id in wanted or one.state not in CLOSED
            ],
        )
        book.judge(signal)
        self.alerts |= book.alerts
        self.incidents |= book.incidents
        for one in self.incidents.values():
            if not self.active(one.incident_id):
                one.state, one.resolve_time = State.RESOLVED, NOW

    def _fresh(self, one: Tally) -> Tally:
        """Return an incident as its row has it."""
        active = self.active(one.incident_id)
        return Tally(
            one.incident_id, one.correlation_key, one.state, active, decided=True, resolve_time=one.resolve_time
        )

    def active(self, incident_id: str = "") -> int:
        """Return how many alerts are not over, of one incident or of all."""
        return sum(
            not one.over and one.incident_id is not None and incident_id in ("", one.incident_id)
            for one in self.alerts.values()
        )

    @property
    def firing(self) -> bool:
        """Say whether an open incident has an alert that is not over."""
        return any(self.active(one.incident_id) for one in self.incidents.values() if one.state not in CLOSED)


def history(episodes: int, *, ends: bool, starts: bool) -> list[SignalFacts]:
    """Return what an alert did, in order: fired and was over so often; with `ends` it is over now."""
    told = []
    for number in range(episodes):
        begun = (1 + 2 * number) * STEP
        start = begun if starts else None
        told.append(signal(Status.FIRING, begun, start))
        if ends or number < episodes - 1:
            told.append(signal(Status.RESOLVED, begun + STEP, start))
    return told


def signal(status: Status, at: int, start: int | None) -> SignalFacts:
    """Return word of the one alert."""
    return SignalFacts("s", "alertmanager", "a", status, at, start, "k", f"incident-{status.name}-{at}")


def of_peer(one: SignalFacts, late: int) -> SignalFacts:
    """Return the same as another peer tells it, that saw it begin and end somewhat later; ends are told."""
    end = one.event_time + late // 2 if one.status is Status.RESOLVED else None
    event_time = one.event_time + late if end is None else end
    return replace(one, start_time=(one.start_time or 0) + late, event_time=event_time, end_time=end)


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[list[SignalFacts], bool]:
    """Draw a history in any order, with copies, and whether it ends firing."""
    ends, starts = draw(st.booleans()), draw(st.booleans())
    told = history(draw(st.integers(1, 4)), ends=ends, starts=starts)
    copies = draw(st.lists(st.sampled_from(told), max_size=4))
    return draw(st.permutations(told + copies)), not ends


@settings(max_examples=400, deadline=None)
@given(arrivals())
def test_every_order_ends_in_the_same_state(told: tuple[list[SignalFacts], bool]) -> None:
    """Deliveries in any order, some twice: the alert fires at the end exactly when its sender's last word says so."""
    signals, firing = told
    shelf = Shelf()
    for one in signals:
        shelf.take(one)
    assert shelf.firing is firing
    assert shelf.active() == firing


@settings(max_examples=400, deadline=None)
@given(st.data(), st.integers(1, 3), st.booleans())
def test_peers_that_differ_by_seconds_end_in_the_same_state(data: st.DataObject, episodes: int, ends: bool) -> None:  # noqa: FBT001  drawn
    """A pair tells each change once or twice, with starts and ends that differ, in any order: the end is the same."""
    told = [
        of_peer(one, late)
        for one in history(episodes, ends=ends, starts=True)
        for late in data.draw(st.lists(st.sampled_from((0, 2, 4)), min_size=1, max_size=3, unique=True))
    ]
    shelf = Shelf()
    for one in data.draw(st.permutations(told)):
        shelf.take(one)
    assert shelf.firing is not ends


@pytest.mark.parametrize("starts", [True, False], ids=["start times", "no start times"])
@pytest.mark.parametrize("ends", [True, False], ids=["over", "firing"])
def test_every_permutation_of_two_episodes(*, starts: bool, ends: bool) -> None:
    """All orders, not a sample: fired, over, fired (and over)."""
    for order in itertools.permutations(history(2, ends=ends, starts=starts)):
        shelf = Shelf()
        for one in order:
            shelf.take(one)
        assert shelf.firing is not ends, [(one.status.name, one.event_time) for one in order]


def test_a_repeated_firing_is_not_ended_by_an_older_end() -> None:
    """A reminder that it still fires is a later word than a resolve that was under way."""
    shelf = Shelf()
    for one in (signal(Status.FIRING, 10, None), signal(Status.FIRING, 30, None), signal(Status.RESOLVED, 20, None)):
        shelf.take(one)
    assert shelf.firing


def test_without_any_time_the_order_of_arrival_is_all_there_is() -> None:
    """What a sender does not tell is not guessed."""
    shelf = Shelf()
    for number, status in enumerate((Status.FIRING, Status.RESOLVED, Status.FIRING, Status.RESOLVED)):
        shelf.take(replace(signal(status, number, None), timed=False))
        assert shelf.firing is (status is Status.FIRING)


async def test_every_order_ends_the_same_in_the_store(house: House) -> None:
    """The same with real rows, an alert for each order: fired, over, fired, over, each a delivery of its own."""
    first, second = "2026-03-01T10:00:00Z", "2026-03-01T11:00:00Z"
    for number, order in enumerate(itertools.permutations(range(4))):
        name = f"Down{number}"
        told = [alert(name, start=first), alert(name, "resolved", first), alert(name, start=second)]
        told.append(alert(name, "resolved", second))
        for one in order:
            await house.take(entry(notification(told[one])))
    assert await house.rows("SELECT FROM alerts WHERE NOT over") == []
    assert await house.rows("SELECT FROM incidents WHERE firing") == []
    assert (await house.rows("SELECT count(*) AS count FROM signals"))[0]["count"] == 24 * 4


def of_alertmanager(peer: str, name: str, status: str, late: int = 0) -> bytes:
    """Return what one of a pair sends: its own URL and receiver, and a start that may be seconds later."""
    one = alert(name, status, f"2026-03-01T10:00:0{late}Z")
    one["generatorURL"] = f"http://prometheus-{peer}.example/graph"
    body = json.loads(notification(one))
    body |= {"externalURL": f"http://alertmanager-{peer}.example:9093", "receiver": f"opsmesh-{peer}"}
    return json.dumps(body).encode()


@pytest.mark.parametrize("late", [0, 3], ids=["the same start", "a start seconds later"])
async def test_a_pair_of_alertmanagers_has_one_effect(house: House, late: int) -> None:
    """Two peers tell the firing and its end, in any order: at most one incident, decided once, and over at the end."""
    for number, order in enumerate(itertools.permutations(range(4))):
        name = f"Pair{number}"
        told = [
            of_alertmanager("a", name, "firing"),
            of_alertmanager("a", name, "resolved"),
            of_alertmanager("b", name, "firing", late),
            # the peers have agreed on the earlier start before one of them tells the end
            of_alertmanager("b", name, "resolved"),
        ]
        for one in order:
            await house.take(entry(told[one]))
        rows = await house.rows(
            "SELECT firing, revision, signal_count FROM incidents WHERE title = $1", f"{name} on checkout"
        )
        # Only a firing that comes first opens anything: after an end it is old news.
        wanted = [(False, 1, 4)] if order[0] % 2 == 0 else []
        assert [tuple(row) for row in rows] == wanted, order
        key = alert(name)["fingerprint"]
        found = await house.rows("SELECT disposition FROM signals WHERE dedup_key = $1", key)
        assert (len(found), [row["disposition"] for row in found].count("OPENED")) == (4, len(wanted)), order
