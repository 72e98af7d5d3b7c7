"""Runs of agents that decisions start and follow. Every call carries a request_id derived from the decision."""

from collections.abc import Iterable
from dataclasses import replace

import grpc
import grpc.aio

from opsmesh.agents.v1 import agent_service_pb2, agent_service_pb2_grpc
from opsmesh.automation.v1 import automation_service_pb2, automation_service_pb2_grpc
from opsmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from services.router import work as steps
from services.router.answers import REFUSED, held_by, words
from services.router.domain import Result
from services.router.messages import run_of
from services.router.reasoning.past import trace_of
from services.router.store import DecisionStore
from services.router.work import Step, Work


class RunHands:
    """What the router asks of agents about runs, one method per stage. Raises grpc.aio.AioRpcError."""

    def __init__(
        self,
        store: DecisionStore,
        agents: "agent_service_pb2_grpc.AgentServiceAsyncStub",
        automation: "automation_service_pb2_grpc.AutomationServiceAsyncStub",
        incidents: "ingest_service_pb2_grpc.IngestServiceAsyncStub",
    ) -> None:
        self._store = store
        self._agents = agents
        self._automation = automation
        self._incidents = incidents

    async def begin(self, work: Work) -> Step:
        """Start the run of a decision, unless a newer revision has just been decided."""
        if not await self._store.trying(work.decision):
            return steps.again(work)
        return await self.start(work)

    async def start(self, work: Work) -> Step:
        """Start the run; what a kill stops is held."""
        decision, order = work.decision, work.decision.order
        try:
            request = agent_service_pb2.StartRunRequest(
                request_id=str(steps.run_request_id(decision.decision_id)),
                template_id=decision.template_id,
                incident_id=str(decision.incident_id),
                decision_id=str(decision.decision_id),
                target_ids=order.target_ids,
                goal=order.goal,
                execution_id=order.cause,
                execution_trace=await self._trace(order.cause) if order.cause else "",
                identity_token=order.token,
            )
            answer = await self._agents.StartRun(request)
        except grpc.aio.AioRpcError as error:
            if held := held_by(work, error):
                return held
            if error.code() in REFUSED:
                return steps.give_up(work, Result.FAILED, f"the run was not started: {words(error)}")
            raise
        return steps.follow_run(work, run_of(answer.run))

    async def follow(self, work: Work) -> Step:
        """Look how a run stands."""
        try:
            answer = await self._agents.GetRun(agent_service_pb2.GetRunRequest(run_id=work.decision.run_id))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return steps.give_up(work, Result.UNKNOWN, f"its run is lost: {words(error)}")
            raise
        run = run_of(answer.run)
        if run.health_proved and (others := await self._others(work, answer.run.target_ids)):
            run = replace(run, health_proved=False, words=f"health is not proved of {', '.join(others)}")
        return steps.follow_run(work, run)

    async def _others(self, work: Work, seen: Iterable[str]) -> list[str]:
        """Return the incident's targets that a run did not look at: a model, or whoever started it, chose its own."""
        request = ingest_service_pb2.GetIncidentRequest(incident_id=str(work.decision.incident_id))
        try:
            incident = (await self._incidents.GetIncident(request)).incident
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return []
            raise
        known = set(seen)
        return [one.target_id for one in incident.targets if one.in_inventory and one.target_id not in known]

    async def _trace(self, execution_id: str) -> str:
        """Return the trace of an execution that has ended: it is the same whenever it is asked for."""
        request = automation_service_pb2.GetExecutionRequest(execution_id=execution_id)
        return trace_of((await self._automation.GetExecution(request)).execution)
