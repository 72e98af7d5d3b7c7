"""`opsmesh incidents`: what is wrong, and since when."""

import asyncio
import uuid
from contextlib import nullcontext
from typing import Annotated

import typer
from rich.live import Live
from rich.table import Table

from opsmesh.ingest.v1 import ingest_service_pb2 as ingest
from opsmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from services.cli.command import Limit, PageToken, RequestId, command, group
from services.cli.output import Column, cell, console, duration, print_json, show_list, show_one
from services.cli.session import Session, UsageError, pages

app = group("What is wrong, and since when.")

COLUMNS: list[Column] = [
    ("incident", "incident_id"),
    ("state", "state"),
    ("age", lambda one: duration(one.age_seconds)),
    ("severity", "severity"),
    ("signals", lambda one: f"{one.signal_count} ({one.duplicate_count} dup{', flapping' if one.flapping else ''})"),
    ("target", lambda one: one.targets[0].target_id if one.targets else ""),
    ("title", "title"),
]
SHEET: list[Column] = [
    *COLUMNS,
    ("why", "state_detail"),
    ("revision", "revision"),
    ("source", "source"),
    ("rule of sender", "rule_name"),
    ("alerts", lambda one: f"{one.alert_count}{', full: the next opens another' if one.sealed else ''}"),
    ("joined by", lambda one: f"{one.correlation_key} ({one.correlation_rule_id or 'no rule'})"),
    ("in inventory", lambda one: ", ".join(t.target_id for t in one.targets if t.in_inventory) or "no target"),
    ("decision", "decision_id"),
    ("execution", "execution_id"),
    ("labels", lambda one: ", ".join(f"{key}={value}" for key, value in sorted(one.labels.items()))),
    ("opened", "open_time"),
    ("resolved", "resolve_time"),
    ("description", "description"),
]
SIGNAL_COLUMNS: list[Column] = [
    ("signal", lambda one: one.signal.signal_id),
    ("disposition", "disposition"),
    ("status", lambda one: cell(one.signal, "status")),
    ("recorded", "record_time"),
    ("warnings", lambda one: "; ".join(one.signal.warnings)),
]


def parse_states(words: list[str]) -> list["ingest.Incident.State.ValueType"]:
    """Return the states named by WORDS, with or without prefix. Raises UsageError for others."""
    known = dict(ingest.Incident.State.items())
    try:
        return [known["STATE_" + word.upper().removeprefix("STATE_")] for word in words]
    except KeyError as error:
        names = ", ".join(name.removeprefix("STATE_") for name, number in known.items() if number)
        raise UsageError(f"there is no state {error}\nNEXT: one of {names}") from error


@command(app, "list")
async def list_incidents(
    session: Session,
    states: Annotated[list[str] | None, typer.Option("--incident-state", help="Only this state; repeatable.")] = None,
    target: Annotated[str, typer.Option(help="Only with this target.")] = "",
    source: Annotated[str, typer.Option(help="Only from this source.")] = "",
    limit: Limit = 50,
    page_token: PageToken = "",
) -> None:
    """List incidents, newest first."""
    request = ingest.ListIncidentsRequest(
        page_token=page_token, target_id=target, source=source, states=parse_states(states or [])
    )
    stub = ingest_grpc.IngestServiceStub(session.channel("ingest"))
    show_list(session, await pages(stub.ListIncidents, request, "incidents", limit), "incidents", COLUMNS)


@command(app, "show")
async def show_incident(session: Session, incident_id: str) -> None:
    """Show one incident with its newest signals."""
    stub = ingest_grpc.IngestServiceStub(session.channel("ingest"))
    answer = await stub.GetIncident(ingest.GetIncidentRequest(incident_id=incident_id))
    show_one(session, answer.incident, SHEET)
    if not session.as_json:
        console().print()
        show_list(session, answer, "signals", SIGNAL_COLUMNS)


@command(app, "resolve")
async def resolve_incident(
    session: Session,
    incident_id: str,
    reason: Annotated[str, typer.Option(help="Why it is over.")],
    request_id: RequestId = "",
) -> None:
    """Close an incident by hand."""
    stub = ingest_grpc.IngestServiceStub(session.channel("ingest"))
    request = ingest.ResolveIncidentRequest(
        request_id=request_id or str(uuid.uuid4()), incident_id=incident_id, reason=reason
    )
    show_one(session, (await stub.ResolveIncident(request)).incident, SHEET)


@command(app, "watch")
async def watch_incidents(
    session: Session,
    seconds: Annotated[float, typer.Option(help="How long; 0 means until Ctrl-C.")] = 0,
) -> None:
    """Follow the open incidents, asked for anew every second; with --json one answer a line."""
    stub = ingest_grpc.IngestServiceStub(session.channel("ingest"))
    over = {ingest.Incident.STATE_RESOLVED, ingest.Incident.STATE_STALE}
    request = ingest.ListIncidentsRequest(
        page_size=100, states=[state for state in ingest.Incident.State.values() if state and state not in over]
    )
    until = asyncio.get_running_loop().time() + seconds if seconds else float("inf")
    with Live(console=console(), refresh_per_second=2) if not session.as_json else nullcontext() as live:
        while True:
            answer = await stub.ListIncidents(request)
            if live is None:
                print_json(answer, one_line=True)
            else:
                live.update(_table(answer))
            if asyncio.get_running_loop().time() + 1 > until:
                return
            await asyncio.sleep(1)


def _table(answer: ingest.ListIncidentsResponse) -> Table:
    """Return the incidents as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header, _ in COLUMNS:
        table.add_column(header, overflow="fold")
    for one in answer.incidents:
        table.add_row(*(cell(one, column) for _, column in COLUMNS))
    return table
