"""What a decision of the router makes of an incident: pure."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from services.ingest.domain import ACTING, REVISIONS_MAX, State

FIRST_POLLS: Final = (0.1, 0.15, 0.25, 0.5, 1.0)
POLL_ACTING_MAX: Final = 2.0
# A kill may hold thousands: they are looked at less often than what runs.
POLL_HELD_MAX: Final = 5.0
POLL_MAX: Final = 60.0
RETRY_FIRST: Final = 0.25
RETRY_MAX: Final = 15.0


class DecisionState(IntEnum):
    """The numbers of router.v1.Decision.State."""

    UNSPECIFIED = 0
    AWAITING_MODEL = 1
    DECIDED = 2
    CLOSED = 3


class Outcome(IntEnum):
    """The numbers of router.v1.Decision.Outcome."""

    UNSPECIFIED = 0
    GATHER_CONTEXT = 1
    DELEGATE_AGENT = 2
    TRIGGER_AUTOMATION = 3
    ASK_HUMAN = 4
    RESPOND = 5


class Result(IntEnum):
    """The numbers of router.v1.Decision.Result."""

    UNSPECIFIED = 0
    REPAIRED = 1
    SUCCEEDED = 2
    FAILED = 3
    CANCELLED = 4
    UNKNOWN = 5
    OBSERVED = 6
    RESPONDED = 7
    SUPERSEDED = 8
    STALE = 9
    ANSWERED = 10
    REPORTED = 11
    ESCALATED = 12


FINAL: Final = {
    Result.REPAIRED: (State.RESOLVED, "repaired: the target was seen healthy"),
    Result.RESPONDED: (State.RESOLVED, ""),
    Result.STALE: (State.STALE, ""),
}
# Nobody is done with these: the router decides anew what follows, until the revisions are used up.
AFRESH: Final = frozenset(
    {Result.FAILED, Result.CANCELLED, Result.UNKNOWN, Result.ANSWERED, Result.REPORTED, Result.ESCALATED}
)
# What a person asked for is over when it was done: no alert will ever say so, and who asked was told.
ANSWERED_WISHES: Final = {
    Result.SUCCEEDED: "done as it was asked for; nothing proves the target healthy",
    Result.REPORTED: "the agent reported to who asked; nothing proves the target healthy",
    Result.OBSERVED: "policy only observed what would have been done",
}
UNPROVED: Final = {
    Result.OBSERVED: (State.OBSERVED, "policy only observed what would have been done"),
    Result.SUCCEEDED: (State.AWAITING_PERSON, "the work succeeded, but nothing proves the target healthy"),
}


@dataclass(frozen=True, slots=True)
class Decided:
    """What a decision says, as far as incidents care."""

    state: DecisionState
    outcome: Outcome
    result: Result
    awaiting_approval: bool
    reason: str
    held: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """Where an incident goes: `following` asks the router again, `revise` has it decided anew."""

    state: State
    detail: str
    following: bool = False
    revise: bool = False


def follow(
    state: State, revision: int, decided: Decided, *, firing: bool, asked: bool = False, over: bool = False
) -> Step:
    """Return where a decision leads an incident; one that a person resolved stays resolved.

    `asked`: it is no alert, but what a person asked for in a chat. `over`: as far as can be read, every alert of it is
    over and it does not flap.
    """
    if state in (State.RESOLVED, State.STALE):
        return Step(state, "", following=decided.state is not DecisionState.CLOSED)
    if over and not asked and decided.state is not DecisionState.CLOSED and _open_state(state, decided) not in ACTING:
        # What is over is answered with a close: this was decided before its end was known, and nothing would end it.
        return _overtaken(revision)
    if decided.state is DecisionState.AWAITING_MODEL:
        return Step(State.AWAITING_MODEL, decided.reason or "no rule matched", following=True)
    if decided.state is DecisionState.CLOSED:
        if asked and decided.result in ANSWERED_WISHES:
            return Step(State.RESOLVED, ANSWERED_WISHES[decided.result])
        return _closed(state, revision, decided, firing=firing)
    held = _held(revision, decided, firing=firing) if decided.held else None
    return held or Step(_open_state(state, decided), decided.reason, following=True)


def _open_state(state: State, decided: Decided) -> State:
    """Return where an incident stands while its decision is open."""
    # An answer that is still open is a model's: its text may be an attacker's, so a person looks before it is quiet.
    if decided.outcome in (Outcome.ASK_HUMAN, Outcome.RESPOND):
        return State.AWAITING_PERSON
    if decided.outcome in (Outcome.TRIGGER_AUTOMATION, Outcome.DELEGATE_AGENT):
        return State.AWAITING_APPROVAL if decided.awaiting_approval else State.RUNNING
    return state


def _overtaken(revision: int) -> Step:
    """Have decided anew what the sender has resolved; without a revision left it is resolved at once."""
    if revision >= REVISIONS_MAX:
        return Step(State.RESOLVED, "the sender resolved every alert")
    return Step(State.OPEN, "decided anew: the sender resolved every alert while it was decided", revise=True)


def _held(revision: int, decided: Decided, *, firing: bool) -> Step:
    """Keep an incident back as long as a kill stops its work; a resolve that came just before is decided now."""
    if not firing and revision < REVISIONS_MAX:
        return Step(State.OPEN, "decided anew: the sender resolved every alert while it was held", revise=True)
    return Step(State.HELD, decided.reason, following=True)


def _closed(state: State, revision: int, decided: Decided, *, firing: bool) -> Step:
    """Return where a finished decision leads."""
    result = decided.result
    if result is Result.SUPERSEDED:
        return Step(state, decided.reason)
    if result in FINAL:
        final, words = FINAL[result]
        return Step(final, words or decided.reason)
    failed = result in (Result.FAILED, Result.CANCELLED, Result.UNKNOWN)
    # What the sender has resolved meanwhile is decided anew, and that closes it.
    if revision < REVISIONS_MAX and (result in AFRESH or not firing):
        return Step(State.OPEN, f"decided anew: the last decision ended {result.name}", revise=True)
    if not firing and not failed:
        return Step(State.RESOLVED, "the sender resolved every alert")
    if result in AFRESH:
        return Step(State.AWAITING_PERSON, f"{result.name} after {revision} revisions; a person must look")
    open_state, words = UNPROVED.get(result, (State.AWAITING_PERSON, "the decision ended without a result"))
    return Step(open_state, words)


def poll_delay(state: State, polls: int) -> float:
    """Return the seconds until the router is asked again: quick at first, and while something acts."""
    if polls < len(FIRST_POLLS):
        return FIRST_POLLS[polls]
    latest = POLL_HELD_MAX if state is State.HELD else POLL_ACTING_MAX if state in ACTING else POLL_MAX
    return float(min(latest, 2.0 ** min(polls - len(FIRST_POLLS), 10)))


def retry_delay(failures: int) -> float:
    """Return the seconds until an incident is handed to a router that did not answer, again."""
    return float(min(RETRY_MAX, RETRY_FIRST * 2.0 ** min(failures, 10)))
