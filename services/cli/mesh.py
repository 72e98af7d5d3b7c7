"""`opsmesh up|status|logs|migrate|version|demo` and `opsmesh certs`: the mesh of one machine."""

import asyncio
import sys
from collections.abc import Iterator
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.cli.command import REFUSED, Json, State, command, guarded
from services.cli.output import COLOURS, console, duration, print_table
from services.cli.session import RefusedError, Session
from services.local.files import LocalError
from services.local.layout import DEFAULT_PORT_BASE, LOOPBACK, SERVICES, plan
from services.local.supervise import ProcessStatus

certs_app = typer.Typer(help="Certificates of one machine.", no_args_is_help=True)

HEALTH_SECONDS = 2.0
STATE_DEFAULT = Path(".opsmesh")


def up(
    config: Annotated[Path | None, typer.Option(help="Folder of the configuration; default: what ships.")] = None,
    models: Annotated[Path | None, typer.Option(help="File with the models.")] = None,
    listen: Annotated[str, typer.Option(help="Address to listen on.")] = LOOPBACK,
    port_base: Annotated[int, typer.Option(min=1024, max=65000, help="First of 23 ports.")] = DEFAULT_PORT_BASE,
    state: State = STATE_DEFAULT,
) -> None:
    """Run the mesh in the foreground until Ctrl-C."""
    from services.local.up import become_up  # noqa: PLC0415  only this command pays for it

    guarded(lambda: become_up(state, config, models, listen, port_base))


def demo() -> None:
    """Show the main job for real: one alert, from webhook to a repaired workload."""
    from services.local.demo import run_demo  # noqa: PLC0415  only this command pays for it

    raise typer.Exit(run_demo())


def version(as_json: Json = False) -> None:
    """Say which version this is."""
    number = package_version("opsmesh")
    sys.stdout.write(f'{{"version": "{number}"}}\n' if as_json else f"opsmesh {number}\n")


def logs(
    name: Annotated[str, typer.Argument(help="A service or store, such as gateway or postgres.")],
    lines: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 50,
    state: State = STATE_DEFAULT,
) -> None:
    """Show the last lines a process wrote."""
    path = state / "logs" / f"{name}.log"
    if not path.exists():
        names = ", ".join(sorted(file.stem for file in (state / "logs").glob("*.log"))) or "none"
        guarded(lambda: _refuse(f"there is no log of {name} under {state}\nNEXT: one of: {names}"))
    sys.stdout.write("\n".join(_tail(path, lines)) + "\n")


def _refuse(text: str) -> None:
    raise RefusedError(text)


def _tail(path: Path, lines: int) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from file.read().splitlines()[-lines:]


def migrate(
    dsn_file: Annotated[Path | None, typer.Option(help="File with the owner's DSN; default: this state's.")] = None,
    state: State = STATE_DEFAULT,
) -> None:
    """Bring the database to this version's schema, once, with the owner's credential."""
    from services.local import postgres, programs  # noqa: PLC0415  only this command pays for it

    async def work() -> None:
        if dsn_file is not None:
            dsn = dsn_file.read_text(encoding="utf-8").strip()
        else:
            endpoints = Session(state, "operator", as_json=False).endpoints
            base = int(endpoints["bridge"].rpartition(":")[2])
            mesh = plan(state, None, None, LOOPBACK, base)
            dsn = programs.Stores.of(mesh).postgres.dsn(postgres.OWNER)
        console().print(await postgres.migrate(dsn), markup=False)

    guarded(lambda: asyncio.run(work()))


async def _health(session: Session, name: str) -> str:
    try:
        stub = health_pb2_grpc.HealthStub(session.channel(name))
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_SECONDS)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)


def register(app: typer.Typer) -> None:
    """Add the commands that stand alone."""
    app.command("up")(up)
    app.command("demo")(demo)
    app.command("version")(version)
    app.command("logs")(logs)
    app.command("migrate")(migrate)

    @command(app, "status")
    async def status(session: Session) -> None:
        """Say how each service and store is, and which was given up, and why."""
        from services.local.up import read_status  # noqa: PLC0415  only this command pays for it

        try:
            processes = {one.name: one for one in await asyncio.to_thread(read_status, session.state)}
        except LocalError:
            if not (session.state / "endpoints.json").exists():
                raise
            processes = {}
        serving: dict[str, str] = {}
        if (session.state / "endpoints.json").exists():
            answers = await asyncio.gather(*(_health(session, name) for name in SERVICES))
            serving = dict(zip(SERVICES, answers, strict=True))
        names = list(dict.fromkeys([*processes, *serving]))
        rows = [_row(name, processes.get(name), serving.get(name, "")) for name in names]
        print_table(session, "processes", ["name", "process", "health", "pid", "up", "why"], rows)
        if any(row["process"] == "FATAL" or row["health"] not in ("", "SERVING") for row in rows):
            raise typer.Exit(REFUSED)


def _row(name: str, process: ProcessStatus | None, health: str) -> dict[str, str]:
    return {
        "name": name,
        "process": process.state if process else "",
        "health": health,
        "pid": str(process.pid or "") if process else "",
        "up": duration(int(process.uptime_seconds)) if process and process.uptime_seconds else "",
        "why": process.why if process else "",
    }


@certs_app.command("init")
def init_certs(state: State = STATE_DEFAULT) -> None:
    """Make the local CA and every missing or ending certificate; what is valid stays."""
    from services.local import certs  # noqa: PLC0415  only this command pays for it

    guarded(lambda: console().print(f"certificates are in {certs.ensure(state)}", markup=False))


COLOURS.update({"SERVING": "green", "FATAL": "red", "BACKOFF": "red", "NOT_SERVING": "red", "UNAVAILABLE": "red"})
