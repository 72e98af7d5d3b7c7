"""Tolerant reading of JSON from strangers: repaired where the meaning is clear, else refused; it never crashes."""

import json
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any, Final

import orjson

from services.ingest.signal import WARNING_MAX, WARNINGS_MAX, LeftOut, Unreadable, unreadable

DEPTH_MAX: Final = 64
PAIRS_MAX: Final = 128
NAME_MAX: Final = 256
VALUE_MAX: Final = 8192
INTEGER_DIGITS_MAX: Final = 40
# orjson turns what does not fit 64 bits into a float, and two long ids into one.
LONG_INTEGER: Final = b"0" * 20
# Every digit as a zero: so it is found at a tenth of what a pattern costs, which was more than all the reading of JSON.
AS_ZEROS: Final = bytes.maketrans(b"123456789", b"0" * 9)
# A quote always matches up to its end, or the end of all: linear whatever comes.
TRAILING_COMMA: Final = re.compile(r'"(?:[^"\\]|\\.)*+\\?(?:"|\Z)|,\s*+(?=[}\]])', re.DOTALL)
# As senders spell them; `none` in lower case is a word of some (a severity).
ABSENT: Final = frozenset({"", "null", "NULL", "None", "<no value>", "[no value]", "<nil>", "undefined", "N/A"})
# `${x}`, `$ALERT_ID`, `$TAGS[service]`, `{EVENT.ID}`. Each begins at one place only: linear.
PLACEHOLDER: Final = re.compile(r"\$\{[^}]*+\}|\$[A-Z_][A-Z0-9_]*+(?:\[[^\]]*+\])?|\{[A-Z][A-Z0-9_.]*+\}")
RFC3339: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9})\d*)?)?"
    # Go writes an offset and then the zone's name.
    r"(?:\s*([Zz]|UTC|[+-]\d\d:?\d\d)(?: [A-Z]{2,5})?)?"
)
EPOCH: Final = re.compile(r"\d{9,19}(?:\.\d{1,9})?")
YEAR_MIN, YEAR_MAX = 1971, 2200
NANOS: Final = 1_000_000_000
DAY_SECONDS: Final = 86_400
UNIX: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Notes:
    """What was not understood or was cut, for the `warnings` of a signal."""

    __slots__ = ("_texts",)

    def __init__(self, *texts: str) -> None:
        self._texts = list(texts)

    def add(self, text: str) -> None:
        """Note one thing, bounded and free of what PostgreSQL cannot store."""
        if len(self._texts) < WARNINGS_MAX:
            self._texts.append(clean(text)[:WARNING_MAX])

    def leave_out(self, left_out: Iterable[LeftOut]) -> None:
        """Note the alerts of the delivery that could not be understood."""
        for one in left_out:
            self.add(f"left out {one.error.field}: {one.error.description}")

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the notes, each once."""
        return tuple(dict.fromkeys(self._texts))


def read_json(body: bytes, notes: Notes) -> Any:
    """Return the JSON value of a body; Unreadable says why there is none."""
    if not body or body.isspace():
        raise unreadable("", "the body is empty")
    try:
        value = orjson.loads(body) if LONG_INTEGER not in body.translate(AS_ZEROS) else _repaired(body, notes)
    except orjson.JSONDecodeError:
        value = _repaired(body, notes)
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        notes.add("the body was JSON inside a JSON string")
        value = _repaired(value.encode("utf-8", "replace"), notes)
    if body.count(b"{") + body.count(b"[") > DEPTH_MAX or isinstance(value, str):
        _check_depth(value)
    return value


def _repaired(body: bytes, notes: Notes) -> Any:
    """Read what strict JSON is not: a BOM, raw control characters, trailing commas, broken UTF-8, long integers."""
    text = body.decode("utf-8-sig", "replace")
    if "\ufffd" in text:
        notes.add("bytes that are not UTF-8 were replaced")
    try:
        return json.loads(text, strict=False, parse_int=_integer, parse_constant=str)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        first = error
    mended = TRAILING_COMMA.sub(lambda match: match[0] if match[0][0] == '"' else "", text)
    if mended == text:
        raise _not_json(first)
    try:
        value = json.loads(mended, strict=False, parse_int=_integer, parse_constant=str)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise _not_json(error) from None
    notes.add("trailing commas were removed")
    return value


def _integer(digits: str) -> int | str:
    """Return an integer exactly; one of absurd length stays text."""
    return int(digits) if len(digits) <= INTEGER_DIGITS_MAX else digits


def _not_json(error: ValueError) -> Unreadable:
    where = f"line {error.lineno} column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else ""
    return unreadable("", f"the body is not JSON: {where or 'it cannot be decoded'}")


def _too_deep() -> Unreadable:
    return unreadable("", f"the JSON is nested deeper than {DEPTH_MAX} levels")


def _check_depth(value: Any) -> None:
    """Refuse nesting beyond the cap, level by level and without recursion."""
    level = [value]
    for _ in range(DEPTH_MAX + 1):
        level = [
            child
            for one in level
            if isinstance(one, dict | list)
            for child in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return
    raise _too_deep()


def clean(text: str) -> str:
    """Return a text that protobuf and PostgreSQL can hold: no NUL, no lone surrogate."""
    if "\x00" in text:
        text = text.replace("\x00", "")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def text_of(value: Any) -> str:
    """Return a JSON value as text: scalars as they are, nested ones as JSON, what is absent as nothing."""
    if isinstance(value, str):
        text = clean(value)
        return "" if text.strip() in ABSENT else text
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    return clean(json.dumps(value, ensure_ascii=False, default=str))


def bounded(value: Any, limit: int, name: str, notes: Notes) -> str:
    """Return a value as text of at most `limit` characters; a cut is noted under `name`."""
    text = text_of(value)
    if len(text) > limit:
        notes.add(f"{name} was cut to {limit} characters")
        return text[:limit]
    return text


def word_of(value: Any, limit: int, name: str, notes: Notes) -> str:
    """Return a value that may become a key or a label: an unrendered placeholder is absent, and noted."""
    text = bounded(value, limit, name, notes)
    if text and ("$" in text or "{" in text or "<" in text) and is_placeholder(text):
        notes.add(f"{name} holds an unrendered placeholder")
        return ""
    return text


Reader = Callable[[Any, int, str, Notes], str]


def is_placeholder(text: str) -> bool:
    """Say whether a sender forgot to fill in its template."""
    # searched plainly: a pattern with two open ends costs the square of the length
    opened = text.find("{{")
    if (opened >= 0 and text.find("}}", opened) >= 0) or "<no value>" in text:
        return True
    return PLACEHOLDER.fullmatch(text) is not None


def words_of(value: Any, name: str, notes: Notes, read: Reader = word_of) -> dict[str, str]:
    """Return an object as bounded words by name (or what READ makes of each); what is no object is noted and absent."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        notes.add(f"{name} is not an object")
        return {}
    found: dict[str, str] = {}
    for key, content in value.items():
        short = clean(key)[:NAME_MAX]
        if not short or content is None:
            continue
        if len(found) >= PAIRS_MAX:
            notes.add(f"{name} has more than {PAIRS_MAX} entries")
            break
        if word := read(content, VALUE_MAX, f"{name}.{short}"[:NAME_MAX], notes):
            found[short] = word
    return found


