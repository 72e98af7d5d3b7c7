"""The beginning, the waits and the ends of an execution, as its workflow asks for them."""

from google.protobuf import json_format

from opsmesh.gateway.v1 import effect_service_pb2
from opsmesh.guardrails.v1 import guardrails_service_pb2
from services.automation.arguments import ArgumentError, NotYetKnownError, build, holds
from services.automation.book import Book, Library, Spec
from services.automation.calls import Calls
from services.automation.contract import End, Plan, Start
from services.automation.domain import OPEN_EXECUTION, OPEN_STEP, ExecutionState, StepState, request_id
from services.automation.locks import Locks
from services.automation.progress import Progress, Result
from services.automation.store import ExecutionRow, Store
from services.automation.tries import IDENTITY, OutOfTurnError, context_of, sources_of
from services.mesh.call import working
from services.mesh.failures import CallError, sentence
from services.mesh.masking import masked_json
from services.mesh.telemetry import parse

SECONDS = 25.0
_EFFECT = effect_service_pb2.Effect
_SETTLED = {
    _EFFECT.STATE_SUCCEEDED: StepState.SUCCEEDED,
    _EFFECT.STATE_FAILED: StepState.FAILED,
    _EFFECT.STATE_UNKNOWN: StepState.UNKNOWN,
}


class InFlightError(Exception):
    """An effect is still under way: ask again later."""


