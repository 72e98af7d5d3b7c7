"""Approvals in PostgreSQL: a row each, changed only by compare-and-set on its state, judged by the database's clock.

The functions take the connection of the caller's transaction; whoever means to change a row locks it first, because
only a statement that begins after the lock sees every answer given before it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid4

from services.guardrails.approvals.rules import UNANSWERED, UNEXECUTED, Answer, Approval, Change, State, Terms, Vote
from services.mesh.postgres import Connection, Pool

UNANSWERED_NOW: Final = "(state = 'PENDING' AND expire_time <= clock_timestamp())"
UNEXECUTED_NOW: Final = "(state = 'APPROVED' AND execute_time IS NULL AND execute_before_time <= clock_timestamp())"
# Whether the sweeper has passed or not: what is over by the clock is told as over.
COLUMNS: Final = f"""
approval_id, method, request_id, digest, requester, amenders, request, judgement, context, incident_id,
create_time, expire_time, update_time, approvers_needed, groups_needed, execute_seconds, execute_before_time,
execute_time, changes::text AS changes, amends_approval_id, superseded_by, renewal, kill_epoch, environment, target_id,
playbook_id, execution_id, run_id,
CASE WHEN {UNANSWERED_NOW} OR {UNEXECUTED_NOW} THEN 'EXPIRED' ELSE state END AS state,
CASE WHEN {UNANSWERED_NOW} OR {UNEXECUTED_NOW} THEN 'APPROVAL_EXPIRED' ELSE close_reason END AS close_reason,
CASE WHEN {UNANSWERED_NOW} THEN '{UNANSWERED}' WHEN {UNEXECUTED_NOW} THEN '{UNEXECUTED}' ELSE close_detail END
    AS close_detail,
(SELECT coalesce(json_agg(json_build_object('person', person, 'answer', answer, 'groups', groups, 'comment', comment,
                                            'vote_time', vote_time) ORDER BY vote_time), '[]')::text
 FROM votes WHERE votes.approval_id = approvals.approval_id) AS votes
"""  # noqa: S608  constants only
LOCK: Final = "SELECT true FROM approvals WHERE approval_id = $1 FOR UPDATE"
READ: Final = f"SELECT {COLUMNS} FROM approvals WHERE approval_id = $1"  # noqa: S608  constants only
NEWEST: Final = f"""
SELECT {COLUMNS} FROM approvals WHERE requester = $1 AND method = $2 AND request_id = $3 AND digest = $4
ORDER BY renewal DESC LIMIT 1
"""  # noqa: S608  constants only
# Which rows comes first, by an index; only those are read whole, with their answers.
PAGE: Final = f"""
SELECT {COLUMNS} FROM approvals WHERE approval_id IN (
    SELECT approval_id FROM approvals
    WHERE CHOSEN AND ($1 = '' OR incident_id = $1)
      AND ($2::timestamptz IS NULL OR (create_time, approval_id) < ($2, $3::uuid))
    ORDER BY create_time DESC, approval_id DESC LIMIT $4
) ORDER BY create_time DESC, approval_id DESC
"""  # noqa: S608  constants only
OVER_NOW: Final = f"({UNANSWERED_NOW} OR {UNEXECUTED_NOW})"
PAGES: Final = {state: PAGE.replace("CHOSEN", f"state = '{state.value}' AND NOT {OVER_NOW}") for state in State} | {
    State.EXPIRED: PAGE.replace("CHOSEN", f"(state = 'EXPIRED' OR {OVER_NOW})"),
    None: PAGE.replace("CHOSEN", "true"),
}
ASK: Final = """
INSERT INTO approvals (approval_id, state, method, request_id, digest, requester, amenders, incident_id, request,
                       judgement, context, expire_time, approvers_needed, groups_needed, execute_seconds, renewal,
                       changes, amends_approval_id, kill_epoch, environment, target_id, playbook_id, execution_id,
                       run_id)
VALUES ($1, 'PENDING', $2, $3, $4, $5, $6, $7, $8, $9, $10, clock_timestamp() + make_interval(secs => $11), $12, $13,
        $14, $15, $16::jsonb, $17, $18, $19, $20, $21, $22, $23)
ON CONFLICT (requester, method, request_id, digest, renewal) DO NOTHING
"""
VOTE: Final = """
INSERT INTO votes (approval_id, person, answer, groups, comment) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (approval_id, person) DO NOTHING RETURNING true
"""
TOUCH: Final = "UPDATE approvals SET update_time = clock_timestamp() WHERE approval_id = $1"
APPROVE: Final = """
UPDATE approvals
SET state = 'APPROVED', update_time = clock_timestamp(),
    execute_before_time = clock_timestamp() + make_interval(secs => execute_seconds)
