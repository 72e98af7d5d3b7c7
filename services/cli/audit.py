"""`opsmesh audit`: the record of what was decided and done, and its proof."""

import contextlib
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from rich.progress import Progress

from opsmesh.audit.v1 import audit_service_pb2 as audit
from opsmesh.audit.v1 import audit_service_pb2_grpc as audit_grpc
from services.audit.chain import Report, Verifier, read_checkpoints
from services.cli.command import REFUSED, Limit, PageToken, command, group
from services.cli.output import (
    Column,
    clock,
    console,
    duration,
    enum_value,
    error_console,
    parse_time,
    show_list,
    show_one,
)
from services.cli.session import RefusedError, Session, pages

app = group("The record, and its proof.")

EXPORT_SECONDS: Final = 600.0
PAIRS: Final = 5

COLUMNS: list[Column] = [
    ("#", "sequence"),
    ("time", lambda one: clock(one.event_time)),
    ("phase", "phase"),
    ("outcome", "outcome"),
    ("actor", "actor"),
    ("action", lambda one: one.action.removeprefix("opsmesh.").rpartition("/")[2]),
    ("target", "target"),
    ("reason", "reason"),
]
SHEET: list[Column] = [
    ("#", "sequence"),
    ("time", "event_time"),
    *COLUMNS[2:5],
    ("on behalf of", "on_behalf_of"),
    ("action", "action"),
    ("target", "target"),
    ("environment", "environment"),
    ("region", "region"),
    ("reason", "reason"),
    ("incident", "incident_id"),
    ("decision", "decision_id"),
    ("execution", lambda one: f"{one.execution_id} {one.step_id}".strip()),
    ("rule set", lambda one: one.rule_set_version or ""),
    ("policy set", lambda one: one.policy_set_version or ""),
    ("request", "request_id"),
    ("digest", "request_digest"),
    ("trace", "trace_id"),
    ("details", lambda one: "\n".join(f"{key}: {text}" for key, text in sorted(one.details.items()))),
    ("writer", "writer"),
    ("appended", "append_time"),
    ("event", "event_id"),
]


@command(app, "list")
async def list_events(
    session: Session,
    incident: Annotated[str, typer.Option(help="Only this incident.")] = "",
    actor: Annotated[str, typer.Option(help="Only this actor, such as human/operator.")] = "",
    action: Annotated[str, typer.Option(help="Only this action; a tool's bare RPC name will do.")] = "",
    target: Annotated[str, typer.Option(help="Only this target.")] = "",
    environment: Annotated[str, typer.Option(help="Only this environment.")] = "",
    phase: Annotated[str, typer.Option(help="intent, outcome or record.")] = "",
    outcome: Annotated[str, typer.Option(help="succeeded, failed, unknown, denied or observed.")] = "",
    execution: Annotated[str, typer.Option(help="Only this execution.")] = "",
    request: Annotated[str, typer.Option(help="Only this request id.")] = "",
    since: Annotated[str, typer.Option(help="Not before: a time, or an age such as 30m, 12h, 7d.")] = "",
    until: Annotated[str, typer.Option(help="Before: a time or an age.")] = "",
    newest: Annotated[bool, typer.Option("--newest", help="Newest first.")] = False,
    limit: Limit = 50,
    page_token: PageToken = "",
) -> None:
    """List events, oldest first."""
    wanted = audit.ListEventsRequest(
        page_token=page_token,
        incident_id=incident,
        actor=actor,
        action=_action(action),
        target=target,
        environment=environment,
        phase=enum_value(audit.AuditEvent.Phase.DESCRIPTOR, phase),  # type: ignore[arg-type]  # by name, checked there
        outcome=enum_value(audit.AuditEvent.Outcome.DESCRIPTOR, outcome),  # type: ignore[arg-type]  # the same
        execution_id=execution,
        request_id=request,
        descending=newest,
    )
    if since:
        wanted.start_time.FromDatetime(parse_time(since))
    if until:
        wanted.end_time.FromDatetime(parse_time(until))
    stub = audit_grpc.AuditServiceStub(session.channel("audit"))
    show_list(session, await pages(stub.ListEvents, wanted, "events", limit), "events", COLUMNS)


