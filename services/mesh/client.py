"""Channels to the other services: mTLS, deadline and trace handed on, retries only where repeating is safe.

A wrapper around the channel instead of client interceptors: grpc.aio makes a task per intercepted call.
"""

import json
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor

from opsmesh.policy.v1 import policy_pb2
from services.mesh import policy, telemetry, tls
from services.mesh.call import maybe_current
from services.mesh.chain import HUMAN, ON_BEHALF_OF
from services.mesh.errors import BootError, from_rpc_error
from services.mesh.settings import MeshSettings

__all__ = ["MeshChannel", "Peers", "connect", "refusal_of", "repeatable"]

refusal_of = from_rpc_error

# A callee that runs out of time leaves its caller this long to say why.
MARGIN: Final = 0.020
TIMEOUT_MIN: Final = 0.001
# Writes without request_id whose requests carry a key of their own (DESIGN, section 5).
IDEMPOTENT: Final = frozenset(
    {
        "AppendEvents",
        "DecideIncident",
        "SubmitSignals",
        "PollLease",
        "RenewLock",
        "RenewClaim",
        "AuthorizeAction",
        "AuthorizeReads",
        "ReportStops",
    }
)
RETRY: Final = {
    "maxAttempts": 4,
    "initialBackoff": "0.05s",
    "maxBackoff": "1s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
Metadata = Sequence[tuple[str, str | bytes]]


def repeatable(method: MethodDescriptor) -> bool:
    """Say whether a call may be sent again without harm: a read, or a write with a key."""
    if method.client_streaming or method.server_streaming:
        return False
    found = policy.read_policy(method)
    if found is not None and found.access == policy_pb2.ACCESS_READ:
        return True
    return "request_id" in method.input_type.fields_by_name or method.name in IDEMPOTENT


def _service_config() -> str:
    """Return the gRPC service config that retries what is repeatable while a peer is unavailable."""
    names = [
        {"service": service.full_name, "method": method.name}
        for service in policy.generated_services()
        for method in service.methods
        if repeatable(method)
    ]
    throttle = {"maxTokens": 100, "tokenRatio": 0.2}
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": RETRY}], "retryThrottling": throttle})


class _Method:
    """One method of a stub: adds timeout, trace and person to every call; resolved once."""

    __slots__ = ("_invoke", "_longest")

    def __init__(self, invoke: Any, path: str) -> None:
        self._invoke = invoke
        self._longest = policy.seconds(policy.method_policy(path).max_duration)

    def __call__(
        self, request: Any = None, *, timeout: float | None = None, metadata: Metadata | None = None, **options: Any
    ) -> Any:
        """Call, within the remaining time of the call being served; without one, within the policy's longest."""
        call = maybe_current()
        extra: list[tuple[str, str | bytes]] = list(metadata or ())
        if timeout is None:
            timeout = self._longest
        if call is not None:
            timeout = min(timeout, max(TIMEOUT_MIN, call.remaining - MARGIN))
            extra.append((telemetry.HEADER, call.trace.header))
            person = call.on_behalf_of or (call.identity if call.identity.startswith(HUMAN) else "")
            if person:
                extra.append((ON_BEHALF_OF, person))
        return self._invoke(request, timeout=timeout, metadata=tuple(extra), **options)


class MeshChannel(grpc.aio.Channel):
    """A channel whose stubs hand on deadline, trace and person."""

    def __init__(self, inner: grpc.aio.Channel) -> None:
        self._inner = inner

    def unary_unary(self, method: str, *args: Any, **options: Any) -> Any:
        """Return a callable for one method."""
        return _Method(self._inner.unary_unary(method, *args, **options), method)

    def unary_stream(self, method: str, *args: Any, **options: Any) -> Any:
        """Return a callable for one method."""
        return _Method(self._inner.unary_stream(method, *args, **options), method)

    def stream_unary(self, method: str, *args: Any, **options: Any) -> Any:
        """Return a callable for one method."""
        return _Method(self._inner.stream_unary(method, *args, **options), method)

    def stream_stream(self, method: str, *args: Any, **options: Any) -> Any:
        """Return a callable for one method."""
        return _Method(self._inner.stream_stream(method, *args, **options), method)

    async def close(self, grace: float | None = None) -> None:
        """Close; calls in flight get `grace` seconds."""
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # noqa: FBT001, FBT002  gRPC's own
        """Return the connectivity."""
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait for another connectivity than the given one."""
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Wait until connected."""
        await self._inner.channel_ready()

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()


def connect(address: str, service: str, credentials: grpc.ChannelCredentials) -> MeshChannel:
    """Return a channel to `service` at `address`, whose certificate must name it."""
    options = (
        ("grpc.ssl_target_name_override", service),
        ("grpc.service_config", _service_config()),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.enable_retries", 1),
        ("grpc.max_receive_message_length", 4 * 1024 * 1024),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # In gRPC this is how long a connection, TLS included, may take: too little of it fails under load for ever.
        ("grpc.min_reconnect_backoff_ms", 3_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 5_000),
    )
    return MeshChannel(grpc.aio.secure_channel(address, credentials, options=options))


class Peers:
    """The other services of the mesh, one channel each, made at first use."""

    def __init__(self, settings: MeshSettings) -> None:
        self._addresses = settings.peers
        self._credentials = tls.client_credentials(settings)
        self._channels: dict[str, MeshChannel] = {}

    def channel(self, name: str) -> grpc.aio.Channel:
        """Return the channel to a service; a BootError when its address is not configured."""
        if name not in self._addresses:
            raise BootError(f"OPSMESH_PEERS has no address of {name}. NEXT: add it to the JSON object")
        if name not in self._channels:
            self._channels[name] = connect(self._addresses[name], name, self._credentials)
        return self._channels[name]

    async def close(self) -> None:
        """Close every channel."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()
