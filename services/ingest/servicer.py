"""IngestService: proto in, proto out."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import grpc.aio

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from opsmesh.ingest.v1 import ingest_service_pb2_grpc, letters_pb2, signal_pb2, signals_pb2
from services.ingest.book import moment
from services.ingest.mapping import result_of, safe_entry_of
from services.ingest.redrive import details, discard, redrive
from services.ingest.rows import fit
from services.ingest.signal import CHAT
from services.ingest.sources import Parser, chat
from services.ingest.store import Incidents
from services.ingest.stream import Inbox
from services.mesh.call import current
from services.mesh.paging import page_size, read_token, write_token
from services.mesh.postgres import Connection
from services.mesh.writes import Subject, Writes

BRIDGE: Final = "service/bridge"
ROUTER: Final = "service/router"
# Of bodies, parsed in some milliseconds.
TURN_BYTES: Final = 16 * 1024
Context = grpc.aio.ServicerContext[object, object]
METHOD_MTLS: Final = signal_pb2.Authenticity(method=signal_pb2.Authenticity.METHOD_MTLS, verified=True)


class IngestServicer(ingest_service_pb2_grpc.IngestServiceServicer):
    """Takes signals and shows incidents; `wake` is called after a person has closed one."""

    def __init__(
        self,
        inbox: Inbox,
        incidents: Incidents,
        writes: Writes,
        parsers: Mapping[str, Parser],
        wake: Callable[[], None],
    ) -> None:
        self._inbox = inbox
        self._incidents = incidents
        self._writes = writes
        self._parsers = parsers
        self._wake = wake

    async def SubmitSignals(self, request: pb.SubmitSignalsRequest, _: Context) -> pb.SubmitSignalsResponse:  # noqa: N802  the IDL's name
        """Parse and append deliveries; accepted means on disk."""
        if current().identity != BRIDGE:
            for delivery in request.deliveries:
                delivery.authenticity.CopyFrom(METHOD_MTLS)
        # What people say in chats comes from the router alone, and nothing else does: a wish is nobody else's to forge.
        parsers = {CHAT: chat.parse} if current().identity == ROUTER else self._parsers
        results, contents, sources = await _read(request.deliveries, parsers)
        if contents:
            await self._inbox.append(contents, sources)
        return pb.SubmitSignalsResponse(results=results)

    async def GetIncident(self, request: pb.GetIncidentRequest, _: Context) -> pb.GetIncidentResponse:  # noqa: N802  the IDL's name
        """Read one incident."""
        incident, signals = await self._incidents.get(request.incident_id)
        return pb.GetIncidentResponse(incident=incident, signals=signals)

    async def ListIncidents(self, request: pb.ListIncidentsRequest, _: Context) -> pb.ListIncidentsResponse:  # noqa: N802  the IDL's name
        """List incidents, newest first."""
        size = page_size(request.page_size)
        found = await self._incidents.list_incidents(request, size, _position(request))
        page = fit(found[:size])
        token = ""
        if len(page) < len(found):
            last = page[-1]
            token = write_token(request, last.open_time.ToDatetime().isoformat() + "+00:00", last.incident_id)
        return pb.ListIncidentsResponse(incidents=page, next_page_token=token)

    async def GetSignal(self, request: pb.GetSignalRequest, _: Context) -> pb.GetSignalResponse:  # noqa: N802  the IDL's name
        """Read what became of one signal, with the exact bytes that it came as."""
        return await self._incidents.get_signal(request.signal_id)

    async def ListSignals(  # noqa: N802  the IDL's name
        self, request: signals_pb2.ListSignalsRequest, _: Context
    ) -> signals_pb2.ListSignalsResponse:
        """List signals with what became of each, newest first."""
        size = page_size(request.page_size)
        found = await self._incidents.list_signals(request, size, _position(request))
        page = fit(found[:size])
        token = ""
        if len(page) < len(found):
            last = page[-1]
            token = write_token(request, moment(last.record_time.ToNanoseconds()), UUID(last.signal.signal_id))
        return signals_pb2.ListSignalsResponse(signals=page, next_page_token=token)

    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest, _: Context) -> pb.ListDeadLettersResponse:  # noqa: N802  the IDL's name
        """List deliveries that could not be understood or processed, newest first."""
        size = page_size(request.page_size)
        found = await self._incidents.list_dead_letters(request.source, size, _position(request))
        page = fit(found[:size])
        token = ""
        if len(page) < len(found):
            last = page[-1]
            token = write_token(request, last.create_time.ToDatetime().isoformat() + "+00:00", last.delivery_id)
        return pb.ListDeadLettersResponse(dead_letters=page, next_page_token=token)

    async def RedriveDeadLetters(  # noqa: N802  the IDL's name
        self, request: letters_pb2.RedriveDeadLettersRequest, _: Context
    ) -> letters_pb2.RedriveDeadLettersResponse:
        """Hand deliveries that were put aside in again."""

        async def change(connection: Connection) -> letters_pb2.RedriveDeadLettersResponse:
            results = await redrive(connection, request, self._parsers, self._inbox)
            return letters_pb2.RedriveDeadLettersResponse(results=results)

        subject = Subject(detail=details(request.delivery_ids, request.reason))
        return await self._writes.once(request, letters_pb2.RedriveDeadLettersResponse, change, subject)

    async def DiscardDeadLetters(  # noqa: N802  the IDL's name
        self, request: letters_pb2.DiscardDeadLettersRequest, _: Context
    ) -> letters_pb2.DiscardDeadLettersResponse:
        """Throw deliveries that were put aside away."""

        async def change(connection: Connection) -> letters_pb2.DiscardDeadLettersResponse:
            return letters_pb2.DiscardDeadLettersResponse(results=await discard(connection, request.delivery_ids))

        subject = Subject(detail=details(request.delivery_ids, request.reason))
        return await self._writes.once(request, letters_pb2.DiscardDeadLettersResponse, change, subject)

    async def ListChanges(self, request: pb.ListChangesRequest, _: Context) -> pb.ListChangesResponse:  # noqa: N802  the IDL's name
        """List the changes of a target, newest first."""
        size = page_size(request.page_size)
        found = await self._incidents.list_changes(request, size, _position(request))
        page = fit(found[:size])
        token = ""
        if len(page) < len(found):
            last = page[-1].signal
            # PostgreSQL keeps microseconds: that is the place to go on from.
            token = write_token(request, moment(last.event_time.ToNanoseconds()), UUID(last.signal_id))
        return pb.ListChangesResponse(changes=page, next_page_token=token)

    async def ResolveIncident(self, request: pb.ResolveIncidentRequest, _: Context) -> pb.ResolveIncidentResponse:  # noqa: N802  the IDL's name
        """Let a person close an incident."""
        reason = f"{current().identity}: {request.reason}"

        async def change(connection: Connection) -> pb.ResolveIncidentResponse:
            incident = await self._incidents.resolve(connection, request.incident_id, reason)
            return pb.ResolveIncidentResponse(incident=incident)

        subject = Subject(incident_id=request.incident_id, detail={"reason": request.reason})
        response = await self._writes.once(request, pb.ResolveIncidentResponse, change, subject)
        self._wake()
        return response


async def _read(
    deliveries: Sequence[pb.Delivery], parsers: Mapping[str, Parser]
) -> tuple[list[pb.DeliveryResult], list[bytes], list[str]]:
    """Parse each delivery; return the answers, and what the stream must hold before these go out, with the sources.

    Other calls take turns with a large one: what somebody else sends is not parsed after all of it.
    """
    results, contents, sources = [], [], []
    size = 0
    for delivery in deliveries:
        parse = parsers.get(delivery.source)
        if parse is None:
            unknown = pb.DeliveryResult.STATE_UNKNOWN_SOURCE
            results.append(pb.DeliveryResult(delivery_id=delivery.delivery_id, state=unknown))
            continue
        entry = safe_entry_of(delivery, parse)
        results.append(result_of(entry))
        contents.append(entry.SerializeToString())
        sources.append(delivery.source)
        size += len(delivery.body)
        if size >= TURN_BYTES:
            size = 0
            await asyncio.sleep(0)
    return results, contents, sources


def _position(
    request: pb.ListIncidentsRequest
    | pb.ListDeadLettersRequest
    | pb.ListChangesRequest
    | signals_pb2.ListSignalsRequest,
) -> tuple[datetime, UUID] | None:
    """Return where the page begins."""
    position = read_token(request, datetime, UUID)
    return (position[0], position[1]) if position else None
