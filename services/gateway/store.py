"""Effects and fences in PostgreSQL: state changes by single-row compare-and-set, the database's clock decides."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

import asyncpg

from opsmesh.audit.v1 import audit_service_pb2
from services.gateway.domain import CLAIM_SECONDS, Effect, Ending, Key, State
from services.mesh.postgres import Connection, Pool
from services.mesh.retention import TooOld
from services.mesh.writes import Writes

COLUMNS: Final = (
    "method, request_id, state, tries, digest, caller, request, authority, target_id, environment, fence, incident_id, "
    "execution_id, step_id, trace_id, response, reason, detail, settler, start_time, deadline_time, end_time, "
    "resolve_tries, extract(epoch FROM deadline_time - clock_timestamp())::float8 AS remaining"
)
READ: Final = f"SELECT {COLUMNS} FROM effects WHERE method = $1 AND request_id = $2"  # noqa: S608  constants only
# Whoever claims has CLAIM_SECONDS to resolve; nobody else asks the backend meanwhile.
CLAIM: Final = f"""
UPDATE effects SET resolve_time = clock_timestamp() + make_interval(secs => $3)
WHERE method = $1 AND request_id = $2 AND state = 'STARTED' AND resolve_time <= clock_timestamp()
RETURNING {COLUMNS}
"""  # noqa: S608  constants only
CLAIM_DUE: Final = f"""
UPDATE effects SET resolve_time = clock_timestamp() + make_interval(secs => $2)
WHERE (method, request_id) IN (
    SELECT method, request_id FROM effects WHERE state = 'STARTED' AND resolve_time <= clock_timestamp()
    ORDER BY resolve_time LIMIT $1 FOR UPDATE SKIP LOCKED)
RETURNING {COLUMNS}
"""  # noqa: S608  constants only
# A row that is not NOT_STARTED, or belongs to other content, is left alone and nothing is returned.
START: Final = """
INSERT INTO effects (method, request_id, state, tries, digest, caller, request, authority, target_id, environment,
                     fence, incident_id, execution_id, step_id, trace_id, deadline_time, resolve_time)
VALUES ($1, $2, 'STARTED', 1, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13,
        clock_timestamp() + make_interval(secs => $14), clock_timestamp() + make_interval(secs => $14))
ON CONFLICT (method, request_id) DO UPDATE
SET state = 'STARTED', tries = effects.tries + 1, authority = excluded.authority, fence = excluded.fence,
    environment = excluded.environment, trace_id = excluded.trace_id, reason = '', detail = '', end_time = NULL,
    start_time = clock_timestamp(), deadline_time = excluded.deadline_time, resolve_time = excluded.resolve_time,
    resolve_tries = 0
