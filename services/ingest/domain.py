"""Signals, alerts and incidents as deduplication sees them: plain data, standard library only."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Final

from services.ingest.correlation import PLAIN, Grouping
from services.ingest.signal import Status, TargetKey

REVISIONS_MAX: Final = 5


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
# What works on an incident goes on when its alerts change, and who waits for a person has told one.
WAITING: Final = ACTING | {State.AWAITING_PERSON}


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
    # When its sender says that it was over; only of a resolve.
    end_time: int | None = None
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
    # When its sender said that it was over; None while it is not, or where the sender does not say.
    end_time: int | None = None
    # By our clock, of one whose newest word on it is an occurrence: when it was told last, and when it is over unless
    # told again; None is never.
    told_time: datetime | None = None
    expire_time: datetime | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """Return its key in the store."""
        return self.source, self.dedup_key, episode_of(self.start_time)

    @property
    def is_lapsed(self) -> bool:
        """Say whether it was an occurrence and is over: what is told of a later moment is another one."""
        return self.over and self.told_time is not None


@dataclass(slots=True)
class Tally:
    """What a batch changes at one incident; `active` counts its alerts that are not over."""

    incident_id: str
    correlation_key: str
    state: State
    active: int = 0
    revision: int = 1
    decided: bool = False
    # Its debounce is not over, and nobody has been asked what to do about it.
    gathers: bool = False
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
    # Full, too old or over: it takes no new alert, and the next one opens another incident of its key.
    sealed: bool = False
    reopened: bool = False
    flapping: bool = False
    # From now on: people are told, and whatever was decided before is not begun.
    flaps_now: bool = False
    # While it flaps: when it counts as calm unless something changes until then; None leaves what is stored.
    calm_time: datetime | None = None
    grouping: Grouping = PLAIN
    correlation_rule_id: str = ""

    def is_full(self, grouping: Grouping, now: datetime) -> bool:
        """Say whether it has as many alerts, or is as old, as its rule wants."""
        if grouping.max_alerts and self.alerts >= grouping.max_alerts:
            return True
        return bool(grouping.max_age and self.open_time and now - self.open_time > grouping.max_age)
