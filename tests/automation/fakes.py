"""The services around automation, as far as it can see them: scripted, counting, over real mTLS."""
# ruff: noqa: N802  the names are those of the IDL

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf.message import Message

from opsmesh.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from opsmesh.gateway.v1 import effect_service_pb2, effect_service_pb2_grpc
from opsmesh.guardrails.v1 import grant_pb2
from opsmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc, signal_pb2
from opsmesh.tools.notify.v1 import notify_tool_service_pb2, notify_tool_service_pb2_grpc
from opsmesh.tools.runbook.v1 import runbook_tool_service_pb2, runbook_tool_service_pb2_grpc
from opsmesh.tools.workload.v1 import workload_tool_service_pb2, workload_tool_service_pb2_grpc
from opsmesh.type.v1 import error_reason_pb2, type_pb2
from services.mesh.call import current
from services.mesh.errors import Refusal
from services.mesh.policy import digest
from services.mesh.tools import find_tool
from tests.automation.guard import FakeGuardrails, grant_for, partly

TARGET = "svc:demo/checkout"
__all__ = ["TARGET", "FakeAudit", "FakeGateway", "FakeGuardrails", "FakeIngest", "Hold"]
Effect = effect_service_pb2.Effect
M = TypeVar("M", bound=Message)


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
    """Knows every incident it is asked for; `targets` are those of incidents that have others, by incident id."""

    def __init__(self) -> None:
        self.targets: dict[str, list[str]] = {}

    async def GetIncident(
        self, request: ingest_service_pb2.GetIncidentRequest, _: Any
    ) -> ingest_service_pb2.GetIncidentResponse:
        """Return the incident."""
        found = incident(request.incident_id)
        if others := self.targets.get(request.incident_id):
            del found.targets[:]
            for one in others:
                found.targets.add(target_id=one, environment="demo", region="local", in_inventory=True)
        return ingest_service_pb2.GetIncidentResponse(incident=found)


@partly
class FakeAudit(audit_service_pb2_grpc.AuditServiceServicer):
    """Keeps events."""

    def __init__(self) -> None:
        self.events: list[audit_service_pb2.AuditEvent] = []
        self.down = False

    async def AppendEvents(
        self, request: audit_service_pb2.AppendEventsRequest, _: Any
    ) -> audit_service_pb2.AppendEventsResponse:
        """Keep them."""
        if self.down:
            raise Refusal(error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE, store="audit")
        self.events += request.events
        return audit_service_pb2.AppendEventsResponse(sequences=range(1, len(request.events) + 1))


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
        self.mute = 0
        # Whether grants come from the real guardrails; those that came.
        self.signed = False
        self.grants: list[grant_pb2.Grant] = []
        self.process_id = 1
        self.told: list[notify_tool_service_pb2.SendNoticeRequest] = []
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
        return workload_tool_service_pb2.GetWorkloadResponse(
            state=workload_tool_service_pb2.Workload.STATE_RUNNING, process_id=self.process_id
        )

    async def RestartWorkload(
        self, request: workload_tool_service_pb2.RestartWorkloadRequest, _: Any
    ) -> workload_tool_service_pb2.RestartWorkloadResponse:
        """Restart."""
        answer = workload_tool_service_pb2.RestartWorkloadResponse(previous_process_id=1, process_id=2)
        return await self._effect("RestartWorkload", request, answer)

    async def SendNotice(
        self, request: notify_tool_service_pb2.SendNoticeRequest, _: Any
    ) -> notify_tool_service_pb2.SendNoticeResponse:
        """Tell; what automation says by itself, about approvals and kills, goes into `told`."""
        if request.approval_id or request.kill_id:
            self._granted(request)
            if self.mute:
                self.mute -= 1
                raise Refusal(error_reason_pb2.ERROR_REASON_BACKEND_UNAVAILABLE, target="ops", detail="mute")
            self.told.append(request)
            return notify_tool_service_pb2.SendNoticeResponse(notice_id="n")
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

    def _granted(self, request: Message) -> None:
        """Refuse what no grant of exactly these bytes comes with: the fake's, or one of the real guardrails."""
        told, method = current().metadata.get("opsmesh-grant-bin"), current().method
        if not self.signed:
            if told != grant_for(method, request.SerializeToString()):
                raise Refusal(error_reason_pb2.ERROR_REASON_GRANT_MISSING)
            return
        signed = grant_pb2.SignedGrant.FromString(told if isinstance(told, bytes) else b"")
        grant = grant_pb2.Grant.FromString(signed.grant)
        if grant.request_digest != digest(method, request):
            raise Refusal(error_reason_pb2.ERROR_REASON_GRANT_INVALID, why="other bytes")
        self.grants.append(grant)

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
        self._granted(request)
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
