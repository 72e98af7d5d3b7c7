"""Services that exist only in tests: one with all four kinds of RPC, one whose method carries no policy."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, duration_pb2

from opsmesh.audit.v1 import audit_service_pb2 as pb
from opsmesh.policy.v1 import policy_pb2

PACKAGE = "opsmesh.mesh_test.v1"
KINDS = f"{PACKAGE}.KindsService"
NAKED = f"{PACKAGE}.NakedService"
PARTS = 3


def _link() -> None:
    """Put the two services into the descriptor pool, as a generated module would."""
    file = descriptor_pb2.FileDescriptorProto(name="opsmesh/mesh_test/v1/mesh_test.proto", package=PACKAGE)
    file.syntax = "proto3"
    file.dependency.extend(["opsmesh/audit/v1/audit_service.proto", "opsmesh/policy/v1/policy.proto"])
    kinds = file.service.add(name="KindsService")
    for rpc, streams_in, streams_out in (
        ("UnaryUnary", False, False),
        ("UnaryStream", False, True),
        ("StreamUnary", True, False),
        ("StreamStream", True, True),
    ):
        method = kinds.method.add(
            name=rpc,
            input_type=".opsmesh.audit.v1.GetEventRequest",
            output_type=".opsmesh.audit.v1.AppendEventsResponse",
            client_streaming=streams_in,
            server_streaming=streams_out,
        )
        method.options.Extensions[policy_pb2.method].CopyFrom(
            policy_pb2.MethodPolicy(
                access=policy_pb2.ACCESS_READ,
                risk=policy_pb2.RISK_LOW,
                permission="audit.read",
                audit=policy_pb2.AUDIT_MODE_NONE,
                max_duration=duration_pb2.Duration(seconds=5),
            )
        )
    naked = file.service.add(name="NakedService")
    naked.method.add(
        name="Bare", input_type=".opsmesh.audit.v1.GetEventRequest", output_type=".opsmesh.audit.v1.GetEventResponse"
    )
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


_link()


class Kinds:
    """Answers with how many requests it saw; keeps them in `seen`."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def unary_unary(self, request: pb.GetEventRequest, _: Any) -> pb.AppendEventsResponse:
        """One in, one out."""
        self.seen.append(request.event_id)
        return pb.AppendEventsResponse(sequences=[len(self.seen)])

    async def unary_stream(self, request: pb.GetEventRequest, _: Any) -> AsyncIterator[pb.AppendEventsResponse]:
        """One in, three out."""
        self.seen.append(request.event_id)
        for number in range(PARTS):
            yield pb.AppendEventsResponse(sequences=[number + 1])

    async def stream_unary(self, requests: AsyncIterator[pb.GetEventRequest], _: Any) -> pb.AppendEventsResponse:
        """Many in, one out."""
        self.seen += [request.event_id async for request in requests]
        return pb.AppendEventsResponse(sequences=[len(self.seen)])

    async def stream_stream(
        self, requests: AsyncIterator[pb.GetEventRequest], _: Any
    ) -> AsyncIterator[pb.AppendEventsResponse]:
        """As many out as in."""
        async for request in requests:
            self.seen.append(request.event_id)
            yield pb.AppendEventsResponse(sequences=[len(self.seen)])


def add_kinds(servicer: Kinds, server: Any) -> None:
    """Register the four methods, as generated code does."""
    codec = (pb.GetEventRequest.FromString, pb.AppendEventsResponse.SerializeToString)
    server.add_registered_method_handlers(
        KINDS,
        {
            "UnaryUnary": grpc.unary_unary_rpc_method_handler(servicer.unary_unary, *codec),
            "UnaryStream": grpc.unary_stream_rpc_method_handler(servicer.unary_stream, *codec),
            "StreamUnary": grpc.stream_unary_rpc_method_handler(servicer.stream_unary, *codec),
            "StreamStream": grpc.stream_stream_rpc_method_handler(servicer.stream_stream, *codec),
        },
    )


def add_naked(servicer: Kinds, server: Any) -> None:
    """Register a method without policy."""
    server.add_registered_method_handlers(NAKED, {"Bare": grpc.unary_unary_rpc_method_handler(servicer.unary_unary)})


async def invoke(
    channel: grpc.aio.Channel, name: str, requests: list[pb.GetEventRequest]
) -> list[pb.AppendEventsResponse]:
    """Call one of the four methods, whatever its kind, and return all answers."""
    codec = (pb.GetEventRequest.SerializeToString, pb.AppendEventsResponse.FromString)
    path = f"/{KINDS}/{name}"
    match name:
        case "UnaryUnary":
            return [await channel.unary_unary(path, *codec)(requests[0])]
        case "UnaryStream":
            return [part async for part in channel.unary_stream(path, *codec)(requests[0])]
        case "StreamUnary":
            return [await channel.stream_unary(path, *codec)(iter(requests))]
        case _:
            return [part async for part in channel.stream_stream(path, *codec)(iter(requests))]
