"""What a gRPC hop costs over mTLS: for a signal in a batch from bridge to ingest, and for the chain around a call.

CPU time of client and server in one process, the variants in turn, the median of the rounds.
"""
# ruff: noqa: N802  the names are those of the IDL

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import grpc
import grpc.aio

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from opsmesh.ingest.v1 import ingest_service_pb2_grpc as rpc
from opsmesh.ingest.v1 import letters_pb2, signals_pb2
from tests.bench import telemetry
from tests.bench.table import Row
from tests.ingest.house import alert, delivery, notification
from tests.mesh.world import World

BATCH: Final = 64
CALLS: Final = 100
ROUNDS: Final = 7
HOP_MAX: Final = 0.3
BATCH_CHAIN_MAX: Final = 1.1
UNARY_CHAIN_MAX: Final = 1.5
Variant = Callable[[World], AbstractAsyncContextManager[grpc.aio.Channel]]


class Echo(rpc.IngestServiceServicer):
    """Answers each delivery of a batch and does nothing with it."""

    async def SubmitSignals(self, request: pb.SubmitSignalsRequest, _: Any) -> pb.SubmitSignalsResponse:
        """Answer."""
        state = pb.DeliveryResult.STATE_ACCEPTED
        return pb.SubmitSignalsResponse(
            results=[
                pb.DeliveryResult(delivery_id=one.delivery_id, state=state, signal_ids=[one.delivery_id])
                for one in request.deliveries
            ]
        )

    async def GetIncident(self, _: pb.GetIncidentRequest, __: Any) -> pb.GetIncidentResponse:
        """Stand where nobody calls."""
        return pb.GetIncidentResponse()

    async def ListIncidents(self, _: pb.ListIncidentsRequest, __: Any) -> pb.ListIncidentsResponse:
        """Stand where nobody calls."""
        return pb.ListIncidentsResponse()

    async def ListChanges(self, _: pb.ListChangesRequest, __: Any) -> pb.ListChangesResponse:
        """Stand where nobody calls."""
        return pb.ListChangesResponse()

    async def GetSignal(self, _: pb.GetSignalRequest, __: Any) -> pb.GetSignalResponse:
        """Answer nothing."""
        return pb.GetSignalResponse()

    async def ListSignals(self, _: signals_pb2.ListSignalsRequest, __: Any) -> signals_pb2.ListSignalsResponse:
        """Answer nothing."""
        return signals_pb2.ListSignalsResponse()

    async def ListDeadLetters(self, _: pb.ListDeadLettersRequest, __: Any) -> pb.ListDeadLettersResponse:
        """Stand where nobody calls."""
        return pb.ListDeadLettersResponse()

    async def RedriveDeadLetters(
        self, _: letters_pb2.RedriveDeadLettersRequest, __: Any
    ) -> letters_pb2.RedriveDeadLettersResponse:
        """Stand where nobody calls."""
        return letters_pb2.RedriveDeadLettersResponse()

    async def DiscardDeadLetters(
        self, _: letters_pb2.DiscardDeadLettersRequest, __: Any
    ) -> letters_pb2.DiscardDeadLettersResponse:
        """Stand where nobody calls."""
        return letters_pb2.DiscardDeadLettersResponse()

    async def ResolveIncident(self, _: pb.ResolveIncidentRequest, __: Any) -> pb.ResolveIncidentResponse:
        """Stand where nobody calls."""
        return pb.ResolveIncidentResponse()


@asynccontextmanager
async def bare(world: World) -> AsyncIterator[grpc.aio.Channel]:
    """Run a server and a client without the mesh."""
    server = grpc.aio.server(maximum_concurrent_rpcs=1000)
    rpc.add_IngestServiceServicer_to_server(Echo(), server)
    async with telemetry.bare_channel(world, server, "ingest", "bridge") as channel:
        yield channel


@asynccontextmanager
async def meshed(world: World) -> AsyncIterator[grpc.aio.Channel]:
    """Run the mesh's server and the mesh's client."""
    servicers = [(rpc.add_IngestServiceServicer_to_server, Echo())]
    async with world.serving("ingest", servicers) as server, world.channel(server, "bridge") as channel:
        yield channel


async def cost(variant: Variant, world: World) -> float:
    """Return the CPU time of one batch in microseconds."""
    body = notification(alert())
    request = pb.SubmitSignalsRequest(deliveries=[delivery(body) for _ in range(BATCH)])
    async with variant(world) as channel:
        stub = rpc.IngestServiceStub(channel)
        for _ in range(CALLS // 10):
            await stub.SubmitSignals(request, timeout=4.0)
        started = time.process_time()
        for _ in range(CALLS):
            await stub.SubmitSignals(request, timeout=4.0)
        return (time.process_time() - started) / CALLS * 1e6


async def rows(folder: Path) -> list[Row]:
    """Measure."""
    unary = await telemetry.measure(folder)
    world = World(folder)
    samples: dict[str, list[float]] = {"bare": [], "mesh": []}
    for _ in range(ROUNDS):
        samples["bare"].append(await cost(bare, world))
        samples["mesh"].append(await cost(meshed, world))
    batch = {name: median(found) for name, found in samples.items()}
    echo, hop = unary[telemetry.BARE], batch["mesh"] / BATCH
    whole, chain = unary[telemetry.WHOLE], batch["mesh"] / batch["bare"]
    link, foreign = unary[telemetry.LINK] - echo, unary[telemetry.FOREIGN] - echo
    return [
        Row(
            f"gRPC hop of a signal, batch of {BATCH}",
            f"{hop:.1f} us CPU",
            f"a bare mTLS echo: {echo:.0f} us",
            hop / echo,
            f"<= {HOP_MAX:g}",
            hop / echo <= HOP_MAX,
        ),
        Row(
            f"whole chain, batch of {BATCH}",
            f"{batch['mesh']:.0f} us CPU",
            f"the bare call: {batch['bare']:.0f} us",
            chain,
            f"<= {BATCH_CHAIN_MAX:g}",
            chain <= BATCH_CHAIN_MAX,
        ),
        Row(
            "whole chain, unary",
            f"{whole:.0f} us CPU",
            f"the bare call: {echo:.0f} us",
            whole / echo,
            f"<= {UNARY_CHAIN_MAX:g}",
            whole / echo <= UNARY_CHAIN_MAX,
        ),
        Row(
            "telemetry link of our own",
            f"+{link:.0f} us CPU a call",
            f"OpenTelemetry's instrumentation, sampling nothing: +{foreign:.0f} us",
            link / foreign,
        ),
    ]
