"""What a model answered, read strictly: the protobuf request it means, or a short reason fit to be sent back to it.

Nothing here raises on what a model sends. A reason is made of our own words, names of the IDL and, where a name of the
model's must be quoted, of its harmless characters only: a dropped call is no way to get text into the next prompt.
What is accepted is bounded before it is parsed (size, depth), has no key twice, no field that was not offered, no
number that is none, and passes protovalidate as a whole.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NoReturn

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from services.mesh import policy
from services.mesh.models import bounds
from services.mesh.models.tool_schema import DEPTH_MAX, REQUEST_ID, Form, Offer, described, form, nested, value_kind

TEXT_MAX: Final = 65_536
# Each level of messages may be a list or a map below an object below its oneof.
NESTING_MAX: Final = 3 * DEPTH_MAX + 2
CALLS_MAX: Final = 16
QUOTED_MAX: Final = 64
VIOLATIONS_MAX: Final = 5
REASON_MAX: Final = 600
LISTED_MAX: Final = 12
_FLOAT_EXACT: Final = 2**53
_UNQUOTABLE: Final = re.compile(r"[^A-Za-z0-9_.\[\]/-]")
# A text that is never closed ends where everything ends: looking for it again from each quote would take its square.
_STRUCTURE: Final = re.compile(r'"(?:[^"\\]|\\.)*+\\?(?:"|\Z)|[\[{]|[\]}]', re.DOTALL)


class Fault(StrEnum):
    """Why a call was dropped, for counting; the words are for the model."""

    TOOL_UNKNOWN = "TOOL_UNKNOWN"
    TOO_MANY_CALLS = "TOO_MANY_CALLS"
    TOO_LARGE = "TOO_LARGE"
    TOO_DEEP = "TOO_DEEP"
    NOT_JSON = "NOT_JSON"
    NOT_A_NUMBER = "NOT_A_NUMBER"
    TRAILING_TEXT = "TRAILING_TEXT"
    DUPLICATE_KEY = "DUPLICATE_KEY"
    UNKNOWN_FIELD = "UNKNOWN_FIELD"
    WRONG_TYPE = "WRONG_TYPE"
    BOUND_BROKEN = "BOUND_BROKEN"
    NOT_ONE = "NOT_ONE"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call as a provider handed it over: nothing of it is believed, not even its types."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """A call that means something: `request` is complete and within its bounds; nobody has authorised it."""

    call: ToolCall
    offer: Offer
    request: Message


@dataclass(frozen=True, slots=True)
class Dropped:
    """A call that was not understood; `reason` is at most REASON_MAX characters of ours, to be sent back."""

    call: ToolCall
    fault: Fault
    reason: str


class _DropError(Exception):
    """Leaves the reading of one call."""

    def __init__(self, fault: Fault, reason: str) -> None:
        self.fault = fault
        self.reason = reason
        super().__init__(reason)


def read_calls(
    calls: Sequence[ToolCall], offers: Mapping[str, Offer], request_id: Callable[[int], str]
) -> list[Parsed | Dropped]:
    """Read several calls of one reply, each for itself; every call beyond CALLS_MAX is dropped by name.

    `request_id` gives the id of the call at a place, such as uuid5(run, step, place).
    """
    return [
        read_call(call, offers, request_id(place))
        if place < CALLS_MAX
        else Dropped(call, Fault.TOO_MANY_CALLS, f"call {place + 1}: at most {CALLS_MAX} calls in one reply")
        for place, call in enumerate(calls)
    ]


def read_call(call: ToolCall, offers: Mapping[str, Offer], request_id: str = "") -> Parsed | Dropped:
    """Read one call; `request_id` is set on a request that has such a field, whatever the model thinks of it."""
    try:
        found = _find(call.name, offers)
        return Parsed(call, found, _message(found, call.arguments, request_id))
    except _DropError as dropped:
        return Dropped(call, dropped.fault, dropped.reason[:REASON_MAX])


def quoted(text: object) -> str:
    """Return a model's word as it may be repeated to it: harmless characters, few of them."""
    if not isinstance(text, str):
        return "(no text)"
    return _UNQUOTABLE.sub("?", text[:QUOTED_MAX]) + ("..." if len(text) > QUOTED_MAX else "")


def _find(name: Any, offers: Mapping[str, Offer]) -> Offer:
    """Return the offer of a name."""
    found = offers.get(name) if isinstance(name, str) else None
    if found is None:
        listed = ", ".join(sorted(offers)[:LISTED_MAX]) or "none"
        raise _DropError(Fault.TOOL_UNKNOWN, f"there is no tool {quoted(name)}; there are: {listed}")
    return found


