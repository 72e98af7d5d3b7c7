"""Hand-written peers of the router, served over real mTLS; they can be slow, stuck or lose their answers."""
# ruff: noqa: N802  the names are those of the IDL

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from opsmesh.agents.v1 import model_service_pb2, model_service_pb2_grpc
from opsmesh.audit.v1 import audit_service_pb2
from opsmesh.automation.v1 import (
    automation_service_pb2,
    automation_service_pb2_grpc,
    playbook_service_pb2,
    playbook_service_pb2_grpc,
)
from opsmesh.guardrails.v1 import kill_switch_service_pb2, kill_switch_service_pb2_grpc
from opsmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc, letters_pb2, signal_pb2, signals_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal
from tests.mesh import fakes

Execution = automation_service_pb2.Execution
UNAVAILABLE = error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE


class FakeAutomation(automation_service_pb2_grpc.AutomationServiceServicer):
    """Starts executions once per request_id, as the real one does.

    While `open` is not set, every call hangs; `lost` answers are lost after the work was done; `refusal` refuses.
    """

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.lost = 0
        self.refusal: Refusal | None = None
        # Playbooks that each refusal is for; all but the notice, as the real one does during a kill.
        self.spared: frozenset[str] = frozenset()
        self.requests: list[automation_service_pb2.StartExecutionRequest] = []
        self.executions: dict[str, Execution] = {}
        self.started: list[tuple[float, automation_service_pb2.StartExecutionRequest]] = []
        self.entered = asyncio.Event()

    async def StartExecution(
        self, request: automation_service_pb2.StartExecutionRequest, _: Any
    ) -> automation_service_pb2.StartExecutionResponse:
        """Start, or answer again."""
        self.entered.set()
        await self.open.wait()
        self.requests.append(request)
        if self.refusal and request.playbook_id not in self.spared:
            raise self.refusal
        if request.request_id not in self.executions:
            self.started.append((time.monotonic(), request))
            self.executions[request.request_id] = Execution(
                execution_id=str(uuid.uuid4()),
                playbook_id=request.playbook_id,
                incident_id=request.incident_id,
                decision_id=request.decision_id,
                state=Execution.STATE_PENDING,
            )
        if self.lost:
            self.lost -= 1
            raise Refusal(UNAVAILABLE, store="automation")
        return automation_service_pb2.StartExecutionResponse(execution=self.executions[request.request_id])

    async def GetExecution(
        self, request: automation_service_pb2.GetExecutionRequest, _: Any
    ) -> automation_service_pb2.GetExecutionResponse:
        """Read."""
        await self.open.wait()
        for execution in self.executions.values():
            if execution.execution_id == request.execution_id:
                return automation_service_pb2.GetExecutionResponse(execution=execution)
        raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="execution", id=request.execution_id)

    async def ListExecutions(self, _: Any, __: Any) -> automation_service_pb2.ListExecutionsResponse:
        """Answer nothing: not asked by the router."""
        return automation_service_pb2.ListExecutionsResponse()

    async def CancelExecution(self, _: Any, __: Any) -> automation_service_pb2.CancelExecutionResponse:
        """Answer nothing: not asked by the router."""
        return automation_service_pb2.CancelExecutionResponse()

    async def ReportObserved(self, _: Any, __: Any) -> automation_service_pb2.ReportObservedResponse:
        """Answer nothing: not asked by the router."""
        return automation_service_pb2.ReportObservedResponse()

    def of(self, decision_id: str, playbook_id: str) -> list[Execution]:
        """Return the executions of a decision."""
        return [
            one for one in self.executions.values() if one.decision_id == decision_id and one.playbook_id == playbook_id
        ]


class FakePlaybooks(playbook_service_pb2_grpc.PlaybookServiceServicer):
    """Has two published playbooks, one a page."""

    async def ListPlaybooks(
        self, request: playbook_service_pb2.ListPlaybooksRequest, _: Any
    ) -> playbook_service_pb2.ListPlaybooksResponse:
        """List."""
        name, token = ("notify-person", "") if request.page_token else ("restart-workload", "next")
        return playbook_service_pb2.ListPlaybooksResponse(
            playbooks=[playbook_service_pb2.PlaybookVersion(playbook_id=name, version=1)], next_page_token=token
        )

    async def PublishPlaybook(self, _: Any, __: Any) -> playbook_service_pb2.PublishPlaybookResponse:
        """Refuse: not asked by the router."""
        raise Refusal(error_reason_pb2.ERROR_REASON_PLAYBOOK_INVALID)

    async def GetPlaybook(self, _: Any, __: Any) -> playbook_service_pb2.GetPlaybookResponse:
        """Refuse: not asked by the router."""
        raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="playbook", id="")


