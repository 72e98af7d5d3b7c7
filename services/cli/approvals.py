"""`opsmesh approvals`: actions that wait for a person, and the answers of people."""

import asyncio
import json
import sys
import uuid
from pathlib import Path
from typing import Annotated, Any, Final

import grpc
import grpc.aio
import typer
from google.protobuf import json_format
from rich.text import Text

from opsmesh.guardrails.v1 import approval_service_pb2 as guardrails
from opsmesh.guardrails.v1 import approval_service_pb2_grpc as guardrails_grpc
from services.cli import approval_sheet as sheet
from services.cli.command import Limit, PageToken, RequestId, command, group, typed
from services.cli.output import Column, age, cell, clock, console, enum_value, print_json, show_list
from services.cli.session import RefusedError, Session, UnreachableError, UsageError, pages
from services.cli.tools import field_values
from services.mesh.tools import find_tool

app = group("Actions that wait for a person.")

Approval = guardrails.Approval
Digest = Annotated[str, typer.Option("--digest", help="The digest you have seen; without it you are asked.")]
Comment = Annotated[str, typer.Option("--comment", help="Why; kept with the answer.")]
COLUMNS: Final[list[Column]] = [
    ("approval", "approval_id"),
    ("state", "state"),
    ("tool", sheet.tool),
    ("target", lambda one: one.judgement.target_id),
    ("risk", lambda one: cell(one.judgement, "risk")),
    ("requester", "requester"),
    ("age", lambda one: age(one.create_time)),
    ("left", sheet.left),
    ("approved by", sheet.needs),
    ("digest", "short_digest"),
]
# A stream lives an hour at most; a watch goes on with the next one.
STREAM_SECONDS: Final = 3600.0
RETURN_SECONDS: Final = 60.0


def stub_of(session: Session) -> Any:
    """Return the stub of the approvals' service, untyped: its stub differs for asynchronous channels."""
    return guardrails_grpc.ApprovalServiceStub(session.channel("guardrails"))


async def read(session: Session, approval_id: str) -> Approval:
    """Return one approval."""
    answer = await stub_of(session).GetApproval(guardrails.GetApprovalRequest(approval_id=approval_id))
    found: Approval = answer.approval
    return found


@command(app, "list")
async def list_approvals(
    session: Session,
    pending: Annotated[bool, typer.Option("--pending", help="Only those that wait.")] = False,
    approval_state: Annotated[str, typer.Option("--approval-state", help="Only this state, such as rejected.")] = "",
    incident: Annotated[str, typer.Option(help="Only this incident.")] = "",
    limit: Limit = 50,
    page_token: PageToken = "",
) -> None:
    """List approvals, newest first."""
    wanted = enum_value(Approval.State.DESCRIPTOR, "pending" if pending else approval_state)
    request = guardrails.ListApprovalsRequest(
        page_token=page_token,
        incident_id=incident,
        state=wanted,  # type: ignore[arg-type]  # a number of this very enum
    )
    show_list(session, await pages(stub_of(session).ListApprovals, request, "approvals", limit), "approvals", COLUMNS)


@command(app, "show")
async def show_approval(session: Session, approval_id: str) -> None:
    """Show one approval: what exactly would happen, what the checks said, and who answered."""
    approval = await read(session, approval_id)
    sheet.show(session, approval)
    if not session.as_json and approval.state == Approval.STATE_PENDING:
        words = ("approvals", "approve", approval_id, "--digest", approval.short_digest)
        following = typed(session, *words, person="NAME")
        console().print(Text(f"\nNEXT: {following}   (or reject, or amend)"), soft_wrap=True)


@command(app, "watch")
async def watch_approvals(
    session: Session,
    incident: Annotated[str, typer.Option(help="Only this incident.")] = "",
    seconds: Annotated[float, typer.Option(help="How long; 0 means until Ctrl-C.")] = 0,
) -> None:
    """Follow approvals: those that are open at once, then each change; with --json one approval a line."""
    now = asyncio.get_running_loop().time
    until = now() + seconds if seconds else float("inf")
    request = guardrails.WatchApprovalsRequest(incident_id=incident)
    followed = False
    while (remaining := until - now()) > 0:
        try:
            async for message in stub_of(session).WatchApprovals(request, timeout=min(remaining, STREAM_SECONDS)):
                followed = True
                if message.HasField("approval"):
                    _tell(session, message.approval)
        except grpc.aio.AioRpcError as error:
            expected = {grpc.StatusCode.DEADLINE_EXCEEDED} | ({grpc.StatusCode.UNAVAILABLE} if followed else set())
            if error.code() not in expected:
                raise
        await asyncio.sleep(min(1.0, max(0.0, until - now())))
        await _back(session)


async def _back(session: Session) -> None:
    """Wait for guardrails, whose stream ended because it restarts. Raises UnreachableError after a minute."""
    try:
        await asyncio.wait_for(session.channel("guardrails").channel_ready(), RETURN_SECONDS)
    except TimeoutError:
        raise UnreachableError(
            f"guardrails did not come back within {RETURN_SECONDS:g} s\nNEXT: opsmesh status"
        ) from None


