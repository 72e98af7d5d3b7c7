"""One try of one step: its turn, its arguments, lock, judgement, call, and what the answer means. Safe to repeat."""

import asyncio
from typing import Final

from google.protobuf.message import Message

from opsmesh.gateway.v1 import effect_service_pb2
from opsmesh.guardrails.v1 import guardrails_service_pb2 as guardrails
from services.automation.approvals import WAITING, Approvals
from services.automation.arguments import ArgumentError, NotYetKnownError, build, holds, target_of, unmet
from services.automation.book import Library
from services.automation.calls import Calls
from services.automation.contract import Kind, Outcome, StepTask
from services.automation.domain import OPEN_EXECUTION, OPEN_STEP, UNDO, StepState, may_run
from services.automation.locks import Locks
from services.automation.progress import Begin, Progress, Result
from services.automation.store import Store
from services.automation.tries import IDENTITY, OutOfTurnError, Try, context_of, sources_of
from services.mesh.call import working
from services.mesh.failures import After, CallError, after_failure, kill_named, sentence
from services.mesh.loop import StoppedError, unless_stopped
from services.mesh.masking import masked_json
from services.mesh.telemetry import parse

AUTHORISE_MAX: Final = 3
PAUSE: Final = 1.0
PAUSE_MAX: Final = 30.0
# Who does not ask for a lock again within 3 s loses the place in its queue.
QUEUE_PAUSE: Final = 1.0
_ENDED: Final = {state: Kind(state) for state in StepState if state in Kind.__members__}


