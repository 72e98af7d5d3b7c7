"""Deduplication, correlation and the life of an incident: pure, on plain data."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Final

from services.ingest.correlation import PLAIN, Grouping
from services.ingest.signal import Status, TargetKey

REVISIONS_MAX: Final = 5
# So long a resolve without a firing waits for the firing that it has overtaken.
HOLD: Final = timedelta(minutes=5)
# An alert that fires anew so often within so long is flapping.
FLAPPING_TURNS: Final = 3
FLAPPING_WINDOW: Final = timedelta(minutes=10)


class Disposition(IntEnum):
    """What became of a signal; the numbers of ingest.v1.SignalRecord.Disposition."""

    OPENED = 1
    JOINED = 2
    DUPLICATE = 3
    STALE = 4
    SUPPRESSED = 5
    TEST = 6
    DEAD_LETTER = 7
    CHANGE = 8


class State(IntEnum):
    """Where an incident stands; the numbers of ingest.v1.Incident.State."""

    OPEN = 1
    HELD = 2
    AWAITING_MODEL = 3
    AWAITING_PERSON = 4
    RUNNING = 5
    AWAITING_APPROVAL = 6
    RESOLVED = 7
    STALE = 8
    OBSERVED = 9


CLOSED: Final = frozenset({State.RESOLVED, State.STALE})
# Something acts on the incident: it is not decided anew before that has ended.
ACTING: Final = frozenset({State.RUNNING, State.AWAITING_APPROVAL})


@dataclass(frozen=True, slots=True)
class InventoryMatch:
    """The one inventory entry that a key means."""

    target_id: str
    environment: str
    region: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """A target key after a look into the inventory; without a match it is shown and never acted on."""

    raw_key: str
    match: InventoryMatch | None = None

    @property
    def target_id(self) -> str:
        """Return the canonical id, else the raw key."""
        return self.match.target_id if self.match else self.raw_key


class Inventory:
    """Which keys mean which entry; a key of several entries means none of them."""

    def __init__(self, entries: Iterable[tuple[InventoryMatch, Sequence[str]]] = (), version: int = 0) -> None:
        self.version = version
        self._by_key: dict[str, InventoryMatch | None] = {}
        for entry, keys in entries:
            for key in {entry.target_id, *keys}:
                self._by_key[key] = None if key in self._by_key else entry

    def resolve(self, targets: Iterable[TargetKey]) -> list[Resolved]:
        """Return the targets, those of the inventory first, each once."""
        found = [Resolved(target.key, self._by_key.get(target.key)) for target in targets]
        unique = {one.target_id: one for one in reversed(found)}
        return sorted((one for one in found if unique[one.target_id] is one), key=lambda one: one.match is None)


def episode_of(start_time: int | None) -> str:
    """Return the name of one firing of an alert; empty when the sender does not say when it began."""
    return "" if start_time is None else str(start_time)


@dataclass(frozen=True, slots=True)
class SignalFacts:
    """What deduplication needs to know of a signal; times are nanoseconds since 1970.

    Without `timed` its sender said no time: `event_time` is when it came in.
    """

    signal_id: str
    source: str
    dedup_key: str
    status: Status
    event_time: int
    start_time: int | None
    correlation_key: str
    incident_id: str
    test: bool = False
    change: bool = False
    timed: bool = True
    grouping: Grouping = PLAIN
    correlation_rule_id: str = ""

    @property
    def alert(self) -> tuple[str, str]:
        """Return whose alert it is."""
        return self.source, self.dedup_key


@dataclass(frozen=True, slots=True)
class Alert:
    """One firing of an alert: the statuses seen as a bit mask, and whether it is over."""

    source: str
    dedup_key: str
    start_time: int | None
    incident_id: str | None
    seen: int
    over: bool
    event_time: int
    first_seen: datetime

    @property
    def key(self) -> tuple[str, str, str]:
        """Return its key in the store."""
        return self.source, self.dedup_key, episode_of(self.start_time)


@dataclass(slots=True)
class Tally:
    """What a batch changes at one incident; `active` counts its alerts that are not over."""

    incident_id: str
    correlation_key: str
    state: State
    active: int = 0
    revision: int = 1
    decided: bool = False
    signals: int = 0
    duplicates: int = 0
    opened: bool = False
    revised: bool = False
    # It was only observed, and its alert has fired anew: that is another incident, which may be more than observed.
    replaced: bool = False
    alerts: int = 0
    new_alerts: int = 0
    open_time: datetime | None = None
    resolve_time: datetime | None = None
    # It takes no new alert: the next one opens another incident of its key.
    sealed: bool = False
    reopened: bool = False
    flapping: bool = False
    grouping: Grouping = PLAIN
    correlation_rule_id: str = ""

    def is_full(self, grouping: Grouping, now: datetime) -> bool:
        """Say whether it has as many alerts, or is as old, as its rule wants."""
        if grouping.max_alerts and self.alerts >= grouping.max_alerts:
            return True
        return bool(grouping.max_age and self.open_time and now - self.open_time > grouping.max_age)


@dataclass(frozen=True, slots=True)
class Turns:
    """How often an alert fired anew after it was over, since when."""

    count: int
    since: datetime


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one signal, and whether its words become the incident's."""

    disposition: Disposition
    incident_id: str | None = None
    speaks: bool = False


