"""What a model is offered: an RPC of the IDL as name, description and JSON schema, pinned by a digest.

The schema keeps to what OpenAI, Anthropic and llama.cpp all accept of draft 2020-12: no references, an object at the
top without alternatives, a oneof as one property that holds an object with exactly one key. `request_id` is never
offered (whoever calls sets it) and neither is a SENSITIVE field: a model that never sees a secret has none to leak.
`Form` is the one place that says what is offered; the parser in tool_calls walks by the same one.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any, Final, cast

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from opsmesh.policy.v1 import policy_pb2
from services.mesh import policy
from services.mesh.models import bounds
from services.mesh.models.bounds import Bounds
from services.mesh.tools import PACKAGE, Tool

DEPTH_MAX: Final = 6
NODES_MAX: Final = 500
NAME_MAX: Final = 64
REQUEST_ID: Final = "request_id"
# Raised whenever schemas are made differently: pinned templates must be looked at again.
REVISION: Final = 1
Choices = Mapping[str, tuple[str, ...]]
_DOES: Final = MappingProxyType(
    {
        policy_pb2.ACCESS_READ: "Changes nothing.",
        policy_pb2.ACCESS_INFORM: "Tells people something.",
        policy_pb2.ACCESS_WRITE: "Changes infrastructure: policy or people decide whether it is done.",
        policy_pb2.ACCESS_DESTRUCTIVE: "Loses something: policy or people decide whether it is done.",
        policy_pb2.ACCESS_EXTERNAL: "Changes something outside: policy or people decide whether it is done.",
    }
)


class NotOfferedError(Exception):
    """A message cannot be offered to a model; says which field and why. Found when a catalogue is made, never later."""


@dataclass(frozen=True, slots=True)
class Form:
    """What of a message a model may fill in: plain fields, groups of which one is chosen, and what it must say."""

    fields: Mapping[str, FieldDescriptor]
    groups: Mapping[str, Mapping[str, FieldDescriptor]]
    required: frozenset[str]


@dataclass(frozen=True, slots=True)
class Offer:
    """One entry of a catalogue as a model sees it; `digest` pins it, `notes` are bounds the schema cannot say.

    `method` is the full name of the tool, or of the message where there is no tool. `choices` narrows string fields,
    by their full name, to what exists now; it is checked by the parser and is no part of the digest.
    """

    name: str
    description: str
    schema: Mapping[str, Any]
    notes: tuple[str, ...]
    method: str
    message_class: type[Message]
    digest: str
    choices: Choices = field(default_factory=lambda: MappingProxyType({}))

    @property
    def schema_json(self) -> str:
        """Return the schema as compact JSON, as a ToolDefinition or a response schema of ModelService takes it."""
        return json.dumps(dict(self.schema), separators=(",", ":"))

    def function(self) -> dict[str, Any]:
        """Return it as an entry of `tools` in an OpenAI-compatible request."""
        inner = {"name": self.name, "description": self.description, "parameters": dict(self.schema)}
        return {"type": "function", "function": inner}


def model_name(tool: Tool) -> str:
    """Return a name that every provider accepts and that no later family takes away: `workload_RestartWorkload`."""
    parts = tool.method.containing_service.full_name.removeprefix(PACKAGE).split(".")
    family = parts[0] if parts[1:-1] == ["v1"] else "_".join(parts[:-1])
    return f"{family}_{tool.rpc}"


def offer(tool: Tool, choices: Choices | None = None) -> Offer:
    """Return a tool as a model sees it; raise NotOfferedError when its request has what no model may fill in."""
    spec = tool.spec
    text = f"{spec.summary} {spec.when_to_use} {_DOES[tool.policy.access]}"
    return _offer(model_name(tool), text, tool.name, tool.request_class, choices=choices, tool=tool)


def offer_message(name: str, description: str, message_class: type[Message], choices: Choices | None = None) -> Offer:
    """Return a message that is not a tool's, such as an outcome, as a model sees it."""
    return _offer(name, description, str(message_class.DESCRIPTOR.full_name), message_class, choices=choices, tool=None)


def catalogue(
    tools: Iterable[Tool], choices: Choices | None = None, targets: Sequence[str] | None = None
) -> Mapping[str, Offer]:
    """Return offers by the name a model calls them by; two of one name are refused.

    With `targets`, the target field of each tool is a choice of them; with none, tools that need one are left out.
    """
    found: dict[str, Offer] = {}
    for tool in tools:
        narrowed = dict(choices or {})
        if targets is not None and tool.spec.target_field:
            if not targets:
                continue
            narrowed[f"{tool.method.input_type.full_name}.{tool.spec.target_field}"] = tuple(targets)
        one = offer(tool, narrowed)
        if one.name in found:
            raise NotOfferedError(f"{one.method} and {found[one.name].method} would both be called {one.name}")
        found[one.name] = one
    return MappingProxyType(found)


