"""Reads an action from its bytes or its JSON with our own generated classes: what it says is derived, never claimed."""

import copy
import json
import re
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from opsmesh.policy.v1 import policy_pb2
from services.guardrails.approvals.rules import Change, differences, flat
from services.guardrails.domain import Access, Blast, Risk
from services.mesh import policy
from services.mesh.errors import Refusal
from services.mesh.tools import Tool, find_tool

JSON_MAX: Final = 65536
MASK: Final = "(sensitive)"
UNKNOWN_FIELD: Final = re.compile("no field named")


class SyntaxFault(Exception):  # noqa: N818  it is the finding of a check, not an error of ours
    """The action cannot be read; `reason` is an ErrorReason without prefix, `str()` says what is wrong."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        super().__init__(detail)


@dataclass(frozen=True, slots=True)
class Action:
    """One call of a tool as these bytes mean it; `wire` is our own deterministic serialisation, `digest` names it."""

    tool: Tool
    message: Message
    wire: bytes
    digest: bytes
    request_id: str
    target_id: str
    channel: str
    blasts: tuple[Blast, ...]

    @property
    def method(self) -> str:
        """Return the tool's full name."""
        return self.tool.name

    @property
    def access(self) -> Access:
        """Return what the tool does."""
        return Access(self.tool.policy.access)


def read(method: str, payload: bytes | str) -> Action:
    """Parse, refuse unknown fields and broken bounds, and derive; a SyntaxFault says what is wrong."""
    try:
        tool = find_tool(method)
        message = _parse(tool, payload)
        policy.reject_unknown_fields(message)
        policy.validate(message)
    except Refusal as refusal:
        violations = "; ".join(f"{one.field}: {one.description}" for one in refusal.violations)
        raise SyntaxFault(refusal.name, violations or str(refusal)) from None
    if tool.policy.access == policy_pb2.ACCESS_READ:
        raise SyntaxFault("INVALID_ARGUMENT", f"{tool.name} only reads: call it directly, it needs no grant")
    spec = tool.spec
    return Action(
        tool=tool,
        message=message,
        wire=message.SerializeToString(deterministic=True),
        digest=policy.digest(tool.name, message),
        request_id=_value(message, "request_id"),
        target_id=_value(message, spec.target_field),
        channel=_value(message, spec.channel_field),
        blasts=tuple(
            Blast(one.field, int(getattr(message, one.field)), one.above, Risk(one.risk)) for one in spec.blast_radius
        ),
    )


def _parse(tool: Tool, payload: bytes | str) -> Message:
    """Return the request message, or a SyntaxFault."""
    message = tool.request_class()
    try:
        if isinstance(payload, bytes):
            message.ParseFromString(payload)
        else:
            json_format.Parse(payload, message)
    except DecodeError:
        raise SyntaxFault("INVALID_ARGUMENT", f"the bytes are no {message.DESCRIPTOR.full_name}") from None
    except json_format.ParseError as error:
        words = str(error).splitlines()[0][:512]
        raise SyntaxFault("UNKNOWN_FIELD" if UNKNOWN_FIELD.search(words) else "INVALID_ARGUMENT", words) from None
    except RecursionError:
        raise SyntaxFault("INVALID_ARGUMENT", "the JSON is nested too deeply") from None
    return message


def _value(message: Message, field: str) -> str:
    """Return a string field that a ToolSpec names; empty when it names none."""
    return str(getattr(message, field)) if field else ""


def rendered(message: Message) -> str:
    """Return a request as JSON for people, sensitive fields masked, of bounded length."""
    value = json_format.MessageToDict(message, preserving_proto_field_name=True)
    _mask(message.DESCRIPTOR, value)
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= JSON_MAX else text[: JSON_MAX - 1] + "…"


def changes(before: Message, after: Message) -> tuple[Change, ...]:
    """Return the fields in which two requests differ; of a sensitive one only that it does."""
    plain = [json_format.MessageToDict(one, preserving_proto_field_name=True) for one in (before, after)]
    shown = copy.deepcopy(plain)
    for one, value in zip((before, after), shown, strict=True):
        _mask(one.DESCRIPTOR, value)
    visible = frozenset(flat(shown[0]).items() | flat(shown[1]).items())
    return differences(flat(plain[0]), flat(plain[1]), lambda field, text: text if (field, text) in visible else MASK)


def keep_masked(message: Message, old: Message) -> None:
    """Give a sensitive field that a person sent back masked, as it was shown, the value it had."""
    for field in message.DESCRIPTOR.fields:
        secret = field.GetOptions().Extensions[policy_pb2.field].sensitive
        if secret and not field.is_repeated and getattr(message, field.name) == MASK:
            setattr(message, field.name, getattr(old, field.name))


def _mask(descriptor: Any, value: dict[str, Any]) -> None:
    """Replace, at any depth, what the IDL calls sensitive."""
    for field in descriptor.fields:
        if field.name not in value:
            continue
        if field.GetOptions().Extensions[policy_pb2.field].sensitive:
            value[field.name] = MASK
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for kind, child in _inside(field, value[field.name]):
                _mask(kind, child)


def _inside(field: Any, value: Any) -> list[tuple[Any, dict[str, Any]]]:
    """Return the nested messages of a rendered field, with their descriptors."""
    kind = field.message_type
    if kind.GetOptions().map_entry:
        kind = kind.fields_by_name["value"].message_type
        value = list(value.values()) if kind else []
    found = value if isinstance(value, list) else [value]
    return [(kind, child) for child in found if kind and isinstance(child, dict)]
