"""What judging reads and writes in PostgreSQL: all that holds at a moment, and the ledger of notices."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from opsmesh.audit.v1 import audit_service_pb2
from services.guardrails.approvals import store as approval_store
from services.guardrails.approvals.rules import Approval
from services.guardrails.checks import Lock
from services.mesh.postgres import Connection, Pool
from services.mesh.writes import Writes

# Policy version, kill epoch and fence of one moment: one statement sees one snapshot.
MOMENT: Final = """
SELECT state.policy_set_version, state.kill_epoch, clock_timestamp() AS now,
       locks.holder, locks.fence, locks.expire_time AS lock_expire_time, locks.expire_time > clock_timestamp() AS held
FROM state
LEFT JOIN locks ON locks.target_id = $1
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
FORGET: Final = "DELETE FROM notices WHERE reserve_time < clock_timestamp() - interval '1 day'"


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
    approval: Approval | None


class Session:
    """One connection, for one judgement."""

    def __init__(self, connection: Connection, writes: Writes) -> None:
        self.connection = connection
        self._writes = writes

    async def moment(self, target_id: str, key: Key) -> Moment:
        """Read everything that a judgement rests on, in one snapshot."""
        row = await self.connection.fetchrow(MOMENT, target_id)
        if row is None:
            raise LookupError("guardrails.state has lost its row")
        locked = row["holder"] is not None
        lock = Lock(row["holder"], row["fence"], row["held"], row["lock_expire_time"]) if locked else None
        asked = (key.caller, key.method, key.request_id, key.digest)
        return Moment(
            policy_set_version=row["policy_set_version"],
            kill_epoch=row["kill_epoch"],
            now=row["now"],
            lock=lock,
            approval=await approval_store.newest(self.connection, *asked),
        )

    async def record(self, event: audit_service_pb2.AuditEvent) -> None:
        """Put an audit event into the outbox."""
        await self._writes.enqueue(self.connection, event)

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
    """Where judgements read and write."""

    def __init__(self, pool: Pool, writes: Writes) -> None:
        self._pool = pool
        self._writes = writes

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """Lend a connection to one judgement."""
        async with self._pool.acquire() as connection:
            yield Session(connection, self._writes)
        self._writes.wake()

    def within(self, connection: Connection) -> Session:
        """Judge on the connection of a transaction that somebody else ends."""
        return Session(connection, self._writes)

    async def forget(self) -> None:
        """Drop what the hourly caps do not look at any more."""
        await self._pool.execute(FORGET)