WHERE effects.state = 'NOT_STARTED' AND effects.digest = excluded.digest AND effects.caller = excluded.caller
RETURNING tries
"""
RAISE_FENCE: Final = """
INSERT INTO fences (target_id, fence) VALUES ($1, $2)
ON CONFLICT (target_id) DO UPDATE SET fence = excluded.fence WHERE fences.fence <= excluded.fence
RETURNING fence
"""
FENCE: Final = "SELECT fence FROM fences WHERE target_id = $1"
# Asked while this transaction holds the target's row of `fences`: of two that start at once, one sees the other.
AT_WORK: Final = """
SELECT request_id, deadline_time FROM effects
WHERE target_id = $1 AND state = 'STARTED' AND fence > 0 AND (method, request_id) <> ($2, $3) LIMIT 1
"""
END: Final = """
UPDATE effects SET state = $4, response = $5, reason = $6, detail = $7, end_time = clock_timestamp()
WHERE method = $1 AND request_id = $2 AND state = 'STARTED' AND tries = $3
"""
POSTPONE: Final = """
UPDATE effects
SET resolve_tries = resolve_tries + $4, resolve_time = clock_timestamp() + make_interval(secs => $5)
WHERE method = $1 AND request_id = $2 AND state = 'STARTED' AND tries = $3
"""
SETTLE: Final = """
UPDATE effects SET state = $3, settler = $4, detail = $5, reason = $6, end_time = clock_timestamp()
WHERE method = $1 AND request_id = $2 AND state = 'UNKNOWN'
"""


class FenceStaleError(Exception):
    """A newer holder has acted on the target; `current` is its fence."""

    def __init__(self, current: int) -> None:
        self.current = current
        super().__init__(f"the fence is {current} by now")


@dataclass(frozen=True, slots=True)
class Start:
    """What transaction 1 writes; `seconds` is the time until the deadline, a fence of 0 is not raised."""

    key: Key
    digest: bytes
    caller: str
    request: bytes
    authority: bytes
    target_id: str
    environment: str
    fence: int
    incident_id: str
    execution_id: str
    step_id: str
    trace_id: str
    seconds: float


class TargetBusyError(Exception):
    """Another effect on the target is under way, or its outcome is not known yet; `deadline_time` is when it ends."""

    def __init__(self, request_id: uuid.UUID, deadline_time: datetime) -> None:
        self.request_id = request_id
        self.deadline_time = deadline_time
        super().__init__(f"effect {request_id} is under way until {deadline_time}")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which effects to list; empty values match all; `before` is the last (start_time, method, request_id) seen."""

    state: State | None = None
    target_id: str = ""
    execution_id: str = ""
    before: tuple[datetime, str, uuid.UUID] | None = None


class EffectStore(Protocol):
    """Where effects live."""

    async def read(self, key: Key) -> Effect | None:
        """Return an effect, or None."""

    async def start(self, start: Start) -> int | None:
        """Write STARTED and raise the fence in one transaction; return the try's number, None when another was first.

        Raises FenceStaleError or TargetBusyError, having written nothing.
        """

    async def fence(self, target_id: str) -> int:
        """Return the highest fence that was ever used on a target; 0 when none was."""

    async def end(self, key: Key, tries: int, ending: Ending, events: Sequence[audit_service_pb2.AuditEvent]) -> bool:
        """End a try and hand its audit events over in one transaction; False when somebody else ended it."""

    async def claim(self, key: Key) -> Effect | None:
        """Return a STARTED effect that is due for whoever asks to resolve; None when it is not, or claimed."""

    async def claim_due(self, limit: int) -> list[Effect]:
        """Return STARTED effects that are due, for the caller to resolve."""

    async def postpone(self, key: Key, tries: int, seconds: float, *, counted: bool) -> None:
        """Ask for the outcome again in some seconds; `counted` says whether the backend was asked in vain."""

    async def page(self, chosen: Filter, limit: int) -> list[Effect]:
        """Return effects, newest first."""


