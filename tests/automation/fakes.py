"""The services around automation, as far as it can see them: scripted, counting, over real mTLS."""
# ruff: noqa: N802  the names are those of the IDL

import asyncio
import hashlib
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf.message import Message

from opsmesh.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from opsmesh.gateway.v1 import effect_service_pb2, effect_service_pb2_grpc
from opsmesh.guardrails.v1 import (
    approval_service_pb2,
    approval_service_pb2_grpc,
    guardrails_service_pb2,
    guardrails_service_pb2_grpc,
    target_lock_service_pb2,
    target_lock_service_pb2_grpc,
)
from opsmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc, signal_pb2
from opsmesh.tools.notify.v1 import notify_tool_service_pb2, notify_tool_service_pb2_grpc
from opsmesh.tools.runbook.v1 import runbook_tool_service_pb2, runbook_tool_service_pb2_grpc
from opsmesh.tools.workload.v1 import workload_tool_service_pb2, workload_tool_service_pb2_grpc
from opsmesh.type.v1 import error_reason_pb2, type_pb2
from services.mesh.call import current
from services.mesh.errors import Refusal
from services.mesh.tools import find_tool

TARGET = "svc:demo/checkout"
Effect = effect_service_pb2.Effect
M = TypeVar("M", bound=Message)
T = TypeVar("T")


async def _unused(*_: object) -> None:
    raise NotImplementedError


def partly(servicer: type[T]) -> type[T]:
    """Let a fake leave out what automation never calls; the server wants every method to be async."""
    for base in servicer.__mro__[1:-1]:
        for name, method in vars(base).items():
            if name[0].isupper() and getattr(servicer, name) is method:
                setattr(servicer, name, _unused)
    return servicer


def incident(incident_id: str) -> ingest_service_pb2.Incident:
    """Return the incident every test works on: one target in the inventory, hostile text."""
    return ingest_service_pb2.Incident(
        incident_id=incident_id,
        title="checkout is down " + "x" * 300,
        state=ingest_service_pb2.Incident.STATE_OPEN,
        severity=signal_pb2.Signal.SEVERITY_CRITICAL,
        source="alertmanager",
        rule_name="CheckoutDown",
        labels={"team": "shop"},
        targets=[
            type_pb2.Target(target_id=TARGET, environment="demo", region="local", in_inventory=True),
            type_pb2.Target(target_id="; rm -rf /", in_inventory=False),
        ],
    )


@partly
class FakeIngest(ingest_service_pb2_grpc.IngestServiceServicer):
    """Knows every incident it is asked for."""

    async def GetIncident(
        self, request: ingest_service_pb2.GetIncidentRequest, _: Any
    ) -> ingest_service_pb2.GetIncidentResponse:
        """Return the incident."""
        return ingest_service_pb2.GetIncidentResponse(incident=incident(request.incident_id))


@partly
class FakeAudit(audit_service_pb2_grpc.AuditServiceServicer):
    """Keeps events."""

    def __init__(self) -> None:
        self.events: list[audit_service_pb2.AuditEvent] = []

    async def AppendEvents(
        self, request: audit_service_pb2.AppendEventsRequest, _: Any
    ) -> audit_service_pb2.AppendEventsResponse:
        """Keep them."""
        self.events += request.events
        return audit_service_pb2.AppendEventsResponse(sequences=range(1, len(request.events) + 1))


def grant_for(method: str, request: bytes) -> bytes:
    """Return what stands for a grant: bound to exactly this call."""
    return hashlib.sha256(method.encode() + request).digest()