class Runner:
    """Runs tries; everything it knows is in the tables, so that any process can go on."""

    def __init__(
        self, store: Store, progress: Progress, library: Library, calls: Calls, locks: Locks, *, approvals: Approvals
    ) -> None:
        self._approvals = approvals
        self._store = store
        self._progress = progress
        self._library = library
        self._calls = calls
        self._locks = locks

    async def run(self, task: StepTask, stop: asyncio.Event) -> Outcome:
        """Run one try; `stop` keeps back what has not been sent, and waits for what has. Raises OutOfTurnError."""
        execution = await self._store.execution(task.execution_id)
        if execution is None or execution.state not in OPEN_EXECUTION:
            raise OutOfTurnError("there is no such open execution")
        book = await self._library.book(execution)
        spec = book.specs.get(task.step_id)
        row = next((one for one in execution.steps if one.step_id == task.step_id), None)
        if row is not None and row.state not in OPEN_STEP:
            return await self._outcome(task, _ENDED.get(row.state, Kind.SUCCEEDED))
        states = {one.step_id: one.state for one in execution.steps}
        if spec is None or not may_run(task.step_id, book.order, states):
            raise OutOfTurnError(f"it is not the turn of step {task.step_id}")
        if execution.cancel_requested or execution.kill_id:
            return await self._outcome(task, Kind.CANCELLED)
        one = Try(task, execution, book, spec, row, stop)
        trace = parse(execution.traceparent)
        name = f"playbook/{execution.playbook_id}/{task.step_id}"
        with working(IDENTITY, name, spec.longest, trace=trace, on_behalf_of=execution.on_behalf_of):
            async with self._locks.keeping(task.execution_id):
                try:
                    return await self._run(one)
                except StoppedError:
                    return await self._outcome(task, Kind.CANCELLED)

    async def _run(self, one: Try) -> Outcome:
        """Make the request, record that the try begins, call."""
        sources = sources_of(one.execution, one.book)
        tool = one.spec.tool
        try:
            unfit = holds(one.spec.step.when, sources)
        except NotYetKnownError as error:
            unfit = str(error)
        if unfit:
            await self._begin(one, "", "")
            return await self._end(one, Kind.SKIPPED, detail=unfit)
        try:
            request = build(tool, one.spec.step.arguments, sources, one.request_id)
        except ArgumentError as error:
            await self._begin(one, "", "")
            return await self._end(one, Kind.FAILED, error.reason, str(error))
        try:
            if not one.spec.reads:
                request = await self._approvals.request(one, request)
            target_id = target_of(tool, request)
            await self._begin(one, target_id, masked_json(request))
            answer = await (self._read(one, request) if one.spec.reads else self._act(one, request, target_id))
        except CallError as error:
            return await self._failed(one, error)
        return answer if isinstance(answer, Outcome) else await self._answered(one, answer)

    async def _begin(self, one: Try, target_id: str, request_json: str) -> None:
        spec, task = one.spec, one.task
        begin = Begin(
            task.execution_id,
            task.step_id,
            spec.position,
            spec.tool.name,
            task.attempt,
            "" if spec.reads else one.request_id,
            target_id,
            request_json,
        )
        if not await self._progress.begin(begin):
            raise OutOfTurnError(f"step {task.step_id} has gone on without this try")

    async def _read(self, one: Try, request: Message) -> Message:
        """Read; a stop ends the call."""
        call = self._calls.tool(one.spec.tool, request.SerializeToString(), one.spec.seconds)
        return await unless_stopped(call, one.stop)

    async def _act(self, one: Try, request: Message, target_id: str) -> Message | Outcome:
        """Have the effect judged, and make it happen once."""
        task, tool = one.task, one.spec.tool
        if one.sent_before:
            known = await self._known(one, request)
            if known is not None:
                return known
        if one.spec.changes and target_id:
            await unless_stopped(self._locks.take(task.execution_id, target_id), one.stop)
        error = CallError("GRANT_STALE", "authorised anew too often", After.AGAIN, None)
        for _ in range(AUTHORISE_MAX):
            context = context_of(one.execution, task.step_id)
            judged = await unless_stopped(self._calls.authorize(tool, request, context), one.stop)
            if judged.judgement.verdict != guardrails.VERDICT_ALLOW:
                return await self._judged(one, judged)
            if one.stop.is_set() or not await self._progress.sending(task.execution_id, task.step_id, task.attempt):
                raise StoppedError
            try:
                # From here on nothing is given up: a stop waits for the answer.
                return await self._calls.tool(tool, judged.request, one.spec.seconds, judged.grant)
            except CallError as failed:
                renewed = failed.reason == "STATE_CHANGED" and await self._progress.renew(
                    task.execution_id, task.step_id, task.attempt
                )
                if failed.after is not After.AUTHORISE and not renewed:
                    raise
                error = CallError(failed.reason, failed.detail, After.AGAIN, failed.retry_after)
        raise error

    async def _known(self, one: Try, request: Message) -> Message | None:
        """Return the gateway's stored answer to this try, None when it never began. Raises CallError."""
        tool = one.spec.tool
        effect = await self._calls.effect(tool, one.request_id)
        if effect is None or effect.state == effect_service_pb2.Effect.STATE_NOT_STARTED:
            return None
        if effect.state == effect_service_pb2.Effect.STATE_STARTED:
            raise CallError("EFFECT_IN_FLIGHT", "it was sent before and is still under way", After.AGAIN, PAUSE)
        if effect.state == effect_service_pb2.Effect.STATE_UNKNOWN:
            raise CallError("EFFECT_UNKNOWN", effect.detail, After.UNKNOWN, None)
        try:
            # A finished effect is answered from the gateway's store without a grant.
            return await self._calls.tool(tool, request.SerializeToString(deterministic=True), one.spec.seconds)
        except CallError as error:
            if error.reason == "GRANT_MISSING":
                return None
            raise

    async def _judged(self, one: Try, judged: guardrails.AuthorizeActionResponse) -> Outcome:
        """Record a verdict other than ALLOW."""
        judgement = judged.judgement
        failed = [check for check in judgement.checks if not check.passed]
        detail = "; ".join(f"{check.name}: {check.detail}" for check in failed) or judgement.risk_detail
        if judgement.verdict == guardrails.VERDICT_OBSERVE:
            told = f"policy only observes: rule {judgement.policy_rule_id} of policy set {judgement.policy_set_version}"
            return await self._end(one, Kind.OBSERVED, detail=told, environment=judgement.environment)
        if judgement.verdict == guardrails.VERDICT_REQUIRE_APPROVAL:
            return await self._wait(one, judged.approval_id, judgement)
        if judgement.reason == "APPROVAL_VOID" and judged.approval_id:
            newest = await self._approvals.newest(judged.approval_id)
            if newest.close_reason == "KILLED" or kill_named(detail):
                raise CallError("KILLED", newest.close_detail or detail, After.FAIL, None)
            # Amended since it was read: the approval that replaced it is the one to wait for.
            if newest.state in WAITING and newest.approval_id != judged.approval_id:
                return await self._wait(one, newest.approval_id, judgement)
        after = after_failure(judgement.reason, "PERMISSION_DENIED", effect=False)
        raise CallError(judgement.reason or "POLICY_DENIED", detail, after, None)

    async def _wait(self, one: Try, approval_id: str, judgement: guardrails.Judgement) -> Outcome:
        """Wait for people; nobody else waits for this target meanwhile."""
        await self._locks.release(one.task.execution_id)
        told = f"waits for approval {approval_id}: {judgement.risk_detail}"
        state, environment = StepState.AWAITING_APPROVAL, judgement.environment
        await self._record(one, state, "", told, approval_id=approval_id, environment=environment)
        return Outcome(Kind.AWAITING_APPROVAL, approval_id=approval_id)

    async def _failed(self, one: Try, error: CallError) -> Outcome:
        """Say what a failed call means for the step."""
        if error.reason == "KILLED":
            await self._progress.killed(one.task.execution_id, kill_named(error.detail), error.detail)
            return await self._end(one, Kind.CANCELLED, error.reason, error.detail)
        after = After.AGAIN if error.after is After.AUTHORISE else error.after
        if after is After.AGAIN and one.task.last:
            return await self._given_up(one, error)
        if after is After.AGAIN:
            await self._record(one, StepState.RUNNING, error.reason, error.detail)
            pause = min(PAUSE_MAX, max(0.05, PAUSE if error.retry_after is None else error.retry_after))
            queued = error.reason == "LOCK_HELD"
            if queued and await self._locks.held(one.task.execution_id):
                # Whoever holds the target may need the one that is held here: nobody waits with a lock in hand.
                await self._locks.release(one.task.execution_id)
            return await self._outcome(
                one.task, Kind.AGAIN, min(pause, QUEUE_PAUSE) if queued else pause, queued=queued
            )
        if after is After.UNKNOWN and not one.spec.reads:
            return await self._end(one, Kind.UNKNOWN, error.reason, error.detail)
        return await self._retry(one, error.reason, error.detail, final=after is After.FAIL)

    async def _given_up(self, one: Try, error: CallError) -> Outcome:
        """End a step whose obstacle did not pass: UNKNOWN if the effect may have happened."""
        current = await self._store.execution(one.task.execution_id)
        row = next((row for row in current.steps if row.step_id == one.task.step_id), None) if current else None
        if row is None or not row.sent:
            return await self._end(one, Kind.FAILED, error.reason, error.detail)
        try:
            effect = await self._calls.effect(one.spec.tool, one.request_id)
        except CallError as unread:
            return await self._end(one, Kind.UNKNOWN, unread.reason, unread.detail)
        if effect is None or effect.state == effect_service_pb2.Effect.STATE_NOT_STARTED:
            return await self._end(one, Kind.FAILED, error.reason, error.detail)
        return await self._end(one, Kind.UNKNOWN, "EFFECT_UNKNOWN", error.detail)

    async def _answered(self, one: Try, answer: Message) -> Outcome:
        """Hold an answer against what was expected of it."""
        if missed := unmet(one.spec.step.expect, answer):
            return await self._retry(one, "", missed, answer=answer)
        outcome = await self._end(one, Kind.SUCCEEDED, answer=answer)
        if one.task.step_id.endswith(UNDO):
            await self._progress.compensated(one.task.execution_id, one.task.step_id.removesuffix(UNDO))
        return outcome

    async def _retry(
        self, one: Try, reason: str, detail: str, *, final: bool = False, answer: Message | None = None
    ) -> Outcome:
        """Fail the step, or this try only when tries are left."""
        if final or one.task.attempt >= one.spec.attempts:
            return await self._end(one, Kind.FAILED, reason, detail, answer)
        await self._record(one, StepState.RUNNING, reason, detail, answer=answer)
        return await self._outcome(one.task, Kind.RETRY)

    async def _end(
        self,
        one: Try,
        kind: Kind,
        reason: str = "",
        detail: str = "",
        answer: Message | None = None,
        *,
        environment: str = "",
    ) -> Outcome:
        """Record the end of the step."""
        await self._record(one, StepState(kind), reason, detail, answer=answer, environment=environment)
        return await self._outcome(one.task, kind)

    async def _record(
        self,
        one: Try,
        state: StepState,
        reason: str,
        detail: str,
        *,
        answer: Message | None = None,
        approval_id: str = "",
        environment: str = "",
    ) -> None:
        result = Result(
            one.task.execution_id,
            one.task.step_id,
            one.task.attempt,
            state,
            reason,
            sentence(detail),
            approval_id,
            "" if answer is None else masked_json(answer),
            None if answer is None else answer.SerializeToString(),
            environment,
        )
        await self._progress.end(result)

    async def _outcome(self, task: StepTask, kind: Kind, retry_after: float = 0.0, *, queued: bool = False) -> Outcome:
        """Return an outcome that says whether a lock is held."""
        return Outcome(kind, retry_after, locked=bool(await self._locks.held(task.execution_id)), queued=queued)
