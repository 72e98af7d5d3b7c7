"""What the chain and its telemetry cost per call over mTLS: `python -m tests.bench.telemetry`.

Server and client share one process; CPU time per call, the variants in turn, the median of the rounds. The reason why
telemetry is a thin link of our own: the instrumentation of
OpenTelemetry alone, sampling nothing, costs more than the whole chain.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import grpc
import grpc.aio
from opentelemetry.instrumentation.grpc import aio_server_interceptor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from opsmesh.audit.v1 import audit_service_pb2 as pb
from opsmesh.audit.v1 import audit_service_pb2_grpc as rpc
from services.mesh import telemetry, tls
from tests.mesh.fakes import ECHO, FakeAudit, servicers
from tests.mesh.world import World

CALLS: Final = 1_000
ROUNDS: Final = 9
TIMEOUT: Final = 4.0
UNARY_MAX: Final = 1.5
Variant = Callable[[World], AbstractAsyncContextManager[grpc.aio.Channel]]


class Quick(FakeAudit):
    """Answers at once and keeps nothing."""

    async def GetEvent(self, request: pb.GetEventRequest, _: Any) -> pb.GetEventResponse:  # noqa: N802  the IDL's name
        """Answer."""
        return pb.GetEventResponse(event=pb.AuditEvent(event_id=request.event_id))


def plain_channel(world: World, port: int) -> grpc.aio.Channel:
    """Connect without the mesh's client."""
    options = (("grpc.ssl_target_name_override", "audit"),)
    credentials = tls.client_credentials(world.settings("operator"))
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options)


def bare(*interceptors: Any) -> Variant:
    """Return a server without the chain, with interceptors."""

    @asynccontextmanager
    async def running(world: World) -> AsyncIterator[grpc.aio.Channel]:
        server = grpc.aio.server(interceptors=interceptors, maximum_concurrent_rpcs=1000)
        rpc.add_AuditServiceServicer_to_server(Quick(), server)
        port = server.add_secure_port("127.0.0.1:0", tls.server_credentials(world.settings("audit")))
        await server.start()
        async with plain_channel(world, port) as channel:
            yield channel
        await server.stop(0)

    return running


def instrumented(ratio: float) -> Variant:
    """Return a server with OpenTelemetry's instrumentation that samples some calls."""
    provider = TracerProvider(sampler=TraceIdRatioBased(ratio))
    provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
    return bare(aio_server_interceptor(tracer_provider=provider))  # type: ignore[no-untyped-call]


@asynccontextmanager
async def chained(world: World) -> AsyncIterator[grpc.aio.Channel]:
    """Run the mesh's server, with a plain client."""
    async with world.serving("audit", servicers(Quick())) as server, plain_channel(world, server.port) as channel:
        yield channel


@asynccontextmanager
async def meshed(world: World) -> AsyncIterator[grpc.aio.Channel]:
    """Run the mesh's server and the mesh's client."""
    async with world.serving("audit", servicers(Quick())) as server, world.channel(server, "operator") as channel:
        yield channel


VARIANTS: Final[dict[str, Variant]] = {
    "bare": bare(),
    "bare + OpenTelemetry instrumentation, 0 %": instrumented(0.0),
    "bare + OpenTelemetry instrumentation, 100 %": instrumented(1.0),
    "mesh server (whole chain)": chained,
    "mesh server and mesh client": meshed,
}


async def cost(variant: Variant, world: World) -> float:
    """Return the CPU time of one call in microseconds."""
    async with variant(world) as channel:
        stub, request = rpc.AuditServiceStub(channel), pb.GetEventRequest(event_id=ECHO)
        for _ in range(CALLS // 10):
            await stub.GetEvent(request, timeout=TIMEOUT)
        started = time.process_time()
        for _ in range(CALLS):
            await stub.GetEvent(request, timeout=TIMEOUT)
        return (time.process_time() - started) / CALLS * 1e6


async def measure() -> dict[str, float]:
    """Return the median cost of each variant."""
    samples: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        for _ in range(ROUNDS):
            for name, variant in VARIANTS.items():
                samples[name].append(await cost(variant, world))
    return {name: median(found) for name, found in samples.items()}


def main() -> None:
    """Print the costs; exit 1 when the whole chain breaks its bar of 1.5 bare unary calls."""
    telemetry.setup("audit", "info")
    costs = asyncio.run(measure())
    bare_cost = costs["bare"]
    for name, found in costs.items():
        line = f"{name:<46} {found:7.0f} us CPU/call {found / bare_cost:5.2f}x {found - bare_cost:+6.0f} us"
        sys.stdout.write(line + "\n")
    sys.exit(costs["mesh server and mesh client"] > UNARY_MAX * bare_cost)


if __name__ == "__main__":
    main()
