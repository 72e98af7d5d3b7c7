"""Fakes of audit and guardrails for the gateway's tests, served over mTLS."""
# ruff: noqa: N802  the names are those of the IDL

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator
from typing import Any

from opsmesh.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from opsmesh.guardrails.v1 import kill_switch_service_pb2, kill_switch_service_pb2_grpc
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.call import current
from services.mesh.errors import Refusal

POLICY_SET = 7
GATEWAY = "service/gateway"


class FakeAudit(audit_service_pb2_grpc.AuditServiceServicer):
    """Keeps events by id. `mode`: keep, refuse, hold (hang before keeping), swallow (keep, then hang).

    What hangs does so until `go` is set.
    """

    def __init__(self) -> None:
        self.events: dict[str, audit_service_pb2.AuditEvent] = {}
        self.mode = "keep"
        self.held = asyncio.Event()
        self.go = asyncio.Event()

    async def AppendEvents(
        self, request: audit_service_pb2.AppendEventsRequest, _: Any
    ) -> audit_service_pb2.AppendEventsResponse:
        """Do what the mode says."""
        if self.mode == "refuse":
            raise Refusal(error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE, store="PostgreSQL")
        if self.mode == "hold" and current().identity == GATEWAY:
            await self._hang()
        for event in request.events:
            event.writer = current().identity
            self.events.setdefault(event.event_id, event)
        if self.mode == "swallow" and current().identity == GATEWAY:
            await self._hang()
        return audit_service_pb2.AppendEventsResponse(sequences=range(1, len(request.events) + 1))

    async def GetEvent(self, request: audit_service_pb2.GetEventRequest, _: Any) -> audit_service_pb2.GetEventResponse:
        """Read an event, or refuse with NOT_FOUND."""
        if self.mode == "refuse":
            raise Refusal(error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE, store="PostgreSQL")
        if request.event_id not in self.events:
            raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="event", id=request.event_id)
        return audit_service_pb2.GetEventResponse(event=self.events[request.event_id])

    async def ListEvents(self, *_: Any) -> Any:
        """Stay unused: the gateway does not list."""
        raise NotImplementedError

    async def GetCheckpoint(self, *_: Any) -> Any:
        """Stay unused: the gateway asks for no checkpoint."""
        raise NotImplementedError

    async def ExportEvents(
        self, _request: audit_service_pb2.ExportEventsRequest, _: Any
    ) -> AsyncIterator[audit_service_pb2.ExportEventsResponse]:
        """Stay unused: the gateway does not export."""
        yield audit_service_pb2.ExportEventsResponse()

    def of(self, request_id: str, phase: "audit_service_pb2.AuditEvent.Phase.ValueType") -> list[Any]:
        """Return the events of one request and phase."""
        return [one for one in self.events.values() if one.request_id == request_id and one.phase == phase]

    async def _hang(self) -> None:
        self.held.set()
        await self.go.wait()


class FakeGuardrails(kill_switch_service_pb2_grpc.KillSwitchServiceServicer):
    """Hands out leases while `answering`, tells of kills at once while `telling`, keeps reports while `taking`."""

    def __init__(self) -> None:
        self.version = POLICY_SET
        self.answering = True
        self.telling = True
        self.taking = True
        self.withdrawn = False
        self.breaking = False
        self.polls = 0
        self.watchers = 0
        self.epoch = 0
        self.kills: dict[str, kill_switch_service_pb2.LeasedKill] = {}
        self.reports: list[kill_switch_service_pb2.ReportStopsRequest] = []
        self._changed = asyncio.Event()

    def lease(self) -> kill_switch_service_pb2.Lease:
        """Return what holds now."""
        return kill_switch_service_pb2.Lease(
            policy_set_version=self.version, kill_epoch=self.epoch, kills=self.kills.values()
        )

    def engage(self, **scope: Any) -> str:
        """Stop something; the followers hear of it now, the polls with the next one."""
        self.epoch += 1
        kill = kill_switch_service_pb2.LeasedKill(
            kill_id=str(uuid.uuid4()), scope=kill_switch_service_pb2.KillScope(**scope), epoch=self.epoch
        )
        self.kills[kill.kill_id] = kill
        self.tell()
        return kill.kill_id

    def release(self, *kill_ids: str) -> None:
        """Let kills go; what was granted under a lower epoch stays void."""
        for kill_id in kill_ids or tuple(self.kills):
            self.kills[kill_id].released = True
        self.tell()

    def tell(self) -> None:
        """Wake the followers."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def states(self, kill_id: str, subject: str) -> list[str]:
        """Return what was reported about one effect under one kill, in order; a report sent again counts once."""
        name = kill_switch_service_pb2.Stop.State.Name
        stops = [stop for one in self.reports if one.kill_id == kill_id for stop in one.stops]
        told = (name(stop.state).removeprefix("STATE_") for stop in stops if stop.subject == subject)
        return [state for state, _ in itertools.groupby(told)]

    async def PollLease(
        self, _request: kill_switch_service_pb2.PollLeaseRequest, _: Any
    ) -> kill_switch_service_pb2.PollLeaseResponse:
        """Answer with the lease, or that nothing can be said."""
        self.polls += 1
        if not self.answering or self.withdrawn:
            raise Refusal(error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE, store="PostgreSQL")
        return kill_switch_service_pb2.PollLeaseResponse(lease=self.lease())

    async def WatchLease(
        self, _request: kill_switch_service_pb2.WatchLeaseRequest, _: Any
    ) -> AsyncIterator[kill_switch_service_pb2.WatchLeaseResponse]:
        """Send the lease at once and whenever a test says so."""
        self.watchers += 1
        try:
            while True:
                if self.breaking:
                    self.breaking = False
                    return
                changed = self._changed
                if self.telling:
                    lease = self.lease()
                    lease.withdrawn = self.withdrawn
                    yield kill_switch_service_pb2.WatchLeaseResponse(lease=lease)
                await changed.wait()
        finally:
            self.watchers -= 1

    async def ReportStops(
        self, request: kill_switch_service_pb2.ReportStopsRequest, _: Any
    ) -> kill_switch_service_pb2.ReportStopsResponse:
        """Keep a report, or refuse it."""
        if not self.taking:
            raise Refusal(error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE, store="PostgreSQL")
        self.reports.append(request)
        return kill_switch_service_pb2.ReportStopsResponse()

    async def Engage(self, *_: Any) -> Any:
        """Stay unused: the gateway engages nothing."""
        raise NotImplementedError

    async def Release(self, *_: Any) -> Any:
        """Stay unused: the gateway releases nothing."""
        raise NotImplementedError

    async def GetStatus(self, *_: Any) -> Any:
        """Stay unused: the gateway asks for no status."""
        raise NotImplementedError
