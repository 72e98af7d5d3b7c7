"""Decisions in PostgreSQL: one per incident and revision, and the work that lanes still have on them."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

import asyncpg

from opsmesh.audit.v1 import audit_service_pb2
from services.mesh.postgres import Connection, Pool
from services.router import domain
from services.router.domain import Decision, History, Outcome, Result, Snapshot, Stage, State, Verdict
from services.router.work import Step, Work

COLUMNS: Final = (
    "decision_id, incident_id, revision, state, outcome, result, rule_id, rule_set_version, playbook_id, reason, "
    "execution_id, notice_execution_id, awaiting_approval, create_time, close_time, "
    "clock_timestamp() - create_time AS age, stage = 'HELD' AS held, held_by, held_words, held_time, max_age, "
    "start_time IS NOT NULL AS tried"
)
# Ids come sorted, so that two calls with the same incidents never wait for each other in a circle.
LOCK: Final = "SELECT pg_advisory_xact_lock(20, hashtext(id::text)) FROM unnest($1::uuid[]) AS ids(id)"
HISTORY: Final = f"SELECT {COLUMNS} FROM decisions WHERE incident_id = ANY($1::uuid[])"  # noqa: S608  constants only
INSERT: Final = f"""
INSERT INTO decisions (decision_id, incident_id, revision, state, outcome, result, rule_id, rule_set_version,
                       playbook_id, reason, stage, max_age, traceparent, close_time)
SELECT decision_id, incident_id, revision, state, outcome, result, rule_id, rule_set_version,
       playbook_id, reason, stage, max_age, $13, CASE WHEN state = 'CLOSED' THEN clock_timestamp() END
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bigint[],
            $9::text[], $10::text[], $11::text[], $12::interval[])
  AS new(decision_id, incident_id, revision, state, outcome, result, rule_id, rule_set_version, playbook_id, reason,
         stage, max_age)
RETURNING {COLUMNS}
"""  # noqa: S608  constants only
SUPERSEDE: Final = """
UPDATE decisions
SET state = 'CLOSED', result = 'SUPERSEDED', stage = 'NONE', awaiting_approval = false,
    close_time = clock_timestamp()
FROM unnest($1::uuid[], $2::bigint[]) AS newer(incident_id, revision)
WHERE decisions.incident_id = newer.incident_id AND decisions.revision < newer.revision
  AND decisions.state <> 'CLOSED'
"""
# A claim is a lease: whoever dies with it is followed by another after $3 seconds.
CLAIM: Final = f"""
UPDATE decisions
SET due_time = clock_timestamp() + make_interval(secs => $3), attempts = attempts + 1
WHERE decision_id IN (
    SELECT decision_id FROM decisions WHERE stage = $1 AND due_time <= clock_timestamp()
    ORDER BY due_time LIMIT $2 FOR UPDATE SKIP LOCKED)