WHERE approval_id = $1 AND state = 'PENDING' AND expire_time > clock_timestamp() RETURNING true
"""
CLOSE: Final = f"""
UPDATE approvals
SET state = $3, close_reason = $4, close_detail = $5, update_time = clock_timestamp(),
    changes = coalesce($6::jsonb, changes)
WHERE approval_id = $1 AND state = $2 AND NOT {UNANSWERED_NOW} AND NOT {UNEXECUTED_NOW} RETURNING true
"""  # noqa: S608  constants only
SUPERSEDE: Final = "UPDATE approvals SET superseded_by = $2 WHERE approval_id = $1"
REBIND: Final = """
UPDATE approvals
SET state = 'PENDING', approvers_needed = $2, groups_needed = $3, execute_before_time = NULL, execute_time = NULL,
    expire_time = CASE WHEN state = 'PENDING' THEN expire_time ELSE clock_timestamp() + make_interval(secs => $4) END,
    execute_seconds = $5, update_time = clock_timestamp()
WHERE approval_id = $1
"""
USE: Final = """
UPDATE approvals
SET execute_time = coalesce(execute_time, clock_timestamp()),
    update_time = CASE WHEN execute_time IS NULL THEN clock_timestamp() ELSE update_time END
WHERE approval_id = $1 AND state = 'APPROVED' AND execute_before_time > clock_timestamp() RETURNING execute_before_time
"""
# An index can be asked with the time of the statement, not with a clock that moves while it is read.
SWEEP: Final = f"""
UPDATE approvals
SET state = 'EXPIRED', close_reason = 'APPROVAL_EXPIRED', update_time = clock_timestamp(),
    close_detail = CASE WHEN state = 'PENDING' THEN '{UNANSWERED}' ELSE '{UNEXECUTED}' END
WHERE approval_id IN (
    SELECT approval_id FROM approvals
    WHERE (state = 'PENDING' AND expire_time <= statement_timestamp())
       OR (state = 'APPROVED' AND execute_time IS NULL AND execute_before_time <= statement_timestamp())
    LIMIT 100 FOR UPDATE SKIP LOCKED
) RETURNING {COLUMNS}
"""  # noqa: S608  constants only
# A change becomes visible only at its commit, so the look back is longer than any transaction here may last.
CHANGED: Final = """
SELECT approval_id, update_time, (state = 'PENDING' OR state = 'APPROVED' AND execute_time IS NULL) AS waits
FROM approvals
WHERE update_time > statement_timestamp() - interval '30 seconds' AND ($1 = '' OR incident_id = $1)
ORDER BY update_time
"""
WAITING: Final = """
SELECT approval_id, update_time, true AS waits FROM approvals
WHERE (state = 'PENDING' OR state = 'APPROVED' AND execute_time IS NULL) AND ($1 = '' OR incident_id = $1)
ORDER BY update_time
"""


@dataclass(frozen=True, slots=True)
class Question:
    """What people are asked; `request`, `judgement` and `context` are serialised messages, times are in seconds."""

    requester: str
    method: str
    request_id: UUID
    digest: bytes
    incident_id: str
    request: bytes
    judgement: bytes
    context: bytes
    terms: Terms
    answer_seconds: float
    execute_seconds: float
    kill_epoch: int = 0
    environment: str = ""
    target_id: str = ""
    playbook_id: str = ""
    execution_id: str = ""
    run_id: str = ""
    amenders: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    amends_approval_id: UUID | None = None
    renewal: int = 0


@dataclass(frozen=True, slots=True)
class End:
    """How an approval ends: the reason is an ErrorReason without prefix, `changes` replace the stored ones."""

    state: State
    reason: str
    detail: str
    changes: Sequence[Change] | None = None


async def read(connection: Connection | Pool, approval_id: UUID) -> Approval | None:
    """Return an approval, or None."""
    row = await connection.fetchrow(READ, approval_id)
    return to_approval(row) if row else None


async def locked(connection: Connection, approval_id: UUID) -> Approval | None:
    """Lock an approval for the rest of the transaction and return it with every answer, or None."""
    await connection.execute(LOCK, approval_id)
    return await read(connection, approval_id)


async def newest(
    connection: Connection, requester: str, method: str, request_id: UUID, digest: bytes
) -> Approval | None:
    """Return the approval that counts for exactly these bytes of a requester, or None."""
    row = await connection.fetchrow(NEWEST, requester, method, request_id, digest)
    return to_approval(row) if row else None


async def ask(connection: Connection, question: Question) -> UUID | None:
    """Make an approval and return its id; None when exactly these bytes were asked about before."""
    approval_id = uuid4()
    done = await connection.execute(
        ASK,
        approval_id,
        question.method,
        question.request_id,
        question.digest,
        question.requester,
        list(question.amenders),
        question.incident_id,
        question.request,
        question.judgement,
        question.context,
        question.answer_seconds,
        question.terms.people,
        sorted(question.terms.groups),
        question.execute_seconds,
        question.renewal,
        _json(question.changes),
        question.amends_approval_id,
        question.kill_epoch,
        question.environment,
        question.target_id,
        question.playbook_id,
        question.execution_id,
        question.run_id,
    )
    return approval_id if done.endswith(" 1") else None


async def vote(
    connection: Connection, approval_id: UUID, person: str, answer: Answer, about: Mapping[str, Any]
) -> bool:
    """Keep an answer with its `groups` and `comment`; False when this person has answered before."""
    groups, comment = sorted(about["groups"]), about["comment"]
    kept = await connection.fetchval(VOTE, approval_id, person, answer.value, groups, comment)
    await connection.execute(TOUCH, approval_id)
    return bool(kept)


async def approve(connection: Connection, approval_id: UUID) -> bool:
    """Turn a pending approval into an approved one and start the second clock; False when it is too late."""
    return bool(await connection.fetchval(APPROVE, approval_id))


async def close(connection: Connection, approval: Approval, end: End) -> bool:
    """End an approval that still is what it was when it was read; False when something else was faster."""
    diff = None if end.changes is None else _json(end.changes)
    values = (approval.approval_id, approval.state.value, end.state.value, end.reason, end.detail, diff)
    return bool(await connection.fetchval(CLOSE, *values))


async def supersede(connection: Connection, approval_id: UUID, by: UUID) -> None:
    """Say which approval took the place of one."""
    await connection.execute(SUPERSEDE, approval_id, by)


async def rebind(
    connection: Connection, approval_id: UUID, terms: Terms, answer_seconds: float, execute_seconds: float
) -> None:
    """Make an open approval pending under the terms of today's policy; its answers stay."""
    values = (terms.people, sorted(terms.groups), answer_seconds, execute_seconds)
    await connection.execute(REBIND, approval_id, *values)