def time_of(value: Any, name: str, notes: Notes) -> int | None:
    """Return a moment in nanoseconds since 1970; None when it is absent, year 1, or cannot be read (noted)."""
    if isinstance(value, bool):
        value = str(value)
    text = text_of(value).strip()
    if not text:
        return None
    found: int | None = None
    if match := RFC3339.fullmatch(text):
        if match[1] == "0001":
            return None
        if not match[8]:
            notes.add(f"{name} names no time zone and was read as UTC")
        found = _calendar(match)
    elif EPOCH.fullmatch(text):
        found = _epoch(text)
    if found is None:
        notes.add(f"{name} is not a time: {text[:64]}")
    return found


def _calendar(match: re.Match[str]) -> int | None:
    year, month, day, hour, minute = map(int, match.group(1, 2, 3, 4, 5))
    # Senders count leap seconds, datetime does not.
    second = min(int(match[6] or 0), 59)
    if not YEAR_MIN <= year <= YEAR_MAX:
        return None
    try:
        since = datetime(year, month, day, hour, minute, second, tzinfo=_zone(match[8])) - UNIX
    except ValueError:
        return None
    nanos = int((match[7] or "").ljust(9, "0"))
    return (since.days * DAY_SECONDS + since.seconds) * NANOS + nanos


def _zone(text: str | None) -> tzinfo:
    """Return the time zone of an offset such as `+02:00`; UTC where there is none. ValueError beyond a day."""
    if not text or text[0] not in "+-":
        return UTC
    offset = timedelta(hours=int(text[1:3]), minutes=int(text[-2:]))
    return timezone(-offset if text[0] == "-" else offset)


def _epoch(text: str) -> int | None:
    """Read seconds, milliseconds, microseconds or nanoseconds, whichever falls into our years."""
    whole, _, fraction = text.partition(".")
    earliest = (datetime(YEAR_MIN, 1, 1, tzinfo=UTC) - UNIX).total_seconds()
    latest = (datetime(YEAR_MAX, 1, 1, tzinfo=UTC) - UNIX).total_seconds()
    for unit in (1, 1_000, 1_000_000, NANOS):
        if earliest <= int(whole) / unit <= latest:
            scale = NANOS // unit
            return int(whole) * scale + int((fraction.ljust(9, "0")) or "0") * scale // NANOS
    return None
