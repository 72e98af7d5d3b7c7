"""The activities of the one workflow: heartbeat and cancellation around steps, nothing that decides."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from temporalio import activity
from temporalio.exceptions import ApplicationError

from services.automation import contract
from services.automation.approvals import Approvals
from services.automation.contract import ApprovalTask, End, Outcome, Plan, Start, StepTask
from services.automation.ends import Ends
from services.automation.steps import Runner
from services.automation.tries import OutOfTurnError

# The engine notices a dead worker by missing heartbeats, and a heartbeat brings the news of a cancel.
HEARTBEAT_SECONDS: Final = 1.0


class Activities:
    """What the worker registers."""

    def __init__(self, runner: Runner, approvals: Approvals, ends: Ends) -> None:
        self._runner = runner
        self._approvals = approvals
        self._ends = ends

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return every activity."""
        return [self.load, self.run_step, self.check_approval, self.keep_locks, self.preview_rest, self.finish]

    @activity.defn(name=contract.LOAD)
    async def load(self, start: Start) -> Plan:
        """Return the recorded execution; a workflow that nobody asked automation for ends here."""
        try:
            return await self._ends.load(start)
        except OutOfTurnError as error:
            raise ApplicationError(str(error), non_retryable=True) from None

    @activity.defn(name=contract.RUN_STEP)
    async def run_step(self, task: StepTask) -> Outcome:
        """Run one try; a cancel keeps back what was not sent and waits for what was."""
        stop = asyncio.Event()
        work = asyncio.create_task(self._runner.run(task, stop))
        try:
            while not work.done():
                try:
                    await asyncio.wait({work}, timeout=HEARTBEAT_SECONDS)
                except asyncio.CancelledError:
                    details = activity.cancellation_details()
                    if details is not None and details.worker_shutdown:
                        # Another worker goes on with the same try.
                        raise
                    stop.set()
                activity.heartbeat()
            return work.result()
        except OutOfTurnError as error:
            raise ApplicationError(str(error), non_retryable=True) from None
        finally:
            work.cancel()

    @activity.defn(name=contract.CHECK_APPROVAL)
    async def check_approval(self, task: ApprovalTask) -> Outcome:
        """Say whether a person has answered."""
        return await self._approvals.check(task)

    @activity.defn(name=contract.KEEP_LOCKS)
    async def keep_locks(self, execution_id: str) -> bool:
        """Renew locks during a pause."""
        return await self._ends.keep_locks(execution_id)

    @activity.defn(name=contract.PREVIEW)
    async def preview_rest(self, execution_id: str) -> bool:
        """Preview what policy only observes."""
        return await self._ends.preview_rest(execution_id)

    @activity.defn(name=contract.FINISH)
    async def finish(self, end: End) -> bool:
        """Settle, release, record the end."""
        return await self._ends.finish(end)
