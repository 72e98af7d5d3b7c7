"""What `opsmesh incidents watch` makes of one answer after the other: how a storm becomes few incidents, and how fast.

It asks, and is not told: an incident that a thousand alerts join within a second is still one row of one answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from opsmesh.ingest.v1 import ingest_service_pb2 as ingest
from opsmesh.ingest.v1 import signal_pb2
from services.cli.output import cell, clock, duration, plain, word

STATE = ingest.Incident.DESCRIPTOR.fields_by_name["state"].enum_type
SEVERITY = signal_pb2.Signal.Severity.DESCRIPTOR
# Lines that are not rows: the sums, the names of the columns, what does not fit.
FRAME = 4


@dataclass(frozen=True, slots=True)
class Row:
    """An incident, and how many signals a second it got since it was last seen."""

    incident: ingest.Incident
    rate: float
    changed: bool


@dataclass(frozen=True, slots=True)
class Sums:
    """Over what is shown: signals in and incidents out; and what happened since the watch began."""

    signals: int
    duplicates: int
    incidents: int
    grown: int
    rate: float
    closed: int
    more: bool
    news: bool

    @property
    def words(self) -> str:
        """Return them in one line."""
        ratio = f"{self.signals / self.incidents:,.0f} to 1" if self.incidents else "nothing is open"
        more = "; older ones are not counted" if self.more else ""
        return (
            f"{self.signals:,} signals in ({self.duplicates:,} of them duplicates), "
            f"{self.incidents:,} open incidents out: {ratio}{more} | "
            f"since the watch began: {self.grown:,} signals, {self.closed:,} incidents over | now {self.rate:,.0f}/s"
        )


@dataclass(slots=True)
class Watch:
    """Remembers the open incidents of the last answer, no more."""

    _last: dict[str, ingest.Incident] = field(default_factory=dict)
    _time: float | None = None
    _grown: int = 0
    _closed: int = 0

    def see(self, answer: ingest.ListIncidentsResponse, now: float) -> tuple[list[Row], Sums]:
        """Return the rows, oldest first so that each stays where it is, and the sums; `now` in seconds of any clock."""
        first, passed = self._time is None, now - (self._time or now)
        more = bool(answer.next_page_token)
        rows = [self._row(one, first=first, passed=passed) for one in reversed(answer.incidents)]
        shown = {one.incident_id: one for one in answer.incidents}
        grown = 0 if first else sum(one.signal_count - self._count(one) for one in answer.incidents)
        self._grown += grown
        # Beyond the page nobody can say whether it is over.
        closed = 0 if more else len(self._last.keys() - shown.keys())
        self._closed += closed
        news = first or bool(closed) or any(row.changed for row in rows)
        self._last, self._time = shown, now
        signals = sum(one.signal_count for one in answer.incidents)
        duplicates = sum(one.duplicate_count for one in answer.incidents)
        rate = grown / passed if passed > 0 else 0.0
        return rows, Sums(signals, duplicates, len(rows), self._grown, rate, self._closed, more, news)

    def _count(self, one: ingest.Incident) -> int:
        known = self._last.get(one.incident_id)
        return known.signal_count if known else 0

    def _row(self, one: ingest.Incident, *, first: bool, passed: float) -> Row:
        known = self._last.get(one.incident_id)
        grown = 0 if first else one.signal_count - self._count(one)
        changed = known is None or _shown(known) != _shown(one)
        return Row(one, grown / passed if passed > 0 else 0.0, changed)


def _shown(one: ingest.Incident) -> tuple[object, ...]:
    return one.state, one.signal_count, one.duplicate_count, one.firing, one.flapping, one.state_detail


def picture(rows: Sequence[Row], sums: Sums, width: int, height: int) -> RenderableType:
    """Return the sums and a table that fits: one line each, the newest when not all have room, and what is told first.

    A terminal of 80 columns has no room for ids; they are in `incidents list`.
    """
    room = max(1, height - FRAME)
    columns = [one for one in COLUMNS if width >= one.from_width]
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    for one in columns:
        if one.width:
            table.add_column(one.name, width=one.width, no_wrap=True, overflow="ellipsis", justify=one.justify)
        else:
            table.add_column(one.name, ratio=1, no_wrap=True, overflow="ellipsis")
    for row in rows[-room:]:
        table.add_row(*(one.text(row) for one in columns))
    hidden = Text(f"and {len(rows) - room} older ones: opsmesh incidents list", "dim") if len(rows) > room else Text("")
    return Group(Text(sums.words, "bold", no_wrap=True, overflow="ellipsis"), table, hidden)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table: its width (0 takes what is left), and from which width of the terminal it is shown."""

    name: str
    width: int
    from_width: int
    text: Callable[[Row], Text]
    justify: Literal["left", "right"] = "left"


def _firing(one: ingest.Incident) -> str:
    return "flapping" if one.flapping else "firing" if one.firing else "over"


COLUMNS: Final = (
    Column("state", 17, 0, lambda row: cell(row.incident, "state")),
    Column("firing", 8, 0, lambda row: Text(_firing(row.incident), "red" if row.incident.firing else "green")),
    Column("signals", 9, 0, lambda row: Text(f"{row.incident.signal_count:,}"), "right"),
    Column("alerts", 9, 170, lambda row: Text(f"{row.incident.alert_count:,}"), "right"),
    Column("dup", 7, 0, lambda row: Text(f"{row.incident.duplicate_count:,}"), "right"),
    Column("per s", 6, 0, lambda row: Text(f"{row.rate:,.0f}" if row.rate else ""), "right"),
    Column("age", 7, 170, lambda row: Text(duration(row.incident.age_seconds))),
    Column("severity", 8, 170, lambda row: cell(row.incident, "severity")),
    Column("target", 22, 130, lambda row: Text(plain("".join(one.target_id for one in row.incident.targets[:1])))),
    Column("title", 0, 0, lambda row: Text(_line(row.incident.title))),
    Column("incident", 36, 110, lambda row: Text(row.incident.incident_id)),
    Column("why", 40, 190, lambda row: Text(_line(row.incident.state_detail))),
)


def lines(rows: Sequence[Row], sums: Sums) -> list[str]:
    """Return the sums and what changed as plain lines, for what is no terminal; nothing when nothing changed."""
    return [sums.words, *(_words(row) for row in rows if row.changed)] if sums.news else []


def _words(row: Row) -> str:
    one = row.incident
    words = [
        clock(one.update_time),
        one.incident_id,
        word(STATE, one.state),
        _firing(one),
        word(SEVERITY, one.severity),
    ]
    counts = f"alerts={one.alert_count} signals={one.signal_count} duplicates={one.duplicate_count}"
    return f"{' '.join(words)} {counts} per_second={row.rate:.0f} {_line(one.title)}"


def _line(text: str) -> str:
    return plain(text).replace("\n", " ")