class PostgresEffects:
    """Effects in the gateway's schema; audit events go into the outbox of `writes` in the same transaction."""

    def __init__(self, pool: Pool, writes: Writes) -> None:
        self._pool = pool
        self._writes = writes

    async def read(self, key: Key) -> Effect | None:
        """Return an effect, or None."""
        row = await self._pool.fetchrow(READ, key.method, key.request_id)
        return to_effect(row) if row else None

    async def start(self, start: Start) -> int | None:
        """Write STARTED and raise the fence in one transaction."""
        values = (
            *(start.key.method, start.key.request_id, start.digest, start.caller, start.request, start.authority),
            *(start.target_id, start.environment, start.fence, start.incident_id, start.execution_id, start.step_id),
            *(start.trace_id, start.seconds),
        )
        async with self._pool.acquire() as connection, connection.transaction():
            tries: int | None = await connection.fetchval(START, *values)
            if tries is not None and start.fence:
                raised = await connection.fetchval(RAISE_FENCE, start.target_id, start.fence)
                if raised is None:
                    raise FenceStaleError(await connection.fetchval(FENCE, start.target_id))
                # A lock lapses with its holder, an effect does not: the next holder waits for its outcome.
                if other := await connection.fetchrow(AT_WORK, start.target_id, start.key.method, start.key.request_id):
                    raise TargetBusyError(other["request_id"], other["deadline_time"])
            return tries

    async def fence(self, target_id: str) -> int:
        """Return the highest fence that was ever used on a target; 0 when none was."""
        return int(await self._pool.fetchval(FENCE, target_id) or 0)

    async def end(self, key: Key, tries: int, ending: Ending, events: Sequence[audit_service_pb2.AuditEvent]) -> bool:
        """End a try and hand its audit events over in one transaction."""
        values = (ending.state.value, ending.response, ending.reason, ending.detail)
        async with self._pool.acquire() as connection, connection.transaction():
            done: str = await connection.execute(END, key.method, key.request_id, tries, *values)
            if done != "UPDATE 1":
                return False
            await self._writes.enqueue(connection, *events)
        self._writes.wake()
        return True

    async def claim(self, key: Key) -> Effect | None:
        """Return a STARTED effect that is due, for the caller to resolve."""
        row = await self._pool.fetchrow(CLAIM, key.method, key.request_id, CLAIM_SECONDS)
        return to_effect(row) if row else None

    async def claim_due(self, limit: int) -> list[Effect]:
        """Return STARTED effects that are due, for the caller to resolve."""
        return [to_effect(row) for row in await self._pool.fetch(CLAIM_DUE, limit, CLAIM_SECONDS)]

    async def postpone(self, key: Key, tries: int, seconds: float, *, counted: bool) -> None:
        """Ask for the outcome again in some seconds."""
        await self._pool.execute(POSTPONE, key.method, key.request_id, tries, int(counted), seconds)

    async def page(self, chosen: Filter, limit: int) -> list[Effect]:
        """Return effects, newest first."""
        tests, values = ["true"], list[Any]()
        for test, value in (
            ("state = ${}", chosen.state.value if chosen.state else None),
            ("target_id = ${}", chosen.target_id or None),
            ("execution_id = ${}", chosen.execution_id or None),
        ):
            if value is not None:
                values.append(value)
                tests.append(test.format(len(values)))
        if chosen.before:
            first = len(values) + 1
            values += chosen.before
            after = f"(method, request_id) > (${first + 1}, ${first + 2})"
            tests.append(f"(start_time < ${first} OR (start_time = ${first} AND {after}))")
        values.append(limit)
        query = (
            f"SELECT {COLUMNS} FROM effects WHERE {' AND '.join(tests)} "  # noqa: S608  fixed texts, values are parameters
            f"ORDER BY start_time DESC, method, request_id LIMIT ${len(values)}"
        )
        return [to_effect(row) for row in await self._pool.fetch(query, *values)]


async def settle(connection: Connection, key: Key, ending: Ending, settler: str) -> tuple[Effect | None, bool]:
    """Write how a person says an UNKNOWN effect ended; return the effect and whether it was UNKNOWN before."""
    values = (ending.state.value, settler, ending.detail, ending.reason)
    done: str = await connection.execute(SETTLE, key.method, key.request_id, *values)
    row = await connection.fetchrow(READ, key.method, key.request_id)
    return (to_effect(row) if row else None), done == "UPDATE 1"


def finished(days: int) -> TooOld:
    """Return which effects are deleted after `days`: never one that may still act, or whose end nobody knows."""
    condition = "state IN ('SUCCEEDED', 'FAILED', 'NOT_STARTED') AND end_time < now() - $1::interval"
    return TooOld("effects", condition, days)


def to_effect(row: asyncpg.Record) -> Effect:
    """Return a row as an effect."""
    values = dict(row)
    key = Key(values.pop("method"), values.pop("request_id"))
    return Effect(key=key, state=State(values.pop("state")), **values)
