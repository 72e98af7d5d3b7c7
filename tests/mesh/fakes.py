"""A hand-written audit servicer: answers, refuses, breaks, hangs or streams as its `event_id` says."""
# ruff: noqa: N802  the names are those of the IDL

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from opsmesh.audit.v1 import audit_service_pb2 as pb
from opsmesh.audit.v1 import audit_service_pb2_grpc as rpc
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.chain import Call, current
from services.mesh.errors import Refusal

ECHO = "00000000-0000-4000-8000-000000000001"
REFUSE = "00000000-0000-4000-8000-000000000002"
BREAK = "00000000-0000-4000-8000-000000000003"
HANG = "00000000-0000-4000-8000-000000000004"
SECRET = "the text of an exception nobody expected"


class FakeAudit(rpc.AuditServiceServicer):
    """Keeps every call it served in `calls`; `released` lets hanging calls go, `entered` says that one began."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.appended: list[pb.AuditEvent] = []
        self.released = asyncio.Event()
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def AppendEvents(self, request: pb.AppendEventsRequest, _: Any) -> pb.AppendEventsResponse:
        """Keep the events."""
        self.calls.append(current())
        self.appended += request.events
        return pb.AppendEventsResponse(sequences=range(1, len(request.events) + 1))

    async def GetEvent(self, request: pb.GetEventRequest, _: Any) -> pb.GetEventResponse:
        """Do what the id says."""
        self.calls.append(current())
        if request.event_id == REFUSE:
            raise Refusal(
                error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="event", id=request.event_id, retry_after=1.5
            )
        if request.event_id == BREAK:
            raise RuntimeError(SECRET)
        if request.event_id == HANG:
            self.entered.set()
            try:
                await self.released.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return pb.GetEventResponse(event=pb.AuditEvent(event_id=request.event_id, actor=current().identity))

    async def ListEvents(self, request: pb.ListEventsRequest, _: Any) -> pb.ListEventsResponse:
        """Answer with a page token so large that no client takes it."""
        self.calls.append(current())
        return pb.ListEventsResponse(next_page_token=request.page_token)

    async def GetCheckpoint(self, _: pb.GetCheckpointRequest, __: Any) -> pb.GetCheckpointResponse:
        """Answer with an empty checkpoint."""
        self.calls.append(current())
        return pb.GetCheckpointResponse()

    async def ExportEvents(self, request: pb.ExportEventsRequest, _: Any) -> AsyncIterator[pb.ExportEventsResponse]:
        """Send one part, wait until released, send another."""
        self.calls.append(current())
        yield pb.ExportEventsResponse()
        self.entered.set()
        if request.start_sequence:
            await self.released.wait()
        yield pb.ExportEventsResponse()


def servicers(fake: FakeAudit) -> list[tuple[Any, Any]]:
    """Return what a Server takes."""
    return [(rpc.add_AuditServiceServicer_to_server, fake)]