def _message(offer: Offer, text: Any, request_id: str) -> Message:
    """Return the request that a text means."""
    data = _json(text)
    if not isinstance(data, dict):
        raise _DropError(Fault.WRONG_TYPE, "the arguments must be one JSON object")
    message = offer.message_class()
    _Reader(offer).fill(message, described(offer.message_class), data)
    if REQUEST_ID in described(offer.message_class).fields_by_name:
        setattr(message, REQUEST_ID, request_id)
    broken = policy.violations(message)
    if broken:
        told = [f"{_UNQUOTABLE.sub('?', one.field) or 'the request'}: {one.description}" for one in broken]
        more = f"; and {len(told) - VIOLATIONS_MAX} more" if len(told) > VIOLATIONS_MAX else ""
        raise _DropError(Fault.BOUND_BROKEN, "; ".join(told[:VIOLATIONS_MAX]) + more)
    return message


def _json(text: Any) -> Any:
    """Return what a text says as JSON, after looking at its size and depth."""
    if not isinstance(text, str):
        raise _DropError(Fault.NOT_JSON, "the arguments must be the text of one JSON object")
    if len(text) > TEXT_MAX:
        raise _DropError(Fault.TOO_LARGE, f"the arguments have {len(text)} characters; at most {TEXT_MAX}")
    _check_depth(text)
    decoder = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_no_number, parse_float=_float, parse_int=_int)
    start = len(text) - len(text.lstrip(" \t\r\n"))
    try:
        data, end = decoder.raw_decode(text, start)
    except (ValueError, RecursionError):
        raise _DropError(Fault.NOT_JSON, "the arguments are not JSON: send one JSON object and nothing else") from None
    if text[end:].strip(" \t\r\n"):
        raise _DropError(Fault.TRAILING_TEXT, "text after the JSON object: send one JSON object and nothing else")
    return data


def _check_depth(text: str) -> None:
    """Drop what is nested deeper than anything we offer, before the parser recurses into it."""
    depth = 0
    for piece in _STRUCTURE.finditer(text):
        first = piece[0][0]
        depth += 1 if first in "[{" else -1 if first in "]}" else 0
        if depth > NESTING_MAX:
            raise _DropError(Fault.TOO_DEEP, f"the arguments are nested deeper than {NESTING_MAX}")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object, unless it says something twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _DropError(Fault.DUPLICATE_KEY, f"the key {quoted(key)} is there twice")
        found[key] = value
    return found


def _no_number(_word: str) -> NoReturn:
    """Drop NaN and the infinities, which Python's parser would take."""
    raise _DropError(Fault.NOT_A_NUMBER, "NaN and Infinity are no numbers")


def _float(word: str) -> float:
    """Return a number with a fraction or an exponent; one beyond every double is none."""
    value = float(word)
    if not math.isfinite(value):
        raise _DropError(Fault.NOT_A_NUMBER, "a number is too large")
    return value


def _int(word: str) -> int:
    """Return a whole number; none that we know has more digits than this, and converting costs their square."""
    if len(word) > QUOTED_MAX:
        raise _DropError(Fault.NOT_A_NUMBER, "a number is too large")
    return int(word)


