"""What was decided before: on this incident, and on others of the same targets."""

import uuid
from collections.abc import Sequence
from typing import Final

from opsmesh.agents.v1 import agent_service_pb2, agent_service_pb2_grpc
from opsmesh.automation.v1 import automation_service_pb2, automation_service_pb2_grpc
from opsmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from services.mesh.models.showing import Limits, show
from services.mesh.models.untrusted import Marks
from services.router.domain import Decision
from services.router.messages import decision_message, uuid_of
from services.router.reasoning.context import About, Told
from services.router.reasoning.sources import targets_of
from services.router.store import DecisionStore, Filter

INCIDENTS: Final = 8
TARGETS: Final = 2
REVISIONS: Final = 8
# What StartRun takes.
TRACE_MAX: Final = 16_384
SMALL: Final = Limits(text=600, total=6_000, items=20)
REPORT: Final = Limits(text=2000, total=8_000, items=20)


class HistorySource:
    """The earlier revisions of the incident: what was decided, what people answered, what executions and runs did."""

    name = "history"

    def __init__(
        self,
        store: DecisionStore,
        automation: "automation_service_pb2_grpc.AutomationServiceAsyncStub",
        agents: "agent_service_pb2_grpc.AgentServiceAsyncStub",
    ) -> None:
        self._store = store
        self._automation = automation
        self._agents = agents

    async def tell(self, about: About, marks: Marks) -> Told:
        """See Source."""
        if about.incident is None:
            return Told("")
        found = await self._store.page(Filter(incident_id=uuid_of(about.incident.incident_id)), REVISIONS)
        earlier = [one for one in found if str(one.decision_id) != about.decision_id]
        told = [f"{decided(one, marks)}{await self._did(one, marks)}" for one in reversed(earlier)]
        return Told("\n".join(told) or "(this is the first revision)", f"{len(earlier)} earlier revisions")

    async def _did(self, one: Decision, marks: Marks) -> str:
        """Return what a decision's execution or run did."""
        told = ""
        if one.execution_id:
            request = automation_service_pb2.GetExecutionRequest(execution_id=one.execution_id)
            answer = await self._automation.GetExecution(request)
            told += f"\n  execution: {show(answer.execution, marks, SMALL).text}"
        if one.run_id:
            run = (await self._agents.GetRun(agent_service_pb2.GetRunRequest(run_id=one.run_id))).run
            told += f"\n  run: {show(run.report, marks, REPORT).text} health_proved: {run.health_proved}"
        return told


class DecisionsSource:
    """Recent decisions on the same targets, of other incidents."""

    name = "decisions"

    def __init__(self, store: DecisionStore, incidents: "ingest_service_pb2_grpc.IngestServiceAsyncStub") -> None:
        self._store = store
        self._incidents = incidents

    async def tell(self, about: About, marks: Marks) -> Told:
        """See Source."""
        if about.incident is None:
            return Told("")
        told: dict[str, str] = {}
        for target in targets_of(about.incident)[:TARGETS]:
            request = ingest_service_pb2.ListIncidentsRequest(target_id=target, page_size=INCIDENTS)
            for incident in (await self._incidents.ListIncidents(request)).incidents:
                if incident.incident_id != about.incident.incident_id and incident.decision_id:
                    told[incident.decision_id] = f"{target}: {marks.span('Incident.title', incident.title, 200)}"
        found = await self._store.read([uuid.UUID(one) for one in told])
        lines = [f"- {told[str(one.decision_id)]} {decided(one, marks)}" for one in found]
        return Told("\n".join(lines) or "(none)", f"{len(lines)} decisions")


def decided(one: Decision, marks: Marks) -> str:
    """Return a decision in a line. Reasons and answers are texts of models and people: marked."""
    message = decision_message(one)
    parts = [
        f"revision {one.revision}, {one.create_time:%Y-%m-%dT%H:%M:%SZ}: {one.state} {one.outcome} {one.result}",
        *(
            f"{name} {value}"
            for name, value in (("rule", one.rule_id), ("playbook", one.playbook_id), ("template", one.template_id))
            if value
        ),
        f"reason: {marks.span('Decision.reason', one.reason, 400)}",
    ]
    if one.answer:
        parts.append(f"asked: {marks.span('Decision.question', message.question.question, 500)}")
        parts.append(f"a person answered: {show(message.answer, marks, SMALL).text}")
    return "; ".join(parts)


def trace_of(execution: automation_service_pb2.Execution) -> str:
    """Return the trace of an execution as text, bounded; whoever shows it to a model marks it."""
    state = automation_service_pb2.Execution.State.Name(execution.state)
    head = f"execution {execution.execution_id} of playbook {execution.playbook_id}: {state} {execution.detail}"
    return "\n".join([head, *_steps(execution.steps)])[:TRACE_MAX]


def _steps(steps: Sequence[automation_service_pb2.StepRecord]) -> list[str]:
    """Return the steps, each with what it asked and was answered."""
    return [
        f"step {one.step_id}: {automation_service_pb2.StepRecord.State.Name(one.state)} {one.tool}"
        f" target={one.target_id} attempt={one.attempt} request={one.request_json} response={one.response_json}"
        f" reason={one.reason} detail={one.detail}"
        for one in steps
    ]
