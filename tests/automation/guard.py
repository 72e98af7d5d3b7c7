"""Guardrails, as far as automation can see it: verdicts by script, approvals, locks and kills as its contract says."""
# ruff: noqa: N802  the names are those of the IDL

import asyncio
import hashlib
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from opsmesh.guardrails.v1 import (
    approval_service_pb2,
    approval_service_pb2_grpc,
    guardrails_service_pb2,
    guardrails_service_pb2_grpc,
    kill_switch_service_pb2,
    kill_switch_service_pb2_grpc,
    target_lock_service_pb2,
    target_lock_service_pb2_grpc,
)
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal
from services.mesh.kills import facts, stopping, words
from services.mesh.policy import EFFECTS
from services.mesh.tools import find_tool

TARGET = "svc:demo/checkout"
Approval = approval_service_pb2.Approval
Kill = kill_switch_service_pb2.Kill
Lease = kill_switch_service_pb2.Lease
T = TypeVar("T")
OPEN_SECONDS = 300


async def _unused(*_: object) -> None:
    raise NotImplementedError


def partly(servicer: type[T]) -> type[T]:
    """Let a fake leave out what automation never calls; the server wants every method to be async."""
    for base in servicer.__mro__[1:-1]:
        for name, method in vars(base).items():
            if name[0].isupper() and getattr(servicer, name) is method:
                setattr(servicer, name, _unused)
    return servicer


def grant_for(method: str, request: bytes) -> bytes:
    """Return what stands for a grant: bound to exactly this call."""
    return hashlib.sha256(method.encode() + request).digest()


