"""The audit log under load: many callers who share commits against one event a commit on the same log; verification.

PostgreSQL runs beside it, synchronous; the callers and the sequencer share this process.
"""

import asyncio
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from statistics import quantiles
from typing import Final

import asyncpg

from opsmesh.audit.v1 import audit_service_pb2 as audit
from services.audit.chain import Checkpoints, Verifier
from services.audit.domain import Head
from services.audit.sequencer import Sequencer
from services.audit.store import PostgresAppender, PostgresLog
from services.local.files import LocalError
from services.local.waiting import until
from tests.bench.table import Row
from tests.stores import Database, running_postgres

CALLERS: Final = 96
SECONDS: Final = 5.0
VERIFIED: Final = 100_000
RATE_MIN: Final = 5_000.0
RATIO_MIN: Final = 15.0
P99_MAX_MS: Final = 20.0
VERIFY_MAX_SECONDS: Final = 10.0
WRITER: Final = "service/gateway"


def make_events() -> Iterator[audit.AuditEvent]:
    """Yield events as the gateway writes them; cheap to make, for the maker shares the core."""
    template = audit.AuditEvent(
        phase=audit.AuditEvent.PHASE_INTENT,
        actor="service/automation",
        action="opsmesh.tools.workload.v1.WorkloadToolService/RestartWorkload",
        target="svc:demo/checkout",
        environment="demo",
        region="local",
        step_id="restart",
        policy_set_version=3,
        request_digest="a" * 64,
        trace_id="b" * 32,
        details={"fence": "12"},
    )
    template.event_time.FromDatetime(datetime.now(UTC))
    base = uuid.uuid4().int
    for number in count():
        made = audit.AuditEvent()
        made.CopyFrom(template)
        made.event_id = made.request_id = str(uuid.UUID(int=(base + number) % 2**128))
        made.incident_id = made.execution_id = made.event_id
        yield made


async def append(database: Database, callers: int, seconds: float) -> tuple[float, float, float]:
    """Return events a second, p50 and p99 in milliseconds, of CALLERS that each append one event after the other."""

    async def open_log() -> PostgresAppender:
        return await PostgresAppender.open(database.dsn("audit", with_password=False), database.password("audit"))

    async def lost(_: Head) -> None:
        raise LocalError("the log lost events")

    sequencer = Sequencer(open_log, lost)
    stop = asyncio.Event()
    running = asyncio.create_task(sequencer.run(stop))

    async def ready() -> None:
        if not await sequencer.ready():
            raise LocalError("not yet")

    await until(ready, "the log", 20, LocalError)
    events = make_events()
    taken: list[float] = []
    end = time.perf_counter() + seconds

    async def caller() -> None:
        while time.perf_counter() < end:
            event = next(events)
            started = time.perf_counter()
            await sequencer.append([event], WRITER)
            taken.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    rate = len(taken) / (time.perf_counter() - started)
    stop.set()
    await running
    cuts = quantiles(taken, n=100)
    return rate, cuts[49] * 1000, cuts[98] * 1000


async def verify(database: Database) -> tuple[int, float]:
    """Return how many events were exported and verified, and the seconds that took."""
    async with asyncpg.create_pool(database.dsn("audit"), min_size=1, max_size=1) as pool:
        verifier = Verifier(Checkpoints())
        done = 0
        started = time.perf_counter()
        async for part in PostgresLog(pool).export(0):
            verifier.feed(part)
            done += len(part)
            if done >= VERIFIED:
                break
    if not verifier.finish(datetime.now(UTC)).head:
        raise LocalError("nothing was verified")
    return done, time.perf_counter() - started


async def rows(folder: Path) -> list[Row]:
    """Measure."""
    async with running_postgres(folder) as database:
        alone, _, _ = await append(database, 1, SECONDS / 2)
        rate, p50, p99 = await append(database, CALLERS, SECONDS)
        while (have := await _count(database)) < VERIFIED:
            await append(database, CALLERS, (VERIFIED - have) / rate + 0.5)
        done, took = await verify(database)
    measured = f"{rate:,.0f}/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms"
    return [
        Row(
            f"audit: chained, synchronous, {CALLERS} callers",
            measured,
            f"one event a commit: {alone:,.0f}/s",
            rate / alone,
            f">= {RATIO_MIN:g}",
            rate >= RATIO_MIN * alone,
        ),
        Row(
            "  the same",
            measured,
            bar=f">= {RATE_MIN:,.0f}/s, p99 < {P99_MAX_MS:g} ms",
            met=rate >= RATE_MIN and p99 < P99_MAX_MS,
        ),
        Row(
            f"audit: {VERIFIED:,} events verified",
            f"{took * VERIFIED / done:.1f} s",
            bar=f"< {VERIFY_MAX_SECONDS:g} s",
            met=took * VERIFIED / done < VERIFY_MAX_SECONDS,
        ),
    ]


async def _count(database: Database) -> int:
    """Return how many events there are."""
    connection = await asyncpg.connect(database.dsn("reader"))
    try:
        found: int = await connection.fetchval("SELECT count(*) FROM audit.events")
    finally:
        await connection.close()
    return found
