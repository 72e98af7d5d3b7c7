"""Runs and their steps in PostgreSQL: claimed with a lease, written only by who holds it, one transaction a step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import asyncpg

from services.agents.runs.contract import Filter
from services.agents.runs.domain import OPEN_RUN, Kind, Run, RunState, Step, StepState
from services.mesh.postgres import Connection, Pool
from services.mesh.retention import TooOld

OPEN: Final = sorted(OPEN_RUN)
_RUN: Final = (
    "run_id::text, template_id, template_version, template, state, incident_id::text, incident, decision_id, "
    "coalesce(parent_run_id::text, '') AS parent_run_id, root_run_id::text, depth, levels, goal, target_ids, "
    "requester, identity_token, execution_id, execution_trace, traceparent, marks, token_limit, cost_limit_micros, "
    "time_limit, token_count, cost_micros, recorded, did, registered, report, health_proved, reason, detail, "
    "approval_id, kill_id, cancel_requested, cancel_reason, closed, begin_time IS NOT NULL AS begun, "
    "coalesce(extract(epoch FROM coalesce(end_time, clock_timestamp()) - begin_time), 0)::float8 - waited "
    "- coalesce(extract(epoch FROM clock_timestamp() - wait_since), 0)::float8 AS worked, "
    "waited + coalesce(extract(epoch FROM clock_timestamp() - wait_since), 0)::float8 AS waited, "
    "extract(epoch FROM clock_timestamp() - create_time)::float8 AS age, "
    "coalesce(extract(epoch FROM claim_until - clock_timestamp()), 0)::float8 AS claim_left, create_time, end_time, "
    "(SELECT count(*) FROM run_steps WHERE run_steps.run_id = runs.run_id)::int AS step_count"
)
_STEP_NAMES: Final = (
    *("number", "kind", "state", "tool", "call_id", "target_id", "request", "arguments_json", "result_digest"),
    *("result", "answered", "dropped", "sent", "tries", "fence", "reason", "detail", "verdict", "approval_id"),
    *("child_run_id", "reply", "prompt_digest", "model", "input_tokens", "output_tokens", "estimated"),
    *("cost_micros", "latency_seconds", "recorded"),
)
_STEP: Final = ", ".join(_STEP_NAMES)
_PLACES: Final = ", ".join(f"${place}" for place in range(2, len(_STEP_NAMES) + 2))
_WRITTEN: Final = ", ".join(f"{name} = EXCLUDED.{name}" for name in _STEP_NAMES if name != "number")
# The only place where a step is written; its end is the database's clock.
WRITE_STEP: Final = f"""
    INSERT INTO run_steps (run_id, {_STEP}, end_time)
    VALUES ($1, {_PLACES}, CASE WHEN $4 NOT IN ('RUNNING', 'AWAITING_APPROVAL') THEN clock_timestamp() END)
    ON CONFLICT (run_id, number) DO UPDATE SET {_WRITTEN}, end_time = coalesce(run_steps.end_time, EXCLUDED.end_time)
"""  # noqa: S608  constants only
CHECKPOINT: Final = """
    UPDATE runs SET state = $3, token_count = $4, cost_micros = $5, recorded = $6, did = $7, registered = $8,
        report = $9, health_proved = $10, reason = $11, detail = $12, approval_id = $13, requester = $14,
        kill_id = CASE WHEN kill_id = '' THEN $15 ELSE kill_id END,
        cancel_requested = cancel_requested OR $15 <> '',
        closed = $16,
        begin_time = CASE WHEN $17 THEN coalesce(begin_time, clock_timestamp()) ELSE begin_time END,
        waited = waited + $18 + CASE WHEN $3 <> 'AWAITING_APPROVAL'
            THEN coalesce(extract(epoch FROM clock_timestamp() - wait_since), 0)::float8 ELSE 0 END,
        wait_since = CASE WHEN $3 = 'AWAITING_APPROVAL' THEN coalesce(wait_since, clock_timestamp()) END,
        claim_until = CASE WHEN $19::float8 IS NULL THEN claim_until
            ELSE clock_timestamp() + make_interval(secs => $19) END,
        end_time = CASE WHEN $3 = ANY($20) THEN NULL ELSE coalesce(end_time, clock_timestamp()) END,
        lease_until = CASE WHEN $21::float8 IS NULL THEN lease_until END,
        -- Who asked to stop meanwhile shall not wait for it.
        due_time = CASE WHEN $21::float8 IS NULL OR (cancel_requested AND NOT $22) THEN clock_timestamp()
            ELSE clock_timestamp() + make_interval(secs => $21) END
    WHERE run_id = $1 AND lease_id = $2 AND lease_until > clock_timestamp()
    RETURNING cancel_requested
"""
CLAIM: Final = """
    WITH due AS (
        SELECT run_id FROM runs
        WHERE NOT closed AND due_time <= clock_timestamp()
            AND (lease_until IS NULL OR lease_until <= clock_timestamp())
            AND (NOT $3 OR cancel_requested OR NOT state = ANY($4))
        ORDER BY due_time LIMIT $1 FOR UPDATE SKIP LOCKED)
    UPDATE runs SET lease_id = gen_random_uuid(), lease_until = clock_timestamp() + make_interval(secs => $2)
    FROM due WHERE runs.run_id = due.run_id
    RETURNING runs.run_id::text, runs.lease_id::text
