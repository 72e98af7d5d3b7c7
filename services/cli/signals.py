"""`opsmesh signals`: post what a sender would, and see what could not be understood."""

import json
import sys
from pathlib import Path
from typing import Annotated

import httpx
import typer

from opsmesh.ingest.v1 import ingest_service_pb2 as ingest
from opsmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from services.cli.command import Limit, PageToken, command, group
from services.cli.output import Column, console, show_list
from services.cli.session import RefusedError, Session, UnreachableError, UsageError, pages
from services.local.endpoints import webhook_headers

app = group("What senders say.")

COLUMNS: list[Column] = [
    ("delivery", "delivery_id"),
    ("source", "source"),
    ("tried", "delivery_count"),
    ("bytes", "body_size"),
    ("put aside", "create_time"),
    ("reason", "reason"),
]


@command(app, "send")
async def send(
    session: Session,
    file: Annotated[Path, typer.Argument(help="The body; - reads standard input.")],
    source: Annotated[str, typer.Option(help="As in sources.yaml.")] = "generic",
) -> None:
    """Post FILE to the bridge as SOURCE would."""
    hooks = session.endpoints["webhooks"]
    if source not in hooks:
        raise UsageError(f"there is no source {source}\nNEXT: one of {', '.join(sorted(hooks))}")
    hook = hooks[source]
    body = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    headers = webhook_headers(hook) | {"Content-Type": "application/json"}
    try:
        async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
            answer = await client.post(hook["url"], content=body, headers=headers)
    except httpx.HTTPError as error:
        raise UnreachableError(f"the bridge does not answer: {error}\nNEXT: opsmesh status") from error
    if answer.status_code != httpx.codes.ACCEPTED:
        raise RefusedError(f"the bridge answered {answer.status_code}: {answer.text}")
    if session.as_json:
        sys.stdout.write(json.dumps(answer.json(), indent=2) + "\n")
        return
    for result in answer.json()["results"]:
        console().print(f"accepted [green]{result['signal_id']}[/green]")


@command(app, "dead-letters")
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
