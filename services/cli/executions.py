"""`opsmesh executions`: playbooks that run or ran."""

import uuid
from typing import Annotated, Final

import typer

from opsmesh.automation.v1 import automation_service_pb2 as automation
from opsmesh.automation.v1 import automation_service_pb2_grpc as automation_grpc
from services.cli.command import Limit, PageToken, RequestId, command, group
from services.cli.output import Column, age, console, parse_span, show_list, show_one
from services.cli.session import Session, pages

app = group("Playbooks that run or ran.")

COLUMNS: list[Column] = [
    ("execution", "execution_id"),
    ("playbook", lambda one: f"{one.playbook_id} v{one.playbook_version}"),
    ("state", "state"),
    ("age", lambda one: age(one.create_time)),
    ("requester", "requester"),
    ("incident", "incident_id"),
    ("detail", "detail"),
]
SHEET: list[Column] = [
    *COLUMNS,
    ("health proved", "health_proved"),
    ("decision", "decision_id"),
    ("rule", "rule_id"),
    ("cancel requested", lambda one: "yes" if one.cancel_requested else ""),
    ("killed by", lambda one: one.kill_id + (" and goes on at the engine" if one.unstopped else "")),
    ("asked for", "create_time"),
    ("ended", "end_time"),
]
STEPS: list[Column] = [
    ("step", "step_id"),
    ("state", "state"),
    ("tool", lambda one: one.tool.rpartition("/")[2]),
    ("try", "attempt"),
    ("target", "target_id"),
    ("answer", "response_json"),
    ("approval", "approval_id"),
    ("detail", lambda one: f"{one.reason} {one.detail}".strip()),
]
OBSERVED: Final[list[Column]] = [
    ("rule", lambda one: one.rule_id or "(a person)"),
    ("playbook", "playbook_id"),
    ("tool", lambda one: one.tool.rpartition("/")[2]),
    ("environment", "environment"),
    ("executions", "execution_count"),
    ("targets", lambda one: f"{one.target_count}: {', '.join(one.targets)}"),
    ("first", "first_time"),
    ("last", "last_time"),
    ("last execution", "last_execution_id"),
]


@command(app, "list")
async def list_executions(
    session: Session,
    incident: Annotated[str, typer.Option(help="Only this incident.")] = "",
    playbook: Annotated[str, typer.Option(help="Only this playbook.")] = "",
    observed: Annotated[bool, typer.Option("--observed", help="Only what would have happened.")] = False,
    limit: Limit = 50,
    page_token: PageToken = "",
) -> None:
    """List executions, newest first."""
    request = automation.ListExecutionsRequest(
        page_token=page_token,
        incident_id=incident,
        playbook_id=playbook,
        states=[automation.Execution.STATE_OBSERVED] if observed else [],
    )
    stub = automation_grpc.AutomationServiceStub(session.channel("automation"))
    show_list(session, await pages(stub.ListExecutions, request, "executions", limit), "executions", COLUMNS)


@command(app, "show")
async def show_execution(session: Session, execution_id: str) -> None:
    """Show one execution with its steps."""
    stub = automation_grpc.AutomationServiceStub(session.channel("automation"))
    answer = await stub.GetExecution(automation.GetExecutionRequest(execution_id=execution_id))
    _show(session, answer.execution)


@command(app, "report")
async def report_observed(
    session: Session,
    since: Annotated[str, typer.Option(help="How far back, such as 12h or 7d.")] = "7d",
) -> None:
    """Tell what would have happened where policy only observes: per rule, playbook, tool and environment."""
    stub = automation_grpc.AutomationServiceStub(session.channel("automation"))
    request = automation.ReportObservedRequest()
    request.since_duration.FromTimedelta(parse_span(since))
    answer = await stub.ReportObserved(request)
    if answer.rows or session.as_json:
        show_list(session, answer, "rows", OBSERVED, f"what would have happened, last {since}")
    else:
        console().print(f"nothing was only observed in the last {since}")


@command(app, "start")
async def start_execution(
    session: Session,
    playbook: str,
    incident: Annotated[str, typer.Option(help="The incident it is for.")],
    request_id: RequestId = "",
) -> None:
    """Start a playbook on an incident."""
    stub = automation_grpc.AutomationServiceStub(session.channel("automation"))
    request = automation.StartExecutionRequest(
        request_id=request_id or str(uuid.uuid4()), playbook_id=playbook, incident_id=incident
    )
    _show(session, (await stub.StartExecution(request)).execution)


@command(app, "cancel")
async def cancel_execution(
    session: Session,
    execution_id: str,
    reason: Annotated[str, typer.Option(help="Why it must stop.")],
    request_id: RequestId = "",
) -> None:
    """Ask an execution to stop; it is CANCELLED once the engine was seen to have stopped."""
    stub = automation_grpc.AutomationServiceStub(session.channel("automation"))
    request = automation.CancelExecutionRequest(
        request_id=request_id or str(uuid.uuid4()), execution_id=execution_id, reason=reason
    )
    _show(session, (await stub.CancelExecution(request)).execution)


def _show(session: Session, execution: automation.Execution) -> None:
    show_one(session, execution, SHEET)
    if not session.as_json:
        console().print()
        show_list(session, execution, "steps", STEPS)
