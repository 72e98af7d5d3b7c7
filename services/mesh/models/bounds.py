"""What protovalidate says about one field, in the words of JSON schema that every provider accepts.

The schema may be narrower than the rules, never wider: whatever fits it is accepted by the parser. Where JSON schema
has no word for a rule, the rule goes into a note for the model, and the parser still checks it with protovalidate.
Narrower on purpose: llama.cpp compiles a schema to a grammar that refuses 2,000 repetitions and unanchored patterns,
and integers beyond 2^53 do not survive JavaScript.
"""

import re
import sys
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf import duration_pb2, timestamp_pb2
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from buf.validate import validate_pb2

STRING_MAX: Final = 1000
ITEMS_MAX: Final = 64
INTEGER_MAX: Final = 2**53 - 1
FLOAT32_MAX: Final = 3.4028234663852886e38
UTF8_MAX: Final = 4
DURATION: Final = "google.protobuf.Duration"
TIMESTAMP: Final = "google.protobuf.Timestamp"
UUID: Final = "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"
SPAN: Final = r"^[0-9]{1,9}(\.[0-9]{1,9})?s$"
INSTANT: Final = (
    r"^[12][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?Z$"
)
# The parser also takes the last days of a month: whether there is a 31st is no question for a pattern.
INSTANT_READ: Final = INSTANT.replace("2[0-8]", "2[0-9]|3[01]")
# What RE2, ECMA-262 and the grammars of llama.cpp read alike: printable literals, ASCII classes, groups, repetitions.
# Left out: `.` and `\s` (they disagree about line ends and Unicode spaces), `\b`, flags, look-around, anchors inside.
_CLASS: Final = r"\[\^?(?:[A-Za-z0-9_ .:/@,;=+#%&!~<>\"'`(){}|*?$^-]|\\[\\\]\[.^$*+?(){}|/dw-])+\]"
_ATOM: Final = rf"(?:[A-Za-z0-9_ :/@,;=#%&!~<>\"'`-]|\\[\\\]\[.^$*+?(){{}}|/dw]|{_CLASS})"
_TIMES: Final = r"(?:[*+?]|\{[0-9]{1,3}(?:,[0-9]{0,3})?\})?"
_PIECE: Final = rf"(?:\((?:\?:)?|\||(?:{_ATOM}|\)){_TIMES})"
_AGREED: Final = re.compile(rf"\^(?:{_PIECE})*\$")

_INTEGERS: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_FLOATS: Final = {
    FieldDescriptor.CPPTYPE_FLOAT: (-FLOAT32_MAX, FLOAT32_MAX),
    FieldDescriptor.CPPTYPE_DOUBLE: (-sys.float_info.max, sys.float_info.max),
}
WELL_KNOWN: Final = {DURATION: duration_pb2.Duration, TIMESTAMP: timestamp_pb2.Timestamp}
NUMBERS: Final = {**_INTEGERS, **_FLOATS}
# The generated module has no stubs.
FIELD_RULES: Final[Any] = vars(validate_pb2)["field"]
MESSAGE_RULES: Final[Any] = vars(validate_pb2)["message"]
_IGNORE_ALWAYS: Final[Any] = vars(validate_pb2)["IGNORE_ALWAYS"]


@dataclass(slots=True)
class Bounds:
    """A JSON schema of one value, and what it could not say."""

    schema: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def rules_of(one: FieldDescriptor) -> Any:
    """Return the protovalidate rules of a field; without any, empty ones."""
    found = one.GetOptions().Extensions[FIELD_RULES]
    return type(found)() if found.ignore == _IGNORE_ALWAYS else found


def agreed(pattern: str) -> bool:
    """Say whether a pattern means the same in RE2 and ECMA-262, whole text, anchored at both ends."""
    if not _AGREED.fullmatch(pattern):
        return False
    depth = 0
    plain = re.sub(_CLASS, "c", re.sub(r"\\.", "e", pattern[1:-1]))
    for character in plain:
        depth += {"(": 1, ")": -1}.get(character, 0)
        # `^a|b$` means (^a)|(b$).
        if depth < 0 or (character == "|" and depth == 0):
            return False
    return depth == 0


def of_value(one: FieldDescriptor, rules: Any) -> Bounds:
    """Return the schema of a single scalar, enum, Duration or Timestamp under its rules."""
    if one.message_type is not None:
        found = _of_well_known(one.message_type.full_name, rules)
    elif one.enum_type is not None:
        found = _of_enum(one.enum_type, rules.enum)
    elif one.cpp_type in NUMBERS:
        found = _of_number(one, rules)
    elif one.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        found = Bounds({"type": "boolean"})
        if rules.bool.HasField("const"):
            found.schema["enum"] = [rules.bool.const]
    else:
        found = _of_string(rules.string)
    if rules.cel or rules.cel_expression:
        found.notes.append("further conditions apply")
    return found


def of_list(items: Bounds, rules: Any) -> Bounds:
    """Return the schema of a repeated field."""
    schema: dict[str, Any] = {"type": "array", "items": items.schema}
    given = rules.repeated
    if given.min_items:
        schema["minItems"] = given.min_items
    most = given.max_items if given.HasField("max_items") else ITEMS_MAX
    schema["maxItems"] = max(min(most, ITEMS_MAX), given.min_items)
    if given.unique:
        schema["uniqueItems"] = True
    return Bounds(schema, items.notes)


