"""What the chain and its telemetry cost per unary call over mTLS.

Server and client share one process; CPU time per call, the variants in turn, the median of the rounds. Telemetry is
a thin link of our own, because OpenTelemetry's instrumentation costs a multiple of it even when it samples nothing.
"""

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
from services.mesh import tls
from services.mesh.chain import Chain, Served, telemetry_link
from services.mesh.identities import Identities
from tests.mesh.fakes import ECHO, FakeAudit, servicers
from tests.mesh.world import World

CALLS: Final = 500
ROUNDS: Final = 7
TIMEOUT: Final = 4.0
Variant = Callable[[World], AbstractAsyncContextManager[grpc.aio.Channel]]


class Quick(FakeAudit):
    """Answers at once and keeps nothing."""

    async def GetEvent(self, request: pb.GetEventRequest, _: Any) -> pb.GetEventResponse:  # noqa: N802  the IDL's name
        """Answer."""
        return pb.GetEventResponse(event=pb.AuditEvent(event_id=request.event_id))


def plain_channel(world: World, port: int, service: str, client: str) -> grpc.aio.Channel:
    """Connect without the mesh's client."""
    options = (("grpc.ssl_target_name_override", service),)
    credentials = tls.client_credentials(world.settings(client))
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options)


@asynccontextmanager
async def bare_channel(
    world: World, server: grpc.aio.Server, service: str, client: str
) -> AsyncIterator[grpc.aio.Channel]:
    """Run a server without the chain under the certificate of `service`; give a channel without the mesh's client."""
    port = server.add_secure_port("127.0.0.1:0", tls.server_credentials(world.settings(service)))
    await server.start()
    async with plain_channel(world, port, service, client) as channel:
        yield channel
    await server.stop(0)


def bare(*interceptors: Any) -> Variant:
    """Return a server without the chain, with interceptors."""

    @asynccontextmanager
    async def running(world: World) -> AsyncIterator[grpc.aio.Channel]:
        server = grpc.aio.server(interceptors=interceptors, maximum_concurrent_rpcs=1000)
        rpc.add_AuditServiceServicer_to_server(Quick(), server)
        async with bare_channel(world, server, "audit", "operator") as channel:
            yield channel

    return running


def instrumented(ratio: float) -> Variant:
    """Return a server with OpenTelemetry's instrumentation that samples some calls."""
    provider = TracerProvider(sampler=TraceIdRatioBased(ratio))
    provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
    return bare(aio_server_interceptor(tracer_provider=provider))  # type: ignore[no-untyped-call]


@asynccontextmanager
async def linked(world: World) -> AsyncIterator[grpc.aio.Channel]:
    """Run a server with no link of the chain but telemetry."""
    handlers = {}

    class Registrar:
        """Takes the handlers that the generated function would register."""

        def add_generic_rpc_handlers(self, _: Any) -> None:
            """Ignore the generic form."""

        def add_registered_method_handlers(self, _: str, found: dict[str, Any]) -> None:
            """Put the one link around each."""
            identities = Identities.load(world.settings("audit").identities)
            for name, handler in found.items():
                method = pb.DESCRIPTOR.services_by_name["AuditService"].methods_by_name[name]
                handlers[name] = Chain([telemetry_link]).wrap(Served(method, "audit", identities), handler)

    rpc.add_AuditServiceServicer_to_server(Quick(), Registrar())  # type: ignore[arg-type]
    server = grpc.aio.server(maximum_concurrent_rpcs=1000)
    server.add_registered_method_handlers("opsmesh.audit.v1.AuditService", handlers)  # type: ignore[attr-defined]
    async with bare_channel(world, server, "audit", "operator") as channel:
        yield channel


@asynccontextmanager
async def chained(world: World) -> AsyncIterator[grpc.aio.Channel]:
    """Run the mesh's server, with a plain client."""
    async with (
        world.serving("audit", servicers(Quick())) as server,
        plain_channel(world, server.port, "audit", "operator") as channel,
    ):
        yield channel


@asynccontextmanager
async def meshed(world: World) -> AsyncIterator[grpc.aio.Channel]:
    """Run the mesh's server and the mesh's client."""
    async with world.serving("audit", servicers(Quick())) as server, world.channel(server, "operator") as channel:
        yield channel


BARE: Final = "bare"
FOREIGN: Final = "bare, with OpenTelemetry's instrumentation"
LINK: Final = "bare, with the mesh's telemetry link"
CHAIN: Final = "the mesh's server"
WHOLE: Final = "the mesh's server and client"
VARIANTS: Final[dict[str, Variant]] = {
    BARE: bare(),
    FOREIGN: instrumented(0.0),
    LINK: linked,
    CHAIN: chained,
    WHOLE: meshed,
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


async def measure(folder: Path) -> dict[str, float]:
    """Return the median cost of each variant."""
    samples: dict[str, list[float]] = {name: [] for name in VARIANTS}
    world = World(folder)
    for _ in range(ROUNDS):
        for name, variant in VARIANTS.items():
            samples[name].append(await cost(variant, world))
    return {name: median(found) for name, found in samples.items()}
