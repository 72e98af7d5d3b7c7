"""The one way to call any tool of the IDL through the gateway, without knowing it, and to ask what came of a call."""

from collections.abc import Awaitable, Callable
from typing import Final

import grpc.aio
from google.protobuf.message import Message

from opsmesh.gateway.v1 import effect_service_pb2 as pb
from opsmesh.gateway.v1 import effect_service_pb2_grpc
from services.mesh.failures import CallError, answered
from services.mesh.tools import Tool

# Where the gateway looks for what guardrails signed: a grant of one action, or a read grant.
GRANT_KEY: Final = "opsmesh-grant-bin"


class ToolCaller:
    """Calls tools over a channel to the gateway."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._calls: dict[str, Callable[..., Awaitable[Message]]] = {}
        self._effects = effect_service_pb2_grpc.EffectServiceStub(channel)

    async def call(self, tool: Tool, request: bytes, seconds: float, grant: bytes = b"") -> Message:
        """Send exactly these bytes, wait `seconds` at most, return the answer; raises grpc.aio.AioRpcError.

        `grant` is what guardrails minted: for these bytes (an action), or for many reads.
        """
        if tool.name not in self._calls:
            self._calls[tool.name] = self._channel.unary_unary(
                f"/{tool.name}", request_serializer=bytes, response_deserializer=tool.response_class.FromString
            )
        metadata = ((GRANT_KEY, grant),) if grant else ()
        return await self._calls[tool.name](request, timeout=seconds, metadata=metadata)

    async def effect(self, tool: Tool, request_id: str) -> pb.Effect | None:
        """Return what the gateway knows of an effect, None when it never heard of it; raises CallError."""
        asked = pb.GetEffectRequest(method=tool.name, request_id=request_id)
        try:
            return (await answered(self._effects.GetEffect(asked))).effect
        except CallError as error:
            if error.reason == "NOT_FOUND":
                return None
            raise