def of_map(keys: Bounds, values: Bounds, rules: Any) -> Bounds:
    """Return the schema of a map with string keys."""
    schema: dict[str, Any] = {"type": "object", "additionalProperties": values.schema, "propertyNames": keys.schema}
    given = rules.map
    if given.min_pairs:
        schema["minProperties"] = given.min_pairs
    most = given.max_pairs if given.HasField("max_pairs") else ITEMS_MAX
    schema["maxProperties"] = max(min(most, ITEMS_MAX), given.min_pairs)
    return Bounds(schema, keys.notes + values.notes)


def _of_string(rules: Any) -> Bounds:  # noqa: C901, PLR0912  one case for each rule of protovalidate
    """Return the schema of a string."""
    found = Bounds({"type": "string"})
    least, most = 0, STRING_MAX
    for rule, value in rules.ListFields():
        match rule.name:
            case "min_len" | "min_bytes":
                least = max(least, value)
            case "max_len":
                most = min(most, value)
            case "max_bytes":
                most = min(most, value // UTF8_MAX)
            case "len":
                least = most = value
            case "pattern" if agreed(value):
                found.schema["pattern"] = value
            case "uuid" if value:
                found.schema["pattern"] = UUID
            case "const":
                found.schema["enum"] = [value]
            case "in":
                found.schema["enum"] = list(value)
            case "example":
                pass
            case _:
                found.notes.append(_say(rule.name, value))
    if least:
        found.schema["minLength"] = least
    if "enum" not in found.schema:
        found.schema["maxLength"] = max(most, least)
    return found


def _of_number(one: FieldDescriptor, rules: Any) -> Bounds:  # noqa: C901, PLR0912  one case for each rule
    """Return the schema of a number; a range that means "outside of" is only told."""
    whole = one.cpp_type in _INTEGERS
    lowest, highest = NUMBERS[one.cpp_type]
    if whole:
        lowest, highest = max(lowest, -INTEGER_MAX), min(highest, INTEGER_MAX)
    found = Bounds({"type": "integer" if whole else "number"})
    kind = rules.WhichOneof("type")
    given = {rule.name: value for rule, value in getattr(rules, kind).ListFields()} if kind else {}
    given.pop("finite", None)
    given.pop("example", None)
    low = given.get("gte", given.get("gt"))
    high = given.get("lte", given.get("lt"))
    if low is not None and high is not None and low > high:
        found.notes += [_say(name, value) for name, value in given.items()]
        return found
    for name, value in given.items():
        match name:
            case "gte":
                lowest = max(lowest, value)
            case "lte":
                highest = min(highest, value)
            case "gt" if whole:
                lowest = max(lowest, value + 1)
            case "lt" if whole:
                highest = min(highest, value - 1)
            case "gt":
                found.schema["exclusiveMinimum"] = value
            case "lt":
                found.schema["exclusiveMaximum"] = value
            case "const":
                found.schema["enum"] = [value]
            case "in":
                found.schema["enum"] = list(value)
            case _:
                found.notes.append(_say(name, value))
    found.schema |= {"minimum": lowest, "maximum": highest}
    if one.cpp_type == FieldDescriptor.CPPTYPE_FLOAT and {"gt", "lt", "const", "in"} & set(given):
        found.notes.append("single precision")
    return found


def _of_enum(kind: EnumDescriptor, rules: Any) -> Bounds:
    """Return an enum by the names of its allowed values; what only means "not said" is left out, like the field."""
    allowed = list(kind.values)
    if rules.HasField("const"):
        allowed = [one for one in allowed if one.number == rules.const]
    if len(getattr(rules, "in")):
        allowed = [one for one in allowed if one.number in getattr(rules, "in")]
    allowed = [one for one in allowed if one.number not in rules.not_in]
    said = [one for one in allowed if not (one.number == 0 and one.name.endswith("_UNSPECIFIED"))]
    return Bounds({"type": "string", "enum": [one.name for one in said or allowed]})


def _of_well_known(name: str, rules: Any) -> Bounds:
    """Return the text form of a Duration or Timestamp; days after the 28th are accepted, though not promised."""
    kind, pattern, words = {
        DURATION: ("duration", SPAN, "seconds, such as 90s or 1.5s"),
        TIMESTAMP: ("timestamp", INSTANT, "UTC, such as 2026-01-31T08:00:00Z"),
    }[name]
    found = Bounds({"type": "string", "pattern": pattern, "description": words})
    for rule, value in getattr(rules, kind).ListFields():
        found.notes.append(_say(rule.name, None if value is True else _text(value)))
    return found


def _text(value: Any) -> str:
    """Return a well-known value as it would be written; a list of them, separated."""
    if hasattr(value, "ToJsonString"):
        return str(value.ToJsonString())
    return ", ".join(_text(one) for one in value) if isinstance(value, (list, tuple)) else str(value)


def _say(rule: str, value: Any) -> str:
    """Return a rule in words for the model."""
    words = {"gt": "more than", "gte": "at least", "lt": "less than", "lte": "at most", "pattern": "must match RE2"}
    what = words.get(rule, rule.replace("_", " "))
    return what if value is True or value is None else f"{what} {value}"
