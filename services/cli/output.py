"""What people and scripts see: tables, sheets and proto3 JSON."""

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.cli.session import Session, UsageError

Column = tuple[str, str | Callable[[Any], object]]

AGE_DIGITS = 8
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
PIPE_WIDTH = 240
# Candidates only: most letters beyond ASCII are printable.
UNPRINTABLE = re.compile(r"[^\n -~]")
COLOURS = {
    "RESOLVED": "green",
    "SUCCEEDED": "green",
    "REPAIRED": "green",
    "ALLOW": "green",
    "RUNNING": "cyan",
    "STARTED": "cyan",
    "OPEN": "yellow",
    "PENDING": "yellow",
    "AWAITING_MODEL": "yellow",
    "AWAITING_PERSON": "yellow",
    "AWAITING_APPROVAL": "yellow",
    "OBSERVED": "blue",
    "HELD": "yellow",
    "APPROVED": "green",
    "STOPPED": "green",
    "ENGAGED": "red",
    "RELEASE_PENDING": "red",
    "UNSTOPPED": "red",
    "NOT_REPORTED": "red",
    "IN_FLIGHT": "yellow",
    "REJECTED": "red",
    "VOID": "red",
    "FAILED": "red",
    "UNKNOWN": "red",
    "EXPIRED": "red",
    "DENY": "red",
    "DENIED": "red",
}


def console() -> Console:
    """Return a console on the present stdout; what reads a pipe gets rows on one line each."""
    out = Console(file=sys.stdout, highlight=False)
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = PIPE_WIDTH
    return out


def error_console() -> Console:
    """Return a console on the present stderr, for progress."""
    return Console(file=sys.stderr, highlight=False)


def print_json(message: Message, *, one_line: bool = False, **lists: Sequence[Message]) -> None:
    """Print proto3 JSON with default values and proto field names, and nothing else; LISTS are further members."""
    content = _plain_json(message) | {name: [_plain_json(one) for one in items] for name, items in lists.items()}
    sys.stdout.write(json_text(content, indent=None if one_line else 2) + "\n")
    sys.stdout.flush()


def json_text(content: Any, indent: int | None) -> str:
    """Return JSON in which every letter can be read, and what a terminal would obey is escaped, also beyond ASCII."""
    return UNPRINTABLE.sub(_escaped, json.dumps(content, indent=indent, ensure_ascii=False))


def _escaped(found: re.Match[str]) -> str:
    letter = found[0]
    return letter if letter.isprintable() else json.dumps(letter)[1:-1]


def _plain_json(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(
        message, always_print_fields_with_no_presence=True, preserving_proto_field_name=True
    )


def show_list(session: Session, response: Message, field: str, columns: Sequence[Column], title: str = "") -> None:
    """Show the items of FIELD: the list response as JSON for scripts, a table for people."""
    if session.as_json:
        print_json(response)
        return
    items = list(getattr(response, field))
    if not items:
        console().print(f"no {field.replace('_', ' ')}")
        return
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for header, _ in columns:
        table.add_column(header, overflow="fold")
    for item in items:
        table.add_row(*(cell(item, column) for _, column in columns))
    console().print(table)
    token = getattr(response, "next_page_token", "")
    if token:
        console().print(f"[dim]more: --page-token {token}[/dim]", soft_wrap=True)


def show_one(session: Session, message: Message, columns: Sequence[Column]) -> None:
    """Show one resource: as JSON for scripts, as a sheet for people."""
    if session.as_json:
        print_json(message)
        return
    sheet = Table.grid(padding=(0, 2))
    sheet.add_column(style="bold")
    sheet.add_column(overflow="fold")
    for header, column in columns:
        text = cell(message, column)
        if text.plain:
            sheet.add_row(header, text)
    console().print(sheet)


def cell(item: Any, column: str | Callable[[Any], object]) -> Text:
    """Return one value as text; untrusted text never becomes markup or control characters."""
    value = column(item) if callable(column) else field_value(item, column)
    text = plain(str(value))
    return Text(text, style=COLOURS.get(text, ""))


def plain(text: str) -> str:
    """Return text that a stranger may have written without control characters but line ends."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "�" for letter in text)


def field_value(item: Any, name: str) -> object:
    """Return the field NAME of ITEM for a person: enum words without prefix, local words for time."""
    descriptor = item.DESCRIPTOR.fields_by_name[name]
    value = getattr(item, name)
    if descriptor.enum_type is not None and not descriptor.is_repeated:
        return word(descriptor.enum_type, value)
    if isinstance(value, Timestamp):
        return moment(value) if item.HasField(name) else ""
    if descriptor.is_repeated:
        return ", ".join(str(one) for one in value)
    return value


def word(enum: Any, number: int) -> str:
    """Return the word of an enum value without its prefix; nothing for UNSPECIFIED."""
    value = enum.values_by_number.get(number)
    if value is None or value.number == 0:
        return ""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(value.name.removeprefix(prefix))


def enum_value(enum: Any, text: str) -> int:
    """Return the number of an enum value named with or without its prefix, in any case; 0 for an empty text."""
    if not text:
        return 0
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    found = enum.values_by_name.get(prefix + text.upper().replace("-", "_").removeprefix(prefix))
    if found is None or found.number == 0:
        names = ", ".join(one.name.removeprefix(prefix).lower() for one in enum.values if one.number)
        raise UsageError(f"{text!r} is not known here\nNEXT: one of {names}")
    return int(found.number)


def parse_span(text: str) -> timedelta:
    """Return the span that TEXT names, such as 30m or 7d. Raises UsageError for anything else."""
    if text[-1:] in UNITS and text[:-1].isdecimal() and len(text) < AGE_DIGITS:
        return timedelta(seconds=int(text[:-1]) * UNITS[text[-1]])
    raise UsageError(f"{text!r} is no span of time\nNEXT: such as 30m, 12h or 7d")


def parse_time(text: str) -> datetime:
    """Return the moment that TEXT names: an ISO 8601 time (UTC unless it says otherwise), or an age such as 30m."""
    with suppress(UsageError):
        return datetime.now(UTC) - parse_span(text)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is no time\nNEXT: such as 2026-11-21T10:00:00Z, or an age such as 30m") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def moment(value: Timestamp) -> str:
    """Return a time in UTC, to the millisecond."""
    return value.ToDatetime(tzinfo=UTC).isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")


def clock(value: Timestamp) -> str:
    """Return the time of day in UTC, for narrow tables; with the date when that is not today's."""
    found = value.ToDatetime(tzinfo=UTC)
    return f"{found:%H:%M:%S}" if found.date() == datetime.now(UTC).date() else f"{found:%Y-%m-%d %H:%M}"


def age(value: Timestamp) -> str:
    """Return how long ago VALUE was."""
    seconds = int((datetime.now(UTC) - value.ToDatetime(tzinfo=UTC)).total_seconds())
    return duration(max(0, seconds))


def duration(seconds: int) -> str:
    """Return SECONDS in the two largest units."""
    units = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
    parts: list[str] = []
    for size, unit in units:
        if seconds >= size or (unit == "s" and not parts):
            parts.append(f"{seconds // size}{unit}")
            seconds %= size
    return " ".join(parts[:2])


def print_table(session: Session, name: str, headers: Sequence[str], rows: Sequence[dict[str, str]]) -> None:
    """Show plain rows that are no protobuf messages: a JSON object with the list NAME, or a table."""
    if session.as_json:
        sys.stdout.write(json.dumps({name: list(rows)}, indent=2) + "\n")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[header], style=COLOURS.get(row[header], "")) for header in headers))
    console().print(table)
