"""What a decision still needs after it was made, and what the answers of others mean for it: pure."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from services.router.domain import Decision, Result, Stage, State, Verdict, shorten

NOTICE_PAUSE: Final = 60.0
NOTICE_TRIES: Final = 30
SECOND: Final = 1.0
# A lane has nothing more to do on it; a day later it looks again all the same.
NEVER: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Work:
    """A decision as a lane has claimed it; `attempts` counts looks since the last news, `traceparent` is its trace."""

    decision: Decision
    stage: Stage
    attempts: int
    traceparent: str


@dataclass(frozen=True, slots=True)
class Made:
    """What a model, or the failure of an execution, decided about what no rule knew. `verdict` is as for rules."""

    verdict: Verdict
    model_call_count: int = 0
    recorded: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """What a lane has to write back; empty texts leave what is there. `delay` in seconds until the next look.

    `held_words` say why a start is held, and by which kill (`held_by`; empty where a lease is missing). `parked_words`
    say why no model can be asked; another try is worth it after `resume` seconds. With `made` the decision is made.
    """

    stage: Stage
    state: State
    delay: float = 0.0
    result: Result = Result.UNSPECIFIED
    reason: str = ""
    execution_id: str = ""
    notice_execution_id: str = ""
    awaiting_approval: bool = False
    news: bool = True
    held_by: str = ""
    held_words: str = ""
    run_id: str = ""
    killed: bool = False
    parked_words: str = ""
    resume: float = 0.0
    made: Made | None = None


@dataclass(frozen=True, slots=True)
class Execution:
    """What the router needs to know of an execution; `state` is the IDL's word without its prefix."""

    execution_id: str
    state: str
    health_proved: bool = False
    killed: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """What the router needs to know of a run; `state` is the IDL's word without prefix, `words` say what happened.

    `escalated`: it reported that a person must go on; `idle`: that nothing is wrong.
    """

    run_id: str
    state: str
    health_proved: bool = False
    killed: bool = False
    words: str = ""
    escalated: bool = False
    idle: bool = False


FINAL: Final[Mapping[str, Result]] = {
    "SUCCEEDED": Result.SUCCEEDED,
    "FAILED": Result.FAILED,
    "CANCELLED": Result.CANCELLED,
    "UNKNOWN": Result.UNKNOWN,
    "OBSERVED": Result.OBSERVED,
}


def start_request_id(decision: uuid.UUID) -> uuid.UUID:
    """Return the request_id under which a decision starts its playbook, however often it is tried."""
    return uuid.uuid5(decision, "start")


def run_request_id(decision: uuid.UUID) -> uuid.UUID:
    """Return the request_id under which a decision starts its run, however often it is tried."""
    return uuid.uuid5(decision, "run")


def notify_request_id(decision: uuid.UUID, *, again: bool = False) -> uuid.UUID:
    """Return the request_id under which a decision notifies a person, however often it is tried.

    `again`: it was told before that nobody could decide, and now it is decided.
    """
    return uuid.uuid5(decision, "notify/decided" if again else "notify")


def follow(work: Work, execution: Execution) -> Step:
    """Return what an execution, just read, means for its decision."""
    if result := FINAL.get(execution.state):
        if execution.state == "SUCCEEDED" and execution.health_proved:
            result = Result.REPAIRED
        return Step(
            Stage.NONE, State.CLOSED, result=result, execution_id=execution.execution_id, killed=execution.killed
        )
    awaiting = execution.state == "AWAITING_APPROVAL"
    news = work.stage is Stage.START or awaiting != work.decision.awaiting_approval
    return Step(
        Stage.FOLLOW,
        State.DECIDED,
        delay=pause(0 if news else work.attempts),
        execution_id=execution.execution_id,
        awaiting_approval=awaiting,
        news=news,
    )


def follow_run(work: Work, run: Run) -> Step:
    """Return what a run, just read, means for its decision: what it says of itself is a report, not a repair."""
    if result := FINAL.get(run.state):
        if run.state == "SUCCEEDED":
            # A poisoned text may say that nothing is wrong, and a health read does not see what every alert is about.
            unsaid = run.idle and not work.decision.order.conversation_id
            reported = Result.ESCALATED if run.escalated or unsaid else Result.REPORTED
            result = Result.REPAIRED if run.health_proved and not run.idle else reported
        reason = shorten(f"{work.decision.reason}; {run.words}") if run.words else ""
        return Step(Stage.NONE, State.CLOSED, result=result, reason=reason, run_id=run.run_id, killed=run.killed)
    awaiting = run.state == "AWAITING_APPROVAL"
    news = work.stage is not Stage.FOLLOW_RUN or awaiting != work.decision.awaiting_approval
    return Step(
        Stage.FOLLOW_RUN,
        State.DECIDED,
        delay=pause(0 if news else work.attempts),
        run_id=run.run_id,
        awaiting_approval=awaiting,
        news=news,
    )


def park(why: str, seconds: float) -> Step:
    """Keep a decision until a model can be asked; another try before `seconds` have passed is of no use."""
    return Step(Stage.PARKED, State.AWAITING_MODEL, parked_words=shorten(why), resume=seconds)


def give_up(work: Work, result: Result, why: str) -> Step:
    """Close a decision whose playbook cannot be started or found: ingest makes a new revision of it."""
    return Step(Stage.NONE, State.CLOSED, result=result, reason=shorten(f"{work.decision.reason}; {why}"))


def not_notified(work: Work, why: str) -> Step:
    """Try a refused notice again in a minute, for somebody may publish its playbook; at last say that nobody knows."""
    decision = work.decision
    if work.attempts < NOTICE_TRIES:
        return Step(work.stage, decision.state, delay=NOTICE_PAUSE, news=False)
    reason = shorten(f"{decision.reason}; nobody could be notified: {why}")
    return Step(told(work), decision.state, delay=NEVER, reason=reason)


def told(work: Work) -> Stage:
    """Return where a decision goes once people were told: what waits for a model goes on waiting."""
    return Stage.PARKED if work.stage is Stage.PARKED else Stage.NONE


def again(work: Work) -> Step:
    """Return the step that looks again later."""
    return Step(
        work.stage,
        work.decision.state,
        delay=pause(work.attempts),
        awaiting_approval=work.decision.awaiting_approval,
        news=False,
    )


def pause(attempts: int) -> float:
    """Return the seconds until an unfinished piece of work is looked at again: 0.1, growing by a third, at most 5."""
    return min(5.0, 0.1 * 1.3 ** min(attempts, 20))