RETURNING {COLUMNS}, stage, attempts, traceparent
"""  # noqa: S608  constants only
# The oldest whose kill is not among those that hold now ($1); what holds it then is only known by trying.
CLAIM_HELD: Final = f"""
UPDATE decisions
SET due_time = clock_timestamp() + make_interval(secs => $2), attempts = attempts + 1
WHERE decision_id = (
    SELECT decision_id FROM decisions
    WHERE stage = 'HELD' AND due_time <= clock_timestamp() AND held_by <> ALL($1::text[])
    ORDER BY create_time LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING {COLUMNS}, stage, attempts, traceparent
"""  # noqa: S608  constants only
TRY: Final = """
UPDATE decisions SET start_time = clock_timestamp() WHERE decision_id = $1 AND stage = 'HELD' RETURNING true
"""
HOLDS: Final = "SELECT EXISTS (SELECT FROM decisions WHERE stage = 'HELD')"
# What was started is kept whatever happened meanwhile; the rest only if the decision is still where it was claimed.
ADVANCE: Final = """
UPDATE decisions
SET execution_id = CASE WHEN $3 <> '' THEN $3 ELSE execution_id END,
    notice_execution_id = CASE WHEN $4 <> '' THEN $4 ELSE notice_execution_id END,
    stage = CASE WHEN stage = $2 THEN $5 ELSE stage END,
    state = CASE WHEN stage = $2 THEN $6 ELSE state END,
    result = CASE WHEN stage = $2 THEN $7 ELSE result END,
    reason = CASE WHEN stage = $2 AND $8 <> '' THEN $8 ELSE reason END,
    awaiting_approval = CASE WHEN stage = $2 THEN $9 ELSE awaiting_approval END,
    due_time = CASE WHEN stage = $2 THEN clock_timestamp() + make_interval(secs => $10) ELSE due_time END,
    attempts = CASE WHEN stage = $2 AND $11 THEN 0 ELSE attempts END,
    held_by = CASE WHEN stage = $2 AND $13 <> '' THEN $12 ELSE held_by END,
    held_words = CASE WHEN stage = $2 AND $13 <> '' THEN $13 ELSE held_words END,
    held_time = CASE WHEN stage = $2 AND $13 <> '' THEN coalesce(held_time, clock_timestamp()) ELSE held_time END,
    start_time = CASE WHEN $13 <> '' THEN NULL ELSE start_time END,
    close_time = CASE WHEN stage = $2 AND $6 = 'CLOSED' THEN clock_timestamp() ELSE close_time END
WHERE decision_id = $1
"""
BY_IDS: Final = f"SELECT {COLUMNS} FROM decisions WHERE decision_id = ANY($1::uuid[])"  # noqa: S608  constants only
PAGE: Final = f"""
SELECT {COLUMNS} FROM decisions
WHERE ($1::uuid IS NULL OR incident_id = $1) AND ($2 = '' OR rule_id = $2) AND ($3 = '' OR state = $3)
  AND ($4::timestamptz IS NULL OR (create_time, decision_id) < ($4, $5::uuid))
ORDER BY create_time DESC, decision_id DESC LIMIT $6
"""  # noqa: S608  constants only

Judge = Callable[[Snapshot, History], Verdict]
Witness = Callable[[Snapshot, Decision], audit_service_pb2.AuditEvent]


class Outbox(Protocol):
    """What is needed of services.mesh.writes: audit events in the transaction, delivered after it."""

    async def enqueue(self, connection: Connection, *events: audit_service_pb2.AuditEvent) -> None:
        """Keep events in the caller's transaction."""

    def wake(self) -> None:
        """Deliver now."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which decisions to list; empty values match all; `before` is the last (create_time, decision_id) seen."""

    incident_id: uuid.UUID | None = None
    rule_id: str = ""
    state: State | None = None
    before: tuple[datetime, uuid.UUID] | None = None


class DecisionStore(Protocol):
    """Where decisions live."""

    async def decide(
        self, snapshots: Sequence[Snapshot], judge: Judge, witness: Witness, traceparent: str
    ) -> list[Decision]:
        """Return the decision of each snapshot, made by `judge` where there was none, all in one transaction.

        A new decision supersedes open ones on earlier revisions and leaves its audit event with the outbox.
        """

    async def history(self, incident_id: uuid.UUID, revision: int) -> History:
        """Return what was decided on other revisions of an incident."""

    async def read(self, ids: Sequence[uuid.UUID]) -> list[Decision]:
        """Return those of these decisions that exist."""

    async def page(self, chosen: Filter, limit: int) -> list[Decision]:
        """Return decisions, newest first."""

    async def claim(self, stage: Stage, limit: int, seconds: float) -> list[Work]:
        """Return due work of a stage and keep it from others for some seconds."""

    async def holds(self) -> bool:
        """Say whether any decision is held."""

    async def claim_held(self, kills: Sequence[str], seconds: float) -> Work | None:
        """Return the oldest due decision that none of these kills holds, and keep it from others for some seconds."""

    async def trying(self, decision: Decision) -> bool:
        """Note that a held decision is started now, in step with new revisions; False when one was decided."""

    async def advance(self, work: Work, step: Step) -> None:
        """Write back what became of claimed work."""


class PostgresDecisionStore:
    """DecisionStore on asyncpg."""

    def __init__(self, pool: Pool, outbox: Outbox) -> None:
        self._pool = pool
        self._outbox = outbox

    async def decide(
        self, snapshots: Sequence[Snapshot], judge: Judge, witness: Witness, traceparent: str
    ) -> list[Decision]:
        """See DecisionStore."""
        incidents = sorted(snapshot.incident_id for snapshot in snapshots)
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(LOCK, incidents)
            known = [_decision(row) for row in await connection.fetch(HISTORY, incidents)]
            found = {(one.incident_id, one.revision): one for one in known}
            new = {
                (snapshot.incident_id, snapshot.revision): (snapshot, judge(snapshot, _history(known, snapshot)))
                for snapshot in snapshots
                if (snapshot.incident_id, snapshot.revision) not in found
            }
            if new:
                rows = await connection.fetch(INSERT, *_columns(new.values()), traceparent)
                made = {(one.incident_id, one.revision): one for one in map(_decision, rows)}
                await connection.execute(SUPERSEDE, [key[0] for key in new], [key[1] for key in new])
                events = [witness(snapshot, made[key]) for key, (snapshot, _) in new.items()]
                await self._outbox.enqueue(connection, *events)
                found |= made
        if new:
            self._outbox.wake()
        return [found[snapshot.incident_id, snapshot.revision] for snapshot in snapshots]

    async def history(self, incident_id: uuid.UUID, revision: int) -> History:
        """See DecisionStore."""
        known = [_decision(row) for row in await self._pool.fetch(HISTORY, [incident_id])]
        return _history([one for one in known if one.revision != revision], Snapshot(incident_id, revision, {}))

    async def read(self, ids: Sequence[uuid.UUID]) -> list[Decision]:
        """See DecisionStore."""
        return [_decision(row) for row in await self._pool.fetch(BY_IDS, ids)]

    async def page(self, chosen: Filter, limit: int) -> list[Decision]:
        """See DecisionStore."""
        moment, last = chosen.before or (None, None)
        rows = await self._pool.fetch(PAGE, chosen.incident_id, chosen.rule_id, chosen.state or "", moment, last, limit)
        return [_decision(row) for row in rows]

    async def claim(self, stage: Stage, limit: int, seconds: float) -> list[Work]:
        """See DecisionStore."""
        return [_work(row) for row in await self._pool.fetch(CLAIM, stage, limit, seconds)]

    async def holds(self) -> bool:
        """See DecisionStore."""
        return bool(await self._pool.fetchval(HOLDS))

    async def claim_held(self, kills: Sequence[str], seconds: float) -> Work | None:
        """See DecisionStore."""
        row = await self._pool.fetchrow(CLAIM_HELD, kills, seconds)
        return _work(row) if row else None

    async def trying(self, decision: Decision) -> bool:
        """See DecisionStore."""
        async with self._pool.acquire() as connection, connection.transaction():
            # Whoever decides a newer revision sees this, or has ended the decision before.
            await connection.execute(LOCK, [decision.incident_id])
            return bool(await connection.fetchval(TRY, decision.decision_id))

    async def advance(self, work: Work, step: Step) -> None:
        """See DecisionStore."""
        await self._pool.execute(
            ADVANCE,
            work.decision.decision_id,
            work.stage,
            step.execution_id,
            step.notice_execution_id,
            step.stage,
            step.state,
            step.result,
            step.reason,
            step.awaiting_approval,
            step.delay,
            step.news,
            step.held_by,
            step.held_words,
        )


def _history(known: Sequence[Decision], snapshot: Snapshot) -> History:
    """Return what the decisions of all incidents say about the earlier revisions of this one."""
    own = [one for one in known if one.incident_id == snapshot.incident_id]
    # What was held until it was superseded never started anything.
    started = frozenset(
        one.rule_id
        for one in own
        if one.revision < snapshot.revision
        and one.outcome is Outcome.TRIGGER_AUTOMATION
        and (one.execution_id or one.tried or not one.held_time)
    )
    return History(started, max((one.revision for one in own), default=0))


def _columns(new: Any) -> list[list[Any]]:
    """Return (snapshot, verdict) pairs as one list per column of INSERT."""
    rows = [
        (
            domain.decision_id(snapshot.incident_id, snapshot.revision),
            snapshot.incident_id,
            snapshot.revision,
            verdict.state,
            verdict.outcome,
            verdict.result,
            verdict.rule_id,
            verdict.rule_set_version,
            verdict.playbook_id,
            verdict.reason,
            domain.first_stage(verdict),
            verdict.max_age,
        )
        for snapshot, verdict in new
    ]
    return [list(column) for column in zip(*rows, strict=True)]


def _work(row: asyncpg.Record) -> Work:
    """Return a claimed row as work."""
    return Work(_decision(row), Stage(row["stage"]), row["attempts"], row["traceparent"])


def _decision(row: asyncpg.Record) -> Decision:
    """Return a row as a decision."""
    return Decision(
        decision_id=row["decision_id"],
        incident_id=row["incident_id"],
        revision=row["revision"],
        state=State(row["state"]),
        outcome=Outcome(row["outcome"]),
        result=Result(row["result"]),
        rule_id=row["rule_id"],
        rule_set_version=row["rule_set_version"],
        playbook_id=row["playbook_id"],
        reason=row["reason"],
        execution_id=row["execution_id"],
        notice_execution_id=row["notice_execution_id"],
        awaiting_approval=row["awaiting_approval"],
        create_time=row["create_time"],
        close_time=row["close_time"],
        age=row["age"],
        held=row["held"],
        held_by=row["held_by"],
        held_words=row["held_words"],
        held_time=row["held_time"],
        max_age=row["max_age"],
        tried=row["tried"],
    )
