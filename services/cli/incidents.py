"""`opsmesh incidents`: what is wrong, and since when."""

import asyncio
import sys
import uuid
from contextlib import nullcontext
from typing import Annotated, Final

import grpc
import grpc.aio
import typer
from rich.live import Live

from opsmesh.ingest.v1 import ingest_service_pb2 as ingest
from opsmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from services.cli.command import Limit, PageToken, RequestId, command, group
from services.cli.output import Column, cell, console, duration, error_console, print_json, show_list, show_one
from services.cli.refusals import SILENT, words_of
from services.cli.session import Session, UsageError, pages
from services.cli.watching import Watch, lines, picture

app = group("What is wrong, and since when.")

# So many looks in a row of a watch may find no room; then it is more than a moment.
MISSED_MAX: Final = 10
MISSED_SECONDS: Final = 2.0
PASSING: Final = (*SILENT, grpc.StatusCode.RESOURCE_EXHAUSTED)


def _told_again(one: ingest.Incident) -> str:
    """Return until when an incident stays open that nothing but occurrences keeps so: no resolve will come."""
    if not one.HasField("expire_time"):
        return "none, or a resolve is due"
    when = one.expire_time.ToJsonString()
    return f"over at {when} unless told again" if one.firing else f"not told again: over since {when}"


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
    ("alerts", lambda one: f"{one.alert_count}{', sealed: the next opens another' if one.sealed else ''}"),
    ("flapping", lambda one: f"starts nothing; calm from {one.calm_time.ToJsonString()}" if one.flapping else "no"),
    ("occurrences", _told_again),
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
    if session.as_json:
        print_json(answer.incident, signals=answer.signals)
        return
    show_one(session, answer.incident, SHEET)
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
    every: Annotated[float, typer.Option(min=0.2, max=3600, help="Seconds between two looks.")] = 1,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Most incidents, the newest.")] = 100,
) -> None:
    """Follow the open incidents: how many signals each took in, how fast, and where it stands.

    At a terminal one row an incident, in its place; else a line for each that changed; with --json one answer a line.
    """
    stub = ingest_grpc.IngestServiceStub(session.channel("ingest"))
    over = {ingest.Incident.STATE_RESOLVED, ingest.Incident.STATE_STALE}
    states = [state for state in ingest.Incident.State.values() if state and state not in over]
    loop, out, watch = asyncio.get_running_loop(), console(), Watch()
    until, missed = 0.0, 0
    at_terminal = out.is_terminal and not session.as_json
    with Live(console=out, auto_refresh=False) if at_terminal else nullcontext() as live:
        while True:
            began = loop.time()
            request = ingest.ListIncidentsRequest(states=states)
            try:
                answer = await pages(stub.ListIncidents, request, "incidents", limit)
            except grpc.aio.AioRpcError as error:
                missed += 1
                # In a storm a look may find no room; who was never answered, or is no more, is told as everywhere.
                if error.code() not in PASSING or missed > MISSED_MAX or loop.time() + MISSED_SECONDS > until:
                    raise
                why, _ = words_of(error)
                error_console().print(f"looking again in {MISSED_SECONDS:g} s: {why.splitlines()[0]}", markup=False)
                await asyncio.sleep(MISSED_SECONDS)
                continue
            missed = 0
            # From the first answer on: that took as long as the connection did.
            until = until or (loop.time() + seconds if seconds else float("inf"))
            if session.as_json:
                print_json(answer, one_line=True)
            else:
                rows, sums = watch.see(answer, loop.time())
                if live is None:
                    _write(lines(rows, sums))
                else:
                    live.update(picture(rows, sums, out.width, out.height), refresh=True)
            if loop.time() + every > until:
                return
            await asyncio.sleep(max(0.0, began + every - loop.time()))


def _write(texts: list[str]) -> None:
    """Write lines at once: whoever reads a pipe sees them when they are true."""
    for text in texts:
        sys.stdout.write(text + "\n")
    sys.stdout.flush()