class Ends:
    """Everything about an execution that is not a try of a step; repeating any of it changes nothing."""

    def __init__(self, store: Store, progress: Progress, library: Library, calls: Calls, locks: Locks) -> None:
        self._store = store
        self._progress = progress
        self._library = library
        self._calls = calls
        self._locks = locks

    async def load(self, start: Start) -> Plan:
        """Return what is recorded; raises OutOfTurnError when nobody asked automation for this execution."""
        execution = await self._store.execution(start.execution_id)
        if execution is None or execution.playbook_digest != start.digest:
            raise OutOfTurnError("automation knows no such execution of this playbook")
        if execution.state is ExecutionState.PENDING and not await self._progress.began(start.execution_id):
            # Cancelled, or noted by the lane, since it was read.
            execution = await self._store.execution(start.execution_id) or execution
        return (await self._library.book(execution)).plan(execution)

    async def keep_locks(self, execution_id: str) -> bool:
        """Renew the locks of an execution that pauses."""
        with working(IDENTITY, "playbook/locks", SECONDS):
            await self._locks.keep(execution_id)
        return True

    async def preview_rest(self, execution_id: str) -> bool:
        """Record what the writing steps that will not run would have been told, as far as their arguments are known."""
        execution = await self._open(execution_id)
        if execution is None:
            return False
        book = await self._library.book(execution)
        waiting = {row.step_id for row in execution.steps if row.state is StepState.PENDING}
        with working(IDENTITY, "playbook/preview", SECONDS, trace=parse(execution.traceparent)):
            for step_id in book.order.steps:
                spec = book.specs[step_id]
                if step_id in waiting and not spec.reads:
                    await self._preview(execution, book, spec)
        return True

    async def _preview(self, execution: ExecutionRow, book: Book, spec: Spec) -> None:
        """Record the verdict on one step."""
        sources = sources_of(execution, book)
        state, text, about = StepState.OBSERVED, "", ("", "")
        try:
            if unfit := holds(spec.step.when, sources):
                state, detail = StepState.SKIPPED, unfit
            else:
                own = request_id(execution.execution_id, spec.step_id, 1)
                request = build(spec.tool, spec.step.arguments, sources, own)
                text = masked_json(request)
                asked = json_format.MessageToJson(request, preserving_proto_field_name=True)
                judgement = await self._calls.preview(spec.tool, asked, context_of(execution, spec.step_id))
                verdict = guardrails_service_pb2.Verdict.Name(judgement.verdict).removeprefix("VERDICT_")
                detail = f"would have been judged {verdict}: {judgement.reason or judgement.policy_rule_id}"
                about = judgement.target_id, judgement.environment
        except NotYetKnownError as error:
            detail = f"not previewed: {error}"
        except (ArgumentError, CallError) as error:
            detail = f"could not be previewed: {error}"
        await self._progress.leave(
            execution.execution_id, spec.step_id, state, sentence(detail), request_json=text, about=about
        )

    async def finish(self, end: End) -> bool:
        """Record the end, after every effect has one and the locks are free.

        CANCELLED is not recorded here, but by who sees it at the engine.
        """
        if not await self.settle_and_release(end.execution_id):
            return False
        state = ExecutionState(end.state)
        if state is not ExecutionState.CANCELLED:
            await self.close(end.execution_id, state)
        return True

    async def settle_and_release(self, execution_id: str) -> bool:
        """Find out how every effect ended, and free the locks; False when the execution has ended already."""
        execution = await self._open(execution_id)
        if execution is None:
            await self._locks.release(execution_id)
            return False
        with working(IDENTITY, "playbook/finish", SECONDS, trace=parse(execution.traceparent)):
            await self.settle(execution)
            await self._locks.release(execution_id)
        return True

    async def settle(self, execution: ExecutionRow) -> None:
        """Find out how each effect ended that was sent and has no end yet; raises InFlightError or CallError."""
        book = await self._library.book(execution)
        for row in execution.steps:
            if row.state not in OPEN_STEP or not row.sent:
                continue
            effect = await self._calls.effect(book.specs[row.step_id].tool, row.request_id)
            if effect is not None and effect.state == _EFFECT.STATE_STARTED:
                raise InFlightError(f"the effect of step {row.step_id} is still under way")
            state = _SETTLED.get(effect.state) if effect is not None else None
            if effect is not None and state is not None:
                one = Result(
                    execution.execution_id, row.step_id, row.attempt, state, effect.reason, sentence(effect.detail)
                )
                await self._progress.end(one)

    async def give_up(self, execution: ExecutionRow) -> None:
        """End an execution that the engine cannot carry: UNKNOWN when an effect's end cannot be found out."""
        state = ExecutionState.FAILED
        with working(IDENTITY, "playbook/give-up", SECONDS, trace=parse(execution.traceparent)):
            try:
                await self.settle(execution)
            except (InFlightError, CallError):
                state = ExecutionState.UNKNOWN
            await self._locks.release(execution.execution_id)
        await self.close(execution.execution_id, state)

    async def close(self, execution_id: str, state: ExecutionState) -> None:
        """Record the terminal state with the sentence that explains it; an unknown effect makes it UNKNOWN."""
        execution = await self._open(execution_id)
        if execution is None:
            return
        book = await self._library.book(execution)
        rows = {row.step_id: row for row in execution.steps}
        if any(row.state is StepState.UNKNOWN for row in execution.steps):
            state = ExecutionState.UNKNOWN
        proof = rows.get(book.playbook.proof_step_id)
        proved = proof is not None and proof.state is StepState.SUCCEEDED and state is ExecutionState.SUCCEEDED
        detail = sentence(_why(execution, state, proved=proved))
        await self._progress.finish(execution_id, state, detail, healthy=proved)

    async def _open(self, execution_id: str) -> ExecutionRow | None:
        """Return an execution that has not ended."""
        execution = await self._store.execution(execution_id)
        return execution if execution is not None and execution.state in OPEN_EXECUTION else None


def _why(execution: ExecutionRow, state: ExecutionState, *, proved: bool) -> str:
    """Return the sentence that explains an end."""
    if state is ExecutionState.SUCCEEDED:
        return "every step is done" + (" and the target was seen healthy" if proved else "")
    if state is ExecutionState.CANCELLED:
        return f"{'killed' if execution.kill_id else 'cancelled'}: {execution.cancel_reason or 'at the engine'}"
    word = {ExecutionState.OBSERVED: "was only observed", ExecutionState.UNKNOWN: "has an unknown outcome"}
    wanted = {ExecutionState.OBSERVED: StepState.OBSERVED, ExecutionState.UNKNOWN: StepState.UNKNOWN}
    failed = wanted.get(state, StepState.FAILED)
    row = next((row for row in execution.steps if row.state is failed), None)
    if row is None:
        return "the workflow engine could not carry it to its end"
    return f"step {row.step_id} {word.get(state, 'failed')}: {': '.join(filter(None, [row.reason, row.detail]))}"
