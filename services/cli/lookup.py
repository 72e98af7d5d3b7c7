"""`opsmesh signals list` and `show`: what became of what was sent, and the exact bytes it came as."""

import sys
from typing import Annotated, cast

import typer

from opsmesh.ingest.v1 import ingest_service_pb2 as ingest
from opsmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from opsmesh.ingest.v1 import signal_pb2, signals_pb2
from services.cli.command import Limit, PageToken, typed
from services.cli.output import Column, cell, console, enum_value, field_value, plain, show_list, show_one
from services.cli.session import RefusedError, Session, UsageError, pages

COLUMNS: list[Column] = [
    ("signal", lambda one: one.signal.signal_id),
    ("source", lambda one: one.signal.source),
    ("became", "disposition"),
    ("status", lambda one: cell(one.signal, "status")),
    ("incident", "incident_id"),
    ("recorded", "record_time"),
    ("title", lambda one: one.signal.summary),
]
SHEET: list[Column] = [
    *((header, lambda one, column=column: cell(one.record, column)) for header, column in COLUMNS),
    ("status of sender", lambda one: one.record.signal.status_raw),
    ("severity", lambda one: cell(one.record.signal, "severity")),
    ("severity of sender", lambda one: one.record.signal.severity_raw),
    ("key", lambda one: one.record.signal.dedup_key),
    ("rule of sender", lambda one: one.record.signal.rule_name),
    ("happened", lambda one: cell(one.record.signal, "event_time")),
    ("resource", lambda one: _pairs(one.record.signal.resource)),
    ("labels", lambda one: _pairs(one.record.signal.labels)),
    ("annotations", lambda one: _pairs(one.record.signal.annotations)),
    ("links", lambda one: "\n".join(link.url for link in one.record.signal.links)),
    ("not understood", lambda one: "\n".join(one.record.signal.warnings)),
    ("put aside", lambda one: cell(one.dead_letter, "create_time")),
    ("because", lambda one: one.dead_letter.reason),
    ("delivery", lambda one: one.record.signal.delivery_id),
    ("received", lambda one: cell(one.delivery, "receive_time")),
    ("proved by", lambda one: _proof(one.delivery)),
    ("content type", lambda one: one.delivery.content_type),
    ("headers", lambda one: _pairs(one.delivery.headers)),
    ("body", lambda one: f"{one.body_size} bytes, see --raw" if one.HasField("delivery") else "not kept any more"),
    ("description", lambda one: one.record.signal.description),
]


async def list_signals(
    session: Session,
    source: Annotated[str, typer.Option(help="Only from this source.")] = "",
    incident: Annotated[str, typer.Option(help="Only of this incident.")] = "",
    key: Annotated[str, typer.Option(help="Only of the alert with this dedup_key.")] = "",
    disposition: Annotated[str, typer.Option(help="Only what became this, such as opened or dead-letter.")] = "",
    limit: Limit = 50,
    page_token: PageToken = "",
) -> None:
    """List signals with what became of each, newest first: also those of no incident."""
    request = signals_pb2.ListSignalsRequest(
        page_token=page_token, source=source, incident_id=incident, dedup_key=key, disposition=_disposition(disposition)
    )
    stub = ingest_grpc.IngestServiceStub(session.channel("ingest"))
    show_list(session, await pages(stub.ListSignals, request, "signals", limit), "signals", COLUMNS)


async def show_signal(
    session: Session,
    signal_id: str,
    raw: Annotated[bool, typer.Option("--raw", help="Only the body that it came in, byte for byte.")] = False,
) -> None:
    """Show what became of one signal, or what was sent: a terminal gets no control characters, a pipe every byte."""
    if raw and session.as_json:
        raise UsageError("--raw and --json are two different answers\nNEXT: one of them; --json has the body in base64")
    stub = ingest_grpc.IngestServiceStub(session.channel("ingest"))
    answer = await stub.GetSignal(ingest.GetSignalRequest(signal_id=signal_id))
    if not raw:
        show_one(session, answer, SHEET)
        return
    if not answer.HasField("delivery"):
        shown = typed(session, "signals", "show", signal_id)
        raise RefusedError(f"the body of signal {signal_id} is not kept any more\nNEXT: what was read of it: {shown}")
    body = answer.delivery.body
    if sys.stdout.isatty():
        console().print(plain(body.decode(errors="replace")), markup=False, soft_wrap=True)
    else:
        sys.stdout.buffer.write(body)
        sys.stdout.buffer.flush()
    if len(body) < answer.body_size:
        sys.stderr.write(f"cut: the first {len(body)} of {answer.body_size} bytes\n")


def _disposition(text: str) -> signal_pb2.SignalRecord.Disposition.ValueType:
    """Return the disposition that TEXT names. Raises UsageError for others."""
    found = enum_value(signal_pb2.SignalRecord.Disposition.DESCRIPTOR, text)
    return cast("signal_pb2.SignalRecord.Disposition.ValueType", found)


def _proof(delivery: ingest.Delivery) -> str:
    """Return how a delivery proved itself; nothing when that is not known."""
    method = field_value(delivery.authenticity, "method")
    return f"{method}{'' if delivery.authenticity.verified else ', not verified'}" if method else ""


def _pairs(pairs: "dict[str, str]") -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(pairs.items()))
