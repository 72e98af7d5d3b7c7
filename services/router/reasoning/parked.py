"""Brings decisions back that no model could be asked about: oldest first, paced, what is stale by then is closed."""

import asyncio
from typing import Final

import grpc.aio
import structlog

from services.mesh import telemetry
from services.mesh.call import working
from services.mesh.loop import every, wait
from services.router import work as steps
from services.router.domain import Decision, Result, Stage, State, shorten
from services.router.held import Seen
from services.router.lanes import CALL_SECONDS, CLAIM_SECONDS, IDENTITY, Lanes
from services.router.pace import Pace
from services.router.reasoning.reasoner import Reasoner
from services.router.resume import Eyes
from services.router.store import DecisionStore
from services.router.work import Step, Work

PERIOD: Final = 1.0
log = structlog.get_logger("opsmesh.router.parked")


class Returner:
    """Looks every second whether a model can be asked again: one question for all that wait."""

    def __init__(self, store: DecisionStore, pace: Pace, eyes: Eyes, reasoner: Reasoner, lanes: Lanes) -> None:
        self._store = store
        self._pace = pace
        self._eyes = eyes
        self._reasoner = reasoner
        self._lanes = lanes
        self._stop = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`."""
        self._stop = stop
        await every(stop, PERIOD, self._return)

    async def _return(self) -> None:
        """Go on as long as something can be brought back now."""
        while not self._stop.is_set():
            pause = await self.once()
            if pause >= PERIOD or await wait(self._stop, pause):
                return

    async def once(self) -> float:
        """Bring one decision back, or close it; return the seconds until the next look is worth it."""
        if not await self._store.has(Stage.PARKED):
            return PERIOD
        try:
            with working(IDENTITY, "router/models", CALL_SECONDS):
                why = await self._reasoner.away()
        except grpc.aio.AioRpcError as error:
            log.debug("agents does not say whether a model can be asked", code=error.code().name)
            return PERIOD
        if why:
            return PERIOD
        pause = await self._pace.take()
        if pause > 0:
            return min(pause, PERIOD)
        work = await self._store.claim_parked(CLAIM_SECONDS)
        if work is None:
            await self._pace.give_back()
            return PERIOD
        step = await self._step(work)
        if step is None or step.stage is not Stage.MODEL:
            # Nothing was asked of a model, so the turn is another's.
            await self._pace.give_back()
        if step is not None:
            await self._store.advance(work, step)
            self._lanes.later(step)
        return 0.0

    async def _step(self, work: Work) -> Step | None:
        """Return where a decision goes; None when that is not known now."""
        decision = work.decision
        try:
            with working(IDENTITY, "router/parked", CALL_SECONDS, trace=telemetry.parse(work.traceparent)):
                seen = await self._eyes.incident(str(decision.incident_id))
        except grpc.aio.AioRpcError as error:
            log.warning("parked decision stays", decision_id=str(decision.decision_id), code=error.code().name)
            return None
        step = outlived(decision, seen) or Step(Stage.MODEL, State.AWAITING_MODEL)
        log.info("parked decision", decision_id=str(decision.decision_id), stage=step.stage, result=step.result)
        return step


def outlived(decision: Decision, seen: Seen | None) -> Step | None:
    """Return how a decision ends that nobody needs any more; None means: put it to a model.

    Worth it is what still fires, as a signal since it was asked for says, or is younger than its longest age.
    """
    if seen is None:
        return _close(decision, Result.STALE, "its incident is not kept any more")
    if seen.over:
        return _close(decision, Result.SUPERSEDED, "its incident is over")
    if seen.revision > decision.revision:
        # The newer revision is on its way to be decided, and that ends this one.
        return steps.park(decision.parked_words, steps.SECOND)
    if not seen.firing:
        return _close(decision, Result.RESPONDED, "the sender resolved every alert while it waited for a model")
    still = seen.signal_time and seen.signal_time > decision.create_time
    if still or seen.age <= decision.max_age:
        return None
    limit, age = decision.max_age.total_seconds(), int(seen.age.total_seconds())
    return _close(decision, Result.STALE, f"{age} s old, more than {limit:g} s, and no signal since it was asked for")


def _close(decision: Decision, result: Result, why: str) -> Step:
    return Step(
        Stage.NONE, State.CLOSED, result=result, reason=shorten(f"{decision.reason}; not put to a model: {why}")
    )
