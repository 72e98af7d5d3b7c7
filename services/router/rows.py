"""Rows of the decisions table: which columns there are, and what they mean."""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any, Final

import asyncpg

from services.router import domain
from services.router.domain import (
    Brake,
    Decision,
    Failed,
    History,
    Order,
    Outcome,
    Result,
    Snapshot,
    Stage,
    State,
    Verdict,
)
from services.router.work import Work

COLUMNS: Final = (
    "decision_id, incident_id, revision, state, outcome, result, rule_id, rule_set_version, playbook_id, reason, "
    "execution_id, notice_execution_id, awaiting_approval, create_time, close_time, "
    "clock_timestamp() - create_time AS age, stage = 'HELD' AS held, held_by, held_words, held_time, max_age, "
    "start_time IS NOT NULL AS tried, run_id, template_id, target_ids, goal, cause_execution_id, identity_token, "
    "conversation_id, model_call_count, recorded, model_outcome, question, answer, answerer, "
    "stage = 'PARKED' AS parked, parked_words, killed, correlation_key, brake"
)
# What a decision is made with, in the order of `new_columns`; the types are PostgreSQL's.
MADE: Final = (
    ("decision_id", "uuid"),
    ("incident_id", "uuid"),
    ("revision", "bigint"),
    ("state", "text"),
    ("outcome", "text"),
    ("result", "text"),
    ("rule_id", "text"),
    ("rule_set_version", "bigint"),
    ("playbook_id", "text"),
    ("reason", "text"),
    ("stage", "text"),
    ("max_age", "interval"),
    ("template_id", "text"),
    ("targets", "text"),
    ("goal", "text"),
    ("cause_execution_id", "text"),
    ("identity_token", "bytea"),
    ("conversation_id", "text"),
    ("model_outcome", "bytea"),
    ("question", "bytea"),
    ("correlation_key", "text"),
    ("brake", "text"),
)
# No id of a target has a line end.
SEPARATOR: Final = "\n"
BAD_ENDS: Final = frozenset({Result.FAILED, Result.UNKNOWN, Result.CANCELLED})


def new_columns(new: Iterable[tuple[Snapshot, Verdict]]) -> list[list[Any]]:
    """Return (snapshot, verdict) pairs as one list per column of MADE."""
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
            verdict.template_id,
            SEPARATOR.join(verdict.order.target_ids),
            verdict.order.goal,
            verdict.order.cause,
            verdict.order.token,
            verdict.order.conversation_id,
            verdict.model_outcome,
            verdict.question,
            snapshot.correlation_key,
            verdict.brake,
        )
        for snapshot, verdict in new
    ]
    return [list(column) for column in zip(*rows, strict=True)]


def history_of(known: Sequence[Decision], snapshot: Snapshot) -> History:
    """Return what the decisions of all incidents say about the earlier revisions of this one."""
    own = [one for one in known if one.incident_id == snapshot.incident_id]
    earlier = [one for one in own if one.revision < snapshot.revision]
    started = frozenset(one.rule_id for one in earlier if one.rule_id and _used(one))
    newest = max((one.revision for one in own), default=0)
    # What is open still has no end that could take the place of the last one: a brake, a question nobody answered.
    ended = [one for one in earlier if one.state is State.CLOSED and one.result is not Result.SUPERSEDED]
    last = max(ended, key=lambda one: one.revision, default=None)
    escalated = last.run_id if last and last.result is Result.ESCALATED else ""
    return History(
        started,
        newest,
        _failed(earlier),
        killed=last is not None and last.killed,
        escalated=escalated,
        flapping=_told_of_flapping(earlier),
    )


def _told_of_flapping(earlier: Sequence[Decision]) -> bool:
    """Say whether people got a notice since it began to flap: one that was superseded before told nobody."""
    newest_first = sorted(earlier, key=lambda one: one.revision, reverse=True)
    flapping = takewhile(lambda one: one.brake is Brake.FLAPPING, newest_first)
    return any(one.notice_execution_id for one in flapping)


def _used(one: Decision) -> bool:
    """Say whether the rule of a decision has had its turn on this incident."""
    if one.outcome is Outcome.ASK_HUMAN:
        return bool(one.answer)
    # What was held until it was superseded never started anything.
    return one.outcome is Outcome.TRIGGER_AUTOMATION and bool(one.execution_id or one.tried or not one.held_time)


def _failed(earlier: Sequence[Decision]) -> Failed | None:
    """Return the newest execution that ended badly without a kill, unless a run was opened for it."""
    # What ended before its run was started leaves the execution to the next revision.
    answered = {one.order.cause for one in earlier if one.order.cause and (one.run_id or one.tried)}
    for one in sorted(earlier, key=lambda decision: decision.revision, reverse=True):
        if not one.execution_id or one.outcome is not Outcome.TRIGGER_AUTOMATION or one.result not in BAD_ENDS:
            continue
        if one.killed or one.execution_id in answered:
            return None
        return Failed(one.execution_id, one.playbook_id, one.result)
    return None


def work_of(row: asyncpg.Record) -> Work:
    """Return a claimed row as work."""
    return Work(decision_of(row), Stage(row["stage"]), row["attempts"], row["traceparent"])


def decision_of(row: asyncpg.Record) -> Decision:
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
        run_id=row["run_id"],
        template_id=row["template_id"],
        order=Order(
            tuple(row["target_ids"]),
            row["goal"],
            row["cause_execution_id"],
            row["identity_token"],
            row["conversation_id"],
        ),
        model_call_count=row["model_call_count"],
        recorded=row["recorded"],
        model_outcome=row["model_outcome"],
        question=row["question"],
        answer=row["answer"],
        answerer=row["answerer"],
        parked=row["parked"],
        parked_words=row["parked_words"],
        killed=row["killed"],
        correlation_key=row["correlation_key"],
        brake=Brake(row["brake"]),
    )
