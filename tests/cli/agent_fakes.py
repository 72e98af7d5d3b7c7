"""Hand-written agents for the command: models, templates and runs, from what a test puts into them."""
# ruff: noqa: N802, ARG002  names and parameters are those of the IDL

import uuid
from dataclasses import dataclass, field
from typing import Any

from opsmesh.agents.v1 import agent_service_pb2 as agents
from opsmesh.agents.v1 import agent_service_pb2_grpc as agents_grpc
from opsmesh.agents.v1 import model_service_pb2 as models
from opsmesh.agents.v1 import model_service_pb2_grpc as models_grpc
from opsmesh.agents.v1 import template_service_pb2 as templates
from opsmesh.agents.v1 import template_service_pb2_grpc as templates_grpc
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal

PROMPT = "ab" * 32
RESULT = "cd" * 32


@dataclass
class Models(models_grpc.ModelServiceServicer):
    """Answers `answer`."""

    answer: models.ListModelsResponse = field(default_factory=models.ListModelsResponse)

    async def Generate(self, request: models.GenerateRequest, _: Any) -> models.GenerateResponse:
        """Answer nothing."""
        return models.GenerateResponse()

    async def ListModels(self, request: models.ListModelsRequest, _: Any) -> models.ListModelsResponse:
        """Answer."""
        return self.answer


@dataclass
class Templates(templates_grpc.TemplateServiceServicer):
    """Keeps what is published; a child must be there before who names it, as at the real one."""

    active: dict[str, templates.TemplateVersion] = field(default_factory=dict)
    published: list[str] = field(default_factory=list)

    async def PublishTemplate(
        self, request: templates.PublishTemplateRequest, _: Any
    ) -> templates.PublishTemplateResponse:
        """Publish."""
        template = request.template
        missing = {*template.child_templates} - {*self.active, template.template_id}
        if missing:
            raise Refusal(error_reason_pb2.ERROR_REASON_TEMPLATE_INVALID)
        version = templates.TemplateVersion(template_id=template.template_id, version=1, active=True, template=template)
        version.digest = template.SerializeToString(deterministic=True).hex()[:64]
        if not request.validate_only:
            self.active[template.template_id] = version
            self.published.append(template.template_id)
        return templates.PublishTemplateResponse(template=version, warnings=["no model has the role agent"])

    async def GetTemplate(self, request: templates.GetTemplateRequest, _: Any) -> templates.GetTemplateResponse:
        """Answer nothing."""
        return templates.GetTemplateResponse()

    async def ListTemplates(self, request: templates.ListTemplatesRequest, _: Any) -> templates.ListTemplatesResponse:
        """List."""
        return templates.ListTemplatesResponse(templates=self.active.values())


@dataclass
class Runs(agents_grpc.AgentServiceServicer):
    """Keeps runs and what was asked."""

    runs: list[agents.Run] = field(default_factory=list)
    started: list[agents.StartRunRequest] = field(default_factory=list)
    cancelled: list[agents.CancelRunRequest] = field(default_factory=list)

    async def StartRun(self, request: agents.StartRunRequest, _: Any) -> agents.StartRunResponse:
        """Start."""
        self.started.append(request)
        return agents.StartRunResponse(run=agents.Run(run_id=str(uuid.UUID(int=9)), template_id=request.template_id))

    async def GetRun(self, request: agents.GetRunRequest, _: Any) -> agents.GetRunResponse:
        """Show."""
        for one in self.runs:
            if one.run_id == request.run_id:
                return agents.GetRunResponse(run=one)
        raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="run", id=request.run_id)

    async def ListRuns(self, request: agents.ListRunsRequest, _: Any) -> agents.ListRunsResponse:
        """List."""
        return agents.ListRunsResponse(runs=[one for one in self.runs if request.state in (0, one.state)])

    async def CancelRun(self, request: agents.CancelRunRequest, _: Any) -> agents.CancelRunResponse:
        """Cancel."""
        self.cancelled.append(request)
        return agents.CancelRunResponse(run=agents.Run(run_id=request.run_id, cancel_requested=True))


def run_with_everything() -> agents.Run:
    """Return a run that asked a recorded model, read, acted with an approval, and reported."""
    made = agents.Run(
        run_id=str(uuid.UUID(int=1)),
        template_id="diagnose-repair",
        template_version=2,
        state=agents.Run.STATE_SUCCEEDED,
        goal="find out why [red]checkout[/red] is slow",
        requester="service/router",
        step_count=3,
        token_count=1280,
        cost_micros=12_345,
        recorded=True,
        health_proved=True,
        report=agents.RunReport(
            outcome=agents.RunReport.OUTCOME_REPAIRED,
            cause="its pool was used up",
            evidence=[agents.RunReport.Evidence(step_number=2, what="the log says so")],
            confidence=0.9,
            verification="health",
        ),
    )
    made.create_time.GetCurrentTime()
    asked = made.steps.add(number=1, kind=agents.RunStep.KIND_MODEL, state=agents.RunStep.STATE_SUCCEEDED)
    asked.prompt_digest, asked.model, asked.recorded, asked.cost_micros = PROMPT, "recorded", True, 12_345
    asked.usage.input_tokens, asked.usage.output_tokens = 1200, 80
    asked.latency_duration.FromMilliseconds(1500)
    read = made.steps.add(number=2, kind=agents.RunStep.KIND_READ, state=agents.RunStep.STATE_SUCCEEDED)
    read.tool, read.arguments_json = "opsmesh.tools.logs.v1.LogsToolService/SearchLogs", '{"query":"pool"}'
    read.result, read.result_digest = "pool \x1b[31mexhausted", RESULT
    acted = made.steps.add(number=3, kind=agents.RunStep.KIND_ACTION, state=agents.RunStep.STATE_FAILED)
    acted.tool, acted.verdict = "opsmesh.tools.workload.v1.WorkloadToolService/RestartWorkload", "DENY"
    acted.reason, acted.detail = "POLICY_DENIED", "policy denies it"
    return made
