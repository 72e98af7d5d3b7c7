"""Decisions that a kill holds back, and what becomes of them after its release: pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from services.router.domain import Decision, Result, Stage, State, shorten
from services.router.work import Step, Work

RETRY_SECONDS = 1.0
# What flaps waits for minutes: it must not take the turns of others.
FLAPPING_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Seen:
    """An incident as ingest shows it now; `signal_time` is when its newest signal that says it goes on got its row."""

    revision: int
    over: bool
    firing: bool
    age: timedelta
    signal_time: datetime | None = None
    flapping: bool = False


def hold(work: Work, kill_id: str, why: str) -> Step:
    """Keep a decision whose start was refused; without `kill_id` it is a lease that is missing."""
    delay = RETRY_SECONDS if work.stage is Stage.HELD else 0.0
    return Step(Stage.HELD, State.DECIDED, delay=delay, held_by=kill_id, held_words=shorten(why))


def outlived(decision: Decision, seen: Seen | None) -> Step | None:
    """Return how a decision that nothing holds any more ends without its start; None means: start it.

    Started is what still fires, as a signal since it was held says, or is younger than its rule's max_age.
    """
    if seen is None:
        return _close(decision, Result.STALE, "its incident is not kept any more")
    if seen.over:
        return _close(decision, Result.SUPERSEDED, "its incident is over")
    if seen.flapping or seen.revision > decision.revision:
        # A newer revision is on its way to be decided, and that ends this one; so does the calm.
        return Step(Stage.HELD, State.DECIDED, delay=FLAPPING_SECONDS if seen.flapping else RETRY_SECONDS)
    if not seen.firing:
        return _close(decision, Result.RESPONDED, "the sender resolved every alert while it was held")
    still = seen.signal_time and decision.held_time and seen.signal_time > decision.held_time
    if still or seen.age <= decision.max_age:
        return None
    limit, age = decision.max_age.total_seconds(), int(seen.age.total_seconds())
    return _close(decision, Result.STALE, f"{age} s old, more than its rule's {limit:g} s, and no signal since")


def _close(decision: Decision, result: Result, why: str) -> Step:
    reason = f"{decision.reason}; {decision.held_words}; released, but not started: {why}"
    return Step(Stage.NONE, State.CLOSED, result=result, reason=shorten(reason))
