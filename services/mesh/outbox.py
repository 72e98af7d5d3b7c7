"""The outbox of one service: what audit must learn, kept in the service's own database until audit has it."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol
from uuid import UUID, uuid4

import grpc
import grpc.aio
import structlog
from prometheus_client import Counter

from opsmesh.audit.v1 import audit_service_pb2 as audit_pb
from services.mesh.call import working
from services.mesh.errors import from_rpc_error
from services.mesh.postgres import Connection, Pool

# An event is 40 KiB at most; a message 4 MiB.
BATCH: Final = 64
APPEND: Final = "opsmesh.audit.v1.AuditService/AppendEvents"
APPEND_SECONDS: Final = 5.0
# Answers that are about what was sent: the same batch would be refused for ever, and with it all that comes after.
REFUSED: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.OUT_OF_RANGE,
    }
)
# The log's answer for an event_id that another writer has used.
TAKEN: Final = "CONFLICT"
TAKEN_DETAIL: Final = "event_id_taken"
# A refused event is never dropped: it is tried again this much later, in seconds, when somebody may have mended audit.
ASIDE_SECONDS: Final = 3600.0
SET_ASIDE: Final = Counter("opsmesh_outbox_refused_total", "Audit events that audit refused to take.", ["reason"])
log = structlog.get_logger("opsmesh.outbox")


class AuditClient(Protocol):
    """What is needed of the audit service's stub."""

    @property
    def AppendEvents(self) -> Callable[..., Awaitable[audit_pb.AppendEventsResponse]]:  # noqa: N802  the IDL's name
        """Append events; acknowledged when durable."""


class Outbox:
    """Delivers the events in a service's table `outbox`, in the service's name."""

    def __init__(self, pool: Pool, identity: str, audit: AuditClient) -> None:
        self._pool = pool
        self._identity = identity
        self._audit = audit

    async def deliver(self) -> None:
        """Deliver every event that is ready; raises what audit or the store answered otherwise."""
        while await self._deliver_batch() == BATCH:
            pass

    async def _deliver_batch(self) -> int:
        """Deliver up to a batch: deleted only after audit has acknowledged it."""
        async with self._pool.acquire() as connection, connection.transaction():
            rows = await connection.fetch(
                "SELECT event_id, event FROM outbox WHERE ready_time <= now() "
                "ORDER BY ready_time, create_time LIMIT $1 FOR UPDATE SKIP LOCKED",
                BATCH,
            )
            if rows:
                try:
                    await self._append(rows)
                    delivered = [row["event_id"] for row in rows]
                except grpc.aio.AioRpcError as error:
                    if error.code() not in REFUSED:
                        raise
                    delivered = await self._one_by_one(connection, rows)
                await connection.execute("DELETE FROM outbox WHERE event_id = ANY($1::uuid[])", delivered)
        return len(rows)

    async def _append(self, rows: Sequence[Any]) -> None:
        """Hand events to audit in one call."""
        events = [audit_pb.AuditEvent.FromString(row["event"]) for row in rows]
        with working(self._identity, APPEND, APPEND_SECONDS):
            await self._audit.AppendEvents(audit_pb.AppendEventsRequest(events=events), timeout=APPEND_SECONDS)

    async def _one_by_one(self, connection: Connection, rows: Sequence[Any]) -> list[UUID]:
        """Deliver what audit takes of a batch that it refused, put the rest aside; return what it took."""
        delivered: list[UUID] = []
        for row in rows:
            try:
                await self._append([row])
            except grpc.aio.AioRpcError as error:
                if error.code() not in REFUSED:
                    raise
                await self._put_aside(connection, row, error)
            else:
                delivered.append(row["event_id"])
        return delivered

    async def _put_aside(self, connection: Connection, row: Any, error: grpc.aio.AioRpcError) -> None:
        """Let a refused event stand in nobody's way.

        Ids can be guessed (DESIGN: uuid5 of method and request), so another writer may have used this one: the event
        gets one that nobody can guess and says which it had. Anything else waits.
        """
        refusal = from_rpc_error(error)
        reason = refusal.name if refusal else error.code().name
        SET_ASIDE.labels(reason).inc()
        log.error("audit refused an event", event_id=str(row["event_id"]), reason=reason, details=error.details())
        event = audit_pb.AuditEvent.FromString(row["event"])
        if reason != TAKEN or TAKEN_DETAIL in event.details:
            sql = "UPDATE outbox SET ready_time = now() + make_interval(secs => $2) WHERE event_id = $1"
            await connection.execute(sql, row["event_id"], ASIDE_SECONDS)
            return
        event.details[TAKEN_DETAIL] = event.event_id
        fresh = uuid4()
        event.event_id = str(fresh)
        sql = "UPDATE outbox SET event_id = $2, event = $3 WHERE event_id = $1"
        await connection.execute(sql, row["event_id"], fresh, event.SerializeToString())