@partly
class FakeGuardrails(
    guardrails_service_pb2_grpc.GuardrailsServiceServicer,
    target_lock_service_pb2_grpc.TargetLockServiceServicer,
    approval_service_pb2_grpc.ApprovalServiceServicer,
    kill_switch_service_pb2_grpc.KillSwitchServiceServicer,
):
    """Allows what no script says otherwise; one lock per target; a test answers for people and engages kills.

    `drifts` counts how many approved actions find their precondition changed.
    """

    def __init__(self) -> None:
        self._fence = 0
        self._followers: set[asyncio.Queue[Approval]] = set()
        self._leased: set[asyncio.Queue[Lease]] = set()
        self._clear()

    def _clear(self) -> None:
        self.verdicts: defaultdict[str, list[int]] = defaultdict(list)
        self.asked: list[tuple[str, guardrails_service_pb2.ActionContext]] = []
        self.bytes: list[bytes] = []
        self.previewed: list[str] = []
        self.locks: dict[str, tuple[str, int]] = {}
        self.fences: list[int] = []
        self.renewals = 0
        self.refused = 0
        self.drifts = 0
        self.deaf = False
        self.approvals: dict[str, Approval] = {}
        self.kills: dict[str, Kill] = {}
        self.stops: dict[tuple[str, str], list[kill_switch_service_pb2.Stop]] = {}
        self.reports: list[str] = []
        self.forgotten: set[str] = set()
        self._epoch = getattr(self, "_epoch", 0)

    def reset(self) -> None:
        """Forget everything but who follows, and fences and epochs, which only grow."""
        self._clear()
        self._push()

    # People.

    def change(self, approval_id: str, state: "Approval.State.ValueType", **fields: Any) -> Approval:
        """Put an approval into a state, and tell who follows."""
        approval = self.approvals[approval_id]
        approval.MergeFrom(Approval(state=state, **fields))
        approval.update_time.GetCurrentTime()
        for follower in self._followers:
            follower.put_nowait(approval)
        return approval

    def vote(self, approval_id: str, *, yes: bool, comment: str = "") -> None:
        """Let a person answer."""
        answer = approval_service_pb2.Vote.ANSWER_APPROVE if yes else approval_service_pb2.Vote.ANSWER_REJECT
        vote = approval_service_pb2.Vote(person="human/approver", answer=answer, comment=comment)
        reason = "" if yes else "APPROVAL_REJECTED"
        state = Approval.STATE_APPROVED if yes else Approval.STATE_REJECTED
        self.change(approval_id, state, votes=[vote], close_reason=reason)

    def replace(self, approval_id: str, state: "Approval.State.ValueType", request: bytes = b"") -> Approval:
        """Replace an approval by a new one, with other bytes or after a change of state."""
        old = self.approvals[approval_id]
        new = self._ask(old.method, request or old.request, old.context)
        self.change(approval_id, state, superseded_by=new.approval_id, close_reason="STATE_CHANGED")
        return new

    def _ask(self, method: str, request: bytes, context: guardrails_service_pb2.ActionContext) -> Approval:
        approval = Approval(
            approval_id=str(uuid.uuid4()),
            state=Approval.STATE_PENDING,
            method=method,
            request=request,
            request_digest=hashlib.sha256(request).hexdigest(),
            requester="service/automation",
            context=context,
        )
        approval.judgement.target_id = _target(method, request)
        approval.create_time.GetCurrentTime()
        approval.expire_time.FromSeconds(int(time.time()) + OPEN_SECONDS)
        self.approvals[approval.approval_id] = approval
        for follower in self._followers:
            follower.put_nowait(approval)
        return approval

    # Verdicts.

    async def AuthorizeAction(
        self, request: guardrails_service_pb2.AuthorizeActionRequest, _: Any
    ) -> guardrails_service_pb2.AuthorizeActionResponse:
        """Judge by kills, then by an approval of these bytes, then by script, once per entry."""
        tool = find_tool(request.method)
        if request.context.execution_id:
            self.asked.append((tool.rpc, request.context))
            self.bytes.append(request.request)
        answer = guardrails_service_pb2.AuthorizeActionResponse(request=request.request)
        judgement = answer.judgement
        judgement.target_id, judgement.environment = _target(request.method, request.request), "demo"
        if tool.policy.access in EFFECTS and (killed := self._killed(request)):
            return _denied(answer, "KILLED", killed)
        if (approval := self._approval_of(request)) is not None:
            answer.approval_id = approval.approval_id
            return self._approved(answer, request, approval)
        script = self.verdicts[tool.rpc]
        verdict = script.pop(0) if script else guardrails_service_pb2.VERDICT_ALLOW
        judgement.verdict = guardrails_service_pb2.Verdict.ValueType(verdict)
        if verdict == guardrails_service_pb2.VERDICT_ALLOW:
            answer.grant = grant_for(request.method, request.request)
        if verdict == guardrails_service_pb2.VERDICT_DENY:
            return _denied(answer, "POLICY_DENIED", "nobody may")
        if verdict == guardrails_service_pb2.VERDICT_REQUIRE_APPROVAL:
            answer.approval_id = self._ask(request.method, request.request, request.context).approval_id
        return answer

    def _approval_of(self, request: guardrails_service_pb2.AuthorizeActionRequest) -> Approval | None:
        """Return the newest approval of exactly these bytes."""
        mine = [
            one for one in self.approvals.values() if (one.method, one.request) == (request.method, request.request)
        ]
        return mine[-1] if mine else None

    def _approved(
        self,
        answer: guardrails_service_pb2.AuthorizeActionResponse,
        request: guardrails_service_pb2.AuthorizeActionRequest,
        approval: Approval,
    ) -> guardrails_service_pb2.AuthorizeActionResponse:
        """Say what an approval allows now."""
        if approval.state == Approval.STATE_PENDING:
            answer.judgement.verdict = guardrails_service_pb2.VERDICT_REQUIRE_APPROVAL
        elif approval.state == Approval.STATE_APPROVED and self.drifts:
            self.drifts -= 1
            if approval.renewal:
                self.change(approval.approval_id, Approval.STATE_VOID, close_reason="STATE_CHANGED")
                return _denied(answer, "STATE_CHANGED", "process_id: 1 -> 2")
            new = self.replace(approval.approval_id, Approval.STATE_VOID)
            new.renewal = 1
            answer.approval_id = new.approval_id
            answer.judgement.verdict = guardrails_service_pb2.VERDICT_REQUIRE_APPROVAL
        elif approval.state == Approval.STATE_APPROVED:
            answer.judgement.verdict = guardrails_service_pb2.VERDICT_ALLOW
            answer.grant = grant_for(request.method, request.request)
            self.change(approval.approval_id, approval.state).execute_time.GetCurrentTime()
        else:
            return _denied(answer, approval.close_reason or "APPROVAL_VOID", approval.close_detail or "it is closed")
        return answer

    async def PreviewAction(
        self, request: guardrails_service_pb2.PreviewActionRequest, _: Any
    ) -> guardrails_service_pb2.PreviewActionResponse:
        """Say OBSERVE."""
        self.previewed.append(find_tool(request.method).rpc)
        answer = guardrails_service_pb2.PreviewActionResponse()
        answer.judgement.verdict = guardrails_service_pb2.VERDICT_OBSERVE
        answer.judgement.policy_rule_id = "only-look"
        return answer

    # Locks.

    async def AcquireLock(
        self, request: target_lock_service_pb2.AcquireLockRequest, _: Any
    ) -> target_lock_service_pb2.AcquireLockResponse:
        """Give a free lock, or the holder's own again."""
        held = self.locks.get(request.target_id)
        if held and held[0] != request.execution_id:
            self.refused += 1
            reason = error_reason_pb2.ERROR_REASON_LOCK_HELD
            raise Refusal(reason, retry_after=0.2, target=request.target_id, holder=held[0])
        if held is None:
            self._fence += 1
            self.fences.append(self._fence)
            self.locks[request.target_id] = (request.execution_id, self._fence)
        lock = target_lock_service_pb2.TargetLock(
            target_id=request.target_id, holder=request.execution_id, fence=self.locks[request.target_id][1]
        )
        return target_lock_service_pb2.AcquireLockResponse(lock=lock)

    async def RenewLock(
        self, request: target_lock_service_pb2.RenewLockRequest, _: Any
    ) -> target_lock_service_pb2.RenewLockResponse:
        """Count renewals of held locks."""
        if self.locks.get(request.target_id) != (request.execution_id, request.fence):
            raise Refusal(error_reason_pb2.ERROR_REASON_LOCK_REQUIRED, holder=request.execution_id)
        self.renewals += 1
        return target_lock_service_pb2.RenewLockResponse()

    async def ReleaseLock(
        self, request: target_lock_service_pb2.ReleaseLockRequest, _: Any
    ) -> target_lock_service_pb2.ReleaseLockResponse:
        """Free the lock of its holder."""
        if self.locks.get(request.target_id) == (request.execution_id, request.fence):
            del self.locks[request.target_id]
        return target_lock_service_pb2.ReleaseLockResponse()

    # Approvals.

    async def GetApproval(
        self, request: approval_service_pb2.GetApprovalRequest, _: Any
    ) -> approval_service_pb2.GetApprovalResponse:
        """Return an approval."""
        if request.approval_id not in self.approvals:
            raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="approval", id=request.approval_id)
        return approval_service_pb2.GetApprovalResponse(approval=self.approvals[request.approval_id])

    async def WatchApprovals(
        self, _: approval_service_pb2.WatchApprovalsRequest, __: Any
    ) -> AsyncIterator[approval_service_pb2.WatchApprovalsResponse]:
        """Tell what is open, then each change."""
        queue: asyncio.Queue[Approval] = asyncio.Queue()
        self._followers.add(queue)
        try:
            for approval in list(self.approvals.values()):
                if approval.state in {Approval.STATE_PENDING, Approval.STATE_APPROVED}:
                    yield approval_service_pb2.WatchApprovalsResponse(approval=approval)
            while True:
                yield approval_service_pb2.WatchApprovalsResponse(approval=await queue.get())
        finally:
            self._followers.discard(queue)

    # Kills.

    def engage(self, **scope: Any) -> str:
        """Engage a kill, as the RPC does; return its id."""
        self._epoch += 1
        kill = Kill(
            kill_id=str(uuid.uuid4()),
            scope=kill_switch_service_pb2.KillScope(**scope),
            epoch=self._epoch,
            state=Kill.STATE_ENGAGED,
            reason="a test",
            engager="human/operator",
        )
        self.kills[kill.kill_id] = kill
        self._push()
        return kill.kill_id

    def release(self, kill_id: str) -> None:
        """Let go of a kill."""
        self.kills[kill_id].state = Kill.STATE_RELEASED
        self.kills[kill_id].releasers.append("human/approver")
        self._push()

    def forget(self, kill_id: str) -> None:
        """Release a kill so long ago that no lease names it."""
        self.kills[kill_id].state = Kill.STATE_RELEASED
        self.forgotten.add(kill_id)

    def withdraw(self) -> None:
        """Push what guardrails pushes while it cannot store a kill."""
        for queue in self._leased:
            queue.put_nowait(Lease(withdrawn=True))

    def _lease(self) -> Lease:
        lease = Lease(kill_epoch=self._epoch)
        lease.lease_time.GetCurrentTime()
        for kill in self.kills.values():
            released = kill.state == Kill.STATE_RELEASED
            if kill.kill_id in self.forgotten:
                continue
            lease.kills.add(kill_id=kill.kill_id, scope=kill.scope, epoch=kill.epoch, released=released)
        return lease

    def _push(self) -> None:
        for queue in self._leased:
            queue.put_nowait(self._lease())

    def _killed(self, request: guardrails_service_pb2.AuthorizeActionRequest) -> str:
        """Return which kill stops an action, and for ever if its execution was reported under one."""
        context = request.context
        about = facts(
            environment="demo",
            target_id=_target(request.method, request.request),
            tool=request.method,
            playbook_id=context.playbook_id,
            execution_id=context.execution_id,
        )
        if found := stopping(self._lease().kills, about):
            return f"kill {found.kill_id} ({words(found.scope)}) stops this"
        reported = next((kill_id for kill_id, subject in self.stops if subject == context.execution_id), "")
        return f"kill {reported} stops this" if reported else ""

    async def PollLease(
        self, _: kill_switch_service_pb2.PollLeaseRequest, __: Any
    ) -> kill_switch_service_pb2.PollLeaseResponse:
        """Return what holds, unless the test wants silence."""
        if self.deaf:
            raise Refusal(error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE, store="guardrails")
        return kill_switch_service_pb2.PollLeaseResponse(lease=self._lease())

    async def WatchLease(
        self, _: kill_switch_service_pb2.WatchLeaseRequest, __: Any
    ) -> AsyncIterator[kill_switch_service_pb2.WatchLeaseResponse]:
        """Push what holds."""
        queue: asyncio.Queue[Lease] = asyncio.Queue()
        queue.put_nowait(self._lease())
        self._leased.add(queue)
        try:
            while True:
                yield kill_switch_service_pb2.WatchLeaseResponse(lease=await queue.get())
        finally:
            self._leased.discard(queue)

    async def GetStatus(
        self, request: kill_switch_service_pb2.GetStatusRequest, _: Any
    ) -> kill_switch_service_pb2.GetStatusResponse:
        """Return one kill."""
        kill = self.kills.get(request.kill_id)
        return kill_switch_service_pb2.GetStatusResponse(kills=[kill] if kill else [])

    async def ReportStops(
        self, request: kill_switch_service_pb2.ReportStopsRequest, _: Any
    ) -> kill_switch_service_pb2.ReportStopsResponse:
        """Keep every report in order."""
        self.reports.append(request.kill_id)
        for stop in request.stops:
            self.stops.setdefault((request.kill_id, stop.subject), []).append(stop)
        return kill_switch_service_pb2.ReportStopsResponse()

    def stop_of(self, kill_id: str, execution_id: str) -> str:
        """Return the last report about an execution, empty when there is none."""
        reports = self.stops.get((kill_id, execution_id))
        state = kill_switch_service_pb2.Stop.State.Name(reports[-1].state) if reports else ""
        return state.removeprefix("STATE_")


def _target(method: str, request: bytes) -> str:
    """Return the target that a request names."""
    return str(getattr(find_tool(method).request_class.FromString(request), "target_id", ""))


def _denied(
    answer: guardrails_service_pb2.AuthorizeActionResponse, reason: str, detail: str
) -> guardrails_service_pb2.AuthorizeActionResponse:
    """Return a refusal."""
    answer.judgement.verdict = guardrails_service_pb2.VERDICT_DENY
    answer.judgement.reason = reason
    answer.judgement.checks.add(name="policy", detail=detail, reason=reason)
    return answer
