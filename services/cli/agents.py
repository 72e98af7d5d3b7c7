"""`opsmesh agents`: runs of agents, and everything one of them was shown, asked for, got and cost."""

import uuid
from typing import Annotated, Any, Final

import typer

from opsmesh.agents.v1 import agent_service_pb2 as agents
from opsmesh.agents.v1 import agent_service_pb2_grpc as agents_grpc
from services.cli.command import Limit, PageToken, RequestId, command, group
from services.cli.output import Column, age, console, enum_value, show_list, show_one
from services.cli.session import Session, pages

app = group("Agents that run or ran.")

# What a table has room for of a result or a text; --json has all.
SHOWN: Final = 240
MICROS: Final = 1_000_000


def _tokens(step: agents.RunStep) -> str:
    """Return the tokens of a question to the model; estimated ones are marked."""
    if not step.HasField("usage"):
        return ""
    said = f"{step.usage.input_tokens} + {step.usage.output_tokens}"
    return f"about {said}" if step.usage.estimated else said


def money(micros: int) -> str:
    """Return millionths as an amount; nothing for nothing."""
    return f"{micros / MICROS:.6f}" if micros else ""


def _what(step: agents.RunStep) -> str:
    """Return what a step was: what was asked for with which arguments, and what came of it."""
    name = step.tool.rpartition("/")[2]
    if step.kind == agents.RunStep.KIND_MODEL:
        name = f"{step.model}, [replayed from a file]" if step.recorded else step.model
    answer = step.text or step.result
    lines = [
        name,
        step.arguments_json,
        f"-> {_short(answer)}" if answer else "",
        f"child run {step.child_run_id}" if step.child_run_id else "",
        f"approval {step.approval_id}" if step.approval_id else "",
        f"{step.reason} {step.detail}".strip(),
    ]
    return "\n".join(line for line in lines if line)


def _short(text: str) -> str:
    """Return the beginning of a text on one line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= SHOWN else f"{flat[:SHOWN]}..."


def _digest(step: agents.RunStep) -> str:
    """Return what pins a step: the prompt of a question, the result of anything else."""
    if step.prompt_digest:
        return f"prompt {step.prompt_digest}"
    return f"result {step.result_digest}" if step.result_digest else ""


def _took(step: agents.RunStep) -> str:
    """Return how long a step took."""
    if step.HasField("latency_duration"):
        return f"{step.latency_duration.ToMilliseconds() / 1000:.1f} s"
    if step.HasField("end_time"):
        return f"{(step.end_time.ToMilliseconds() - step.start_time.ToMilliseconds()) / 1000:.1f} s"
    return ""


COLUMNS: Final[list[Column]] = [
    ("run", "run_id"),
    ("template", lambda one: f"{one.template_id} v{one.template_version}"),
    ("state", "state"),
    ("age", lambda one: age(one.create_time)),
    ("steps", "step_count"),
    ("tokens", "token_count"),
    ("targets", "target_ids"),
    ("incident", "incident_id"),
    ("detail", lambda one: f"{one.reason} {one.detail}".strip()),
]
SHEET: Final[list[Column]] = [
    ("run", "run_id"),
    ("template", lambda one: f"{one.template_id} v{one.template_version}"),
    ("state", "state"),
    ("recorded", lambda one: "its replies come from files: no model was asked" if one.recorded else ""),
    ("health proved", lambda one: "yes" if one.health_proved else "no"),
    ("goal", "goal"),
    ("targets", "target_ids"),
    ("requester", "requester"),
    ("incident", "incident_id"),
    ("decision", "decision_id"),
    ("execution", "execution_id"),
    ("started by run", "parent_run_id"),
    ("depth", "depth"),
    ("steps", "step_count"),
    ("tokens", "token_count"),
    ("cost", lambda one: money(one.cost_micros)),
    ("approval", "approval_id"),
    ("killed by", "kill_id"),
    ("cancel requested", lambda one: "yes" if one.cancel_requested else ""),
    ("detail", lambda one: f"{one.reason} {one.detail}".strip()),
    ("asked for", "create_time"),
    ("ended", "end_time"),
]
STEPS: Final[list[Column]] = [
    ("step", "number"),
    ("kind", "kind"),
    ("state", "state"),
    ("what", _what),
    ("sha-256", _digest),
    ("verdict", "verdict"),
    ("tokens", _tokens),
    ("cost", lambda one: money(one.cost_micros)),
    ("took", _took),
]
REPORT: Final[list[Column]] = [
    ("it says", "outcome"),
    ("cause", "cause"),
    ("confidence", "confidence"),
    ("evidence", lambda one: "\n".join(f"step {item.step_number}: {item.what}" for item in one.evidence)),
    ("did", lambda one: "\n".join(f"step {item.step_number}: {item.what}" for item in one.actions)),
    ("verified", "verification"),
]


@command(app, "run")
async def start_run(
    session: Session,
    template: str,
    incident: Annotated[str, typer.Option(help="The incident it is for.")],
    goal: Annotated[str, typer.Option(help="What it shall find out or achieve.")],
    target: Annotated[list[str] | None, typer.Option(help="Only this target of it; may be repeated.")] = None,
    request_id: RequestId = "",
) -> None:
    """Start an agent on an incident."""
    request = agents.StartRunRequest(
        request_id=request_id or str(uuid.uuid4()),
        template_id=template,
        incident_id=incident,
        target_ids=target or [],
        goal=goal,
    )
    _show(session, (await _stub(session).StartRun(request)).run)


@command(app, "list")
async def list_runs(
    session: Session,
    incident: Annotated[str, typer.Option(help="Only this incident.")] = "",
    template: Annotated[str, typer.Option(help="Only this template.")] = "",
    run_state: Annotated[str, typer.Option("--run-state", help="Only this state, such as awaiting-approval.")] = "",
    limit: Limit = 50,
    page_token: PageToken = "",
) -> None:
    """List runs, newest first."""
    state: Any = enum_value(agents.Run.State.DESCRIPTOR, run_state)
    request = agents.ListRunsRequest(page_token=page_token, incident_id=incident, template_id=template, state=state)
    show_list(session, await pages(_stub(session).ListRuns, request, "runs", limit), "runs", COLUMNS)


@command(app, "show")
async def show_run(session: Session, run_id: str) -> None:
    """Show one run: every prompt, tool call, result, verdict, tokens and cost. --json leaves nothing out."""
    _show(session, (await _stub(session).GetRun(agents.GetRunRequest(run_id=run_id))).run)


@command(app, "cancel")
async def cancel_run(
    session: Session,
    run_id: str,
    reason: Annotated[str, typer.Option(help="Why it must stop.")],
    request_id: RequestId = "",
) -> None:
    """Ask a run, and every run it started, to stop; what it has begun ends first."""
    request = agents.CancelRunRequest(request_id=request_id or str(uuid.uuid4()), run_id=run_id, reason=reason)
    _show(session, (await _stub(session).CancelRun(request)).run)


def _stub(session: Session) -> "agents_grpc.AgentServiceAsyncStub":
    stub: agents_grpc.AgentServiceAsyncStub = agents_grpc.AgentServiceStub(session.channel("agents"))
    return stub


def _show(session: Session, run: agents.Run) -> None:
    """Show a run, its report and its steps."""
    show_one(session, run, SHEET)
    if session.as_json:
        return
    if run.HasField("report"):
        console().print("\n[bold]what it reports[/bold] (checked against its steps, believed by nobody)")
        show_one(session, run.report, REPORT)
    if run.steps:
        console().print()
        show_list(session, run, "steps", STEPS)