async def use(connection: Connection, approval_id: UUID) -> datetime | None:
    """Note that a grant is minted under an approval; return until when it may act, None when it may not any more."""
    found: datetime | None = await connection.fetchval(USE, approval_id)
    return found


async def expire(connection: Connection) -> Sequence[Approval]:
    """Turn what nobody answered, or nobody executed, in time into EXPIRED and return some of it at a time."""
    return [to_approval(row) for row in await connection.fetch(SWEEP)]


@dataclass(frozen=True, slots=True)
class Head:
    """The newest change of an approval; `waits` for people or for its execution."""

    approval_id: UUID
    update_time: datetime
    waits: bool


class ApprovalStore:
    """What is read outside of a caller's transaction."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    async def changed(self, incident_id: str, *, waiting: bool) -> Sequence[Head]:
        """Return what changed in the last half minute and, for the first look, all that waits; oldest first."""
        rows = [*(await self.pool.fetch(WAITING, incident_id) if waiting else ())]
        rows += await self.pool.fetch(CHANGED, incident_id)
        found = {row["approval_id"]: Head(row["approval_id"], row["update_time"], row["waits"]) for row in rows}
        return sorted(found.values(), key=lambda head: head.update_time)

    async def read(self, approval_id: UUID) -> Approval | None:
        """Return an approval, or None."""
        return await read(self.pool, approval_id)

    async def page(
        self, state: State | None, incident_id: str, after: tuple[datetime, UUID] | None, limit: int
    ) -> Sequence[Approval]:
        """Return approvals, newest first; None and empty match all, `after` is the last one seen."""
        when, which = after or (None, None)
        return [to_approval(row) for row in await self.pool.fetch(PAGES[state], incident_id, when, which, limit)]


def to_approval(row: Any) -> Approval:
    """Return a record as an approval."""
    derived = {"state", "amenders", "terms", "votes", "changes"}
    plain = {name: row[name] for name in Approval.__dataclass_fields__ if name not in derived}
    votes = tuple(
        Vote(
            one["person"],
            Answer(one["answer"]),
            frozenset(one["groups"]),
            one["comment"],
            datetime.fromisoformat(one["vote_time"]),
        )
        for one in json.loads(row["votes"])
    )
    return Approval(
        **plain,
        state=State(row["state"]),
        amenders=tuple(row["amenders"]),
        terms=Terms(row["approvers_needed"], frozenset(row["groups_needed"])),
        votes=votes,
        changes=tuple(Change(**one) for one in json.loads(row["changes"])),
    )


def _json(changes: Sequence[Change]) -> str:
    """Return changes as the database keeps them."""
    return json.dumps([asdict(change) for change in changes])
