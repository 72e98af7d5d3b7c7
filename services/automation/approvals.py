"""What becomes of an action that needs a person: which approval counts now, and what its state means for the step."""

from typing import Final

from google.protobuf.message import DecodeError, Message

from opsmesh.guardrails.v1 import approval_service_pb2 as pb
from services.automation.calls import Calls
from services.automation.contract import ApprovalTask, Kind, Outcome
from services.automation.domain import StepState
from services.automation.progress import Progress, Result
from services.automation.store import Store
from services.automation.tries import IDENTITY, Try
from services.mesh.call import working
from services.mesh.failures import After, CallError, kill_named, sentence
from services.mesh.tools import Tool

SECONDS: Final = 25.0
# An approval that was replaced more often than this is not waited for any longer.
REPLACED_MAX: Final = 32
_STATE: Final = pb.Approval
WAITING: Final = frozenset({_STATE.STATE_PENDING, _STATE.STATE_APPROVED})


class Approvals:
    """Follows approvals through their replacements; guardrails alone says what an answer allows."""

    def __init__(self, store: Store, progress: Progress, calls: Calls) -> None:
        self._store = store
        self._progress = progress
        self._calls = calls

    async def newest(self, approval_id: str) -> pb.Approval:
        """Return the approval that an approval was replaced by, or itself. Raises CallError."""
        approval = await self._calls.approval(approval_id)
        for _ in range(REPLACED_MAX):
            if not approval.superseded_by:
                return approval
            approval = await self._calls.approval(approval.superseded_by)
        raise CallError("APPROVAL_VOID", f"approval {approval_id} was replaced too often", After.FAIL, None)

    async def request(self, one: Try, request: Message) -> Message:
        """Return what people were asked about in place of a step's own request: it may have been amended."""
        row = one.row
        if row is None or not row.approval_id or row.attempt != one.task.attempt:
            return request
        try:
            approval = await self.newest(row.approval_id)
        except CallError as error:
            if error.reason == "NOT_FOUND":
                return request
            raise
        if approval.approval_id != row.approval_id:
            await self._progress.waits(one.task.execution_id, one.task.step_id, approval.approval_id)
        return approved(one.spec.tool, one.request_id, approval) if approval.request else request

    async def check(self, task: ApprovalTask) -> Outcome:
        """Say whether to wait on, to have the action judged again, or that it will not happen."""
        with working(IDENTITY, "playbook/approval", SECONDS):
            try:
                approval = await self.newest(task.approval_id)
            except CallError as error:
                if error.after is After.FAIL:
                    # Guardrails says with its next judgement what that means.
                    return Outcome(Kind.AGAIN)
                return Outcome(Kind.AWAITING_APPROVAL, approval_id=task.approval_id)
        if approval.approval_id != task.approval_id:
            await self._progress.waits(task.execution_id, task.step_id, approval.approval_id)
        if approval.state != _STATE.STATE_PENDING:
            return await self._closed(task, approval)
        return Outcome(Kind.AWAITING_APPROVAL, approval_id=task.approval_id)

    async def _closed(self, task: ApprovalTask, approval: pb.Approval) -> Outcome:
        """Say what an approval that waits no more means; guardrails says it of every state that is not named here."""
        if approval.state == _STATE.STATE_REJECTED:
            return await self._end(task, Kind.FAILED, "APPROVAL_REJECTED", rejection(approval))
        if approval.state == _STATE.STATE_EXPIRED:
            why = approval.close_detail or "nobody answered in time"
            return await self._end(task, Kind.FAILED, "APPROVAL_EXPIRED", f"approval {approval.approval_id}: {why}")
        if approval.state == _STATE.STATE_VOID and approval.close_reason == "KILLED":
            why = approval.close_detail or "stopped by the kill switch"
            await self._progress.killed(task.execution_id, kill_named(why), why)
            return await self._end(task, Kind.CANCELLED, "KILLED", why)
        return Outcome(Kind.AGAIN)

    async def _end(self, task: ApprovalTask, kind: Kind, reason: str, detail: str) -> Outcome:
        """Record the end of a step that people did not let happen."""
        execution = await self._store.execution(task.execution_id)
        row = next((row for row in execution.steps if row.step_id == task.step_id), None) if execution else None
        if row is not None:
            end = Result(task.execution_id, task.step_id, row.attempt, StepState(kind), reason, sentence(detail))
            await self._progress.end(end)
        return Outcome(kind)


def approved(tool: Tool, request_id: str, approval: pb.Approval) -> Message:
    """Return the request of an approval; raises CallError when it is not one of this try of this tool."""
    if approval.method != tool.name:
        raise CallError("APPROVAL_VOID", f"approval {approval.approval_id} is for {approval.method}", After.FAIL, None)
    try:
        request = tool.request_class.FromString(approval.request)
    except DecodeError:
        raise CallError("APPROVAL_VOID", "the approved request cannot be read", After.FAIL, None) from None
    if getattr(request, "request_id", request_id) != request_id:
        raise CallError("APPROVAL_VOID", "the approved request is that of another try", After.FAIL, None)
    return request


def rejection(approval: pb.Approval) -> str:
    """Return who said no, and why."""
    no = next((vote for vote in approval.votes if vote.answer == pb.Vote.ANSWER_REJECT), None)
    if no is None:
        return approval.close_detail or "a person said no"
    return f"{no.person} rejected approval {approval.approval_id}" + (f": {no.comment}" if no.comment else "")
