"""What a run asks of guardrails and the gateway; every failed call is a CallError that says what it means."""

import uuid
from dataclasses import dataclass
from typing import Final, Protocol

from google.protobuf import duration_pb2
from google.protobuf.message import Message

from opsmesh.gateway.v1 import effect_service_pb2 as effects
from opsmesh.guardrails.v1 import approval_service_pb2 as approvals
from opsmesh.guardrails.v1 import approval_service_pb2_grpc, guardrails_service_pb2_grpc, target_lock_service_pb2_grpc
from opsmesh.guardrails.v1 import guardrails_service_pb2 as guardrails
from opsmesh.guardrails.v1 import target_lock_service_pb2 as locks
from opsmesh.policy.v1 import policy_pb2
from services.agents.runs.domain import Run, derived_id
from services.mesh import client
from services.mesh.failures import After, CallError, answered
from services.mesh.tool_caller import ToolCaller
from services.mesh.tools import Tool

CLAIM_SECONDS: Final = 120
LOCK_SECONDS: Final = 60
# People may take long to approve; a run that has ended is ended at guardrails, too.
LIFETIME_SECONDS: Final = 86_400
# An approval that was replaced more often than this is not followed any longer.
REPLACED_MAX: Final = 32


@dataclass(frozen=True, slots=True)
class ReadPass:
    """A read grant; `expire` is in seconds since the epoch, by guardrails' clock."""

    grant: bytes
    expire: float


class Outside(Protocol):
    """The other services, as a run needs them. Every method raises CallError."""

    async def register(self, run: Run) -> str:
        """Bind a run to its template, incident, targets and person; return for whom it acts."""
        ...

    async def end(self, run_id: str) -> None:
        """End a run: nothing is granted to it any more."""
        ...

    async def claim(self, root_run_id: str, target_id: str) -> None:
        """Claim a target for CLAIM_SECONDS, or keep the claim."""
        ...

    async def release_claim(self, root_run_id: str, target_id: str) -> None:
        """Give a claim back."""
        ...

    async def read_pass(self, run_id: str) -> ReadPass:
        """Return what the gateway lets a run read with."""
        ...

    async def lock(self, run_id: str, target_id: str) -> int:
        """Take or keep the lock of a target for LOCK_SECONDS; return its fence."""
        ...

    async def keep_lock(self, run_id: str, target_id: str, fence: int) -> None:
        """Keep a lock for another LOCK_SECONDS."""
        ...

    async def unlock(self, run_id: str, target_id: str, fence: int) -> None:
        """Give a lock back."""
        ...

    async def authorize(
        self, tool: Tool, request: bytes, context: guardrails.ActionContext
    ) -> guardrails.AuthorizeActionResponse:
        """Have an action judged."""
        ...

    async def approval(self, approval_id: str) -> approvals.Approval:
        """Return the approval that counts now: the one that replaced it, or itself."""
        ...

    async def call(self, tool: Tool, request: bytes, seconds: float, grant: bytes) -> Message:
        """Call a tool with exactly these bytes."""
        ...

    async def effect(self, tool: Tool, request_id: str) -> effects.Effect | None:
        """Return what the gateway knows of an effect, None when it never heard of it."""
        ...


