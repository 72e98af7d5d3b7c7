"""`opsmesh up|status|logs|migrate|version|demo` and `opsmesh certs`: the mesh of one machine."""

import asyncio
import json
import sys
from collections import deque
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Annotated, Final

import typer

from services.cli.command import REFUSED, command, group
from services.cli.session import RefusedError, Session, UnreachableError
from services.local.files import LocalError
from services.local.layout import DEFAULT_PORT_BASE, LOOPBACK, SERVICES, plan
from services.local.supervise import ProcessStatus

app = group("The mesh of one machine.")
certs_app = group("Certificates of one machine.")

HEALTH_SECONDS: Final = 2.0
WHY_WIDTH: Final = 120
# The part of ingest's health that says whether its stream may forget what it has acknowledged.
DURABLE: Final = "ingest/durable"
LOSSY: Final = "accepted signals may be LOST: its Valkey or Redis is not durable, and OPSMESH_REDIS_LOSSY accepts it"


@command(app, "up")
def up(
    session: Session,
    config: Annotated[Path | None, typer.Option(help="Folder of the configuration; default: what ships.")] = None,
    models: Annotated[Path | None, typer.Option(help="File with the models.")] = None,
    listen: Annotated[str, typer.Option(help="Address to listen on.")] = LOOPBACK,
    port_base: Annotated[int, typer.Option(min=1024, max=65000, help="First of 25 ports.")] = DEFAULT_PORT_BASE,
) -> None:
    """Run the mesh in the foreground until Ctrl-C."""
    from services.local.up import become_up  # noqa: PLC0415  only this command pays for it

    become_up(session.state, config, models, listen, port_base)


@command(app, "demo")
def demo(_: Session) -> None:
    """Show the main job for real: an alert repaired, an approval, a drift, and the kill switch."""
    from services.local.demo_story import run_demo  # noqa: PLC0415  only this command pays for it

    raise typer.Exit(run_demo())


@command(app, "version")
def version(session: Session) -> None:
    """Say which version this is."""
    number = package_version("opsmesh")
    sys.stdout.write(f'{{"version": "{number}"}}\n' if session.as_json else f"opsmesh {number}\n")


@command(app, "logs")
def logs(
    session: Session,
    name: Annotated[str, typer.Argument(help="A service or store, such as gateway or postgres.")],
    lines: Annotated[int, typer.Option(min=1, max=100_000, help="How many.")] = 50,
) -> None:
    """Show the last lines a process wrote."""
    folder = session.state / "logs"
    names = sorted(file.stem for file in folder.glob("*.log"))
    if not names:
        raise UnreachableError(f"there are no logs under {session.state}\nNEXT: opsmesh up --state {session.state}")
    if name not in names:
        raise RefusedError(f"there is no log of {name} under {session.state}\nNEXT: one of {', '.join(names)}")
    with (folder / f"{name}.log").open(encoding="utf-8", errors="replace") as file:
        last = [line.rstrip("\n") for line in deque(file, maxlen=lines)]
    sys.stdout.write(json.dumps({"lines": last}, indent=2) + "\n" if session.as_json else "\n".join([*last, ""]))


@command(app, "migrate")
async def migrate(
    session: Session,
    dsn_file: Annotated[
        Path | None, typer.Option(help="File with the DSN of the schemas' owner; default: the mesh on --state.")
    ] = None,
) -> None:
    """Bring the database to this version's schema, once, with the owner's credential."""
    from services.local import postgres, programs  # noqa: PLC0415  only this command pays for it

    if dsn_file is not None:
        dsn = dsn_file.read_text(encoding="utf-8").strip()
    else:
        base = int(session.endpoints["bridge"].rpartition(":")[2])
        dsn = programs.Stores.of(plan(session.state, None, None, LOOPBACK, base)).postgres.dsn(postgres.OWNER)
    said = await postgres.migrate(dsn)
    sys.stdout.write(json.dumps({"output": said}) + "\n" if session.as_json else f"{said or 'nothing to do'}\n")


@command(app, "status")
async def status(session: Session) -> None:
    """Say how each service and store is, which was given up and why, and what waits for whom, since when."""
    from services.cli import waits  # noqa: PLC0415  the other commands here need no gRPC
    from services.cli.output import COLOURS, json_text, print_table  # noqa: PLC0415  nor tables
    from services.local.up import read_status  # noqa: PLC0415  only this command pays for it

    is_up = (session.state / "endpoints.json").exists()
    try:
        processes = {one.name: one for one in await asyncio.to_thread(read_status, session.state)}
    except LocalError as error:
        if not is_up:
            raise UnreachableError(f"{error}\nNEXT: opsmesh up --state {session.state}") from error
        processes = {}  # a mesh that something else runs: its health still tells
    serving: dict[str, str] = {}
    lossy = False
    waiting = waits.Waiting()
    if is_up:
        healths = asyncio.gather(*(_health(session, name) for name in SERVICES), _health(session, "ingest", DURABLE))
        (*answers, durable), waiting = await asyncio.gather(healths, waits.gather(session))
        serving = dict(zip(SERVICES, answers, strict=True))
        lossy = durable == "NOT_SERVING"
    names = list(dict.fromkeys([*processes, *serving]))
    rows = [_row(name, processes.get(name), serving.get(name, "")) for name in names]
    for row in rows:
        if lossy and row["name"] == "ingest":
            row["why"] = "\n".join(filter(None, [row["why"], LOSSY]))
    if session.as_json:
        sys.stdout.write(json_text({"processes": rows, **waiting.document()}, indent=2) + "\n")
    else:
        COLOURS.update({"SERVING": "green", **dict.fromkeys(("FATAL", "BACKOFF", "NOT_SERVING", "UNAVAILABLE"), "red")})
        shown = [row | {"why": _short(row["why"])} for row in rows]
        print_table(session, "processes", ["name", "process", "health", "pid", "up", "why"], shown)
        if is_up:
            waits.show(waiting)
    if any(row["process"] in ("FATAL", "BACKOFF", "EXITED") or row["health"] not in ("", "SERVING") for row in rows):
        raise typer.Exit(REFUSED)


async def _health(session: Session, name: str, part: str = "") -> str:
    """Return what a service says about itself, or a part of it, or why it says nothing."""
    import grpc.aio  # noqa: PLC0415  only `status` pays for it
    from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: PLC0415  the same

    try:
        stub = health_pb2_grpc.HealthStub(session.channel(name))
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=part), timeout=HEALTH_SECONDS)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    except UnreachableError:  # a part of a mesh, which has no such service
        return "ABSENT"


def _short(why: str) -> str:
    """Return what a table has room for: how a process ended and its last two lines; --json and the log have all."""
    ending, *said = why.splitlines() or [""]
    return "\n".join(line if len(line) <= WHY_WIDTH else line[:WHY_WIDTH] + "…" for line in [ending, *said[-2:]])


def _row(name: str, process: ProcessStatus | None, health: str) -> dict[str, str]:
    from services.cli.output import duration  # noqa: PLC0415  see above

    return {
        "name": name,
        "process": process.state if process else "",
        "health": health,
        "pid": str(process.pid or "") if process else "",
        "up": duration(int(process.uptime_seconds)) if process and process.uptime_seconds else "",
        "why": process.why if process else "",
    }


@command(certs_app, "init")
def init_certs(session: Session) -> None:
    """Make the local CA and every missing or ending certificate; what is valid stays."""
    from services.local import certs  # noqa: PLC0415  only this command pays for it

    folder = certs.ensure(session.state)
    sys.stdout.write(json.dumps({"folder": str(folder)}) + "\n" if session.as_json else f"certificates: {folder}\n")
