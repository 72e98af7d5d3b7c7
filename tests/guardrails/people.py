"""People in tests: what they ask, what they see, what they answer."""

import asyncio
import json
import uuid
from dataclasses import dataclass
from typing import Any

import grpc.aio
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration

from opsmesh.guardrails.v1 import approval_service_pb2 as pb
from opsmesh.guardrails.v1 import approval_service_pb2_grpc as rpc
from tests.guardrails.world import CHECKOUT, Context, House, RestartRequest, Rule, reason_of, restart, rule

Approval = pb.Approval
APPROVER = "approver"
SECOND = "approver2"


def asks(*groups: str, approvers: int = 1, seconds: int = 300, execute: int = 300, **match: Any) -> Rule:
    """Return a rule that asks people for what it matches, by default for everything."""
    made = rule("ask", "REQUIRE_APPROVAL", **match)
    made.approval.approvers = approvers
    made.approval.groups.extend(groups)
    made.approval.ttl_duration.CopyFrom(Duration(seconds=seconds))
    made.approval.execute_ttl_duration.CopyFrom(Duration(seconds=execute))
    return made


@dataclass
class Case:
    """One action that waits for people."""

    home: House
    request: RestartRequest
    context: Context
    approval: Approval

    @property
    def approval_id(self) -> str:
        """Return the id of its approval."""
        return self.approval.approval_id

    async def again(self) -> Any:
        """Authorise the same bytes again."""
        return await self.home.authorize(self.request, self.context)

    async def now(self, approval_id: str = "") -> Approval:
        """Read the approval."""
        return await read(self.home, approval_id or self.approval_id)

    async def approve(self, name: str = APPROVER, **changes: Any) -> Approval:
        """Let a person say yes."""
        return await approve(self.home.approvals(name), self.approval, **changes)

    async def reject(self, name: str = APPROVER, **changes: Any) -> Approval:
        """Let a person say no."""
        return await reject(self.home.approvals(name), self.approval, **changes)

    async def amend(self, name: str = APPROVER, *, change: dict[str, Any], **changes: Any) -> Approval:
        """Let a person want other arguments."""
        wanted = json_format.MessageToDict(self.request, preserving_proto_field_name=True) | change
        request = pb.AmendRequest(
            request_id=str(uuid.uuid4()),
            approval_id=self.approval_id,
            request_digest=self.approval.short_digest,
            request_json=json.dumps(wanted),
        )
        merge(request, changes)
        return (await self.home.approvals(name).Amend(request)).approval


async def waiting(home: House, target_id: str = CHECKOUT, **context: str) -> Case:
    """Ask for a restart that waits for people."""
    about = await home.ready(target_id)
    for key, value in context.items():
        setattr(about, key, value)
    request = restart(target_id)
    answer = await home.authorize(request, about)
    assert answer.approval_id, answer.judgement
    return Case(home, request, about, await read(home, answer.approval_id))


async def read(home: House, approval_id: str) -> Approval:
    """Read an approval."""
    return (await home.approvals().GetApproval(pb.GetApprovalRequest(approval_id=approval_id))).approval


async def approve(stub: "rpc.ApprovalServiceAsyncStub", approval: Approval, **changes: Any) -> Approval:
    """Say yes to what an approval asks."""
    request = pb.ApproveRequest(
        request_id=str(uuid.uuid4()), approval_id=approval.approval_id, request_digest=approval.short_digest
    )
    merge(request, changes)
    return (await stub.Approve(request)).approval


async def reject(stub: "rpc.ApprovalServiceAsyncStub", approval: Approval, **changes: Any) -> Approval:
    """Say no to what an approval asks."""
    request = pb.RejectRequest(
        request_id=str(uuid.uuid4()), approval_id=approval.approval_id, request_digest=approval.short_digest
    )
    merge(request, changes)
    return (await stub.Reject(request)).approval


def merge(request: Any, changes: dict[str, Any]) -> None:
    """Set fields of a request."""
    for key, value in changes.items():
        setattr(request, key, value)


async def refused(call: Any) -> str:
    """Return the reason with which a call is refused; fails when it is not."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return reason_of(error)
    raise AssertionError(f"not refused: {answer}")


async def until_closed(home: House, approval_id: str, seconds: float = 40.0) -> Approval:
    """Follow an approval until it is over, and return it."""
    stub = home.approvals()
    async with asyncio.timeout(seconds):
        async for answer in stub.WatchApprovals(pb.WatchApprovalsRequest()):
            # What was over before the stream began is told by none: a sign of life comes instead.
            one = answer.approval if answer.HasField("approval") else await read(home, approval_id)
            if one.approval_id == approval_id and one.state not in {Approval.STATE_PENDING, Approval.STATE_APPROVED}:
                return one
    raise AssertionError("the stream ended")
