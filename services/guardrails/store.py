"""What judging reads and writes in PostgreSQL: all that holds at a moment in one statement, approvals, the ledger."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid4

from opsmesh.audit.v1 import audit_service_pb2
from services.guardrails.checks import Lock, Standing
from services.mesh.postgres import Connection, Pool
from services.mesh.writes import Writes

# Policy version, kill epoch, fence and approval of one moment: one statement sees one snapshot.
MOMENT: Final = """
SELECT state.policy_set_version, state.kill_epoch, clock_timestamp() AS now,
       locks.holder, locks.fence, locks.expire_time AS lock_expire_time, locks.expire_time > clock_timestamp() AS held,
       approvals.approval_id, approvals.expire_time,
       CASE WHEN approvals.expire_time <= clock_timestamp() THEN 'EXPIRED' ELSE approvals.state END AS approval_state
FROM state
LEFT JOIN locks ON locks.target_id = $1
LEFT JOIN approvals ON approvals.requester = $2 AND approvals.method = $3 AND approvals.request_id = $4
    AND approvals.digest = $5
"""
ASK: Final = """
INSERT INTO approvals (approval_id, state, method, request_id, digest, requester, incident_id, request, judgement,
                       context, expire_time)
VALUES ($1, 'PENDING', $2, $3, $4, $5, $6, $7, $8, $9, clock_timestamp() + make_interval(secs => $10))
ON CONFLICT (requester, method, request_id, digest) DO NOTHING
"""
ASKED: Final = """
SELECT approval_id, expire_time FROM approvals
WHERE requester = $1 AND method = $2 AND request_id = $3 AND digest = $4
"""
RESERVED: Final = "SELECT true FROM notices WHERE channel = $1 AND method = $2 AND request_id = $3"
RESERVE: Final = """
INSERT INTO notices (channel, method, request_id)
SELECT $1, $2, $3
WHERE (SELECT count(*) FROM notices WHERE channel = $1 AND reserve_time > clock_timestamp() - interval '1 hour') < $4
RETURNING true
"""
# Whoever reserves on a channel waits for the others: a count that another is about to change is no cap.
ONE_AT_A_TIME: Final = "SELECT pg_advisory_xact_lock(hashtextextended($1, 40))"
SWEEP: Final = "UPDATE approvals SET state = 'EXPIRED' WHERE state = 'PENDING' AND expire_time <= clock_timestamp()"
FORGET: Final = "DELETE FROM notices WHERE reserve_time < clock_timestamp() - interval '1 day'"
COLUMNS: Final = (
    "approval_id, method, request_id, digest, requester, judgement, context, create_time, expire_time, "
    "CASE WHEN state = 'PENDING' AND expire_time <= clock_timestamp() THEN 'EXPIRED' ELSE state END AS state"
)
READ: Final = f"SELECT {COLUMNS} FROM approvals WHERE approval_id = $1"  # noqa: S608  constants only
PAGE: Final = f"""
SELECT * FROM (SELECT {COLUMNS}, incident_id FROM approvals) AS shown
WHERE ($1 = '' OR state = $1) AND ($2 = '' OR incident_id = $2)
  AND ($3::timestamptz IS NULL OR (create_time, approval_id) < ($3, $4::uuid))
ORDER BY create_time DESC, approval_id DESC LIMIT $5
"""  # noqa: S608  constants only


@dataclass(frozen=True, slots=True)
class Key:
    """What a judgement is bound to: who asks, for which tool and request id, with exactly which content."""

    caller: str
    method: str
    request_id: UUID
    digest: bytes


@dataclass(frozen=True, slots=True)
class Moment:
    """What holds at one moment, by the database's clock."""

    policy_set_version: int
    kill_epoch: int
    now: datetime
    lock: Lock | None
    approval: Standing
    approval_id: str
    approval_expire_time: datetime | None


@dataclass(frozen=True, slots=True)
class Question:
    """What a person is asked: the serialised request, Judgement and ActionContext; `seconds` until no answer is no."""

    key: Key
    incident_id: str
    request: bytes
    judgement: bytes
    context: bytes
    seconds: float


