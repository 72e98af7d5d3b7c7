"""Takes runs that are due, works on a few at once, keeps their leases, and lets go of what is no longer its own."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import structlog
from google.protobuf.message import DecodeError
from prometheus_client import Gauge

from services.agents.runs.acting import keep
from services.agents.runs.domain import Run, RunState, StepState
from services.agents.runs.engine import advance
from services.agents.runs.store import Held, LostError, Notes, Park
from services.agents.runs.thinking import frame_of
from services.agents.runs.work import Means, Work
from services.mesh.failures import CallError
from services.mesh.loop import every, wait
from services.mesh.models.tool_schema import NotOfferedError

PERIOD: Final = 0.5
# Runs that are to stop or to be closed do not wait for a place among those that think.
URGENT_MAX: Final = 16
COUNT_PERIOD: Final = 10.0
OPEN: Final = Gauge("opsmesh_runs_open", "Runs that have not ended.", ["state"])
log = structlog.get_logger("opsmesh.agents.runner")


class Runner:
    """Works on at most `places` runs at once, each under a lease of `seconds`."""

    def __init__(self, means: Means, places: int, seconds: float) -> None:
        self._means = means
        self._places = places
        self._seconds = seconds
        self._wake = asyncio.Event()
        self._works: dict[str, Work] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._urgent: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """Look now: something was started, or is to stop."""
        self._wake.set()

    def halt(self, run_ids: Iterable[str]) -> None:
        """Let these runs begin nothing more, as far as they are worked on here."""
        for run_id in run_ids:
            if (work := self._works.get(run_id)) is not None:
                work.stop.set()
        self.wake()

    async def work(self, stop: asyncio.Event) -> None:
        """Work until `stop`; then what is under way is let go, for another process to go on with."""
        counting = asyncio.create_task(every(stop, COUNT_PERIOD, self._count))
        try:
            await every(stop, PERIOD, self.look, self._wake)
        finally:
            counting.cancel()
            tasks = [*self._tasks, *self._urgent]
            for task in tasks:
                task.cancel()
            await asyncio.gather(counting, *tasks, return_exceptions=True)

    async def look(self) -> None:
        """Take what is due and there is a place for."""
        if room := URGENT_MAX - len(self._urgent):
            for held in await self._means.store.claim(room, self._seconds, urgent=True):
                self._take(held, self._urgent)
        if (free := self._places - len(self._tasks)) > 0:
            for held in await self._means.store.claim(free, self._seconds):
                self._take(held, self._tasks)

    def _take(self, held: Held, place: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(self._carry(held))
        place.add(task)
        task.add_done_callback(place.discard)
        task.add_done_callback(lambda _: self._wake.set())

    async def _carry(self, held: Held) -> None:
        """Work on one run until it is parked or over; nothing that goes wrong here ends anything else."""
        try:
            run = await self._means.store.run(held.run_id)
            if run is not None:
                await self._carry_on(held, run)
        except asyncio.CancelledError:
            # This process stops: another one need not wait for the lease to run out.
            await self._means.store.let_go(held)
            raise
        except LostError:
            log.warning("lease lost, another goes on", run_id=held.run_id)
        except Exception:
            # Its lease runs out; whoever takes it next finds the last checkpoint.
            log.exception("run interrupted", run_id=held.run_id)

    async def _carry_on(self, held: Held, run: Run) -> None:
        try:
            work = Work(self._means, held, run, frame_of(run))
        except (NotOfferedError, DecodeError) as error:
            await self._unreadable(held, run, error)
            return
        self._works[run.run_id] = work
        working = asyncio.create_task(self._advance(work))
        keeping = asyncio.create_task(self._keep(work))
        locking = asyncio.create_task(self._keep_lock(work))
        try:
            done, _ = await asyncio.wait({working, keeping}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            if self._works.get(run.run_id) is work:
                del self._works[run.run_id]
            for task in (working, keeping, locking):
                task.cancel()
            await asyncio.gather(working, keeping, locking, return_exceptions=True)

    @staticmethod
    async def _advance(work: Work) -> None:
        while await advance(work):
            pass

    async def _keep(self, work: Work) -> None:
        """Keep the lease, and hear who wants the run to stop. Raises LostError."""
        never = asyncio.Event()
        while not await wait(never, min(1.0, self._seconds / 3)):
            if await self._means.store.renew(work.held, self._seconds):
                work.stop.set()

    @staticmethod
    async def _keep_lock(work: Work) -> None:
        """Keep the lock while the model thinks; without it the next write takes a new one."""
        never = asyncio.Event()
        while True:
            await keep(work)
            await wait(never, work.pace.lock)

    async def _unreadable(self, held: Held, run: Run, error: Exception) -> None:
        """End a run whose frozen template this version cannot read; tried again until guardrails answers."""
        log.error("run cannot be read", run_id=run.run_id, error=str(error))
        try:
            for target_id in run.target_ids if run.registered and run.depth == 1 else ():
                await self._means.outside.release_claim(run.root_run_id, target_id)
            await self._means.outside.end(run.run_id)
        except CallError as refused:
            log.warning("run not closed", run_id=run.run_id, error=str(refused))
            return
        left = [one for one in run.steps if one.open]
        sent = any(one.sent for one in left)
        state, end = (RunState.UNKNOWN, StepState.UNKNOWN) if sent else (RunState.FAILED, StepState.FAILED)
        reason = "TEMPLATE_DISABLED"
        ended = run if not run.open else replace(run, state=state, reason=reason, detail=str(error)[:500])
        steps = [replace(one, state=end, reason=reason) for one in left]
        await self._means.store.checkpoint(held, replace(ended, closed=True), *steps, notes=Notes(park=Park()))

    async def _count(self) -> None:
        counts = await self._means.store.counts()
        for state in ("PENDING", "RUNNING", "AWAITING_APPROVAL", "AWAITING_CHILD"):
            OPEN.labels(state).set(counts.get(state, 0))
