"""`opsmesh decisions`: what was decided, and why."""

from pathlib import Path
from typing import Annotated

import typer

from opsmesh.ingest.v1 import ingest_service_pb2 as ingest
from opsmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from opsmesh.router.v1 import decision_service_pb2 as router
from opsmesh.router.v1 import decision_service_pb2_grpc as router_grpc
from services.cli.command import Limit, PageToken, command, group
from services.cli.output import Column, console, duration, print_json, show_list, show_one
from services.cli.session import Session, UsageError, pages
from services.mesh.config import load_yaml

app = group("What was decided, and why.")

COLUMNS: list[Column] = [
    ("decision", "decision_id"),
    ("state", "state"),
    ("outcome", "outcome"),
    ("result", "result"),
    ("rule", lambda one: f"{one.rule_id} (set {one.rule_set_version})" if one.rule_id else ""),
    ("models called", "model_call_count"),
    ("age", lambda one: duration(one.age_seconds)),
    ("incident", "incident_id"),
]
SHEET: list[Column] = [
    *COLUMNS,
    ("revision", "revision"),
    ("why", "reason"),
    ("playbook", "playbook_id"),
    ("execution", "execution_id"),
    ("notice", "notice_execution_id"),
    ("asked for", "create_time"),
    ("closed", "close_time"),
]


@command(app, "list")
async def list_decisions(
    session: Session,
    incident: Annotated[str, typer.Option(help="Only this incident.")] = "",
    rule: Annotated[str, typer.Option(help="Only this rule.")] = "",
    limit: Limit = 50,
    page_token: PageToken = "",
) -> None:
    """List decisions, newest first."""
    request = router.ListDecisionsRequest(page_token=page_token, incident_id=incident, rule_id=rule)
    stub = router_grpc.DecisionServiceStub(session.channel("router"))
    show_list(session, await pages(stub.ListDecisions, request, "decisions", limit), "decisions", COLUMNS)


@command(app, "show")
async def show_decision(session: Session, decision_id: str) -> None:
    """Show one decision."""
    stub = router_grpc.DecisionServiceStub(session.channel("router"))
    answer = await stub.GetDecision(router.GetDecisionRequest(decision_id=decision_id))
    show_one(session, answer.decision, SHEET)


@command(app, "preview")
async def preview_decision(
    session: Session,
    incident: Annotated[str, typer.Option(help="An incident there is.")] = "",
    file: Annotated[Path | None, typer.Option(help="An incident as YAML or JSON.")] = None,
) -> None:
    """Say what would be decided, and why the other rules do not match; nothing happens."""
    if (file is None) == (not incident):
        raise UsageError("name either --incident or --file")
    if file is None:
        reader = ingest_grpc.IngestServiceStub(session.channel("ingest"))
        subject = (await reader.GetIncident(ingest.GetIncidentRequest(incident_id=incident))).incident
    else:
        subject = load_yaml(file, ingest.Incident)
    stub = router_grpc.DecisionServiceStub(session.channel("router"))
    answer = await stub.PreviewDecision(router.PreviewDecisionRequest(incident=subject))
    if session.as_json:
        print_json(answer)
        return
    show_one(session, answer.decision, SHEET)
    for line in answer.matched:
        console().print(f"  matched: {line}", markup=False)
    for one in answer.not_matched:
        console().print(f"  not {one.rule_id}: {one.reason}", markup=False)
