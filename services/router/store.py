"""Decisions in PostgreSQL: one per incident and revision, and the work that lanes still have on them."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from opsmesh.audit.v1 import audit_service_pb2
from services.mesh.postgres import Connection, Pool
from services.router import domain, records
from services.router.caps import Starts, tell, trouble_of
from services.router.deciding import chosen, started_by
from services.router.domain import Decision, History, Snapshot, Stage, State, Verdict
from services.router.rows import COLUMNS, MADE, decision_of, history_of, new_columns, work_of
from services.router.work import Made, Step, Work

# Ids come sorted, so that two calls with the same incidents never wait for each other in a circle.
LOCK: Final = "SELECT pg_advisory_xact_lock(20, hashtext(id::text)) FROM unnest($1::uuid[]) AS ids(id)"
HISTORY: Final = f"SELECT {COLUMNS} FROM decisions WHERE incident_id = ANY($1::uuid[])"  # noqa: S608  constants only
_NAMES: Final = ", ".join(name for name, _ in MADE)
_PLACES: Final = ", ".join(f"${place}::{kind}[]" for place, (_, kind) in enumerate(MADE, 1))
_VALUES: Final = _NAMES.replace("targets", "coalesce(string_to_array(nullif(targets, ''), chr(10)), '{}')")
INSERT: Final = f"""
INSERT INTO decisions ({_NAMES.replace("targets", "target_ids")}, traceparent, close_time)
SELECT {_VALUES}, ${len(MADE) + 1}, CASE WHEN state = 'CLOSED' THEN clock_timestamp() END
FROM unnest({_PLACES}) AS new({_NAMES})
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
UPDATE decisions SET start_time = clock_timestamp()
WHERE decision_id = $1 AND stage IN ('HELD', 'START_RUN') RETURNING true
"""
HAS: Final = "SELECT EXISTS (SELECT FROM decisions WHERE stage = $1)"
# The oldest that waits for a model; its notice is another lane's business.
CLAIM_PARKED: Final = f"""
UPDATE decisions SET resume_time = clock_timestamp() + make_interval(secs => $1)
WHERE decision_id = (
    SELECT decision_id FROM decisions WHERE stage = 'PARKED' AND resume_time <= clock_timestamp()
    ORDER BY create_time LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING {COLUMNS}, stage, attempts, traceparent
"""  # noqa: S608  constants only
# Only where it was claimed: a decision that was superseded meanwhile stays so.
MAKE: Final = f"""
UPDATE decisions
SET state = $3, outcome = $4, result = $5, reason = $6, stage = $7, playbook_id = $8, template_id = $9,
    target_ids = $10, goal = $11, model_outcome = $12, question = $13, model_call_count = $14, recorded = $15,
    brake = $16, made_time = clock_timestamp(), due_time = clock_timestamp(), attempts = 0, parked_words = '',
    close_time = CASE WHEN $3 = 'CLOSED' THEN clock_timestamp() END
WHERE decision_id = $1 AND stage = $2
RETURNING {COLUMNS}
"""  # noqa: S608  constants only
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
    run_id = CASE WHEN $14 <> '' THEN $14 ELSE run_id END,
    killed = killed OR $15,
    parked_words = CASE WHEN stage = $2 AND $16 <> '' THEN $16 ELSE parked_words END,
    parked_time = CASE WHEN stage = $2 AND $16 <> '' THEN coalesce(parked_time, clock_timestamp()) ELSE parked_time END,
    resume_time = CASE WHEN stage = $2 AND $16 <> '' THEN clock_timestamp() + make_interval(secs => $17)
                  ELSE resume_time END,
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

    async def history(self, snapshot: Snapshot) -> History:
        """Return what was decided on other revisions of an incident, and how often what was started for it."""

    async def read(self, ids: Sequence[uuid.UUID]) -> list[Decision]:
        """Return those of these decisions that exist."""

    async def page(self, chosen: Filter, limit: int) -> list[Decision]:
        """Return decisions, newest first."""

    async def claim(self, stage: Stage, limit: int, seconds: float) -> list[Work]:
        """Return due work of a stage and keep it from others for some seconds."""

    async def has(self, stage: Stage) -> bool:
        """Say whether any decision is in a stage."""

    async def claim_held(self, kills: Sequence[str], seconds: float) -> Work | None:
        """Return the oldest due decision that none of these kills holds, and keep it from others for some seconds."""

    async def claim_parked(self, seconds: float) -> Work | None:
        """Return the oldest decision that waits for a model, and keep it from others who resume for some seconds."""

    async def trying(self, decision: Decision) -> bool:
        """Note that what was held, or a run, is started now, in step with new revisions; False when one was decided."""

    async def advance(self, work: Work, step: Step) -> None:
        """Write back what became of claimed work."""


class PostgresDecisionStore:
    """DecisionStore on asyncpg."""

    def __init__(self, pool: Pool, outbox: Outbox, starts_per_hour: int = domain.MAX_PER_HOUR) -> None:
        self._pool = pool
        self._outbox = outbox
        self._starts_per_hour = starts_per_hour

    async def decide(
        self, snapshots: Sequence[Snapshot], judge: Judge, witness: Witness, traceparent: str
    ) -> list[Decision]:
        """See DecisionStore."""
        incidents = sorted(snapshot.incident_id for snapshot in snapshots)
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(LOCK, incidents)
            known = [decision_of(row) for row in await connection.fetch(HISTORY, incidents)]
            found = {(one.incident_id, one.revision): one for one in known}
            undecided = [one for one in snapshots if (one.incident_id, one.revision) not in found]
            starts = await Starts.load(connection, [trouble_of(one) for one in undecided])
            new: dict[tuple[uuid.UUID, int], tuple[Snapshot, Verdict]] = {}
            for snapshot in undecided:
                history = starts.beside(history_of(known, snapshot), trouble_of(snapshot))
                key = (snapshot.incident_id, snapshot.revision)
                new[key] = (snapshot, starts.note(trouble_of(snapshot), judge(snapshot, history)))
            if new:
                await connection.execute(SUPERSEDE, [key[0] for key in new], [key[1] for key in new])
                rows = await connection.fetch(INSERT, *new_columns(new.values()), traceparent)
                made = {(one.incident_id, one.revision): one for one in map(decision_of, rows)}
                events = [witness(snapshot, made[key]) for key, (snapshot, _) in new.items()]
                await self._outbox.enqueue(connection, *events)
                found |= made
        if new:
            self._outbox.wake()
        for _, verdict in new.values():
            tell(verdict)
        return [found[snapshot.incident_id, snapshot.revision] for snapshot in snapshots]

    async def history(self, snapshot: Snapshot) -> History:
        """See DecisionStore."""
        async with self._pool.acquire() as connection:
            known = [decision_of(row) for row in await connection.fetch(HISTORY, [snapshot.incident_id])]
            starts = await Starts.peek(connection, [trouble_of(snapshot)])
        own = history_of([one for one in known if one.revision != snapshot.revision], snapshot)
        return starts.beside(own, trouble_of(snapshot))

    async def read(self, ids: Sequence[uuid.UUID]) -> list[Decision]:
        """See DecisionStore."""
        return [decision_of(row) for row in await self._pool.fetch(BY_IDS, ids)]

    async def page(self, chosen: Filter, limit: int) -> list[Decision]:
        """See DecisionStore."""
        moment, last = chosen.before or (None, None)
        rows = await self._pool.fetch(PAGE, chosen.incident_id, chosen.rule_id, chosen.state or "", moment, last, limit)
        return [decision_of(row) for row in rows]

    async def claim(self, stage: Stage, limit: int, seconds: float) -> list[Work]:
        """See DecisionStore."""
        return [work_of(row) for row in await self._pool.fetch(CLAIM, stage, limit, seconds)]

    async def has(self, stage: Stage) -> bool:
        """See DecisionStore."""
        return bool(await self._pool.fetchval(HAS, stage))

    async def claim_held(self, kills: Sequence[str], seconds: float) -> Work | None:
        """See DecisionStore."""
        row = await self._pool.fetchrow(CLAIM_HELD, kills, seconds)
        return work_of(row) if row else None

    async def claim_parked(self, seconds: float) -> Work | None:
        """See DecisionStore."""
        row = await self._pool.fetchrow(CLAIM_PARKED, seconds)
        return work_of(row) if row else None

    async def trying(self, decision: Decision) -> bool:
        """See DecisionStore."""
        async with self._pool.acquire() as connection, connection.transaction():
            # Whoever decides a newer revision sees this, or has ended the decision before.
            await connection.execute(LOCK, [decision.incident_id])
            return bool(await connection.fetchval(TRY, decision.decision_id))

    async def advance(self, work: Work, step: Step) -> None:
        """See DecisionStore."""
        if step.made is not None:
            await self._make(work, step.made)
            return
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
            step.run_id,
            step.killed,
            step.parked_words,
            step.resume,
        )

    async def _make(self, work: Work, made: Made) -> None:
        """Write what was decided, and its audit event, in one transaction."""
        async with self._pool.acquire() as connection, connection.transaction():
            verdict = await self._capped(connection, work.decision, made.verdict)
            row = await connection.fetchrow(
                MAKE,
                work.decision.decision_id,
                work.stage,
                verdict.state,
                verdict.outcome,
                verdict.result,
                verdict.reason,
                domain.first_stage(verdict),
                verdict.playbook_id,
                verdict.template_id,
                list(verdict.order.target_ids),
                verdict.order.goal,
                verdict.model_outcome,
                verdict.question,
                made.model_call_count,
                made.recorded,
                verdict.brake,
            )
            if row is None:
                return
            await self._outbox.enqueue(connection, records.made(decision_of(row)))
        self._outbox.wake()
        tell(verdict)

    async def _capped(self, connection: Connection, decision: Decision, verdict: Verdict) -> Verdict:
        """Return what a model chose, or a question to people, in the transaction that makes it the decision."""
        if not started_by(verdict):
            return verdict
        trouble = trouble_of(decision)
        # In the order of `decide`: incidents before keys.
        await connection.execute(LOCK, [decision.incident_id])
        starts = await Starts.load(connection, [trouble])
        return chosen(verdict, starts.beside(History(), trouble), self._starts_per_hour)