@partly
class FakeGuardrails(
    guardrails_service_pb2_grpc.GuardrailsServiceServicer,
    target_lock_service_pb2_grpc.TargetLockServiceServicer,
    approval_service_pb2_grpc.ApprovalServiceServicer,
):
    """Allows what no script says otherwise; one lock per target; approvals as the test sets them."""

    def __init__(self) -> None:
        self.verdicts: defaultdict[str, list[int]] = defaultdict(list)
        self.asked: list[tuple[str, guardrails_service_pb2.ActionContext]] = []
        self.previewed: list[str] = []
        self.locks: dict[str, tuple[str, int]] = {}
        self.renewals = 0
        self.refused = 0
        self.approvals: dict[str, int] = {}
        self._fence = 0

    async def AuthorizeAction(
        self, request: guardrails_service_pb2.AuthorizeActionRequest, _: Any
    ) -> guardrails_service_pb2.AuthorizeActionResponse:
        """Judge by script, once per entry."""
        tool = find_tool(request.method)
        self.asked.append((tool.rpc, request.context))
        script = self.verdicts[tool.rpc]
        verdict = script.pop(0) if script else guardrails_service_pb2.VERDICT_ALLOW
        answer = guardrails_service_pb2.AuthorizeActionResponse(request=request.request)
        answer.judgement.verdict = guardrails_service_pb2.Verdict.ValueType(verdict)
        if verdict == guardrails_service_pb2.VERDICT_ALLOW:
            answer.grant = grant_for(request.method, request.request)
        if verdict == guardrails_service_pb2.VERDICT_DENY:
            answer.judgement.reason = "POLICY_DENIED"
            answer.judgement.checks.add(name="policy", detail="nobody may")
        if verdict == guardrails_service_pb2.VERDICT_REQUIRE_APPROVAL:
            answer.approval_id = str(uuid.uuid4())
            self.approvals[answer.approval_id] = approval_service_pb2.Approval.STATE_PENDING
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

    async def GetApproval(
        self, request: approval_service_pb2.GetApprovalRequest, _: Any
    ) -> approval_service_pb2.GetApprovalResponse:
        """Return the state a test has set."""
        state = approval_service_pb2.Approval.State.ValueType(self.approvals[request.approval_id])
        approval = approval_service_pb2.Approval(approval_id=request.approval_id, state=state)
        return approval_service_pb2.GetApprovalResponse(approval=approval)


@dataclass
class Hold:
    """Holds one effect: `began` is set when it has begun, it goes on when a test sets `go`."""

    began: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)


Turn = Callable[[], Message] | Hold | Refusal | str


