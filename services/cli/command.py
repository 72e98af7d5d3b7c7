"""How a function becomes a command: the three options every command has, one event loop, one place for failures."""

import asyncio
import functools
import inspect
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import grpc
import typer

from services.cli.session import RefusedError, Session, UnreachableError, UsageError
from services.local.files import LocalError
from services.mesh.client import refusal_of
from services.mesh.errors import BootError, describe

REFUSED, USAGE, UNREACHABLE = 1, 2, 3

State = Annotated[Path, typer.Option("--state", help="Folder of the mesh.")]
Person = Annotated[str, typer.Option("--as", help="Whose certificate to use.")]
Json = Annotated[bool, typer.Option("--json", help="Only the answer, as proto3 JSON.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=1000, help="Most rows.")]
PageToken = Annotated[str, typer.Option("--page-token", help="From the last answer's next_page_token.")]
RequestId = Annotated[str, typer.Option("--request-id", help="UUID; the same again gets the stored answer.")]

COMMON = [
    inspect.Parameter("state", inspect.Parameter.KEYWORD_ONLY, default=Path(".opsmesh"), annotation=State),
    inspect.Parameter("person", inspect.Parameter.KEYWORD_ONLY, default="operator", annotation=Person),
    inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json),
]


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., Awaitable[None]]], Callable[..., None]]:
    """Make an async function, whose first parameter is the Session, the command NAME of APP."""

    def decorate(function: Callable[..., Awaitable[None]]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: Any, state: Path, person: str, as_json: bool, **options: Any) -> None:
            session = Session(state, person, as_json=as_json)

            async def work() -> None:
                try:
                    await function(session, *args, **options)
                finally:
                    await session.close()

            guarded(lambda: asyncio.run(work()))

        signature = inspect.signature(function)
        own = list(signature.parameters.values())[1:]
        vars(run)["__signature__"] = signature.replace(parameters=[*own, *COMMON])
        run.__annotations__ = {one.name: one.annotation for one in [*own, *COMMON]}
        app.command(name)(run)
        return run

    return decorate


def guarded(work: Callable[[], None]) -> None:
    """Do WORK; turn what can go wrong into words on stderr and an exit code: 1 refused, 2 usage, 3 unreachable."""
    try:
        work()
    except UsageError as error:
        fail(str(error), USAGE)
    except UnreachableError as error:
        fail(str(error), UNREACHABLE)
    except (RefusedError, BootError, LocalError) as error:
        fail(str(error), REFUSED)
    except grpc.aio.AioRpcError as error:
        _fail_call(error)


def _fail_call(error: grpc.aio.AioRpcError) -> NoReturn:
    refusal = refusal_of(error)
    if refusal is None:
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            fail(f"the mesh does not answer: {error.details()}\nNEXT: opsmesh status, or opsmesh up", UNREACHABLE)
        fail(f"{error.code().name}: {error.details()}", REFUSED)
    lines = [f"{refusal.name}: {describe(refusal.reason, refusal.metadata)}".replace(". NEXT: ", "\nNEXT: ")]
    lines += [f"  {one.field}: {one.description}" for one in refusal.violations]
    fail("\n".join(lines), REFUSED)


def fail(text: str, code: int) -> NoReturn:
    """Write TEXT to stderr and leave with CODE."""
    sys.stderr.write(text.rstrip() + "\n")
    raise typer.Exit(code)
