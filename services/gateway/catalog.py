"""The tools this gateway serves, described by their descriptors."""

import hashlib
from collections.abc import Iterator

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from opsmesh.gateway.v1 import catalog_service_pb2 as pb
from services.mesh.tools import Tool


def describe(tool: Tool) -> pb.Tool:
    """Return a tool as the catalog lists it."""
    return pb.Tool(
        tool=tool.name,
        policy=tool.policy,
        request_type=tool.method.input_type.full_name,
        response_type=tool.method.output_type.full_name,
        descriptor_digest=digest(tool).hex(),
    )


def digest(tool: Tool) -> bytes:
    """Return the SHA-256 over the descriptors of a tool and of every message it reaches, options included."""
    service = descriptor_pb2.ServiceDescriptorProto()
    tool.method.containing_service.CopyToProto(service)
    method = next(one for one in service.method if one.name == tool.rpc)
    running = hashlib.sha256(_raw(method))
    reached: dict[str, Descriptor] = {}
    for root in (tool.method.input_type, tool.method.output_type):
        for message in _reachable(root, reached):
            described = descriptor_pb2.DescriptorProto()
            message.CopyToProto(described)
            running.update(message.full_name.encode() + b"\0" + _raw(described))
    return running.digest()


def _raw(message: Message) -> bytes:
    """Return canonical bytes; length first, so that no two lists of messages read the same."""
    raw = message.SerializeToString(deterministic=True)
    return len(raw).to_bytes(4, "big") + raw


def _reachable(message: Descriptor, reached: dict[str, Descriptor]) -> Iterator[Descriptor]:
    """Yield a message and every message its fields reach, once each."""
    if message.full_name in reached:
        return
    reached[message.full_name] = message
    yield message
    for field in message.fields:
        if field.message_type is not None:
            yield from _reachable(field.message_type, reached)