def changed(pinned: Mapping[str, str], offers: Mapping[str, Offer]) -> tuple[str, ...]:
    """Return the names of tools that are gone or differ from what was pinned: any of them disables a template."""
    return tuple(sorted(name for name, pin in pinned.items() if name not in offers or offers[name].digest != pin))


def form(message: Descriptor, levels: int, choices: Choices, *, top: bool) -> Form:
    """Return what may be filled in of a message with `levels` of nesting left below it."""
    needed = _needed(message)
    fields: dict[str, FieldDescriptor] = {}
    groups: dict[str, dict[str, FieldDescriptor]] = {}
    for one in message.fields:
        if top and one.name == REQUEST_ID:
            continue
        if _sensitive(one) or not _reachable(one, levels, choices):
            if one.name in needed:
                raise NotOfferedError(f"{one.full_name} is required, but cannot be filled in by a model")
            continue
        group = one.containing_oneof
        if group is not None and not _synthetic(one):
            groups.setdefault(group.name, {})[one.name] = one
        else:
            fields[one.name] = one
    if lost := needed - {REQUEST_ID, *fields, *groups}:
        raise NotOfferedError(f"{message.full_name}: {', '.join(sorted(lost))} required, but nothing of it is offered")
    return Form(fields, groups, frozenset(needed & {*fields, *groups}))


def value_kind(one: FieldDescriptor) -> tuple[FieldDescriptor | None, FieldDescriptor]:
    """Return the key (for maps) and the value descriptor of a field."""
    entry = one.message_type
    if entry is not None and entry.GetOptions().map_entry:
        return entry.fields_by_name["key"], entry.fields_by_name["value"]
    return None, one


def described(message_class: type[Message]) -> Descriptor:
    """Return the descriptor of a message class."""
    found: Any = message_class.DESCRIPTOR
    return cast("Descriptor", found)


def nested(one: FieldDescriptor) -> Descriptor | None:
    """Return the message a value is, when it is an object for a model and not a scalar or a well-known text."""
    found = one.message_type
    return found if found is not None and found.full_name not in bounds.WELL_KNOWN else None


def _offer(
    name: str, text: str, method: str, message_class: type[Message], *, choices: Choices | None, tool: Tool | None
) -> Offer:
    """Assemble an offer and its digest."""
    if len(name) > NAME_MAX:
        raise NotOfferedError(f"{method}: the name {name} is longer than {NAME_MAX}")
    descriptor = described(message_class)
    maker = _Maker(choices or {})
    schema = maker.object_schema(descriptor, DEPTH_MAX, top=True)
    # The digest is about what the IDL says: what happens to exist today does not disable a template.
    bare = schema if not choices else _Maker({}).object_schema(descriptor, DEPTH_MAX, top=True)
    pinned: dict[str, Any] = {"revision": REVISION, "name": name, "text": text, "method": method, "schema": bare}
    pinned["request"] = _structure(descriptor)
    if tool is not None:
        pinned["response"] = _structure(described(tool.response_class))
        pinned["policy"] = json_format.MessageToDict(tool.policy, always_print_fields_with_no_presence=True)
    plain = json.dumps(pinned, sort_keys=True, separators=(",", ":"))
    return Offer(
        name=name,
        description=text,
        schema=MappingProxyType(schema),
        notes=tuple(dict.fromkeys(maker.notes)),
        method=method,
        message_class=message_class,
        digest=hashlib.sha256(plain.encode()).hexdigest(),
        choices=MappingProxyType(dict(choices or {})),
    )