class FakeKillSwitch(kill_switch_service_pb2_grpc.KillSwitchServiceServicer):
    """Hands out leases with the kills in `holding`; `down` refuses."""

    def __init__(self) -> None:
        self.holding: set[str] = set()
        self.released: set[str] = set()
        self.down = False

    async def PollLease(self, _: Any, __: Any) -> kill_switch_service_pb2.PollLeaseResponse:
        """Tell."""
        if self.down:
            raise Refusal(UNAVAILABLE, store="PostgreSQL")
        scope = kill_switch_service_pb2.KillScope(everything=True)
        kills = [
            kill_switch_service_pb2.LeasedKill(kill_id=one, scope=scope, epoch=1, released=one in self.released)
            for one in self.holding | self.released
        ]
        return kill_switch_service_pb2.PollLeaseResponse(lease=kill_switch_service_pb2.Lease(kills=kills, kill_epoch=1))

    async def WatchLease(self, _: Any, __: Any) -> AsyncIterator[kill_switch_service_pb2.WatchLeaseResponse]:
        """Tell once: not asked by the router."""
        yield kill_switch_service_pb2.WatchLeaseResponse()

    async def Engage(self, _: Any, __: Any) -> kill_switch_service_pb2.EngageResponse:
        """Answer nothing: not asked by the router."""
        return kill_switch_service_pb2.EngageResponse()

    async def Release(self, _: Any, __: Any) -> kill_switch_service_pb2.ReleaseResponse:
        """Answer nothing: not asked by the router."""
        return kill_switch_service_pb2.ReleaseResponse()

    async def GetStatus(self, _: Any, __: Any) -> kill_switch_service_pb2.GetStatusResponse:
        """Answer nothing: not asked by the router."""
        return kill_switch_service_pb2.GetStatusResponse()

    async def ReportStops(self, _: Any, __: Any) -> kill_switch_service_pb2.ReportStopsResponse:
        """Answer nothing: not asked by the router."""
        return kill_switch_service_pb2.ReportStopsResponse()


class FakeIngest(ingest_service_pb2_grpc.IngestServiceServicer):
    """Shows the incidents in `incidents`, each with a signal at its time in `signalled`."""

    def __init__(self) -> None:
        self.incidents: dict[str, ingest_service_pb2.Incident] = {}
        self.signalled: dict[str, datetime] = {}
        self.asked: list[str] = []

    async def GetIncident(
        self, request: ingest_service_pb2.GetIncidentRequest, _: Any
    ) -> ingest_service_pb2.GetIncidentResponse:
        """Show."""
        self.asked.append(request.incident_id)
        found = self.incidents.get(request.incident_id)
        if found is None:
            raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="incident", id=request.incident_id)
        record = signal_pb2.SignalRecord(signal=signal_pb2.Signal(status=signal_pb2.Signal.STATUS_FIRING))
        if moment := self.signalled.get(request.incident_id):
            record.record_time.FromDatetime(moment)
        return ingest_service_pb2.GetIncidentResponse(incident=found, signals=[record])

    async def SubmitSignals(self, _: Any, __: Any) -> ingest_service_pb2.SubmitSignalsResponse:
        """Answer nothing: not asked by the router."""
        return ingest_service_pb2.SubmitSignalsResponse()

    async def ListIncidents(self, _: Any, __: Any) -> ingest_service_pb2.ListIncidentsResponse:
        """Answer nothing: not asked by the router."""
        return ingest_service_pb2.ListIncidentsResponse()

    async def ResolveIncident(self, _: Any, __: Any) -> ingest_service_pb2.ResolveIncidentResponse:
        """Answer nothing: not asked by the router."""
        return ingest_service_pb2.ResolveIncidentResponse()

    async def ListChanges(self, _: Any, __: Any) -> ingest_service_pb2.ListChangesResponse:
        """Answer nothing: not asked by the router."""
        return ingest_service_pb2.ListChangesResponse()

    async def GetSignal(self, _: Any, __: Any) -> ingest_service_pb2.GetSignalResponse:
        """Answer nothing."""
        return ingest_service_pb2.GetSignalResponse()

    async def ListSignals(self, _: Any, __: Any) -> signals_pb2.ListSignalsResponse:
        """Answer nothing."""
        return signals_pb2.ListSignalsResponse()

    async def ListDeadLetters(self, _: Any, __: Any) -> ingest_service_pb2.ListDeadLettersResponse:
        """Answer nothing: not asked by the router."""
        return ingest_service_pb2.ListDeadLettersResponse()

    async def RedriveDeadLetters(self, _: Any, __: Any) -> letters_pb2.RedriveDeadLettersResponse:
        """Answer nothing: not asked by the router."""
        return letters_pb2.RedriveDeadLettersResponse()

    async def DiscardDeadLetters(self, _: Any, __: Any) -> letters_pb2.DiscardDeadLettersResponse:
        """Answer nothing: not asked by the router."""
        return letters_pb2.DiscardDeadLettersResponse()


class FakeModels(model_service_pb2_grpc.ModelServiceServicer):
    """Has no model; hangs while `open` is not set."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.entered = asyncio.Event()

    async def ListModels(self, _: Any, __: Any) -> model_service_pb2.ListModelsResponse:
        """Say that there is none."""
        self.entered.set()
        await self.open.wait()
        return model_service_pb2.ListModelsResponse(automation_only=True)

    async def Generate(self, request: model_service_pb2.GenerateRequest, _: Any) -> model_service_pb2.GenerateResponse:
        """Say that no model answers."""
        detail = "no model is configured for it"
        raise Refusal(error_reason_pb2.ERROR_REASON_MODEL_UNAVAILABLE, role=request.role, detail=detail)


class FakeAudit(fakes.FakeAudit):
    """Keeps what is appended in `appended`; refuses while `down`."""

    down = False

    async def AppendEvents(
        self, request: audit_service_pb2.AppendEventsRequest, context: Any
    ) -> audit_service_pb2.AppendEventsResponse:
        """Keep the events."""
        if self.down:
            raise Refusal(UNAVAILABLE, store="PostgreSQL")
        return await super().AppendEvents(request, context)
