"""Playbooks and executions as callers see them, in PostgreSQL: versions never change, an execution is one row."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol

import asyncpg

from services.automation.domain import OPEN_EXECUTION, ExecutionState, StepState
from services.mesh.postgres import Connection, Pool

OPEN: Final = sorted(OPEN_EXECUTION)
_PLAYBOOK: Final = "playbook_id, version, active, digest, content, publisher, publish_time"
_EXECUTION: Final = (
    "execution_id::text, playbook_id, playbook_version, playbook_digest, state, incident_id::text, decision_id, "
    "rule_set_version, requester, on_behalf_of, traceparent, health_proved, detail, cancel_requested, cancel_reason, "
    "engine_starts, incident, create_time, start_time, end_time, rule_id, kill_id, unstopped, identity_token, note"
)
_STEP: Final = (
    "step_id, state, tool, attempt, request_id, target_id, reason, detail, approval_id, sent, request_json, "
    "response_json, response, start_time, end_time, environment, renewals"
)


@dataclass(frozen=True, slots=True)
class PlaybookRow:
    """One published version; `content` is the serialised playbook."""

    playbook_id: str
    version: int
    active: bool
    digest: str
    content: bytes
    publisher: str
    publish_time: datetime


@dataclass(frozen=True, slots=True)
class StepRow:
    """One step as recorded; `sent` says that the gateway may have seen the effect of this attempt."""

    step_id: str
    state: StepState
    tool: str
    attempt: int = 0
    request_id: str = ""
    target_id: str = ""
    reason: str = ""
    detail: str = ""
    approval_id: str = ""
    sent: bool = False
    request_json: str = ""
    response_json: str = ""
    response: bytes | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    environment: str = ""
    renewals: int = 0


@dataclass(frozen=True, slots=True)
class ExecutionRow:
    """One execution as recorded; `incident` is the serialised snapshot it was started with.

    `identity_token` says, signed by the router, which person asked for it in a chat; empty when none did. `note` is
    what the starter has to say to people: untrusted.
    """

    execution_id: str
    playbook_id: str
    playbook_version: int
    playbook_digest: str
    state: ExecutionState
    incident_id: str
    decision_id: str
    rule_set_version: int
    requester: str
    on_behalf_of: str
    traceparent: str
    health_proved: bool
    detail: str
    cancel_requested: bool
    cancel_reason: str
    engine_starts: int
    incident: bytes
    create_time: datetime
    start_time: datetime | None
    end_time: datetime | None
    rule_id: str
    kill_id: str
    unstopped: bool
    identity_token: bytes
    note: str
    steps: Sequence[StepRow] = field(default=())


@dataclass(frozen=True, slots=True)
class NewExecution:
    """What a start writes; `steps` are (step_id, tool) in order."""

    execution_id: str
    playbook: PlaybookRow
    incident_id: str
    incident: bytes
    decision_id: str
    rule_set_version: int
    requester: str
    on_behalf_of: str
    traceparent: str
    rule_id: str
    identity_token: bytes
    note: str
    steps: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Filter:
    """Which executions to list; empty fields do not narrow. `before` is (create_time, execution_id) of the last one."""

    incident_id: str = ""
    playbook_id: str = ""
    states: Sequence[str] = ()
    before: tuple[datetime, str] | None = None


class Store(Protocol):
    """What servicers need. Methods that take a connection run in the transaction of the caller's write."""

    async def publish(
        self, connection: Connection, playbook_id: str, digest: str, content: bytes, by: str
    ) -> PlaybookRow:
        """Store the next version and make it the active one; the active one again if its digest is the same."""

    async def playbook(self, playbook_id: str, version: int = 0) -> PlaybookRow | None:
        """Return a version; 0 means the active one."""

    async def playbooks(self, after: str, limit: int) -> list[PlaybookRow]:
        """Return active versions in order of id."""

    async def create(self, connection: Connection, new: NewExecution) -> ExecutionRow:
        """Store an execution as PENDING with its steps to come."""

    async def execution(self, execution_id: str, connection: Connection | None = None) -> ExecutionRow | None:
        """Return an execution with its steps."""

    async def executions(self, wanted: Filter, limit: int) -> list[ExecutionRow]:
        """Return executions, newest first, with their steps."""

    async def request_cancel(self, connection: Connection, execution_id: str, reason: str) -> bool:
        """Note that an open execution is to stop: CANCELLED at once if no step can have begun. False: it has ended."""