"""
CREATE: Final = """
    INSERT INTO runs (run_id, template_id, template_version, template, state, incident_id, incident, decision_id,
        parent_run_id, root_run_id, depth, levels, goal, target_ids, requester, identity_token, execution_id,
        execution_trace, traceparent, marks, token_limit, cost_limit_micros, time_limit)
    VALUES ($1, $2, $3, $4, 'PENDING', $5, $6, $7, nullif($8, '')::uuid, $9, $10, $11, $12, $13, $14, $15, $16, $17,
        $18, $19, $20, $21, $22)
    ON CONFLICT (run_id) DO NOTHING
"""
BELOW: Final = """
    WITH RECURSIVE below AS (
        SELECT run_id FROM runs WHERE run_id = $1
        UNION ALL SELECT runs.run_id FROM runs JOIN below ON runs.parent_run_id = below.run_id)
"""


class LostError(Exception):
    """The lease is another's, or over: nothing was written, and nothing may be done any more."""


@dataclass(frozen=True, slots=True)
class Held:
    """A claimed run."""

    run_id: str
    lease_id: str


@dataclass(frozen=True, slots=True)
class Park:
    """How a checkpoint leaves a run that nobody works on: looked at again after `seconds`."""

    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Notes:
    """What a checkpoint writes beside the run: seconds waited for people below it, seconds a claim now holds."""

    waited: float = 0.0
    claimed: float | None = None
    park: Park | None = None
    children: Sequence[Run] = field(default=())


class RunStore(Protocol):
    """Keeps runs."""

    async def create(self, connection: Connection, new: Run) -> Run:
        """Keep a new run, in the caller's transaction; one that is there already stays as it is."""
        ...

    async def run(self, run_id: str, connection: Connection | None = None) -> Run | None:
        """Return a run with its steps."""
        ...

    async def runs(self, wanted: Filter, limit: int) -> list[Run]:
        """Return runs without steps, newest first."""
        ...

    async def request_cancel(self, connection: Connection, run_id: str, reason: str) -> bool:
        """Ask an open run, and every run below it, to stop; False when it has ended or there is none."""
        ...

    async def children(self, run_id: str) -> list[Run]:
        """Return the runs that a run started, without steps, oldest first."""
        ...

    async def claim(self, limit: int, seconds: float, *, urgent: bool = False) -> list[Held]:
        """Take runs that are due and nobody holds; `urgent` takes only those to be stopped or closed."""
        ...

    async def renew(self, held: Held, seconds: float) -> bool:
        """Keep a lease; say whether somebody asked the run to stop. Raises LostError."""
        ...

    async def let_go(self, held: Held) -> None:
        """Give a lease back without writing anything else."""
        ...

    async def checkpoint(self, held: Held, run: Run, *steps: Step, notes: Notes | None = None) -> bool:
        """Write a run's state and steps at once; say whether it is asked to stop. Raises LostError."""
        ...

    async def counts(self) -> Mapping[str, int]:
        """Return how many open runs there are in each state."""
        ...


def forgotten(days: int) -> TooOld:
    """Return what is deleted after `days`: runs that have ended, with steps and stops."""
    return TooOld("runs", "end_time < now() - $1::interval AND closed", days)


