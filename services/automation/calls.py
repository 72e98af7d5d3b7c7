"""What automation asks of other services; every failed call becomes one `CallError` that says what it means."""

import uuid
from typing import Final

from google.protobuf import duration_pb2
from google.protobuf.message import Message

from opsmesh.gateway.v1 import effect_service_pb2 as effects
from opsmesh.guardrails.v1 import (
    approval_service_pb2,
    approval_service_pb2_grpc,
    guardrails_service_pb2,
    guardrails_service_pb2_grpc,
    target_lock_service_pb2,
    target_lock_service_pb2_grpc,
)
from opsmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from opsmesh.policy.v1 import policy_pb2
from services.mesh.client import Peers
from services.mesh.failures import answered
from services.mesh.tool_caller import ToolCaller
from services.mesh.tools import Tool

LOCK_SECONDS: Final = 30
ASK_SECONDS: Final = 5.0


class Calls:
    """Typed calls to guardrails, gateway and ingest; `tool` calls any tool of the IDL without knowing it."""

    def __init__(self, peers: Peers) -> None:
        guardrails = peers.channel("guardrails")
        self._guardrails = guardrails_service_pb2_grpc.GuardrailsServiceStub(guardrails)
        self._locks = target_lock_service_pb2_grpc.TargetLockServiceStub(guardrails)
        self._approvals = approval_service_pb2_grpc.ApprovalServiceStub(guardrails)
        self._ingest = ingest_service_pb2_grpc.IngestServiceStub(peers.channel("ingest"))
        self._tools = ToolCaller(peers.channel("gateway"))

    async def incident(self, incident_id: str) -> ingest_service_pb2.Incident:
        """Return an incident; raises AioRpcError, which the chain passes on to the caller of StartExecution."""
        request = ingest_service_pb2.GetIncidentRequest(incident_id=incident_id)
        answer: ingest_service_pb2.GetIncidentResponse = await self._ingest.GetIncident(request)
        return answer.incident

    async def tool(self, tool: Tool, request: bytes, seconds: float, grant: bytes = b"") -> Message:
        """Call a tool with exactly these bytes; `grant` is what guardrails minted for them. Raises CallError."""
        call = self._tools.call(tool, request, seconds, grant)
        return await answered(call, effect=tool.policy.access != policy_pb2.ACCESS_READ)

    async def authorize(
        self, tool: Tool, request: Message, context: guardrails_service_pb2.ActionContext
    ) -> guardrails_service_pb2.AuthorizeActionResponse:
        """Have an action judged."""
        asked = guardrails_service_pb2.AuthorizeActionRequest(
            method=tool.name, request=request.SerializeToString(deterministic=True), context=context
        )
        return await answered(self._guardrails.AuthorizeAction(asked))

    async def preview(
        self, tool: Tool, request_json: str, context: guardrails_service_pb2.ActionContext
    ) -> guardrails_service_pb2.Judgement:
        """Have an action judged that will not happen."""
        asked = guardrails_service_pb2.PreviewActionRequest(
            method=tool.name, request_json=request_json, context=context
        )
        return (await answered(self._guardrails.PreviewAction(asked))).judgement

    async def approval(self, approval_id: str) -> approval_service_pb2.Approval:
        """Return an approval."""
        asked = approval_service_pb2.GetApprovalRequest(approval_id=approval_id)
        return (await answered(self._approvals.GetApproval(asked))).approval

    async def acquire(self, execution_id: str, target_id: str) -> int:
        """Take or keep a target's lock and return its fence."""
        asked = target_lock_service_pb2.AcquireLockRequest(
            # Taken anew each time: the stored answer of an earlier call could name a fence that was lost since.
            request_id=str(uuid.uuid4()),
            target_id=target_id,
            execution_id=execution_id,
            ttl_duration=duration_pb2.Duration(seconds=LOCK_SECONDS),
        )
        return (await answered(self._locks.AcquireLock(asked))).lock.fence

    async def renew(self, execution_id: str, target_id: str, fence: int) -> None:
        """Keep a lock."""
        asked = target_lock_service_pb2.RenewLockRequest(
            target_id=target_id,
            execution_id=execution_id,
            fence=fence,
            ttl_duration=duration_pb2.Duration(seconds=LOCK_SECONDS),
        )
        await answered(self._locks.RenewLock(asked))

    async def release(self, execution_id: str, target_id: str, fence: int) -> None:
        """Give a lock back."""
        asked = target_lock_service_pb2.ReleaseLockRequest(
            request_id=str(uuid.uuid5(uuid.UUID(execution_id), f"release/{target_id}/{fence}")),
            target_id=target_id,
            execution_id=execution_id,
            fence=fence,
        )
        await answered(self._locks.ReleaseLock(asked))

    async def effect(self, tool: Tool, request_id: str) -> effects.Effect | None:
        """Return what the gateway knows of an effect, None when it never heard of it."""
        return await self._tools.effect(tool, request_id)
