"""`opsmesh signals`: post what a sender would, see what became of it, and what could not be understood."""

import json
import sys
import uuid
from pathlib import Path
from typing import Annotated

import httpx
import typer

from opsmesh.ingest.v1 import ingest_service_pb2 as ingest
from opsmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from opsmesh.ingest.v1 import letters_pb2
from services.cli import lookup, replay
from services.cli.command import REFUSED, Limit, PageToken, RequestId, command, group
from services.cli.output import Column, console, show_list
from services.cli.posting import Posting, Postman, next_step, reason, signals_of
from services.cli.recordings import LINE_MAX, standard_input
from services.cli.session import RefusedError, Session, UnreachableError, UsageError, pages

app = group("What senders say.")
letters = typer.Typer(add_completion=False, rich_markup_mode=None)
app.add_typer(letters, name="dead-letters")

COLUMNS: list[Column] = [
    ("delivery", "delivery_id"),
    ("source", "source"),
    ("tried", "delivery_count"),
    ("bytes", "body_size"),
    ("put aside", "create_time"),
    ("reason", "reason"),
]
RESULTS: list[Column] = [
    ("delivery", "delivery_id"),
    ("became", "state"),
    ("now delivery", "new_delivery_id"),
    ("why not", lambda one: "; ".join(one.errors)),
]
Ids = Annotated[list[str], typer.Argument(help="Their delivery ids, at most 100.")]
Reason = Annotated[str, typer.Option(help="Why; kept by the audit.")]


@command(app, "send")
async def send(
    session: Session,
    file: Annotated[Path, typer.Argument(help="The body; - reads standard input.")],
    source: Annotated[str, typer.Option(help="As in sources.yaml.")] = "generic",
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", help="Such as 'X-GitHub-Event: push'; repeatable.")
    ] = None,
) -> None:
    """Post FILE to the bridge as SOURCE would, with the source's own proof."""
    async with Postman(session.endpoints) as postman:
        hook = postman.hook(source)
        body = _body(file)
        posting = Posting(source, body, dict(_header(one) for one in header or []))
        try:
            answer = await postman.post(posting, postman.headers(posting))
        except httpx.TransportError as error:
            why = str(error) or type(error).__name__
            raise UnreachableError(f"the bridge does not answer: {why}\nNEXT: opsmesh status") from error
    if answer.status_code != httpx.codes.ACCEPTED:
        raise RefusedError(f"the bridge answered {reason(answer)}\nNEXT: {next_step(answer, source, hook)}")
    if session.as_json:
        sys.stdout.write(json.dumps(answer.json(), indent=2) + "\n")
        return
    ids = signals_of(answer)
    for one in ids:
        console().print(f"accepted [green]{one}[/green]")
    if not ids:
        console().print(f"accepted, without a signal: see opsmesh signals dead-letters --source {source}", markup=False)


def _body(file: Path) -> bytes:
    """Return what a file, or standard input, holds; of what is endless so much that the bridge refuses it."""
    if str(file) == "-":
        return standard_input().buffer.read(LINE_MAX)
    with file.open("rb") as content:
        return content.read(LINE_MAX)


def _header(text: str) -> tuple[str, str]:
    """Return a header's name and value. Raises UsageError when TEXT is none."""
    name, colon, value = text.partition(":")
    if not colon or not name.strip() or not text.isascii() or not text.isprintable():
        raise UsageError(f"{text!r} is no header\nNEXT: such as 'X-GitHub-Event: push'")
    return name.strip(), value.strip()


command(app, "list")(lookup.list_signals)
command(app, "show")(lookup.show_signal)
command(app, "replay")(replay.replay)
command(app, "storm")(replay.storm)


@command(letters, "")
async def dead_letters(
    session: Session,
    source: Annotated[str, typer.Option(help="Only this source.")] = "",
    limit: Limit = 50,
    page_token: PageToken = "",
) -> None:
    """List deliveries that could not be understood or processed, newest first."""
    request = ingest.ListDeadLettersRequest(page_token=page_token, source=source)
    stub = ingest_grpc.IngestServiceStub(session.channel("ingest"))
    show_list(session, await pages(stub.ListDeadLetters, request, "dead_letters", limit), "dead_letters", COLUMNS)


@command(letters, "redrive")
async def redrive(session: Session, delivery_ids: Ids, reason: Reason, request_id: RequestId = "") -> None:
    """Hand dead letters in again; what still cannot be understood stays, and says why."""
    stub = ingest_grpc.IngestServiceStub(session.channel("ingest"))
    request = letters_pb2.RedriveDeadLettersRequest(
        request_id=request_id or str(uuid.uuid4()), delivery_ids=delivery_ids, reason=reason
    )
    _show(session, await stub.RedriveDeadLetters(request), letters_pb2.DeadLetterResult.STATE_REDRIVEN)


@command(letters, "discard")
async def discard(session: Session, delivery_ids: Ids, reason: Reason, request_id: RequestId = "") -> None:
    """Throw dead letters away."""
    stub = ingest_grpc.IngestServiceStub(session.channel("ingest"))
    request = letters_pb2.DiscardDeadLettersRequest(
        request_id=request_id or str(uuid.uuid4()), delivery_ids=delivery_ids, reason=reason
    )
    _show(session, await stub.DiscardDeadLetters(request), letters_pb2.DeadLetterResult.STATE_DISCARDED)


def _show(
    session: Session,
    answer: letters_pb2.RedriveDeadLettersResponse | letters_pb2.DiscardDeadLettersResponse,
    wanted: "letters_pb2.DeadLetterResult.State.ValueType",
) -> None:
    """Show what became of dead letters; exit code 1 when one did not become what was wanted."""
    show_list(session, answer, "results", RESULTS)
    if any(one.state != wanted for one in answer.results):
        raise typer.Exit(REFUSED)
