"""The lanes: PENDING goes to the engine, what is open is looked after; the tables decide, engines may forget."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from services.automation.domain import ENGINE_STARTS_MAX, OPEN_EXECUTION, ExecutionState
from services.automation.ends import Ends, InFlightError
from services.automation.engines import Engine, EngineState, EngineUnavailableError, Ticket
from services.automation.progress import Due, Progress
from services.automation.store import Store
from services.mesh.failures import CallError
from services.mesh.loop import every

PERIOD: Final = 1.0
# How soon a cancelled execution is looked at again, in seconds; its row's claim ends at about the same time.
CANCEL_PERIOD: Final = 0.3
BATCH: Final = 32
# What a kill has asked to stop is terminated after this many seconds.
GRACE: Final = 5.0
log = structlog.get_logger("opsmesh.automation.lanes")


class Lanes:
    """Two workers; both may run in several processes at once, because each row is claimed."""

    def __init__(self, store: Store, progress: Progress, engine: Engine, ends: Ends) -> None:
        self._store = store
        self._progress = progress
        self._engine = engine
        self._ends = ends
        self._fresh: deque[Due] = deque(maxlen=BATCH)
        self._started = asyncio.Event()
        self._cancelled = asyncio.Event()

    def fresh(self, execution_id: str, digest: str) -> None:
        """Start this one now: just committed, so that no other process claims it yet. What overflows is claimed."""
        self._fresh.append(Due(execution_id, digest, ExecutionState.PENDING, cancel_requested=False, engine_starts=1))
        self._started.set()

    def wake(self) -> None:
        """Look now: an execution is to be cancelled."""
        self._cancelled.set()

    async def start(self, stop: asyncio.Event) -> None:
        """Give PENDING executions to the engine until `stop`."""
        await every(stop, PERIOD, self.start_pending, self._started)

    async def watch(self, stop: asyncio.Event) -> None:
        """Look after open executions until `stop`."""
        await every(stop, PERIOD, self.watch_open, self._cancelled)

    async def start_pending(self) -> None:
        """Start what has just come, then everything that is due."""
        fresh = [self._fresh.popleft() for _ in range(len(self._fresh))]
        await self._all(fresh, self._start_one)
        await self._each(self._progress.claim_pending, self._start_one)

    async def watch_open(self) -> None:
        """Look after everything that is due."""
        await self._each(self._progress.claim_running, self._watch_one)

    async def _each(self, claim: Callable[[int], Awaitable[list[Due]]], work: Callable[[Due], Awaitable[None]]) -> None:
        """Work on claimed rows at once; an engine that is away ends the round, the claims run out by themselves."""
        while due := await claim(BATCH):
            if not await self._all(due, work) or len(due) < BATCH:
                return

    @staticmethod
    async def _all(due: Sequence[Due], work: Callable[[Due], Awaitable[None]]) -> bool:
        """Work on all at once; False when the engine was away, another failure is raised when all are done."""
        answers = await asyncio.gather(*(work(one) for one in due), return_exceptions=True)
        failures = [one for one in answers if isinstance(one, Exception)]
        serious = [one for one in failures if not isinstance(one, EngineUnavailableError)]
        if serious:
            raise serious[0]
        return not failures

    async def _start_one(self, due: Due) -> None:
        """Start one; a start that was lost in between finds the workflow there."""
        await self._engine.start(Ticket(due.execution_id, due.digest))
        await self._progress.began(due.execution_id)

    async def _watch_one(self, due: Due) -> None:
        """Hold one execution against what the engine says."""
        state = await self._engine.describe(due.execution_id)
        if state is EngineState.RUNNING:
            if due.cancel_requested:
                await self._halt(due)
                asyncio.get_running_loop().call_later(CANCEL_PERIOD, self._cancelled.set)
        elif state is EngineState.CANCELLED or (state is EngineState.COMPLETED and due.cancel_requested):
            await self._ends.close(due.execution_id, ExecutionState.CANCELLED)
        elif due.kill_id:
            await self._bury(due)
        else:
            await self._revive(due, state)

    async def _halt(self, due: Due) -> None:
        """Ask one to stop; one that a kill stops is terminated when it goes on for too long."""
        if not due.kill_id or due.kill_age < GRACE:
            await self._engine.cancel(due.execution_id)
            return
        await self._engine.terminate(due.execution_id)
        if await self._engine.describe(due.execution_id) is EngineState.RUNNING:
            log.error("terminated, and goes on", execution_id=due.execution_id, kill_id=due.kill_id)
            await self._progress.unstopped(due.execution_id)

    async def _bury(self, due: Due) -> None:
        """Close a killed execution that its engine ended; an effect that had started is waited for."""
        try:
            await self._ends.settle_and_release(due.execution_id)
        except (InFlightError, CallError) as error:
            log.info("killed, an effect has no end yet", execution_id=due.execution_id, error=str(error))
            return
        await self._ends.close(due.execution_id, ExecutionState.CANCELLED)

    async def _revive(self, due: Due, state: EngineState) -> None:
        """Start again what the engine lost or let die: steps go on from their rows, under the same request ids."""
        execution = await self._store.execution(due.execution_id)
        if execution is None or execution.state not in OPEN_EXECUTION:
            return
        log.warning("engine lost it", execution_id=due.execution_id, engine=state, starts=due.engine_starts)
        if due.engine_starts >= ENGINE_STARTS_MAX:
            await self._ends.give_up(execution)
            return
        await self._progress.starting_again(due.execution_id)
        await self._engine.start(Ticket(due.execution_id, due.digest, again=True))
