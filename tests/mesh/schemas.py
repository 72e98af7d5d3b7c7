"""What tests of schemas share: a validator as ECMA-262 has it, values that fit a schema, messages made on the fly."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it ships no types
from google.protobuf import descriptor_pb2, descriptor_pool, struct_pb2, timestamp_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_tools import protoc
from hypothesis import strategies as st

from opsmesh.policy.v1 import policy_pb2

SHORT = 12


def ecma(pattern: str) -> re.Pattern[str]:
    """Return a pattern as JSON schema means it: in Python `$` also matches before a last line end, digits are more."""
    return re.compile(re.sub(r"\$$", r"\\Z", pattern), re.ASCII)


def _pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[Any]:
    """Check a pattern as ECMA-262 would."""
    if isinstance(instance, str) and not ecma(pattern).search(instance):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


Validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": _pattern})


def values(schema: Any) -> st.SearchStrategy[Any]:  # noqa: PLR0911  one return for each kind of value
    """Return values that fit a schema of ours."""
    if "anyOf" in schema:
        return st.one_of([values(one) for one in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema["type"]:
        case "string" if "pattern" in schema:
            return st.from_regex(ecma(schema["pattern"])).filter(lambda text: fits(schema, text))
        case "string":
            least = schema.get("minLength", 0)
            return st.text(min_size=least, max_size=min(schema["maxLength"], least + SHORT))
        case "integer":
            whole = st.integers(schema["minimum"], schema["maximum"])
            return st.one_of(whole, whole.filter(lambda value: abs(value) < 2**53).map(float))
        case "number":
            return st.floats(schema["minimum"], schema["maximum"]).filter(lambda value: fits(schema, value))
        case "boolean":
            return st.booleans()
        case "array":
            least = schema.get("minItems", 0)
            kind = st.lists(values(schema["items"]), min_size=least, max_size=min(schema["maxItems"], least + 3))
            return kind.filter(lambda items: fits(schema, items))
        case _ if "propertyNames" in schema:
            names, inner = values(schema["propertyNames"]), values(schema["additionalProperties"])
            return st.dictionaries(names, inner, min_size=schema.get("minProperties", 0), max_size=3)
        case _:
            inside = {name: values(one) for name, one in schema["properties"].items()}
            needed = {name: inside.pop(name) for name in schema.get("required", [])}
            return st.fixed_dictionaries(needed, optional=inside)


def fits(schema: Any, value: Any) -> bool:
    """Say whether a value fits a schema."""
    return bool(Validator(schema).is_valid(value))


def anything() -> st.SearchStrategy[Any]:
    """Return any JSON value."""
    leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=SHORT))
    return st.recursive(
        leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
        max_leaves=8,
    )


@st.composite
def nearly(draw: Any, schema: Any) -> Any:
    """Return a value that fits a schema but, perhaps, in one place."""
    value = draw(values(schema))
    if not isinstance(value, dict) or draw(st.booleans()):
        return value
    value = dict(value)
    known = [*schema["properties"], *draw(st.lists(st.text(max_size=8), max_size=1))]
    name = draw(st.sampled_from(known)) if known else ""
    if name in value and draw(st.booleans()):
        del value[name]
    else:
        value[name] = draw(anything())
    return value


def compile_proto(folder: Path, name: str, body: str) -> dict[str, type[Message]]:
    """Compile messages written as proto source, with our options, and return their classes by name."""
    known = descriptor_pb2.FileDescriptorSet()
    seen: set[str] = set()
    for needed in (policy_pb2.DESCRIPTOR, timestamp_pb2.DESCRIPTOR, struct_pb2.DESCRIPTOR):
        _add(needed, known, seen)
    (folder / "known.binpb").write_bytes(known.SerializeToString())
    imports = "".join(
        f'import "{one}";\n'
        for one in (
            "buf/validate/validate.proto",
            "google/protobuf/duration.proto",
            "google/protobuf/struct.proto",
            "google/protobuf/timestamp.proto",
            "opsmesh/policy/v1/policy.proto",
        )
    )
    source = f'syntax = "proto3";\npackage probe.{name};\n{imports}\n{body}'
    (folder / f"{name}.proto").write_text(source, encoding="utf-8")
    out = folder / f"{name}.binpb"
    arguments = [
        "protoc",
        f"-I{folder}",
        f"--descriptor_set_in={folder / 'known.binpb'}",
        f"--descriptor_set_out={out}",
    ]
    assert protoc.main([*arguments, f"{name}.proto"]) == 0
    [file] = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        one.name: GetMessageClass(pool.FindMessageTypeByName(f"probe.{name}.{one.name}")) for one in file.message_type
    }


def _add(file: FileDescriptor, known: descriptor_pb2.FileDescriptorSet, seen: set[str]) -> None:
    """Add a file and all it imports."""
    if file.name in seen:
        return
    seen.add(file.name)
    for one in file.dependencies:
        _add(one, known, seen)
    file.CopyToProto(known.file.add())
