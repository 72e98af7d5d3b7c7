"""Policy lives in the IDL: what each method does, whom it needs, how it is recorded; and the bounds of messages."""

import hashlib
import importlib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import protovalidate
from google.protobuf import descriptor_pool, duration_pb2
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

import opsmesh
from opsmesh.policy.v1 import policy_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import BootError, FieldViolation, Refusal

BUILTIN_PERMISSION: Final = "mesh.member"
BUILTIN_SERVICES: Final = frozenset({"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"})
# Health and reflection carry no options of ours: every listed identity may call them, Watch streams for an hour.
BUILTIN_POLICY: Final = policy_pb2.MethodPolicy(
    access=policy_pb2.ACCESS_READ,
    risk=policy_pb2.RISK_LOW,
    permission=BUILTIN_PERMISSION,
    audit=policy_pb2.AUDIT_MODE_NONE,
    max_duration=duration_pb2.Duration(seconds=3600),
)
READS: Final = frozenset({policy_pb2.ACCESS_READ})
EFFECTS: Final = frozenset({policy_pb2.ACCESS_WRITE, policy_pb2.ACCESS_DESTRUCTIVE, policy_pb2.ACCESS_EXTERNAL})

_validator = protovalidate.Validator()


@cache
def generated_services() -> tuple[ServiceDescriptor, ...]:
    """Import every generated service module of ours and return the services, by name."""
    found: list[ServiceDescriptor] = []
    for root in opsmesh.__path__:
        for path in sorted(Path(root).rglob("*_service_pb2.py")):
            module = ".".join(("opsmesh", *path.relative_to(root).with_suffix("").parts))
            found += importlib.import_module(module).DESCRIPTOR.services_by_name.values()
    return tuple(sorted(found, key=lambda service: str(service.full_name)))


def full_name(method: MethodDescriptor) -> str:
    """Return `package.Service/Rpc`, the name of a method everywhere in this mesh."""
    return f"{method.containing_service.full_name}/{method.name}"


def read_policy(method: MethodDescriptor) -> policy_pb2.MethodPolicy | None:
    """Return the policy option of a method, or None when it carries none."""
    if method.containing_service.full_name in BUILTIN_SERVICES:
        return BUILTIN_POLICY
    options = method.GetOptions()
    if not options.HasExtension(policy_pb2.method):
        return None
    return policy_pb2.MethodPolicy.FromString(options.Extensions[policy_pb2.method].SerializeToString())


def check_policies(methods: Iterable[MethodDescriptor]) -> None:
    """Raise a BootError that names every method whose policy is missing or breaks its bounds."""
    wrong = []
    for method in methods:
        found = read_policy(method)
        if found is None:
            wrong.append(f"{full_name(method)} carries no policy")
        else:
            wrong += [f"{full_name(method)}: {one.field}: {one.description}" for one in violations(found)]
    if wrong:
        raise BootError("\n".join(wrong) + "\nNEXT: correct option (opsmesh.policy.v1.method) of these methods")


@cache
def table() -> Mapping[str, policy_pb2.MethodPolicy]:
    """Return the policy of every method of every generated service, by `package.Service/Rpc`."""
    methods = [method for service in generated_services() for method in service.methods]
    return MappingProxyType({full_name(method): found for method in methods if (found := read_policy(method))})


def method_policy(method: str) -> policy_pb2.MethodPolicy:
    """Return the policy of `package.Service/Rpc` (a leading slash is accepted), or refuse."""
    name = method.removeprefix("/")
    if found := table().get(name):
        return found
    if name.partition("/")[0] in BUILTIN_SERVICES:
        return BUILTIN_POLICY
    raise Refusal(error_reason_pb2.ERROR_REASON_METHOD_WITHOUT_POLICY, method=name)


def find_method(method: str) -> MethodDescriptor | None:
    """Return the descriptor of `package.Service/Rpc`, linked into this process, or None."""
    service, _, rpc = method.removeprefix("/").partition("/")
    try:
        found: MethodDescriptor = descriptor_pool.Default().FindMethodByName(f"{service}.{rpc}")
    except KeyError:
        return None
    return found


def seconds(duration: duration_pb2.Duration) -> float:
    """Return a protobuf duration in seconds."""
    return duration.seconds + duration.nanos / 1e9


def digest(method: str, message: Message) -> bytes:
    """Return the SHA-256 that names exactly this call; canonical only among Python processes of one version."""
    return hashlib.sha256(method.encode() + b"\0" + message.SerializeToString(deterministic=True)).digest()


def reject_unknown_fields(message: Message) -> None:
    """Refuse a message that carries, at any depth, a field this version does not know."""
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    if known.ByteSize() != message.ByteSize():
        raise Refusal(error_reason_pb2.ERROR_REASON_UNKNOWN_FIELD, message=_carrier(message) or "the request")


def _carrier(message: Message) -> str | None:
    """Return the name of the first nested message that carries an unknown field."""
    if len(UnknownFieldSet(message)):
        return str(message.DESCRIPTOR.full_name)
    for field, value in message.ListFields():
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        for child in _children(field, value):
            if found := _carrier(child):
                return found
    return None


def _children(field: FieldDescriptor, value: Any) -> Iterable[Message]:
    """Return the messages in a message field, whether it is single, repeated or a map."""
    entry = field.message_type
    if entry is None:
        return []
    if entry.GetOptions().map_entry:
        return list(value.values()) if entry.fields_by_name["value"].message_type else []
    return list(value) if field.is_repeated else [value]


def violations(message: Message) -> list[FieldViolation]:
    """Return the bounds that a message breaks, with field paths such as `events[0].details["k"]`."""
    return [FieldViolation(_path(one.proto), one.proto.message) for one in _validator.collect_violations(message)]


def validate(message: Message) -> None:
    """Refuse a message that breaks the bounds of its fields."""
    if _validator.collect_violations(message, fail_fast=True):
        raise Refusal(error_reason_pb2.ERROR_REASON_INVALID_ARGUMENT, violations=violations(message))


def _path(violation: Any) -> str:
    """Return the field path of a protovalidate violation."""
    path = ""
    for element in violation.field.elements if violation.field else ():
        path += ("." if path else "") + element.field_name
        if element.subscript:
            key = element.subscript.value
            path += f"[{key}]" if element.subscript.field == "index" else f'["{key}"]'
    return path