class PostgresStore:
    """The store in schema `automation`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def publish(
        self, connection: Connection, playbook_id: str, digest: str, content: bytes, by: str
    ) -> PlaybookRow:
        """Store the next version; two publishers of one playbook wait for each other."""
        await connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('automation.playbooks.' || $1, 0))", playbook_id
        )
        active = await connection.fetchrow(
            f"SELECT {_PLAYBOOK} FROM automation.playbooks WHERE playbook_id = $1 AND active",  # noqa: S608  constants
            playbook_id,
        )
        if active and active["digest"] == digest:
            return PlaybookRow(**active)
        await connection.execute(
            "UPDATE automation.playbooks SET active = false WHERE playbook_id = $1 AND active", playbook_id
        )
        row = await connection.fetchrow(
            "INSERT INTO automation.playbooks (playbook_id, version, active, digest, content, publisher) "  # noqa: S608
            "SELECT $1, coalesce(max(version), 0) + 1, true, $2, $3, $4 FROM automation.playbooks "
            "WHERE playbook_id = $1 "
            f"RETURNING {_PLAYBOOK}",
            playbook_id,
            digest,
            content,
            by,
        )
        return PlaybookRow(**_one(row))

    async def playbook(self, playbook_id: str, version: int = 0) -> PlaybookRow | None:
        """Return a version; 0 means the active one."""
        row = await self._pool.fetchrow(
            f"SELECT {_PLAYBOOK} FROM automation.playbooks "  # noqa: S608  constants
            "WHERE playbook_id = $1 AND CASE WHEN $2::bigint = 0 THEN active ELSE version = $2 END",
            playbook_id,
            version,
        )
        return PlaybookRow(**row) if row else None

    async def playbooks(self, after: str, limit: int) -> list[PlaybookRow]:
        """Return active versions in order of id."""
        rows = await self._pool.fetch(
            f"SELECT {_PLAYBOOK} FROM automation.playbooks "  # noqa: S608  constants
            "WHERE active AND playbook_id > $1 ORDER BY playbook_id LIMIT $2",
            after,
            limit,
        )
        return [PlaybookRow(**row) for row in rows]

    async def create(self, connection: Connection, new: NewExecution) -> ExecutionRow:
        """Store an execution and its steps to come."""
        row = await connection.fetchrow(
            "INSERT INTO automation.executions (execution_id, playbook_id, playbook_version, "  # noqa: S608  constants
            "playbook_digest, incident_id, incident, decision_id, rule_set_version, requester, on_behalf_of, "
            "traceparent, rule_id, identity_token, note) "
            f"VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) RETURNING {_EXECUTION}",
            new.execution_id,
            new.playbook.playbook_id,
            new.playbook.version,
            new.playbook.digest,
            new.incident_id,
            new.incident,
            new.decision_id,
            new.rule_set_version,
            new.requester,
            new.on_behalf_of,
            new.traceparent,
            new.rule_id,
            new.identity_token,
            new.note,
        )
        steps = await connection.fetch(
            "INSERT INTO automation.steps (execution_id, step_id, position, state, tool) "  # noqa: S608  constants
            "SELECT $1, step_id, position, 'PENDING', tool "
            "FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS step (step_id, tool, position) "
            f"RETURNING {_STEP}",
            new.execution_id,
            [step_id for step_id, _ in new.steps],
            [tool for _, tool in new.steps],
        )
        return execution_row(_one(row), steps)

    async def execution(self, execution_id: str, connection: Connection | None = None) -> ExecutionRow | None:
        """Return an execution with its steps, read as one."""
        if connection is None:
            async with self._pool.acquire() as own:
                return await self.execution(execution_id, own)
        row = await connection.fetchrow(
            f"SELECT {_EXECUTION} FROM automation.executions WHERE execution_id = $1",  # noqa: S608  constants
            execution_id,
        )
        if row is None:
            return None
        steps = await connection.fetch(
            f"SELECT {_STEP} FROM automation.steps WHERE execution_id = $1 ORDER BY position",  # noqa: S608  constants
            execution_id,
        )
        return execution_row(row, steps)

    async def executions(self, wanted: Filter, limit: int) -> list[ExecutionRow]:
        """Return executions, newest first; the steps of all in one more query."""
        time, last = wanted.before or (None, None)
        rows = await self._pool.fetch(
            f"SELECT {_EXECUTION} FROM automation.executions "  # noqa: S608  constants
            "WHERE ($1 = '' OR incident_id::text = $1) AND ($2 = '' OR playbook_id = $2) "
            "AND (cardinality($3::text[]) = 0 OR state = ANY($3)) "
            "AND ($4::timestamptz IS NULL OR (create_time, execution_id) < ($4, $5::uuid)) "
            "ORDER BY create_time DESC, execution_id DESC LIMIT $6",
            wanted.incident_id,
            wanted.playbook_id,
            list(wanted.states),
            time,
            last,
            limit,
        )
        steps: dict[str, list[asyncpg.Record]] = {row["execution_id"]: [] for row in rows}
        found = await self._pool.fetch(
            f"SELECT execution_id::text, {_STEP} FROM automation.steps "  # noqa: S608  constants
            "WHERE execution_id = ANY($1::uuid[]) ORDER BY execution_id, position",
            list(steps),
        )
        for step in found:
            steps[step["execution_id"]].append(step)
        return [execution_row(row, steps[row["execution_id"]]) for row in rows]

    async def request_cancel(self, connection: Connection, execution_id: str, reason: str) -> bool:
        """Note the wish; the engine is asked after the commit. No step runs before its workflow has left PENDING."""
        state = await connection.fetchval(
            "UPDATE automation.executions SET cancel_requested = true, check_time = now(), "
            "cancel_reason = CASE WHEN cancel_requested THEN cancel_reason ELSE $2 END, "
            "state = CASE WHEN state = 'PENDING' THEN 'CANCELLED' ELSE state END, "
            "detail = CASE WHEN state = 'PENDING' THEN 'cancelled before it began: ' || $2 ELSE detail END, "
            "end_time = CASE WHEN state = 'PENDING' THEN now() END "
            "WHERE execution_id = $1 AND state = ANY($3) RETURNING state",
            execution_id,
            reason,
            OPEN,
        )
        if state == ExecutionState.CANCELLED:
            await connection.execute(
                "UPDATE automation.steps SET state = 'CANCELLED' WHERE execution_id = $1", execution_id
            )
        return state is not None


def _one(row: asyncpg.Record | None) -> asyncpg.Record:
    """Return the row of a statement that always returns one."""
    if row is None:
        raise LookupError("the statement returned no row")
    return row


def execution_row(row: asyncpg.Record, steps: Sequence[asyncpg.Record]) -> ExecutionRow:
    """Return records as what they mean."""
    values = dict(row) | {"state": ExecutionState(row["state"])}
    return ExecutionRow(**values, steps=tuple(step_row(step) for step in steps))


def step_row(row: asyncpg.Record) -> StepRow:
    """Return a record as what it means."""
    values = {key: value for key, value in row.items() if key != "execution_id"}
    return StepRow(**values | {"state": StepState(row["state"])})