class _Reader:
    """Fills a message from JSON by the form of an offer."""

    def __init__(self, offer: Offer) -> None:
        self.choices = offer.choices
        self.forms: dict[tuple[str, int], Form] = {}

    def fill(self, message: Message, kind: Descriptor, data: Mapping[str, Any]) -> None:
        """Fill the message of the whole call."""
        self._object(message, kind, data, DEPTH_MAX, "")

    def _object(self, message: Message, kind: Descriptor, data: Any, levels: int, path: str) -> None:
        """Fill a message from an object whose keys are those of its form."""
        if not isinstance(data, dict):
            raise _wrong(path, "an object")
        place = (kind.full_name, levels)
        if place not in self.forms:
            self.forms[place] = form(kind, levels, self.choices, top=path == "")
        offered = self.forms[place]
        for key, value in data.items():
            here = f"{path}.{key}" if path else key
            if value is None and (key in offered.fields or key in offered.groups):
                raise _DropError(Fault.WRONG_TYPE, f"{quoted(here)} is null: leave out what is not said")
            if key in offered.fields:
                self._field(message, offered.fields[key], value, levels, here)
            elif key in offered.groups:
                one, inner = self._member(offered.groups[key], value, here)
                self._field(message, one, inner, levels, f"{here}.{one.name}")
            else:
                known = ", ".join([*offered.fields, *offered.groups][:LISTED_MAX]) or "none"
                inside = f" in {quoted(path)}" if path else ""
                raise _DropError(Fault.UNKNOWN_FIELD, f"there is no field {quoted(key)}{inside}; there are: {known}")

    def _member(self, members: Mapping[str, FieldDescriptor], value: Any, path: str) -> tuple[FieldDescriptor, Any]:
        """Return the one member of a oneof that an object chooses."""
        names = ", ".join(members)
        if not isinstance(value, dict) or len(value) != 1:
            raise _wrong(path, f"an object with exactly one of: {names}")
        [(chosen, inner)] = value.items()
        if chosen not in members:
            raise _DropError(Fault.UNKNOWN_FIELD, f"{quoted(path)} has no {quoted(chosen)}; there are: {names}")
        return members[chosen], inner

    def _field(self, message: Message, one: FieldDescriptor, value: Any, levels: int, path: str) -> None:
        """Set one field: single, repeated or a map."""
        key, kind = value_kind(one)
        target = getattr(message, one.name)
        if key is not None:
            if not isinstance(value, dict):
                raise _wrong(path, "an object")
            for name, item in value.items():
                self._pair(target, (self._scalar(key, name, path), kind), item, levels, f"{path}[{name}]")
        elif one.is_repeated:
            if not isinstance(value, list):
                raise _wrong(path, "a list")
            for place, item in enumerate(value):
                self._item(target, kind, item, levels, f"{path}[{place}]")
        elif (inner := nested(one)) is not None:
            # An empty object is something said: the member of a oneof, or a message that is there.
            target.SetInParent()
            self._object(target, inner, value, levels - 1, path)
        elif one.message_type is not None:
            target.CopyFrom(self._scalar(one, value, path))
        else:
            setattr(message, one.name, self._scalar(one, value, path))

    def _item(self, target: Any, kind: FieldDescriptor, item: Any, levels: int, path: str) -> None:
        """Append one element of a list."""
        if (inner := nested(kind)) is not None:
            self._object(target.add(), inner, item, levels - 1, path)
        else:
            target.append(self._scalar(kind, item, path))

    def _pair(self, target: Any, key: tuple[Any, FieldDescriptor], item: Any, levels: int, path: str) -> None:
        """Set one entry of a map."""
        name, kind = key
        if (inner := nested(kind)) is not None:
            self._object(target[name], inner, item, levels - 1, path)
        elif kind.message_type is not None:
            target[name].CopyFrom(self._scalar(kind, item, path))
        else:
            target[name] = self._scalar(kind, item, path)

    def _scalar(self, one: FieldDescriptor, value: Any, path: str) -> Any:
        """Return a JSON value as the field wants it, without any conversion that could surprise."""
        if one.message_type is not None:
            return _well_known(one.message_type, value, path)
        if one.enum_type is not None:
            found = one.enum_type.values_by_name.get(value) if isinstance(value, str) else None
            if found is None:
                raise _wrong(path, "one of: " + ", ".join(_names(one.enum_type.values)))
            return found.number
        if one.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            if not isinstance(value, bool):
                raise _wrong(path, "true or false")
            return value
        if one.cpp_type in bounds.NUMBERS:
            return _number(one, value, path)
        return self._string(one, value, path)

    def _string(self, one: FieldDescriptor, value: Any, path: str) -> str:
        """Return a text that is Unicode and, where there are choices, one of them."""
        if not isinstance(value, str) or not _is_unicode(value):
            raise _wrong(path, "a text")
        allowed = self.choices.get(one.full_name)
        if allowed is not None and value not in allowed:
            raise _DropError(Fault.BOUND_BROKEN, f"{quoted(path)} must be one of: {', '.join(allowed[:LISTED_MAX])}")
        # JSON and our schemas can say NUL, a database cannot keep it: whoever stores a goal would fail for ever.
        return value.replace("\0", "\ufffd")


def _wrong(path: str, wanted: str) -> _DropError:
    """Return the drop for a value of the wrong type."""
    return _DropError(Fault.WRONG_TYPE, f"{quoted(path)} must be {wanted}")


def _names(values: Iterable[Any]) -> list[str]:
    """Return the names of enum values that say something."""
    return [str(one.name) for one in values if one.number != 0][: 4 * LISTED_MAX]


def _is_unicode(text: str) -> bool:
    """Say whether a text has no half of a surrogate pair, which JSON can write and UTF-8 cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _number(one: FieldDescriptor, value: Any, path: str) -> int | float:
    """Return a number of the field's kind; 3.0 is a whole number, as JSON schema says."""
    lowest, highest = bounds.NUMBERS[one.cpp_type]
    whole = isinstance(lowest, int)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(path, "a whole number" if whole else "a number")
    if whole and isinstance(value, float):
        if not value.is_integer() or abs(value) > _FLOAT_EXACT:
            raise _wrong(path, "a whole number")
        value = int(value)
    if not lowest <= value <= highest:
        raise _DropError(Fault.BOUND_BROKEN, f"{quoted(path)} is out of range")
    return value if whole else float(value)


def _well_known(kind: Descriptor, value: Any, path: str) -> Message:
    """Return a Duration or Timestamp from its text, in the form that was offered."""
    form_of, words = (
        (bounds.SPAN, "a duration such as 90s") if kind.full_name == bounds.DURATION
        else (bounds.INSTANT_READ, "a UTC time such as 2026-01-31T08:00:00Z")
    )  # fmt: skip
    if not isinstance(value, str) or not re.fullmatch(form_of.removeprefix("^").removesuffix("$"), value):
        raise _wrong(path, words)
    found: Any = bounds.WELL_KNOWN[kind.full_name]()
    try:
        found.FromJsonString(value)
    except ValueError:
        raise _wrong(path, words) from None
    return found  # type: ignore[no-any-return]  # the well-known classes share no interface
