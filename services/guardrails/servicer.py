"""GuardrailsService and KillSwitchService: proto in, proto out."""
# ruff: noqa: N802  the names are those of the IDL

from collections.abc import AsyncIterator
from typing import Any

from opsmesh.guardrails.v1 import guardrails_service_pb2 as pb
from opsmesh.guardrails.v1 import guardrails_service_pb2_grpc as rpc
from opsmesh.guardrails.v1 import kill_switch_service_pb2 as kill_pb
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc as kill_rpc
from services.guardrails.authority import Authority
from services.guardrails.checks import HUMAN
from services.guardrails.convert import timestamp
from services.guardrails.judgement import Asked
from services.guardrails.lease import LeaseBoard
from services.guardrails.policies import Lease
from services.mesh.call import current


class GuardrailsServicer(rpc.GuardrailsServiceServicer):
    """Judges every action before it happens."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority

    async def AuthorizeAction(self, request: pb.AuthorizeActionRequest, _: Any) -> pb.AuthorizeActionResponse:
        """Judge, and mint a grant where policy allows it."""
        caller = current().identity
        payload = request.request if request.HasField("request") else request.request_json
        return await self._authority.authorize(
            Asked(request.method, payload, caller, context_of(request.context, caller))
        )

    async def PreviewAction(self, request: pb.PreviewActionRequest, _: Any) -> pb.PreviewActionResponse:
        """Judge, for the caller or as if another had asked, and change nothing."""
        caller = request.caller or current().identity
        context = context_of(request.context, caller)
        asked = Asked(request.method, request.request_json, caller, context, binding=False)
        return pb.PreviewActionResponse(judgement=await self._authority.preview(asked))


class KillSwitchServicer(kill_rpc.KillSwitchServiceServicer):
    """Hands out leases."""

    def __init__(self, board: LeaseBoard) -> None:
        self._board = board

    async def PollLease(self, _: kill_pb.PollLeaseRequest, __: Any) -> kill_pb.PollLeaseResponse:
        """Answer what the database says now."""
        return kill_pb.PollLeaseResponse(lease=to_lease(await self._board.read()))

    async def WatchLease(self, _: kill_pb.WatchLeaseRequest, __: Any) -> AsyncIterator[kill_pb.WatchLeaseResponse]:
        """Send one at once, one per change, and one every 10 s."""
        async for lease in self._board.follow():
            yield kill_pb.WatchLeaseResponse(lease=to_lease(lease))


def context_of(context: pb.ActionContext, caller: str) -> pb.ActionContext:
    """Return what a caller may say about where an action comes from: a person acts in no execution's name."""
    if caller.startswith(HUMAN):
        return pb.ActionContext(incident_id=context.incident_id)
    return context


def to_lease(lease: Lease) -> kill_pb.Lease:
    """Return a lease as a message."""
    return kill_pb.Lease(
        policy_set_version=lease.policy_set_version, kill_epoch=lease.kill_epoch, lease_time=timestamp(lease.now)
    )
