"""The composition root of ingest: stream, store, parsers, servicer and workers."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

import structlog
import uvloop
from redis.asyncio import Redis
from redis.exceptions import RedisError

from opsmesh.audit.v1 import audit_service_pb2_grpc
from opsmesh.config.v1 import sources_pb2
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc, policy_service_pb2_grpc
from opsmesh.ingest.v1 import ingest_service_pb2_grpc
from opsmesh.router.v1 import decision_service_pb2_grpc
from services.ingest import backlog, stream
from services.ingest import retention as too_old
from services.ingest.correlating import load_correlation
from services.ingest.correlation import Calm
from services.ingest.inventory import InventoryLane
from services.ingest.lanes import DecisionLanes
from services.ingest.parsers import parser_of, problems
from services.ingest.reader import Reader
from services.ingest.servicer import IngestServicer
from services.ingest.settings import IngestSettings
from services.ingest.signal import CHAT
from services.ingest.sources import Parser
from services.ingest.store import PostgresIncidents
from services.ingest.worker import Worker
from services.mesh import server
from services.mesh.client import Peers
from services.mesh.config import load_yaml
from services.mesh.errors import BootError
from services.mesh.loop import wait
from services.mesh.postgres import Pool, answers, check_revision, open_pool
from services.mesh.retention import Retention, request_ids
from services.mesh.settings import load
from services.mesh.writes import Writes

MIGRATIONS: Final = Path(__file__).with_name("migrations")
log = structlog.get_logger("opsmesh.ingest")


@dataclass(frozen=True, slots=True)
class Ingest:
    """The parts of a running ingest."""

    servicers: server.Servicers
    workers: Sequence[server.Worker]
    ready: server.Ready
    parts: Mapping[str, server.Ready]


def parsers_of(config: Path) -> dict[str, Parser]:
    """Return the parser of each configured source; a BootError names one that does not exist."""
    path = config / "sources.yaml"
    found: dict[str, Parser] = {}
    for one in load_yaml(path, sources_pb2.Sources).sources:
        if one.source == CHAT:
            raise BootError(f"{path}: source {one.source} is the router's own. NEXT: call it something else")
        for where, description in problems(one):
            raise BootError(f"{path}: source {one.source}: {where}: {description}. NEXT: correct it: opsmesh check")
        found[one.source] = parser_of(one)
    return found


def compose(
    settings: IngestSettings,
    peers: Peers,
    pool: Pool,
    appender: stream.Appender,
    reader: Reader,
    *,
    client: Redis,
) -> Ingest:
    """Put the parts together."""
    window, debounce = timedelta(seconds=settings.dedupe_seconds), timedelta(seconds=settings.debounce_seconds)
    wake = asyncio.Event()
    writes = Writes(pool, "ingest", audit_service_pb2_grpc.AuditServiceStub(peers.channel("audit")))
    store = PostgresIncidents(pool, Calm(window, debounce, load_correlation(settings.config)))
    guardrails = peers.channel("guardrails")
    inventory = InventoryLane(
        store,
        policy_service_pb2_grpc.PolicyServiceStub(guardrails),
        kill_switch_service_pb2_grpc.KillSwitchServiceStub(guardrails),
        wake,
    )
    router = decision_service_pb2_grpc.DecisionServiceStub(peers.channel("router"))
    worker = Worker(reader, store, inventory.current, wake, settings.claim_seconds)
    servicer = IngestServicer(appender, store, writes, parsers_of(settings.config), wake.set)
    workers: list[server.Worker] = [
        worker.run,
        DecisionLanes(store, router, wake, partial(backlog.oldest, client)).run,
        inventory.run,
        Retention(pool, *too_old.rules(settings.retention_days), request_ids(settings.request_retention_days)).run,
        writes.outbox_worker,
        appender.run,
    ]

    async def stream_takes() -> bool:
        """Say whether the stream answers and may be trusted with signals."""
        return appender.takes and await reader.answers()

    async def rows_are_written() -> bool:
        """Say whether PostgreSQL answers and takes what comes from the stream."""
        return await worker.records() and await answers(pool)

    async def once_postgres_is_there(stop: asyncio.Event) -> None:
        """Begin to write rows when the schema is known to be the right one; signals are taken meanwhile."""
        while not await answers(pool):
            log.warning("PostgreSQL does not answer; signals are taken and wait in the stream")
            if await wait(stop, 1.0):
                return
        await check_revision(pool, MIGRATIONS)
        async with asyncio.TaskGroup() as group:
            for work in workers:
                group.create_task(_as_coroutine(work, stop))

    return Ingest(
        [(ingest_service_pb2_grpc.add_IngestServiceServicer_to_server, servicer)],
        [once_postgres_is_there],
        stream_takes,
        {"ingest/postgres": rows_are_written, "ingest/valkey": stream_takes, "ingest/durable": appender.durable},
    )


async def _as_coroutine(work: server.Worker, stop: asyncio.Event) -> None:
    """Run a worker as what a task group takes."""
    await work(stop)


def run() -> None:
    """Serve until told to stop, on an event loop that is quick with sockets."""
    uvloop.run(serve_signals())


async def serve_signals() -> None:
    """Put the parts together and serve. Intake needs the stream only, so it starts without PostgreSQL, too."""
    settings = load(IngestSettings)
    peers = Peers(settings)
    reader, client = Reader(settings), stream.connect(settings)
    appender = stream.Appender(client, settings)
    try:
        await appender.check()
    except (RedisError, *stream.ABSENT) as error:
        log.warning("the stream does not answer; it is checked before the first signal", error=repr(error))
    pool = await open_pool(settings, "ingest", minimum=0)
    try:
        ingest = compose(settings, peers, pool, appender, reader, client=client)
        await server.serve(settings, ingest.servicers, workers=ingest.workers, ready=ingest.ready, parts=ingest.parts)
    finally:
        await peers.close()
        await reader.close()
        await client.aclose()
        pool.terminate()