def _tell(session: Session, approval: Approval) -> None:
    """Write one change on a line of its own."""
    if session.as_json:
        print_json(approval, one_line=True)
        return
    parts = [
        clock(approval.update_time if approval.HasField("update_time") else approval.create_time),
        approval.approval_id,
        cell(approval, "state").plain,
        f"{sheet.tool(approval)} on {approval.judgement.target_id or 'no target'}",
        f"asked by {approval.requester}",
        approval.short_digest,
    ]
    if approval.state == Approval.STATE_PENDING:
        parts.append(f"{sheet.needs(approval)}, {sheet.left(approval)} left")
    elif approval.HasField("execute_time"):
        parts.append("executed")
    elif approval.close_detail:
        parts.append(approval.close_detail)
    console().print(cell("  ".join(parts), str), soft_wrap=True)
    sys.stdout.flush()


@command(app, "approve")
async def approve(
    session: Session, approval_id: str, digest: Digest = "", comment: Comment = "", request_id: RequestId = ""
) -> None:
    """Say yes to exactly the bytes of a digest. Whoever asked may not."""
    request = guardrails.ApproveRequest(
        request_id=request_id or str(uuid.uuid4()),
        approval_id=approval_id,
        request_digest=digest or await _seen(session, "approve", approval_id),
        comment=comment,
    )
    _answered(session, (await stub_of(session).Approve(request)).approval)


@command(app, "reject")
async def reject(
    session: Session, approval_id: str, digest: Digest = "", comment: Comment = "", request_id: RequestId = ""
) -> None:
    """Say no; one person is enough."""
    request = guardrails.RejectRequest(
        request_id=request_id or str(uuid.uuid4()),
        approval_id=approval_id,
        request_digest=digest or await _seen(session, "reject", approval_id),
        comment=comment,
    )
    _answered(session, (await stub_of(session).Reject(request)).approval)


@command(app, "amend")
async def amend(
    session: Session,
    approval_id: str,
    settings: Annotated[list[str] | None, typer.Option("--set", help="field=value of the request; repeatable.")] = None,
    json_request: Annotated[
        Path | None, typer.Option("--json-request", help="File with the whole new request as proto3 JSON.")
    ] = None,
    digest: Digest = "",
    comment: Comment = "",
    request_id: RequestId = "",
) -> None:
    """Replace it by one with other arguments of the same RPC, judged anew; you become a requester of that one."""
    if not settings and json_request is None:
        raise UsageError("nothing is changed\nNEXT: give --set FIELD=VALUE, or --json-request FILE")
    approval = await read(session, approval_id)
    changed = _changed(approval, settings or [], json_request)
    if not digest:
        digest = await _seen(session, "amend", approval_id, *_repeated(settings or [], json_request))
    request = guardrails.AmendRequest(
        request_id=request_id or str(uuid.uuid4()),
        approval_id=approval_id,
        request_digest=digest,
        request_json=json.dumps(changed, ensure_ascii=False),
        comment=comment,
    )
    made = (await stub_of(session).Amend(request)).approval
    if not session.as_json:
        console().print(cell(f"amended: {approval_id} is replaced by {made.approval_id}, which waits anew", str))
        console().print()
    sheet.show(session, made)


def _changed(approval: Approval, settings: list[str], file: Path | None) -> dict[str, Any]:
    """Return the new request as JSON: the old one, or that of FILE, with SETTINGS in it. Raises UsageError."""
    tool = find_tool(approval.method)
    if file is None:
        sheet.check_digest(approval)
        old = tool.request_class.FromString(approval.request)
        content: Any = json_format.MessageToDict(old, preserving_proto_field_name=True)
    else:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"{file} is not JSON: {error}") from None
        if not isinstance(content, dict):
            raise UsageError(f"{file} must hold a JSON object of the request's fields")
    content.update(field_values(tool, settings))
    try:
        json_format.ParseDict(content, tool.request_class())
    except json_format.ParseError as error:
        fields = ", ".join(tool.request_class.DESCRIPTOR.fields_by_name)
        raise UsageError(f"{error}\nNEXT: {tool.rpc} takes {fields}") from None
    return dict(content)


def _repeated(settings: list[str], file: Path | None) -> list[str]:
    """Return the options of an amendment, to be typed again."""
    words = [word for setting in settings for word in ("--set", setting)]
    return words + (["--json-request", str(file)] if file else [])


async def _seen(session: Session, verb: str, approval_id: str, *options: str) -> str:
    """Show the approval and return its digest once the person says so. Raises RefusedError without a terminal."""
    approval = await read(session, approval_id)
    if not session.as_json:
        sheet.show(session, approval)
    following = typed(session, "approvals", verb, approval_id, "--digest", approval.short_digest, *options)
    if session.as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise RefusedError(
            f"nobody is there to confirm it, so nothing was answered: say which bytes you have seen\nNEXT: {following}"
        )
    sheet.check_digest(approval)
    sure = await asyncio.to_thread(typer.confirm, f"\n{verb} exactly this, digest {approval.short_digest}?")
    if not sure:
        raise RefusedError(f"nothing was answered\nNEXT: {following}")
    return approval.request_digest


def _answered(session: Session, approval: Approval) -> None:
    """Say what the answer made of the approval."""
    if session.as_json:
        print_json(approval)
        return
    state = cell(approval, "state").plain
    text = f"{approval.approval_id} is {state}: {sheet.tool(approval)} on {approval.judgement.target_id or 'no target'}"
    if approval.state == Approval.STATE_PENDING:
        text += f"; approved by {sheet.needs(approval)}"
    elif approval.state == Approval.STATE_APPROVED:
        text += f"; to be executed within {sheet.left(approval)}"
    console().print(cell(text, str), soft_wrap=True)