def _action(name: str) -> str:
    """Return the full name of an action; a tool may be given by its bare RPC name."""
    if not name or "/" in name:
        return name
    from services.mesh.tools import find_tool  # noqa: PLC0415  imports every tool

    return find_tool(name).name


@command(app, "show")
async def show_event(
    session: Session, event: Annotated[str, typer.Argument(help="Its event_id, or its sequence.")]
) -> None:
    """Show one event with everything it records."""
    stub = audit_grpc.AuditServiceStub(session.channel("audit"))
    if not event.isdecimal():
        show_one(session, (await stub.GetEvent(audit.GetEventRequest(event_id=event))).event, SHEET)
        return
    request = audit.ExportEventsRequest(start_sequence=max(1, int(event)))
    async for part in stub.ExportEvents(request):
        if part.events and part.events[0].event.sequence == int(event):
            show_one(session, part.events[0].event, SHEET)
            return
        break
    raise RefusedError(f"there is no event with sequence {event}\nNEXT: opsmesh audit list --newest")


@command(app, "verify")
async def verify(
    session: Session,
    checkpoints: Annotated[
        Path | None, typer.Option(help="The checkpoint file; default: audit/checkpoints.jsonl of the state folder.")
    ] = None,
    public_key: Annotated[Path | None, typer.Option(help="The log's public key; default: pki/log.pub.")] = None,
) -> None:
    """Recompute the whole chain and hold it against the checkpoints kept outside the database."""
    key = _load_key(public_key or session.state / "pki" / "log.pub")
    # Read before the export: every checkpoint then is of events that the export must contain.
    known = read_checkpoints(checkpoints or session.state / "audit" / "checkpoints.jsonl", key)
    verifier = Verifier(known)
    stub = audit_grpc.AuditServiceStub(session.channel("audit"))
    with _progress(session) as progress:
        task = progress.add_task("verifying", total=known.covered or None)
        async for part in stub.ExportEvents(audit.ExportEventsRequest(), timeout=EXPORT_SECONDS):
            verifier.feed(part.events)
            progress.advance(task, len(part.events))
    report = verifier.finish(datetime.now(UTC))
    _show_report(session, report)
    if not report.intact:
        raise typer.Exit(REFUSED)


def _load_key(path: Path) -> Ed25519PublicKey:
    """Read the public key, or say where it comes from."""
    with contextlib.suppress(OSError, ValueError):
        key = load_pem_public_key(path.read_bytes())
        if isinstance(key, Ed25519PublicKey):
            return key
    raise RefusedError(f"{path} is not the log's public key\nNEXT: name it with --public-key, or: opsmesh certs init")


@contextlib.contextmanager
def _progress(session: Session) -> Iterator[Progress]:
    """Show progress to a person at a terminal, on stderr."""
    shown = error_console()
    with Progress(console=shown, transient=True, disable=session.as_json or not shown.is_terminal) as progress:
        yield progress


def _show_report(session: Session, report: Report) -> None:
    """Tell what was found and how far the proof reaches."""
    if session.as_json:
        content = {
            "intact": report.intact,
            "event_count": report.events,
            "head_sequence": report.head,
            "checkpoint_count": report.checkpoints,
            "covered_sequence": report.covered,
            "last_checkpoint_age_seconds": report.checkpoint_age,
            "finding_count": report.finding_count,
            "findings": [
                {"kind": str(one.kind), "sequence": one.sequence, "description": one.description}
                for one in report.findings
            ],
        }
        sys.stdout.write(json.dumps(content, indent=2) + "\n")
        return
    out = console()
    for finding in report.findings:
        out.print(f"[red]{finding.kind}[/red] at {finding.sequence}: ", end="")
        out.print(finding.description, markup=False)
    if report.finding_count > len(report.findings):
        out.print(f"... and {report.finding_count - len(report.findings)} more")
    verdict = "[green]intact[/green]" if report.intact else "[bold red]BROKEN[/bold red]"
    out.print(f"{verdict}: {report.events} events, chain up to {report.head}, {report.checkpoints} checkpoints")
    if report.checkpoint_age is None:
        out.print("no checkpoint yet: only the chain itself was checked")
    else:
        newer = (
            f", {report.head - report.covered} newer events wait for the next" if report.head > report.covered else ""
        )
        age = duration(int(max(0.0, report.checkpoint_age)))
        out.print(f"the last checkpoint is {age} old and covers everything up to {report.covered}{newer}")