@partly
class FakeGateway(
    workload_tool_service_pb2_grpc.WorkloadToolServiceServicer,
    notify_tool_service_pb2_grpc.NotifyToolServiceServicer,
    runbook_tool_service_pb2_grpc.RunbookToolServiceServicer,
    effect_service_pb2_grpc.EffectServiceServicer,
):
    """Stores answers by (rpc, request_id) as the gateway does; `done` counts what really happened.

    `turns[rpc]` scripts the next calls: a Refusal (nothing happens), "lose" (it happens, the answer is lost),
    "fail" and "unknown" (stored outcomes), a Hold. Without a script an effect succeeds.
    """

    def __init__(self) -> None:
        self.turns: defaultdict[str, list[Turn]] = defaultdict(list)
        self.done: list[tuple[str, str]] = []
        self.seen: list[tuple[str, Any]] = []
        self.effects: dict[tuple[str, str], tuple[int, Message | Refusal | None]] = {}
        self.health: list[bool] = []
        self.healthy = False
        self.asked_effects = 0

    def count(self, rpc: str) -> int:
        """Return how often an effect really happened."""
        return sum(1 for name, _ in self.done if name == rpc)

    async def CheckHealth(
        self, request: workload_tool_service_pb2.CheckHealthRequest, _: Any
    ) -> workload_tool_service_pb2.CheckHealthResponse:
        """Answer by script, else by the state that a restart mends."""
        self.seen.append(("CheckHealth", request))
        await self._turn("CheckHealth")
        healthy = self.health.pop(0) if self.health else self.healthy
        return workload_tool_service_pb2.CheckHealthResponse(healthy=healthy, status_code=200 if healthy else 503)

    async def GetWorkload(
        self, _request: workload_tool_service_pb2.GetWorkloadRequest, _: Any
    ) -> workload_tool_service_pb2.GetWorkloadResponse:
        """Say that it runs."""
        return workload_tool_service_pb2.GetWorkloadResponse(process_id=1)

    async def RestartWorkload(
        self, request: workload_tool_service_pb2.RestartWorkloadRequest, _: Any
    ) -> workload_tool_service_pb2.RestartWorkloadResponse:
        """Restart."""
        answer = workload_tool_service_pb2.RestartWorkloadResponse(previous_process_id=1, process_id=2)
        return await self._effect("RestartWorkload", request, answer)

    async def SendNotice(
        self, request: notify_tool_service_pb2.SendNoticeRequest, _: Any
    ) -> notify_tool_service_pb2.SendNoticeResponse:
        """Tell."""
        return await self._effect("SendNotice", request, notify_tool_service_pb2.SendNoticeResponse(notice_id="n"))

    async def SearchRunbooks(
        self, request: runbook_tool_service_pb2.SearchRunbooksRequest, _: Any
    ) -> runbook_tool_service_pb2.SearchRunbooksResponse:
        """Find one runbook."""
        self.seen.append(("SearchRunbooks", request))
        answer = runbook_tool_service_pb2.SearchRunbooksResponse()
        answer.hits.add(line=1).runbook.title = "Checkout is down"
        return answer

    async def GetEffect(
        self, request: effect_service_pb2.GetEffectRequest, _: Any
    ) -> effect_service_pb2.GetEffectResponse:
        """Return what is known of an effect."""
        self.asked_effects += 1
        known = self.effects.get((find_tool(request.method).rpc, request.request_id))
        if known is None:
            raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="effect", id=request.request_id)
        effect = Effect(method=request.method, request_id=request.request_id, state=Effect.State.ValueType(known[0]))
        return effect_service_pb2.GetEffectResponse(effect=effect)

    async def _turn(self, rpc: str) -> Turn | None:
        turn = self.turns[rpc].pop(0) if self.turns[rpc] else None
        if isinstance(turn, Refusal):
            raise turn
        return turn

    async def _effect(self, rpc: str, request: Any, answer: M) -> M:
        """Answer from the store, or act once."""
        self.seen.append((rpc, request))
        key = (rpc, request.request_id)
        if key in self.effects and self.effects[key][0] != Effect.STATE_NOT_STARTED:
            return self._stored(key, answer)
        if current().metadata.get("opsmesh-grant-bin") != grant_for(current().method, request.SerializeToString()):
            raise Refusal(error_reason_pb2.ERROR_REASON_GRANT_MISSING)
        turn = await self._turn(rpc)
        self.effects[key] = (Effect.STATE_STARTED, None)
        # A caller that hangs up does not interrupt what was begun.
        await asyncio.shield(asyncio.ensure_future(self._act(key, answer, turn)))
        if turn == "lose":
            raise Refusal(error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE, store="the wire")
        return self._stored(key, answer)

    async def _act(self, key: tuple[str, str], answer: Message, turn: Turn | None) -> None:
        if isinstance(turn, Hold):
            turn.began.set()
            await turn.go.wait()
        self.done.append(key)
        if turn == "fail":
            self.effects[key] = (Effect.STATE_FAILED, Refusal(error_reason_pb2.ERROR_REASON_EFFECT_FAILED, detail="no"))
        elif turn == "unknown":
            self.effects[key] = (Effect.STATE_UNKNOWN, Refusal(error_reason_pb2.ERROR_REASON_EFFECT_UNKNOWN))
        else:
            self.healthy = True
            self.effects[key] = (Effect.STATE_SUCCEEDED, answer)

    def _stored(self, key: tuple[str, str], answer: M) -> M:
        state, stored = self.effects[key]
        if state == Effect.STATE_STARTED:
            raise Refusal(error_reason_pb2.ERROR_REASON_EFFECT_IN_FLIGHT, retry_after=0.2, request_id=key[1])
        if isinstance(stored, Refusal):
            raise stored
        return answer