class PostgresRuns:
    """Runs in the schema `agents`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def create(self, connection: Connection, new: Run) -> Run:
        """See RunStore."""
        await _insert(connection, new)
        found = await self.run(new.run_id, connection)
        return found or new

    async def run(self, run_id: str, connection: Connection | None = None) -> Run | None:
        """See RunStore."""
        if connection is None:
            async with self._pool.acquire() as own, own.transaction(isolation="repeatable_read", readonly=True):
                return await self.run(run_id, own)
        row = await connection.fetchrow(f"SELECT {_RUN} FROM runs WHERE run_id = $1", run_id)  # noqa: S608  constants
        if row is None:
            return None
        steps = await connection.fetch(
            f"SELECT {_STEP}, start_time, end_time FROM run_steps WHERE run_id = $1 ORDER BY number",  # noqa: S608  same
            run_id,
        )
        return _run(row, steps)

    async def runs(self, wanted: Filter, limit: int) -> list[Run]:
        """See RunStore."""
        before = wanted.before or (None, None)
        rows = await self._pool.fetch(
            f"SELECT {_RUN} FROM runs "  # noqa: S608  constants only
            "WHERE ($1 = '' OR incident_id = nullif($1, '')::uuid) AND ($2 = '' OR state = $2) "
            "AND ($3 = '' OR template_id = $3) "
            "AND ($4::timestamptz IS NULL OR (create_time, run_id) < ($4, $5::uuid)) "
            "ORDER BY create_time DESC, run_id DESC LIMIT $6",
            wanted.incident_id,
            wanted.state,
            wanted.template_id,
            *before,
            limit,
        )
        return [_run(row) for row in rows]

    async def request_cancel(self, connection: Connection, run_id: str, reason: str) -> bool:
        """See RunStore."""
        asked = await connection.fetchval(
            f"{BELOW} UPDATE runs SET cancel_requested = true, due_time = least(due_time, clock_timestamp()), "  # noqa: S608
            "cancel_reason = CASE WHEN cancel_requested THEN cancel_reason ELSE $2 END "
            "FROM below WHERE runs.run_id = below.run_id AND state = ANY($3) "
            "AND (SELECT state FROM runs WHERE run_id = $1) = ANY($3) RETURNING true",
            run_id,
            reason,
            OPEN,
        )
        return bool(asked)

    async def children(self, run_id: str) -> list[Run]:
        """See RunStore."""
        rows = await self._pool.fetch(
            f"SELECT {_RUN} FROM runs WHERE parent_run_id = $1 ORDER BY create_time, run_id",  # noqa: S608  constants
            run_id,
        )
        return [_run(row) for row in rows]

    async def claim(self, limit: int, seconds: float, *, urgent: bool = False) -> list[Held]:
        """See RunStore."""
        rows = await self._pool.fetch(CLAIM, limit, seconds, urgent, OPEN)
        return [Held(row["run_id"], row["lease_id"]) for row in rows]

    async def renew(self, held: Held, seconds: float) -> bool:
        """See RunStore."""
        asked = await self._pool.fetchval(
            "UPDATE runs SET lease_until = clock_timestamp() + make_interval(secs => $3) "
            "WHERE run_id = $1 AND lease_id = $2 AND lease_until > clock_timestamp() RETURNING cancel_requested",
            held.run_id,
            held.lease_id,
            seconds,
        )
        if asked is None:
            raise LostError(held.run_id)
        return bool(asked)

    async def let_go(self, held: Held) -> None:
        """See RunStore."""
        await self._pool.execute(
            "UPDATE runs SET lease_until = NULL WHERE run_id = $1 AND lease_id = $2", held.run_id, held.lease_id
        )

    async def checkpoint(self, held: Held, run: Run, *steps: Step, notes: Notes | None = None) -> bool:
        """See RunStore."""
        notes = notes or Notes()
        async with self._pool.acquire() as connection, connection.transaction():
            asked = await connection.fetchval(
                CHECKPOINT,
                held.run_id,
                held.lease_id,
                run.state,
                run.token_count,
                run.cost_micros,
                run.recorded,
                run.did,
                run.registered,
                run.report,
                run.health_proved,
                run.reason,
                run.detail,
                run.approval_id,
                run.requester,
                run.kill_id,
                run.closed,
                run.begun,
                notes.waited,
                notes.claimed,
                OPEN,
                notes.park.seconds if notes.park else None,
                run.stopping or not run.open,
            )
            if asked is None:
                raise LostError(held.run_id)
            for step in steps:
                await connection.execute(WRITE_STEP, held.run_id, *(getattr(step, name) for name in _STEP_NAMES))
            for child in notes.children:
                await _insert(connection, child)
                if asked:
                    # Asked to stop in between: the child shall not be the one who was not told.
                    await self.request_cancel(connection, child.run_id, "the run that started it stops")
            if not run.open and run.kill_id:
                # Stopped by a refusal, before anybody looked which runs a kill is about: it is told of, too.
                await connection.execute(
                    "INSERT INTO run_stops (kill_id, run_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                    run.kill_id,
                    run.run_id,
                )
            if not run.open and run.parent_run_id:
                await connection.execute(
                    "UPDATE runs SET due_time = least(due_time, clock_timestamp()) WHERE run_id = $1", run.parent_run_id
                )
        return bool(asked)

    async def counts(self) -> Mapping[str, int]:
        """See RunStore."""
        rows = await self._pool.fetch(
            "SELECT state, count(*) AS number FROM runs WHERE state = ANY($1) GROUP BY state", OPEN
        )
        return {row["state"]: row["number"] for row in rows}


async def _insert(connection: Connection, new: Run) -> None:
    """Insert a run that is not there yet."""
    await connection.execute(
        CREATE,
        *(new.run_id, new.template_id, new.template_version, new.template, new.incident_id, new.incident),
        *(new.decision_id, new.parent_run_id, new.root_run_id, new.depth, new.levels, new.goal),
        *(list(new.target_ids), new.requester, new.identity_token, new.execution_id, new.execution_trace),
        *(new.traceparent, new.marks, new.token_limit, new.cost_limit_micros, new.time_limit),
    )


def _run(row: asyncpg.Record, steps: Sequence[asyncpg.Record] = ()) -> Run:
    """Return a row as a run."""
    values: dict[str, Any] = dict(row)
    values["state"] = RunState(values["state"])
    values["target_ids"] = tuple(values["target_ids"])
    return Run(**values, steps=tuple(_step(one) for one in steps))


def _step(row: asyncpg.Record) -> Step:
    """Return a row as a step."""
    values: dict[str, Any] = dict(row)
    values["kind"], values["state"] = Kind(values["kind"]), StepState(values["state"])
    return Step(**values)
