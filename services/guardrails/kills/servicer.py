"""KillSwitchService: proto in, proto out."""
# ruff: noqa: N802  the names are those of the IDL

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc as rpc
from opsmesh.type.v1 import error_reason_pb2
from services.guardrails.convert import timestamp
from services.guardrails.kills.lease import LeaseBoard
from services.guardrails.kills.store import NO_EPOCH, Lease
from services.guardrails.kills.switch import KillSwitch
from services.mesh import paging
from services.mesh.errors import Refusal


class KillSwitchServicer(rpc.KillSwitchServiceServicer):
    """Stops, releases, tells who has stopped, and hands out leases."""

    def __init__(self, switch: KillSwitch, board: LeaseBoard) -> None:
        self._switch = switch
        self._board = board

    async def Engage(self, request: pb.EngageRequest, _: Any) -> pb.EngageResponse:
        """Stop everything in a scope."""
        return await self._switch.engage(request)

    async def Release(self, request: pb.ReleaseRequest, _: Any) -> pb.ReleaseResponse:
        """Let go again, or be one of those who must."""
        return await self._switch.release(request)

    async def GetStatus(self, request: pb.GetStatusRequest, _: Any) -> pb.GetStatusResponse:
        """Tell what is killed and who has stopped, newest first."""
        size = paging.page_size(request.page_size)
        after = paging.read_token(request, int)
        which = UUID(request.kill_id) if request.kill_id else None
        before = after[0] if after else NO_EPOCH
        found, more = await self._switch.status(before, which, size, released=request.include_released)
        if which and not found:
            raise Refusal(
                error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="kill", id=request.kill_id, list="kill status"
            )
        token = paging.write_token(request, found[-1].epoch) if more else ""
        return pb.GetStatusResponse(kills=found, next_page_token=token)

    async def PollLease(self, _: pb.PollLeaseRequest, __: Any) -> pb.PollLeaseResponse:
        """Answer what the database says now."""
        return pb.PollLeaseResponse(lease=to_lease(await self._board.read()))

    async def WatchLease(self, _: pb.WatchLeaseRequest, __: Any) -> AsyncIterator[pb.WatchLeaseResponse]:
        """Send one at once, one per change, and one every 10 s."""
        async for lease in self._board.follow():
            yield pb.WatchLeaseResponse(lease=to_lease(lease))

    async def ReportStops(self, request: pb.ReportStopsRequest, _: Any) -> pb.ReportStopsResponse:
        """Keep what a service says about what it runs."""
        await self._switch.report(request)
        return pb.ReportStopsResponse()


def to_lease(lease: Lease) -> pb.Lease:
    """Return a lease as a message."""
    return pb.Lease(
        policy_set_version=lease.policy_set_version,
        kill_epoch=lease.kill_epoch,
        lease_time=timestamp(lease.now),
        kills=lease.kills,
        withdrawn=lease.withdrawn,
    )
