"""AuditService: proto in, proto out."""
# ruff: noqa: N802  the names are those of the IDL

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Literal

from opsmesh.audit.v1 import audit_service_pb2 as audit
from opsmesh.audit.v1.audit_service_pb2_grpc import AuditServiceServicer
from opsmesh.type.v1 import error_reason_pb2
from services.audit.checkpoints import CheckpointFile
from services.audit.domain import Filter
from services.audit.events import check_time, from_micros, without_nul
from services.audit.sequencer import Sequencer
from services.audit.store import Log
from services.mesh.call import current
from services.mesh.errors import Refusal
from services.mesh.paging import page_size, read_token, write_token


class AuditServicer(AuditServiceServicer):
    """Appends through the one sequencer, reads from the pool."""

    def __init__(self, sequencer: Sequencer, log: Log, checkpoints: CheckpointFile) -> None:
        self._sequencer = sequencer
        self._log = log
        self._checkpoints = checkpoints

    async def AppendEvents(self, request: audit.AppendEventsRequest, _: Any) -> audit.AppendEventsResponse:
        """Append events in the name of the caller; answered once they are durable."""
        sequences = await self._sequencer.append(list(request.events), current().identity)
        return audit.AppendEventsResponse(sequences=sequences)

    async def GetEvent(self, request: audit.GetEventRequest, _: Any) -> audit.GetEventResponse:
        """Read one event."""
        event = await self._log.get(request.event_id)
        if event is None:
            raise Refusal(
                error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="event", id=request.event_id, list="audit list"
            )
        return audit.GetEventResponse(event=event)

    async def ListEvents(self, request: audit.ListEventsRequest, _: Any) -> audit.ListEventsResponse:
        """List events by a typed filter."""
        position = read_token(request, int)
        events, more = await self._log.page(
            filter_of(request), position[0] if position else None, page_size(request.page_size)
        )
        token = write_token(request, events[-1].sequence) if more else ""
        return audit.ListEventsResponse(events=events, next_page_token=token)

    async def GetCheckpoint(self, _: audit.GetCheckpointRequest, __: Any) -> audit.GetCheckpointResponse:
        """Write a signed checkpoint of the head now, and return it."""
        return audit.GetCheckpointResponse(checkpoint=await self._checkpoints.write(self._sequencer.head))

    async def ExportEvents(
        self, request: audit.ExportEventsRequest, _: Any
    ) -> AsyncIterator[audit.ExportEventsResponse]:
        """Stream the log as its columns say."""
        async for part in self._log.export(request.start_sequence):
            yield audit.ExportEventsResponse(events=part)


def filter_of(request: audit.ListEventsRequest) -> Filter:
    """Return the filter of a request."""
    return Filter(
        incident_id=without_nul(request.incident_id),
        actor=without_nul(request.actor),
        action=without_nul(request.action),
        target=without_nul(request.target),
        environment=without_nul(request.environment),
        phase=request.phase,
        outcome=request.outcome,
        execution_id=without_nul(request.execution_id),
        request_id=without_nul(request.request_id),
        start_time=_moment(request, "start_time"),
        end_time=_moment(request, "end_time"),
        descending=request.descending,
    )


def _moment(request: audit.ListEventsRequest, field: Literal["start_time", "end_time"]) -> datetime | None:
    """Return a time of the filter, None when it is not given."""
    if not request.HasField(field):
        return None
    check_time(getattr(request, field), field)
    return from_micros(getattr(request, field))
