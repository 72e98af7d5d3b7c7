"""Order is decided by source time and state: whatever order an alert's history arrives in, it ends where it ended."""

import itertools
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


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
async def test_every_order_ends_the_same_in_the_store(house: House, order: tuple[int, ...]) -> None:
    """The same with real rows: fired, over, fired, over, each a delivery of its own."""
    first, second = "2026-03-01T10:00:00Z", "2026-03-01T11:00:00Z"
    told = [alert(start=first), alert(start=first, status="resolved"), alert(start=second)]
    told.append(alert(start=second, status="resolved"))
    for number in order:
        await house.take(entry(notification(told[number])))
    assert await house.rows("SELECT FROM alerts WHERE NOT over") == []
    assert await house.rows("SELECT FROM incidents WHERE firing") == []
    assert (await house.rows("SELECT count(*) AS count FROM signals"))[0]["count"] == 4
