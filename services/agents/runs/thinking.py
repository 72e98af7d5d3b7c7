"""The conversation of a run with its model, rebuilt from its steps, and what it may answer with."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template
from typing import Final

from opsmesh.agents.v1 import agent_service_pb2 as agents
from opsmesh.agents.v1 import model_service_pb2 as pb
from opsmesh.agents.v1 import template_service_pb2 as templates
from opsmesh.config.v1 import templates_pb2
from opsmesh.ingest.v1 import ingest_service_pb2
from opsmesh.router.v1 import outcome_pb2
from services.agents.runs.domain import Kind, Run, Step, StepState, answers_of, derived_id, may_delegate
from services.agents.templates.checking import model_role, tools_of
from services.mesh.models.showing import Limits, show
from services.mesh.models.tool_calls import ToolCall
from services.mesh.models.tool_schema import Offer, catalogue, offer_message
from services.mesh.models.untrusted import Marks
from services.mesh.tools import Tool, tools

PROMPT: Final = Path(__file__).parents[1] / "prompts" / "run.v1.md"
DELEGATE: Final = "delegate_run"
REPORT: Final = "report"
PEOPLE: Final = "human/"
GOAL_MAX: Final = 1000
TRACE_MAX: Final = 16_000
MOST_TOKENS: Final = 1_000_000
INCIDENT_LIMITS: Final = Limits(text=2000, total=12_000, items=32)
UNNAMED: Final = "unknown"


@dataclass(frozen=True, slots=True)
class Frame:
    """What does not change in a run: its template, incident, marks, and what its model is offered."""

    template: templates_pb2.AgentTemplate
    pins: Mapping[str, str]
    incident: ingest_service_pb2.Incident
    marks: Marks
    offers: Mapping[str, Offer]

    def tool(self, offer: Offer) -> Tool | None:
        """Return the tool of an offer; None for the two that are none."""
        return tools().get(offer.method)


def frame_of(run: Run) -> Frame:
    """Return the frame of a run; nothing of it is read anew, so that a later publish changes no run."""
    version = templates.TemplateVersion.FromString(run.template)
    content = version.template
    offers = dict(catalogue(tools_of(content), targets=run.target_ids))
    if may_delegate(run, content.child_templates):
        choices = {
            f"{outcome_pb2.DelegateAgent.DESCRIPTOR.full_name}.template_id": tuple(content.child_templates),
            f"{outcome_pb2.DelegateAgent.DESCRIPTOR.full_name}.target_ids": run.target_ids,
        }
        text = "Let an agent of another template do a part of the work, and wait for its report."
        offers[DELEGATE] = offer_message(DELEGATE, text, outcome_pb2.DelegateAgent, choices)
    text = "Report what you found and did. This ends your work; it is checked against your steps."
    offers[REPORT] = offer_message(REPORT, text, agents.RunReport)
    return Frame(
        template=content,
        pins=dict(version.tool_digests),
        incident=ingest_service_pb2.Incident.FromString(run.incident),
        marks=Marks(run.marks),
        offers=offers,
    )


def question(run: Run, frame: Frame, number: int) -> pb.GenerateRequest:
    """Return what the model is asked in step `number`: the same for every try, whoever tries."""
    before = [one for one in run.steps if one.number < number]
    return pb.GenerateRequest(
        request_id=derived_id(run.run_id, "model", number),
        role=model_role(frame.template),
        system=_instructions(frame),
        messages=[_beginning(run, frame), *_rounds(before)],
        tools=[
            pb.ToolDefinition(name=one.name, description=one.description, parameters_json_schema=one.schema_json)
            for one in frame.offers.values()
        ],
        tool_use=pb.GenerateRequest.TOOL_USE_REQUIRED,
        max_output_tokens=max(1, min(MOST_TOKENS, run.token_limit - run.token_count)),
        attribution=_attribution(run, frame),
    )


def calls_of(reply: pb.GenerateResponse) -> list[tuple[ToolCall, str]]:
    """Return every call of a reply with why the boundary does not hand it on, which is empty for most."""
    kept = [(ToolCall(one.call_id, one.name, one.arguments_json), "") for one in reply.tool_calls]
    dropped = [(ToolCall(one.call_id, one.name, "{}"), one.description) for one in reply.dropped_calls]
    return kept + dropped


@cache
def _prompt() -> Template:
    return Template(PROMPT.read_text(encoding="utf-8"))


def _instructions(frame: Frame) -> str:
    """Return the system prompt."""
    return _prompt().substitute(
        role=frame.template.role,
        constraints="\n".join(f"- {one}" for one in frame.template.constraints) or "- Nothing beside what follows.",
        steps=frame.template.max_steps,
        marks=frame.marks.rules(),
    )


def _beginning(run: Run, frame: Frame) -> pb.Message:
    """Return what a run is about: goal, targets, incident, and the execution that failed."""
    parts = [
        f"Goal:\n{frame.marks.span('StartRun.goal', run.goal, GOAL_MAX)}",
        f"Targets: {', '.join(run.target_ids) or 'none'}",
        f"Incident:\n{show(frame.incident, frame.marks, INCIDENT_LIMITS).text}",
    ]
    if run.execution_trace:
        trace = frame.marks.span("execution_trace", run.execution_trace, TRACE_MAX)
        parts.append(f"Execution {run.execution_id} of a playbook went before and did not repair it:\n{trace}")
    return pb.Message(role=pb.Message.ROLE_USER, text="\n\n".join(parts))


def _rounds(steps: list[Step]) -> Iterator[pb.Message]:
    """Return the model's replies, each call with its result."""
    for step in steps:
        if step.kind is not Kind.MODEL or step.state is not StepState.SUCCEEDED or step.reply is None:
            continue
        reply = pb.GenerateResponse.FromString(step.reply)
        calls = [call for call, _ in calls_of(reply)]
        yield pb.Message(
            role=pb.Message.ROLE_ASSISTANT,
            text=step.result,
            tool_calls=[
                pb.ToolCall(call_id=one.call_id, name=_name(one.name), arguments_json=one.arguments) for one in calls
            ],
        )
        answers = answers_of(step, steps)
        for one in calls:
            answer = answers[one.call_id]
            yield pb.Message(
                role=pb.Message.ROLE_TOOL,
                call_id=one.call_id,
                text=f"step {answer.number}: {answer.result}",
                failed=answer.state is not StepState.SUCCEEDED,
            )
        if not calls:
            yield pb.Message(role=pb.Message.ROLE_USER, text=NO_CALL)


NO_CALL: Final = "That was no call of a tool. Call one of the tools, or `report`."


def _name(name: str) -> str:
    """Return a tool's name as it may be repeated to a provider."""
    return name if name[:1].isalpha() else UNNAMED


def _attribution(run: Run, frame: Frame) -> pb.Attribution:
    """Return for whom the tokens are spent: the person, or the sender of the incident."""
    made = pb.Attribution(incident_id=run.incident_id, decision_id=run.decision_id, run_id=run.run_id)
    if run.requester.startswith(PEOPLE):
        made.person = run.requester
    else:
        made.sender = frame.incident.source or run.requester
    return made
