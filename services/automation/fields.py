"""Field paths over protobuf descriptors and messages: what a path leads to, what it holds, whether it fits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import json_format, struct_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from buf.validate import validate_pb2
from opsmesh.automation.v1 import automation_service_pb2
from opsmesh.ingest.v1 import ingest_service_pb2
from opsmesh.policy.v1 import policy_pb2
from services.automation.domain import Part, Path, PathError

# The stubs know protobuf's two implementations of descriptors and no common base.
Shape = Any
Field = Any

INCIDENT: Final[Shape] = ingest_service_pb2.Incident.DESCRIPTOR
START: Final[Shape] = automation_service_pb2.StartExecutionRequest.DESCRIPTOR
_INTEGERS: Final = frozenset(
    {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64}
    | {FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64}
)
_REALS: Final = frozenset({FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT})
_TEXT: Final = frozenset({FieldDescriptor.TYPE_STRING})


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a path leads to. `optional`: it may be missing. `untrusted`: somebody outside wrote it."""

    field: Field
    optional: bool
    untrusted: bool


def field_policy(field: Field) -> policy_pb2.FieldPolicy:
    """Return how a field must be treated."""
    found = field.GetOptions().Extensions[policy_pb2.field]
    return policy_pb2.FieldPolicy.FromString(found.SerializeToString())


def walk(descriptor: Shape, parts: Sequence[Part]) -> Leaf:
    """Return what a path of fields leads to: a single scalar or enum. Raises PathError."""
    optional = untrusted = False
    for position, part in enumerate(parts):
        named = descriptor.fields_by_name.get(part.name)
        if named is None:
            raise PathError(
                f"{descriptor.full_name} has no field {part.name!r}; it has: {', '.join(names(descriptor))}"
            )
        field = _item(named, part)
        optional = optional or named.is_repeated
        untrusted = untrusted or field_policy(named).untrusted
        last = position == len(parts) - 1
        if last and field.message_type is None:
            return Leaf(field, optional, untrusted)
        if last:
            known = ", ".join(names(field.message_type))
            raise PathError(f"{part.name} is a message: name one of its fields: {known}")
        if field.message_type is None:
            raise PathError(f"{part.name} has no fields")
        descriptor = field.message_type
    raise PathError("the path is empty")


def _item(field: Field, part: Part) -> Field:
    """Return the field, or of a map its value; raises PathError when index or key are missing or too much."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        if part.key is None:
            raise PathError(f'{part.name} is a map: name a key, such as {part.name}["team"]')
        return field.message_type.fields_by_name["value"]
    if field.is_repeated and part.index is None:
        raise PathError(f"{part.name} is a list: name an index, such as {part.name}[0]")
    if part.key is not None or (part.index is not None and not field.is_repeated):
        raise PathError(f"{part.name} takes no such index or key")
    return field


def names(descriptor: Shape) -> list[str]:
    """Return the names of the fields."""
    return [field.name for field in descriptor.fields]


def given_leaf(path: Path) -> Leaf:
    """Return what a path into the incident or the start leads to; labels are the sender's words. Raises PathError."""
    if path.of_start:
        return walk(START, path.parts)
    leaf = walk(INCIDENT, path.parts)
    outside = path.parts[0].name == "labels" or leaf.untrusted
    return Leaf(leaf.field, leaf.optional, outside)


def answer_leaf(descriptor: Shape, parts: Sequence[Part]) -> Leaf:
    """Return what a path into a tool's answer leads to; every text a tool answers is untrusted. Raises PathError."""
    leaf = walk(descriptor, parts)
    return Leaf(leaf.field, leaf.optional, leaf.untrusted or leaf.field.type in _TEXT)


def value_at(message: Message, parts: Sequence[Part]) -> Any:
    """Return the value a walked path leads to in a message; None when its list is too short or its key missing."""
    current: Any = message
    for part in parts:
        current = getattr(current, part.name)
        if part.key is not None:
            if part.key not in current:
                return None
            current = current[part.key]
        elif part.index is not None:
            if part.index >= len(current):
                return None
            current = current[part.index]
    return current


def misfit(source: Field, target: Field) -> str:
    """Say why values of one field do not fit into another; empty when they do."""
    if target.is_repeated or target.message_type is not None:
        return "only a single text, number, truth value or enum can be filled from a path"
    if target.type in _TEXT:
        return "" if source.type != FieldDescriptor.TYPE_BYTES else "bytes do not fit into text"
    if target.enum_type is not None or source.enum_type is not None:
        same = target.enum_type is not None and source.enum_type is not None
        fits = same and target.enum_type.full_name == source.enum_type.full_name
    elif target.cpp_type in _INTEGERS:
        fits = source.cpp_type in _INTEGERS
    elif target.cpp_type in _REALS:
        fits = source.cpp_type in _INTEGERS | _REALS
    else:
        fits = source.type == target.type
    return "" if fits else f"{kind(source)} does not fit into {kind(target)}"


def kind(field: Field) -> str:
    """Return the type of a field as its proto file writes it."""
    if field.enum_type is not None:
        return str(field.enum_type.name)
    return _TYPE_NAMES[field.type]


_TYPE_NAMES: Final = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in vars(FieldDescriptor).items()
    if name.startswith("TYPE_") and isinstance(number, int)
}


def convert(value: Any, source: Field, target: Field) -> Any:
    """Return a value of one field as another wants it; free text is cut to its bound: a notice must still go out."""
    if target.type not in _TEXT:
        return value
    if source.enum_type is not None:
        return enum_word(source, value)
    if source.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return str(value).lower()
    text = str(value)
    longest = _bounds(target).max_len
    if is_free_text(target) and longest and len(text) > longest:
        return text[: longest - 1] + "…"
    return text


def is_free_text(field: Field) -> bool:
    """Say whether a field takes any text, so that it may be cut or followed by more."""
    rules = _bounds(field)
    return field.type in _TEXT and not field.is_repeated and not rules.pattern and not rules.uuid


def _bounds(field: Field) -> Any:
    """Return protovalidate's rules of a text field."""
    return field.GetOptions().Extensions[validate_pb2.field].string  # type: ignore[attr-defined]  # not in the stub


def enum_word(field: Field, number: int) -> str:
    """Return an enum value's name without its prefix, such as CRITICAL."""
    value = field.enum_type.values_by_number.get(number)
    if value is None:
        return str(number)
    zero = field.enum_type.values_by_number[0].name
    return str(value.name).removeprefix(zero.removesuffix("UNSPECIFIED"))


def literal(field: Field, value: struct_pb2.Value) -> Any:
    """Return a literal as the value of one (list item or map value of a) field. Raises PathError."""
    plain = json_format.MessageToDict(value)
    holder = GetMessageClass(field.containing_type)()
    content: Any = [plain] if field.is_repeated else plain
    try:
        json_format.ParseDict({field.name: content}, holder)
    except json_format.ParseError as error:
        raise PathError(str(error).splitlines()[0]) from None
    found = getattr(holder, field.name)
    return found[0] if field.is_repeated else found