@dataclass(slots=True)
class Book:
    """The alerts and incidents that a batch of signals touches, as they are in the store; `judge` writes on in it."""

    now: datetime
    window: timedelta
    alerts: dict[tuple[str, str, str], Alert] = field(default_factory=dict)
    incidents: dict[str, Tally] = field(default_factory=dict)
    changed: set[tuple[str, str, str]] = field(default_factory=set)
    changes: set[tuple[str, str]] = field(default_factory=set)
    turns: dict[tuple[str, str], Turns] = field(default_factory=dict)
    turned: set[tuple[str, str]] = field(default_factory=set)
    _latest: dict[tuple[str, str], tuple[str, str, str]] = field(default_factory=dict)
    _open: dict[str, str] = field(default_factory=dict)
    _resolved: dict[str, str] = field(default_factory=dict)

    def load(self, alerts: Iterable[Alert], incidents: Iterable[Tally]) -> None:
        """Take what the store knows."""
        for alert in alerts:
            self.alerts[alert.key] = alert
            self._note_latest(alert)
        for incident in incidents:
            self.incidents[incident.incident_id] = incident
            if incident.state not in CLOSED and not incident.sealed:
                self._open[incident.correlation_key] = incident.incident_id
            elif incident.state is State.RESOLVED and incident.resolve_time:
                other = self.incidents.get(self._resolved.get(incident.correlation_key, ""))
                if not (other and other.resolve_time and other.resolve_time > incident.resolve_time):
                    self._resolved[incident.correlation_key] = incident.incident_id

    def judge(self, signal: SignalFacts) -> Verdict:
        """Say what becomes of a signal. The same (alert, start, status) again is a duplicate, whatever came since."""
        if signal.test or signal.change:
            return Verdict(Disposition.TEST) if signal.test else self._changed(signal)
        known = self.alerts.get((*signal.alert, episode_of(signal.start_time)))
        if known and not self._is_afresh(known, signal):
            return self._again(known, signal)
        latest = self.alerts.get(self._latest.get(signal.alert, ("", "", "")))
        if latest is known:
            latest = None
        if latest and _is_older(signal, latest):
            return self._joined(Disposition.STALE, latest.incident_id)
        if signal.status is Status.SUPPRESSED:
            found = latest or known
            return self._joined(Disposition.SUPPRESSED, found.incident_id if found and not found.over else None)
        if signal.status is Status.RESOLVED:
            return self._resolved_unseen(signal, latest)
        for before in (latest, known):
            if before and not before.over:
                # The sender has begun anew without saying that the last one was over.
                self._put(replace(before, over=True))
        return self._begin(signal, turned=any(one.over and one.incident_id for one in (latest, known) if one))

    def _changed(self, signal: SignalFacts) -> Verdict:
        """Judge word of a change: it is kept once and touches no incident."""
        if signal.alert in self.changes:
            return Verdict(Disposition.DUPLICATE)
        self.changes.add(signal.alert)
        return Verdict(Disposition.CHANGE)

    def _is_afresh(self, known: Alert, signal: SignalFacts) -> bool:
        """Say whether a signal without a start begins a new episode: after a resolve, or after the window."""
        if signal.start_time is not None or signal.status in (Status.RESOLVED, Status.SUPPRESSED):
            return False
        if known.over and signal.timed:
            return signal.event_time > known.event_time
        if known.over and known.incident_id is None:
            # Its firing may be late, and no time of the sender tells it from the next one.
            return self.now - known.first_seen > HOLD
        if known.over and signal.event_time > known.event_time:
            return True
        return self.now - known.first_seen > self.window

    def _again(self, known: Alert, signal: SignalFacts) -> Verdict:
        """Judge a further signal of a known episode."""
        if known.seen & (1 << signal.status):
            return self._joined(Disposition.DUPLICATE, known.incident_id)
        if signal.status is Status.SUPPRESSED:
            return self._joined(Disposition.SUPPRESSED, known.incident_id)
        resolved = signal.status is Status.RESOLVED
        if not resolved and (known.over or signal.event_time < known.event_time):
            self._put(replace(known, seen=known.seen | 1 << signal.status))
            return self._joined(Disposition.STALE, known.incident_id)
        event_time = max(known.event_time, signal.event_time)
        seen = known.seen | 1 << signal.status
        self._put(replace(known, seen=seen, over=known.over or resolved, event_time=event_time))
        self._revise(known.incident_id)
        return self._joined(Disposition.JOINED, known.incident_id, speaks=True)

    def _resolved_unseen(self, signal: SignalFacts, latest: Alert | None) -> Verdict:
        """Judge a resolve whose firing is not known: it ends the last episode, or waits for a firing that is late."""
        incident_id = latest.incident_id if latest and not latest.over else None
        self._put(_alert_of(signal, incident_id, self.now, over=True))
        if latest is None or latest.over:
            return Verdict(Disposition.STALE)
        self._put(replace(latest, over=True, event_time=max(latest.event_time, signal.event_time)))
        self._revise(incident_id)
        return self._joined(Disposition.JOINED, incident_id, speaks=True)

    def _begin(self, signal: SignalFacts, *, turned: bool) -> Verdict:
        """Join the open incident of the same correlation key, open a resolved one again, or open one."""
        incident_id = self._open_for(signal) or self._reopened(signal)
        opened = incident_id is None
        if incident_id is None:
            incident_id = signal.incident_id
            self.incidents[incident_id] = Tally(
                incident_id,
                signal.correlation_key,
                State.OPEN,
                opened=True,
                open_time=self.now,
                grouping=signal.grouping,
                correlation_rule_id=signal.correlation_rule_id,
            )
            self._open[signal.correlation_key] = incident_id
        self._put(_alert_of(signal, incident_id, self.now, over=False))
        incident = self.incidents[incident_id]
        incident.alerts += 1
        incident.new_alerts += 1
        if turned:
            incident.flapping |= self._turn(signal.alert)
        return self._joined(Disposition.OPENED if opened else Disposition.JOINED, incident_id, speaks=True)

    def _open_for(self, signal: SignalFacts) -> str | None:
        """Return the open incident that takes a new alert; one that was only observed, or is full, does not."""
        incident_id = self._open.get(signal.correlation_key)
        if incident_id is None:
            return None
        found = self.incidents[incident_id]
        found.replaced = found.state is State.OBSERVED and not found.active
        found.sealed = not found.replaced and found.is_full(signal.grouping, self.now)
        if found.replaced or found.sealed:
            del self._open[signal.correlation_key]
            return None
        return incident_id

    def _reopened(self, signal: SignalFacts) -> str | None:
        """Open the incident that was resolved last again, if its rule wants it; it is decided anew."""
        found = self.incidents.get(self._resolved.pop(signal.correlation_key, ""))
        if found is None or not found.resolve_time or self.now - found.resolve_time > signal.grouping.reopen:
            return None
        if found.revision >= REVISIONS_MAX or found.sealed or found.is_full(signal.grouping, self.now):
            return None
        found.state, found.reopened = State.OPEN, True
        self._open[signal.correlation_key] = found.incident_id
        return found.incident_id

    def _turn(self, alert: tuple[str, str]) -> bool:
        """Count that an alert has fired anew; say whether it is flapping."""
        known = self.turns.get(alert)
        if known is None or self.now - known.since > FLAPPING_WINDOW:
            known = Turns(0, self.now)
        self.turns[alert] = Turns(known.count + 1, known.since)
        self.turned.add(alert)
        return known.count + 1 >= FLAPPING_TURNS

    def _joined(self, disposition: Disposition, incident_id: str | None, *, speaks: bool = False) -> Verdict:
        """Count the signal at its incident."""
        if incident_id and (incident := self.incidents.get(incident_id)):
            incident.signals += 1
            incident.duplicates += disposition is Disposition.DUPLICATE
        return Verdict(disposition, incident_id, speaks)

    def _put(self, alert: Alert) -> None:
        """Write an alert and keep count of how many of its incident's alerts are not over."""
        before = self.alerts.get(alert.key)
        for one, step in ((before, -1), (alert, 1)):
            if one and not one.over and one.incident_id in self.incidents:
                self.incidents[one.incident_id].active += step
        self.alerts[alert.key] = alert
        self.changed.add(alert.key)
        self._note_latest(alert)

    def _note_latest(self, alert: Alert) -> None:
        """Remember the newest episode of each alert."""
        whose = (alert.source, alert.dedup_key)
        known = self.alerts.get(self._latest.get(whose, ("", "", "")))
        if known is None or (alert.start_time or 0) >= (known.start_time or 0):
            self._latest[whose] = alert.key

    def _revise(self, incident_id: str | None) -> None:
        """Have an incident decided anew when its last alert is over and nothing acts on it."""
        incident = self.incidents.get(incident_id or "")
        if incident and incident.active == 0 and incident.decided and incident.state not in CLOSED | ACTING:
            incident.revised = True


def _is_older(signal: SignalFacts, latest: Alert) -> bool:
    """Say whether a signal is of a time before the newest episode of its alert, or before the resolve that ended it."""
    if signal.start_time and latest.start_time:
        return signal.start_time < latest.start_time
    return latest.over and signal.status is not Status.RESOLVED and signal.event_time <= latest.event_time


def _alert_of(signal: SignalFacts, incident_id: str | None, now: datetime, *, over: bool) -> Alert:
    return Alert(
        source=signal.source,
        dedup_key=signal.dedup_key,
        start_time=signal.start_time,
        incident_id=incident_id,
        seen=1 << signal.status,
        over=over,
        event_time=signal.event_time,
        first_seen=now,
    )
