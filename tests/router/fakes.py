"""Hand-written automation, agents and audit, served over real mTLS; they can be slow, stuck or lose their answers."""
# ruff: noqa: N802  the names are those of the IDL

import asyncio
import uuid
from typing import Any

from opsmesh.agents.v1 import model_service_pb2, model_service_pb2_grpc
from opsmesh.audit.v1 import audit_service_pb2
from opsmesh.automation.v1 import (
    automation_service_pb2,
    automation_service_pb2_grpc,
    playbook_service_pb2,
    playbook_service_pb2_grpc,
)
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
        self.requests: list[automation_service_pb2.StartExecutionRequest] = []
        self.executions: dict[str, Execution] = {}
        self.entered = asyncio.Event()

    async def StartExecution(
        self, request: automation_service_pb2.StartExecutionRequest, _: Any
    ) -> automation_service_pb2.StartExecutionResponse:
        """Start, or answer again."""
        self.entered.set()
        await self.open.wait()
        self.requests.append(request)
        if self.refusal:
            raise self.refusal
        if request.request_id not in self.executions:
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