class Peers:
    """Outside, over mTLS."""

    def __init__(self, peers: client.Peers) -> None:
        channel = peers.channel("guardrails")
        self._guardrails = guardrails_service_pb2_grpc.GuardrailsServiceStub(channel)
        self._locks = target_lock_service_pb2_grpc.TargetLockServiceStub(channel)
        self._approvals = approval_service_pb2_grpc.ApprovalServiceStub(channel)
        self._tools = ToolCaller(peers.channel("gateway"))

    async def register(self, run: Run) -> str:
        """See Outside; the same id again gets the stored answer."""
        asked = guardrails.RegisterRunRequest(
            request_id=derived_id(run.run_id, "register", 0),
            run_id=run.run_id,
            template_id=run.template_id,
            incident_id=run.incident_id,
            decision_id=run.decision_id,
            target_ids=run.target_ids,
            parent_run_id=run.parent_run_id,
            lifetime_duration=duration_pb2.Duration(seconds=LIFETIME_SECONDS),
            identity_token=run.identity_token,
        )
        return (await answered(self._guardrails.RegisterRun(asked))).run.requester

    async def end(self, run_id: str) -> None:
        """See Outside."""
        asked = guardrails.EndRunRequest(request_id=derived_id(run_id, "end", 0), run_id=run_id)
        await answered(self._guardrails.EndRun(asked))

    async def claim(self, root_run_id: str, target_id: str) -> None:
        """See Outside; with an id of its own each time: a stored answer could tell of a claim that was lost since."""
        asked = locks.AcquireClaimRequest(
            request_id=str(uuid.uuid4()),
            target_id=target_id,
            run_id=root_run_id,
            ttl_duration=duration_pb2.Duration(seconds=CLAIM_SECONDS),
        )
        await answered(self._locks.AcquireClaim(asked))

    async def release_claim(self, root_run_id: str, target_id: str) -> None:
        """See Outside."""
        asked = locks.ReleaseClaimRequest(request_id=str(uuid.uuid4()), target_id=target_id, run_id=root_run_id)
        await answered(self._locks.ReleaseClaim(asked))

    async def read_pass(self, run_id: str) -> ReadPass:
        """See Outside."""
        answer = await answered(self._guardrails.AuthorizeReads(guardrails.AuthorizeReadsRequest(run_id=run_id)))
        return ReadPass(answer.grant, answer.expire_time.ToNanoseconds() / 1e9)

    async def lock(self, run_id: str, target_id: str) -> int:
        """See Outside."""
        asked = locks.AcquireLockRequest(
            # Taken anew each time: the stored answer of an earlier call could name a fence that was lost since.
            request_id=str(uuid.uuid4()),
            target_id=target_id,
            run_id=run_id,
            ttl_duration=duration_pb2.Duration(seconds=LOCK_SECONDS),
        )
        return (await answered(self._locks.AcquireLock(asked))).lock.fence

    async def keep_lock(self, run_id: str, target_id: str, fence: int) -> None:
        """See Outside."""
        asked = locks.RenewLockRequest(
            target_id=target_id, run_id=run_id, fence=fence, ttl_duration=duration_pb2.Duration(seconds=LOCK_SECONDS)
        )
        await answered(self._locks.RenewLock(asked))

    async def unlock(self, run_id: str, target_id: str, fence: int) -> None:
        """See Outside."""
        asked = locks.ReleaseLockRequest(
            request_id=derived_id(run_id, f"release/{target_id}", fence),
            target_id=target_id,
            run_id=run_id,
            fence=fence,
        )
        await answered(self._locks.ReleaseLock(asked))

    async def authorize(
        self, tool: Tool, request: bytes, context: guardrails.ActionContext
    ) -> guardrails.AuthorizeActionResponse:
        """See Outside."""
        asked = guardrails.AuthorizeActionRequest(method=tool.name, request=request, context=context)
        return await answered(self._guardrails.AuthorizeAction(asked))

    async def approval(self, approval_id: str) -> approvals.Approval:
        """See Outside."""
        for _ in range(REPLACED_MAX):
            asked = approvals.GetApprovalRequest(approval_id=approval_id)
            found = (await answered(self._approvals.GetApproval(asked))).approval
            if not found.superseded_by:
                return found
            approval_id = found.superseded_by
        raise CallError("APPROVAL_VOID", f"approval {approval_id} was replaced too often", After.FAIL, None)

    async def call(self, tool: Tool, request: bytes, seconds: float, grant: bytes) -> Message:
        """See Outside."""
        effect = tool.policy.access != policy_pb2.ACCESS_READ
        return await answered(self._tools.call(tool, request, seconds, grant), effect=effect)

    async def effect(self, tool: Tool, request_id: str) -> effects.Effect | None:
        """See Outside."""
        return await self._tools.effect(tool, request_id)
