"""The one workflow that runs every playbook: it counts tries and waits; what is true is read and written by activities.

Standard library, temporalio and our own dataclasses only: it is replayed, in the tests inside Temporal's sandbox. A
change of the order of its commands needs `workflow.patched` as long as executions from before it run.
"""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from services.automation import contract
    from services.automation.contract import ApprovalTask, End, Kind, Outcome, Plan, Start, StepPlan, StepTask

T = TypeVar("T")
HEARTBEAT = timedelta(seconds=4)
# An activity that cannot reach the database is repeated by the engine; the watcher looks after what ends then.
SHORT = timedelta(seconds=30)
LONGEST = timedelta(minutes=30)
ENGINE_RETRY = RetryPolicy(initial_interval=timedelta(milliseconds=250), maximum_interval=timedelta(seconds=10))
PATIENCE = timedelta(seconds=300)
# Others at the same target may each take minutes.
QUEUE_PATIENCE = timedelta(hours=1)
PAUSE_MAX = 10.0
# An answer wakes it; this is for when nobody could tell.
APPROVAL_POLL = 5.0
# After it the workflow begins anew from what is recorded: a long wait must not outgrow the engine's history.
HISTORY_MAX = 1500


@workflow.defn(name=contract.WORKFLOW)
class PlaybookWorkflow:
    """Runs the steps of one execution; `execution_id` is its own id at the engine."""

    def __init__(self) -> None:
        self._start = Start("", "")
        self._stop = False
        self._woken = False
        self._locked = False
        self._busy: workflow.ActivityHandle[Any] | None = None

    @workflow.run
    async def run(self, start: Start) -> str:
        """Run to an end and return the state; ends as cancelled only when a cancel stopped it before its own end."""
        self._start = start
        work = asyncio.create_task(self._work())
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # The work stops by itself at its next boundary: what had begun is seen to its end.
            self._stop = True
            if self._busy is not None:
                self._busy.cancel()
            state = await work
            if state == Kind.CANCELLED:
                raise
            return state

    @workflow.signal
    def wake(self) -> None:
        """Look again now, because a person may have answered; carries no decision."""
        self._woken = True

    async def _work(self) -> str:
        """Go on from what is recorded; return the state of the end."""
        # In this process, without a round trip through the engine: it is what everybody waits for.
        plan: Plan = await workflow.execute_local_activity(
            contract.LOAD,
            self._start,
            result_type=Plan,
            start_to_close_timeout=SHORT,
            schedule_to_close_timeout=LONGEST,
            retry_policy=ENGINE_RETRY,
        )
        if plan.over:
            return plan.over
        if plan.cancelled:
            # Asked to stop before it began: the request arrives here as a cancel, too.
            await self._wait(LONGEST.total_seconds())
            return await self._finish(Kind.CANCELLED)
        for step in plan.steps:
            kind = await self._step(step)
            if kind is Kind.FAILED and not step.tolerated:
                return await self._finish(await self._repair(plan))
            if kind is Kind.OBSERVED:
                await self._short(contract.PREVIEW, self._start.execution_id, bool)
            if kind in {Kind.OBSERVED, Kind.UNKNOWN, Kind.CANCELLED}:
                return await self._finish(kind)
        return await self._finish(Kind.SUCCEEDED)

    async def _repair(self, plan: Plan) -> Kind:
        """Undo what had succeeded, newest first, then run the failure step."""
        undone = [plan.undos[step.step_id] for step in reversed(plan.steps) if step.step_id in plan.undos]
        for step in [*undone, *([plan.failure_step] if plan.failure_step else [])]:
            kind = await self._step(step)
            if kind in {Kind.UNKNOWN, Kind.CANCELLED}:
                return kind
        return Kind.FAILED

    async def _step(self, step: StepPlan) -> Kind:
        """Try a step until it has an end."""
        if step.state in {"SUCCEEDED", "SKIPPED", "FAILED", "UNKNOWN", "OBSERVED", "COMPENSATED"}:
            return Kind.SUCCEEDED if step.state == "COMPENSATED" else Kind(step.state)
        attempt = max(1, step.attempt)
        outcome = Outcome(Kind.RETRY)
        if step.state == "AWAITING_APPROVAL":
            outcome = await self._approval(step.step_id, step.approval_id)
        last = False
        while not self._stop:
            if outcome.kind in {Kind.RETRY, Kind.AGAIN}:
                outcome = await self._try(step, attempt, last=last)
                self._locked = outcome.locked
            if outcome.kind is Kind.AWAITING_APPROVAL:
                outcome, last = await self._approval(step.step_id, outcome.approval_id), False
            elif outcome.kind is Kind.AGAIN:
                last = self._impatient(f"{step.step_id}/{attempt}", queued=outcome.queued, soon=outcome.retry_after)
                await self._pause(outcome.retry_after)
            elif outcome.kind is Kind.RETRY:
                attempt, last = attempt + 1, False
                await self._pause(step.delay)
            else:
                return outcome.kind
        return Kind.CANCELLED

    def _impatient(self, one_try: str, *, queued: bool, soon: float) -> bool:
        """Say whether patience with an obstacle will be over after the pause; another obstacle starts anew."""
        now, obstacle = workflow.now().timestamp(), f"{one_try}/{'queue' if queued else 'obstacle'}"
        if self._start.obstacle != obstacle:
            self._start = replace(self._start, obstacle=obstacle, since=now)
        return now + soon - self._start.since > (QUEUE_PATIENCE if queued else PATIENCE).total_seconds()

    async def _try(self, step: StepPlan, attempt: int, *, last: bool) -> Outcome:
        """Run one try; the engine repeats a lost one as the same try."""
        task = StepTask(self._start.execution_id, step.step_id, attempt, last)
        try:
            return await self._activity(contract.RUN_STEP, task, Outcome, timedelta(seconds=step.seconds))
        except (ActivityError, asyncio.CancelledError) as error:
            # The second kind when the try's answer and the cancel arrive together: what it did is recorded.
            if self._stop and is_cancelled_exception(error):
                return Outcome(Kind.CANCELLED)
            raise

    async def _approval(self, step_id: str, approval_id: str) -> Outcome:
        """Wait until a person has answered or the time for it is over; no worker is held meanwhile."""
        task = ApprovalTask(self._start.execution_id, step_id, approval_id)
        while not self._stop:
            await self._pause(APPROVAL_POLL)
            if self._stop:
                break
            outcome = await self._short(contract.CHECK_APPROVAL, task, Outcome)
            if outcome.kind is not Kind.AWAITING_APPROVAL:
                return outcome
        return Outcome(Kind.CANCELLED)

    async def _pause(self, seconds: float) -> None:
        """Wait, keep the locks meanwhile, and begin anew when the history has become long."""
        if workflow.info().get_current_history_length() > HISTORY_MAX and not self._stop:
            workflow.continue_as_new(self._start)
        left = seconds
        while left > 0 and not self._stop and not self._woken:
            await self._wait(min(left, PAUSE_MAX))
            left -= PAUSE_MAX
            if left > 0 and self._locked and not self._stop:
                await self._short(contract.KEEP_LOCKS, self._start.execution_id, bool)
        self._woken = False

    async def _wait(self, seconds: float) -> None:
        """Wait for a time, a cancel or a wake-up."""
        try:
            await workflow.wait_condition(lambda: self._stop or self._woken, timeout=timedelta(seconds=seconds))
        except TimeoutError:
            return

    async def _finish(self, kind: Kind) -> str:
        """Record the end; a cancelled execution is recorded as such by who sees it cancelled at the engine."""
        await self._short(contract.FINISH, End(self._start.execution_id, kind), bool)
        return str(kind)

    async def _short(self, name: str, argument: object, answer: type[T]) -> T:
        """Run an activity that only reads or records; a cancel does not touch it."""
        handle = workflow.start_activity(
            name,
            argument,
            result_type=answer,
            start_to_close_timeout=SHORT,
            schedule_to_close_timeout=LONGEST,
            retry_policy=ENGINE_RETRY,
        )
        result: T = await handle
        return result

    async def _activity(self, name: str, argument: object, answer: type[T], longest: timedelta) -> T:
        """Run an activity that acts; a cancel reaches it, and its own answer to that is waited for."""
        self._busy = workflow.start_activity(
            name,
            argument,
            result_type=answer,
            start_to_close_timeout=longest,
            schedule_to_close_timeout=longest + LONGEST,
            heartbeat_timeout=HEARTBEAT,
            retry_policy=ENGINE_RETRY,
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )
        try:
            result: T = await self._busy
        finally:
            self._busy = None
        return result