@dataclass(frozen=True, slots=True)
class ApprovalRow:
    """A stored approval; `judgement` and `context` are serialised messages."""

    approval_id: UUID
    state: str
    method: str
    request_id: UUID
    digest: bytes
    requester: str
    judgement: bytes
    context: bytes
    create_time: datetime
    expire_time: datetime


class Session:
    """One connection, for one judgement."""

    def __init__(self, connection: Connection, writes: Writes) -> None:
        self.connection = connection
        self._writes = writes

    async def moment(self, target_id: str, key: Key) -> Moment:
        """Read everything that a judgement rests on, in one snapshot."""
        row = await self.connection.fetchrow(MOMENT, target_id, key.caller, key.method, key.request_id, key.digest)
        if row is None:
            raise LookupError("guardrails.state has lost its row")
        locked = row["holder"] is not None
        lock = Lock(row["holder"], row["fence"], row["held"], row["lock_expire_time"]) if locked else None
        asked = row["approval_id"] is not None
        return Moment(
            policy_set_version=row["policy_set_version"],
            kill_epoch=row["kill_epoch"],
            now=row["now"],
            lock=lock,
            approval=Standing(row["approval_state"]) if asked else Standing.NONE,
            approval_id=str(row["approval_id"]) if asked else "",
            approval_expire_time=row["expire_time"],
        )

    async def record(self, event: audit_service_pb2.AuditEvent) -> None:
        """Put an audit event into the outbox."""
        await self._writes.enqueue(self.connection, event)

    async def ask(self, question: Question, event: audit_service_pb2.AuditEvent) -> tuple[UUID, datetime]:
        """Make the approval, or find it, and record; return its id and until when it waits."""
        key = question.key
        async with self.connection.transaction():
            await self.connection.execute(
                ASK,
                uuid4(),
                key.method,
                key.request_id,
                key.digest,
                key.caller,
                question.incident_id,
                question.request,
                question.judgement,
                question.context,
                question.seconds,
            )
            row = await self.connection.fetchrow(ASKED, key.caller, key.method, key.request_id, key.digest)
            if row is None:
                raise LookupError("an approval has vanished")
            await self.record(event)
        return row["approval_id"], row["expire_time"]

    async def reserve(self, channel: str, cap: int, key: Key) -> bool:
        """Count a notice against its channel's cap, once per request id; False when the cap is used up."""
        async with self.connection.transaction():
            if await self.connection.fetchval(RESERVED, channel, key.method, key.request_id):
                return True
            await self.connection.execute(ONE_AT_A_TIME, channel)
            if await self.connection.fetchval(RESERVED, channel, key.method, key.request_id):
                return True
            return bool(await self.connection.fetchval(RESERVE, channel, key.method, key.request_id, cap))


class JudgementStore:
    """Where judgements read and write, and where approvals are read."""

    def __init__(self, pool: Pool, writes: Writes) -> None:
        self._pool = pool
        self._writes = writes

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """Lend a connection to one judgement."""
        async with self._pool.acquire() as connection:
            yield Session(connection, self._writes)
        self._writes.wake()

    async def approval(self, approval_id: UUID) -> ApprovalRow | None:
        """Return an approval, or None."""
        row = await self._pool.fetchrow(READ, approval_id)
        return to_row(row) if row else None

    async def approvals(
        self, state: str, incident_id: str, after: tuple[datetime, UUID] | None, limit: int
    ) -> Sequence[ApprovalRow]:
        """Return approvals, newest first; empty values match all, `after` is the last one seen."""
        when, which = after or (None, None)
        return [to_row(row) for row in await self._pool.fetch(PAGE, state, incident_id, when, which, limit)]

    async def sweep(self) -> None:
        """Turn what nobody answered in time into EXPIRED."""
        await self._pool.execute(SWEEP)

    async def forget(self) -> None:
        """Drop what the hourly caps do not look at any more."""
        await self._pool.execute(FORGET)


def to_row(row: Any) -> ApprovalRow:
    """Return a record as an approval."""
    return ApprovalRow(**{name: row[name] for name in ApprovalRow.__dataclass_fields__})