class _Maker:
    """Walks a message once and writes its schema; counts what it writes."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.notes: list[str] = []
        self.nodes = 0

    def object_schema(self, message: Descriptor, levels: int, *, top: bool = False) -> dict[str, Any]:
        """Return the schema of a message."""
        found = form(message, levels, self.choices, top=top)
        properties = {name: self._field(one, levels) for name, one in found.fields.items()}
        for name, members in found.groups.items():
            alternatives = [_object({member: self._field(one, levels)}, [member]) for member, one in members.items()]
            properties[name] = alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives}
        rules = message.GetOptions().Extensions[bounds.MESSAGE_RULES]
        if rules.cel or rules.cel_expression or rules.oneof:
            self.notes.append(f"{message.name}: further conditions apply")
        return _object(properties, [name for name in properties if name in found.required])

    def _field(self, one: FieldDescriptor, levels: int) -> dict[str, Any]:
        """Return the schema of a field; what it cannot say becomes its description and a note of the offer."""
        self.nodes += 1
        if self.nodes > NODES_MAX:
            raise NotOfferedError(f"{one.full_name}: the schema has more than {NODES_MAX} parts")
        rules = bounds.rules_of(one)
        key, value = value_kind(one)
        if key is not None:
            keys = bounds.of_value(key, rules.map.keys)
            found = bounds.of_map(keys, self._value(value, rules.map.values, levels), rules)
        elif one.is_repeated:
            found = bounds.of_list(self._value(value, rules.repeated.items, levels), rules)
        else:
            found = self._value(one, rules, levels)
        if found.notes:
            words = "; ".join(found.notes)
            found.schema["description"] = "; ".join(filter(None, (found.schema.get("description"), words)))
            self.notes.append(f"{one.full_name}: {words}")
        return found.schema

    def _value(self, one: FieldDescriptor, rules: Any, levels: int) -> Bounds:
        """Return the schema of one value."""
        if (message := nested(one)) is not None:
            return Bounds(self.object_schema(message, levels - 1))
        if one.full_name in self.choices:
            return Bounds({"type": "string", "enum": list(self.choices[one.full_name])})
        return bounds.of_value(one, rules)


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """Return the schema of an object with exactly these properties."""
    found: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    return found | {"required": required} if required else found


@cache
def _needed(message: Descriptor) -> frozenset[str]:
    """Return the fields and oneofs without which the message is invalid: asked of the validator itself."""
    broken = policy.violations(GetMessageClass(message)())
    names = {one.field.partition(".")[0].partition("[")[0] for one in broken}
    return frozenset(names & {*message.fields_by_name, *message.oneofs_by_name})


def _reachable(one: FieldDescriptor, levels: int, choices: Choices) -> bool:
    """Say whether a model can fill in a field; raise for kinds that are never offered."""
    key, value = value_kind(one)
    if key is not None and key.type != FieldDescriptor.TYPE_STRING:
        raise NotOfferedError(f"{one.full_name} is a map whose keys are no strings")
    if value.type == FieldDescriptor.TYPE_BYTES:
        raise NotOfferedError(f"{one.full_name} is bytes, which no model can write")
    if value.full_name in choices:
        return bool(choices[value.full_name])
    message = nested(value)
    if message is None:
        return True
    if message.full_name.startswith("google."):
        raise NotOfferedError(f"{one.full_name} is a {message.full_name}, which has no bounds")
    if levels <= 0:
        return False
    try:
        form(message, levels - 1, choices, top=False)
    except NotOfferedError:
        # A member of a oneof that has nothing to choose from is not offered; anything else is a mistake in the IDL.
        if one.containing_oneof is None or not choices:
            raise
        return False
    return True


def _sensitive(one: FieldDescriptor) -> bool:
    """Say whether a field is SENSITIVE."""
    return bool(one.GetOptions().Extensions[policy_pb2.field].sensitive)


def _synthetic(one: FieldDescriptor) -> bool:
    """Say whether the oneof of a field only stands for `optional`."""
    group = one.containing_oneof
    return group is not None and group.name == f"_{one.name}" and len(group.fields) == 1


def _structure(message: Descriptor) -> list[Any]:
    """Return names, numbers, types and marks of a message and of all it contains, as plain data for a digest."""
    seen: dict[str, list[Any]] = {}
    waiting = [message]
    while waiting:
        current = waiting.pop()
        if current.full_name in seen:
            continue
        seen[current.full_name] = [_marks(one) for one in current.fields]
        waiting += [one.message_type for one in current.fields if one.message_type is not None]
    return sorted(seen.items())


def _marks(one: FieldDescriptor) -> list[Any]:
    """Return what a field is, as plain data."""
    marks = one.GetOptions().Extensions[policy_pb2.field]
    kind = one.message_type or one.enum_type
    values = [[value.name, value.number] for value in one.enum_type.values] if one.enum_type else []
    rules = json_format.MessageToDict(one.GetOptions().Extensions[bounds.FIELD_RULES])
    return [one.name, one.number, one.type, one.is_repeated, kind.full_name if kind else "", values,
            marks.sensitive, marks.untrusted, rules]  # fmt: skip
