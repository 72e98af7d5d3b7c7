"""How this machine's operator reaches the services: over mTLS, each by its own name."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.local.files import LocalError
from services.local.layout import Mesh
from services.local.waiting import until
from services.mesh.client import connect

SERVING_SECONDS = 90


def credentials(mesh: Mesh, person: str = "operator") -> grpc.ChannelCredentials:
    """Return the credentials of PERSON."""
    return grpc.ssl_channel_credentials(
        (mesh.pki / "ca.pem").read_bytes(),
        (mesh.pki / f"{person}.key").read_bytes(),
        (mesh.pki / f"{person}.pem").read_bytes(),
    )


@asynccontextmanager
async def channels(mesh: Mesh) -> AsyncIterator[Callable[[str], grpc.aio.Channel]]:
    """Give a function that returns the operator's channel to a service; all are closed at the end."""
    opened: dict[str, grpc.aio.Channel] = {}
    identity = credentials(mesh)

    def channel(name: str) -> grpc.aio.Channel:
        if name not in opened:
            opened[name] = connect(mesh.peers()[name], name, identity)
        return opened[name]

    try:
        yield channel
    finally:
        for one in opened.values():
            await one.close(None)


async def wait_serving(mesh: Mesh, name: str, seconds: float = SERVING_SECONDS) -> None:
    """Return once service NAME says SERVING; raises LocalError after SECONDS."""
    options = [
        ("grpc.ssl_target_name_override", name),
        # a service that is still importing refuses connections: ask again soon
        ("grpc.initial_reconnect_backoff_ms", 50),
        # In gRPC this is how long a connection, TLS included, may take.
        ("grpc.min_reconnect_backoff_ms", 3_000),
        ("grpc.max_reconnect_backoff_ms", 200),
    ]
    async with grpc.aio.secure_channel(mesh.peers()[name], credentials(mesh), options=options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def check() -> None:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
            if answer.status != health_pb2.HealthCheckResponse.SERVING:
                raise LocalError("it answers, but does not serve yet")

        await until(check, f"service {name}", seconds, grpc.aio.AioRpcError, LocalError, pause=0.1)
