"""`opsmesh approvals`: actions that wait for a person."""

from typing import Annotated

import typer

from opsmesh.guardrails.v1 import approval_service_pb2 as guardrails
from opsmesh.guardrails.v1 import approval_service_pb2_grpc as guardrails_grpc
from services.cli.command import Limit, PageToken, command, group
from services.cli.output import Column, cell, console, show_list, show_one
from services.cli.session import Session, pages

app = group("Actions that wait for a person.")

COLUMNS: list[Column] = [
    ("approval", "approval_id"),
    ("state", "state"),
    ("tool", lambda one: one.method.rpartition("/")[2]),
    ("target", lambda one: one.judgement.target_id),
    ("risk", lambda one: cell(one.judgement, "risk")),
    ("requester", "requester"),
    ("expires", "expire_time"),
]
SHEET: list[Column] = [
    *COLUMNS,
    ("digest", "request_digest"),
    ("environment", lambda one: one.judgement.environment),
    ("why this risk", lambda one: one.judgement.risk_detail),
    ("request", lambda one: one.judgement.request_json),
    ("incident", lambda one: one.context.incident_id),
    ("execution", lambda one: one.context.execution_id),
    ("policy", lambda one: f"{one.judgement.policy_rule_id} (set {one.judgement.policy_set_version})"),
    ("asked for", "create_time"),
]
CHECKS: list[Column] = [("check", "name"), ("passed", "passed"), ("what it found", "detail")]


@command(app, "list")
async def list_approvals(
    session: Session,
    pending: Annotated[bool, typer.Option("--pending", help="Only those that wait.")] = False,
    incident: Annotated[str, typer.Option(help="Only this incident.")] = "",
    limit: Limit = 50,
    page_token: PageToken = "",
) -> None:
    """List approvals, newest first."""
    request = guardrails.ListApprovalsRequest(
        page_token=page_token,
        incident_id=incident,
        state=guardrails.Approval.STATE_PENDING if pending else guardrails.Approval.STATE_UNSPECIFIED,
    )
    stub = guardrails_grpc.ApprovalServiceStub(session.channel("guardrails"))
    show_list(session, await pages(stub.ListApprovals, request, "approvals", limit), "approvals", COLUMNS)


@command(app, "show")
async def show_approval(session: Session, approval_id: str) -> None:
    """Show one approval: what exactly would happen, and what the checks said."""
    stub = guardrails_grpc.ApprovalServiceStub(session.channel("guardrails"))
    approval = (await stub.GetApproval(guardrails.GetApprovalRequest(approval_id=approval_id))).approval
    show_one(session, approval, SHEET)
    if not session.as_json:
        console().print()
        show_list(session, approval.judgement, "checks", CHECKS)
