"""A protobuf message as a model may see it: the answer of a tool, a signal, an incident, on its way into a prompt.

SENSITIVE fields are masked whole. UNTRUSTED fields, and everything inside them, are made harmless and marked. A text
without either mark stays bare only when it looks like an identifier: whoever forgets an option in the IDL (or uses a
map of labels, which has none) gets a mark too many, not a hole. The result is JSON, so a text cannot leave its string.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from opsmesh.policy.v1 import policy_pb2
from services.mesh.models import bounds
from services.mesh.models.tool_schema import value_kind
from services.mesh.models.untrusted import LIMIT_MIN, Marks, sanitise

MASKED: Final = "(masked)"
LEFT_OUT: Final = "(left out: too long)"
NODES_MAX: Final = 4000
DEPTH_MAX: Final = 16
INTEGER_MAX: Final = 2**53
_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@+-]{0,127}")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a message is shown: characters of one text, of all texts, and items of one list or map."""

    text: int = 2000
    total: int = 16_000
    items: int = 50


@dataclass(frozen=True, slots=True)
class Shown:
    """A message as JSON, and how many fields were masked, secrets redacted, and texts or items cut or left out."""

    text: str
    masked: int
    redacted: int
    cut: int


def show(message: Message, marks: Marks, limits: Limits | None = None) -> Shown:
    """Return a message as a model may see it; never raises, whatever is inside."""
    walk = _Walk(marks, limits or Limits())
    shown = walk.message(message, untrusted=False, depth=0)
    return Shown(json.dumps(shown, ensure_ascii=False), walk.masked, walk.redacted, walk.cut)


class _Walk:
    """Walks one message and counts what it spends."""

    def __init__(self, marks: Marks, limits: Limits) -> None:
        self.marks = marks
        self.limits = limits
        self.room = limits.total
        self.nodes = 0
        self.masked = self.redacted = self.cut = 0

    def message(self, message: Any, *, untrusted: bool, depth: int) -> Any:
        """Return a message as plain data; zeros are said, empty texts and lists are not."""
        if depth > DEPTH_MAX:
            return self._left_out()
        name = message.DESCRIPTOR.full_name
        if name in bounds.WELL_KNOWN:
            return _well_known(message)
        said = dict(message.ListFields())
        shown: dict[str, Any] = {}
        for one in message.DESCRIPTOR.fields:
            if one in said or _says_zero(one):
                shown[one.name] = self._field(one, said.get(one, one.default_value), untrusted=untrusted, depth=depth)
        return shown

    def _field(self, one: FieldDescriptor, value: Any, *, untrusted: bool, depth: int) -> Any:
        """Return a field as plain data."""
        policy = one.GetOptions().Extensions[policy_pb2.field]
        if policy.sensitive:
            self.masked += 1
            return MASKED
        untrusted = untrusted or policy.untrusted
        key, kind = value_kind(one)
        if key is not None:
            return self._map(one, value, untrusted=untrusted, depth=depth)
        if one.is_repeated:
            items = [self._value(one, item, untrusted=untrusted, depth=depth) for item in self._some(value)]
            return [*items, self._more(len(value) - len(items))] if len(items) < len(value) else items
        return self._value(kind, value, untrusted=untrusted, depth=depth)

    def _map(self, one: FieldDescriptor, value: Mapping[Any, Any], *, untrusted: bool, depth: int) -> dict[str, Any]:
        """Return a map as plain data; its keys are somebody's text too."""
        shown: dict[str, Any] = {}
        _, kind = value_kind(one)
        for key in self._some(sorted(value)):
            name = self._text(one, key, untrusted=False) if isinstance(key, str) else str(key)
            # Two keys that differ in what nobody sees must not become one.
            name = f"{name} ({len(shown)})" if name in shown else name
            shown[name] = self._value(kind, value[key], untrusted=untrusted, depth=depth, source=one)
        if len(value) > self.limits.items:
            shown[self._more(len(value) - self.limits.items)] = None
        return shown

    def _value(
        self, one: FieldDescriptor, value: Any, *, untrusted: bool, depth: int, source: FieldDescriptor | None = None
    ) -> Any:
        """Return one value as plain data."""
        self.nodes += 1
        if self.nodes > NODES_MAX:
            return self._left_out()
        if one.message_type is not None:
            return self.message(value, untrusted=untrusted, depth=depth + 1)
        if one.enum_type is not None:
            found = one.enum_type.values_by_number.get(value)
            return found.name if found else int(value)
        if isinstance(value, str):
            return self._text(source or one, value, untrusted=untrusted)
        if isinstance(value, bytes):
            return f"({len(value)} bytes)"
        return _number(value)

    def _text(self, one: FieldDescriptor, text: str, *, untrusted: bool) -> str:
        """Return a text harmless, within the limits, and marked unless it is an identifier of ours."""
        if self.room < LIMIT_MIN:
            return str(self._left_out())
        harmless = sanitise(text, min(self.limits.text, self.room))
        self.room -= len(harmless.text)
        self.redacted += harmless.redacted
        self.cut += harmless.cut > 0
        bare = not untrusted and harmless.text == text and (not text or _PLAIN.fullmatch(text) is not None)
        return text if bare else self.marks.wrap(_source(one), harmless.text)

    def _some(self, items: Any) -> Iterable[Any]:
        """Return as many items as are shown."""
        return list(items[: self.limits.items])

    def _more(self, count: int) -> str:
        """Return what stands for the items that are not shown."""
        self.cut += 1
        return f"(and {count} more)"

    def _left_out(self) -> str:
        """Return what stands for something that is not shown at all."""
        self.cut += 1
        return LEFT_OUT


def _source(one: FieldDescriptor) -> str:
    """Return the name of a field for a mark."""
    owner = one.containing_type
    return f"{owner.name}.{one.name}" if owner is not None else one.name


def _says_zero(one: FieldDescriptor) -> bool:
    """Say whether a field means something when it is zero: `healthy: false` does, an empty text does not."""
    return not (one.is_repeated or one.has_presence) and one.cpp_type != FieldDescriptor.CPPTYPE_STRING


def _number(value: Any) -> Any:
    """Return a number as JSON can say it and JavaScript can read it."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > INTEGER_MAX:
        return str(value)
    return value


def _well_known(message: Any) -> str:
    """Return a Duration or Timestamp as text; one out of range is only said to be."""
    try:
        return str(message.ToJsonString())
    except ValueError:
        return "(out of range)"
