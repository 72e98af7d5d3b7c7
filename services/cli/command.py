"""How a function becomes a command: the three options every command has, one event loop, one place for failures."""

import asyncio
import functools
import inspect
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from services.cli.session import RefusedError, Session, UnreachableError, UsageError
from services.local.files import LocalError

REFUSED, USAGE, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130
STATE_DEFAULT = Path(".opsmesh")
PERSON_DEFAULT = "operator"

State = Annotated[Path | None, typer.Option("--state", help="Folder of the mesh.", show_default=str(STATE_DEFAULT))]
Person = Annotated[str | None, typer.Option("--as", help="Whose certificate to use.", show_default=PERSON_DEFAULT)]
Json = Annotated[bool, typer.Option("--json", help="Only the answer, as proto3 JSON.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=100_000, help="Most rows; pages are fetched as needed.")]
PageToken = Annotated[str, typer.Option("--page-token", help="From the last answer's next_page_token.")]
RequestId = Annotated[str, typer.Option("--request-id", help="UUID; the same again gets the stored answer.")]

COMMON = [
    inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
    inspect.Parameter("state", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=State),
    inspect.Parameter("person", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Person),
    inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json),
]


@dataclass(frozen=True, slots=True)
class Before:
    """The three options as given before the command; after the command they win."""

    state: Path | None = None
    person: str | None = None
    as_json: bool = False


def root(context: typer.Context, state: State = None, person: Person = None, as_json: Json = False) -> None:
    """Let a language model help with your infrastructure without having to trust it."""
    context.obj = Before(state, person, as_json)


def group(text: str) -> typer.Typer:
    """Return a group of commands; TEXT is its help."""

    def take(context: typer.Context, state: State = None, person: Person = None, as_json: Json = False) -> None:
        known = context.find_root().obj or Before()
        context.find_root().obj = Before(state or known.state, person or known.person, as_json or known.as_json)

    made = typer.Typer(help=text, no_args_is_help=True, add_completion=False, rich_markup_mode=None)
    # With a callback, a group of one command stays a group.
    made.callback(help=text)(take)
    return made


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Make a function, plain or async, whose first parameter is the Session, the command NAME of APP.

    An empty NAME is what APP itself does when no command of it is named.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(
            *args: Any, context: typer.Context, state: Path | None, person: str | None, as_json: bool, **options: Any
        ) -> None:
            before = context.find_root().obj or Before()
            if context.invoked_subcommand:
                context.find_root().obj = Before(
                    state or before.state, person or before.person, as_json or before.as_json
                )
                return
            session = Session(
                state or before.state or STATE_DEFAULT,
                person or before.person or PERSON_DEFAULT,
                as_json=as_json or before.as_json,
            )

            async def work() -> None:
                try:
                    await function(session, *args, **options)
                finally:
                    await session.close()

            if inspect.iscoroutinefunction(function):
                guarded(lambda: asyncio.run(work()))
            else:
                guarded(lambda: function(session, *args, **options))

        signature = inspect.signature(function)
        own = list(signature.parameters.values())[1:]
        run.__signature__ = signature.replace(parameters=[*own, *COMMON])  # type: ignore[attr-defined]  # typer reads it
        run.__annotations__ = {one.name: one.annotation for one in [*own, *COMMON]}
        if name:
            app.command(name)(run)
        else:
            app.callback(invoke_without_command=True, help=function.__doc__)(run)
        return run

    return decorate


def typed(session: Session, *words: str, person: str = "") -> str:
    """Return the `opsmesh` command of these WORDS on the same mesh, by the same PERSON or another, as one types it."""
    command_line = ["opsmesh", *words]
    if session.state != STATE_DEFAULT:
        command_line += ["--state", str(session.state)]
    person = person or session.person
    if person != PERSON_DEFAULT:
        command_line += ["--as", person]
    return shlex.join(command_line)


def guarded(work: Callable[[], object]) -> None:
    """Do WORK; turn what can go wrong into words on stderr and an exit code: 1 refused, 2 usage, 3 unreachable."""
    try:
        work()
    except UsageError as error:
        fail(str(error), USAGE)
    except UnreachableError as error:
        fail(str(error), UNREACHABLE)
    except (RefusedError, LocalError) as error:
        fail(str(error), REFUSED)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # whoever read our output has seen enough, as in `opsmesh audit list | head`
        sys.stderr.close()
        raise typer.Exit(REFUSED) from None
    except (OSError, UnicodeError) as error:
        fail(f"{error}\nNEXT: check the path and its permissions", REFUSED)
    except Exception as error:
        if not _tell(error):
            raise


def _tell(error: Exception) -> bool:
    """Tell an error of the mesh in words and leave; say False for any other. Imports only what the failure brought."""
    if "grpc.aio" in sys.modules:
        import grpc.aio  # noqa: PLC0415  see above

        if isinstance(error, grpc.aio.AioRpcError):
            from services.cli.refusals import words_of  # noqa: PLC0415  see above

            fail(*words_of(error))
    if "services.mesh.errors" in sys.modules:
        from services.mesh.errors import BootError, Refusal, describe  # noqa: PLC0415  see above

        if isinstance(error, Refusal):
            fail(describe(error.reason, error.metadata).replace(". NEXT: ", "\nNEXT: "), REFUSED)
        if isinstance(error, BootError):
            fail(str(error), REFUSED)
    return False


def fail(text: str, code: int) -> NoReturn:
    """Write TEXT, which may hold a stranger's words, to stderr and leave with CODE."""
    from services.cli.output import plain  # noqa: PLC0415  rich and protobuf are paid for only by who fails

    sys.stderr.write(plain(text.rstrip().expandtabs()) + "\n")
    raise typer.Exit(code)
