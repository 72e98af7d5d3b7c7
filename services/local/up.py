"""`opsmesh up`: bring the mesh of one machine up, keep it up, and take it down again."""

import asyncio
import fcntl
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil

from services.local import certs, endpoints, postgres, reach, supervise, temporal, valkey
from services.local.files import LocalError, port_is_free, private_directory
from services.local.layout import DEFAULT_PORT_BASE, LOOPBACK, SERVICES, Mesh, plan, service_program
from services.local.process import write_spec
from services.mesh.errors import BootError

STOP_SECONDS = 24
WATCH_SECONDS = 0.5
BOOT_ERROR = "exit status 78"  # sysexits.h: wrong configuration, which no second start mends
Say = Callable[[str], None]
Publish = Callable[[Callable[[str], grpc.aio.Channel], Path], Awaitable[list[str]]]


def speak(line: str) -> None:
    """Tell the person at the terminal, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def run_up(
    state: Path,
    config: Path | None = None,
    models: Path | None = None,
    listen: str = LOOPBACK,
    port_base: int = DEFAULT_PORT_BASE,
    *,
    services: Sequence[str] = SERVICES,
    publish: Publish | None = None,
    say: Say = speak,
) -> int:
    """Run the mesh under STATE until SIGINT or SIGTERM; return the exit code (0 for a clean stop).

    PUBLISH gets the operator's channels and the configuration folder once all is healthy, and answers lines about
    drift; without one, `services.local.publish` is used. Raises LocalError, with everything stopped, when the mesh
    cannot come up.
    """
    mesh = plan(state, config, models, listen, port_base)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        with _only_one(mesh):
            return await _run(mesh, services, publish or _shipped_publish, stop, say)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _run(mesh: Mesh, services: Sequence[str], publish: Publish, stop: asyncio.Event, say: Say) -> int:
    """Do the job of run_up under the lock."""
    mesh.endpoints_file.unlink(missing_ok=True)
    await _end_of_predecessor(mesh, say)
    _check_ports(mesh)
    webhooks = await asyncio.to_thread(_prepare, mesh, services, say)
    child = await _start(mesh, services)
    died = asyncio.create_task(child.wait())
    stopped = asyncio.create_task(stop.wait())
    watch = asyncio.create_task(_watch(mesh, say))
    work = asyncio.create_task(_bring_up(mesh, services, webhooks, publish, say))
    try:
        await asyncio.wait({work, stopped, died, watch}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
            await asyncio.wait({stopped, died, watch}, return_when=asyncio.FIRST_COMPLETED)
        if died.done():
            raise LocalError(f"supervisord ended with {died.result()}; see {mesh.state / 'logs' / 'supervisord.log'}")
        if watch.done():
            watch.result()
        say("stopping")
        return 0
    finally:
        mesh.endpoints_file.unlink(missing_ok=True)
        for task in (work, watch, stopped):
            task.cancel()
        await asyncio.gather(work, watch, stopped, return_exceptions=True)
        await _stop(child, died)


@contextmanager
def _only_one(mesh: Mesh) -> Iterator[None]:
    """Hold the lock on the state folder; raises LocalError when another mesh holds it."""
    run = private_directory(private_directory(mesh.state) / "run")
    with (run / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise LocalError(
                f"a mesh already runs on {mesh.state} (process {holder}); stop it, or use another --state"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


async def _end_of_predecessor(mesh: Mesh, say: Say) -> None:
    """Wait for the supervisor of a mesh that was killed: it is stopping its children in order."""
    try:
        process = psutil.Process(int(mesh.supervisor.pid_file.read_text()))
        ours = str(mesh.supervisor.run) in " ".join(process.cmdline())
    except (FileNotFoundError, ValueError, psutil.Error):
        return
    if ours:
        say("waiting for the previous mesh on this state to stop")
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, STOP_SECONDS)
        except psutil.TimeoutExpired as error:
            raise LocalError(f"process {process.pid} of a previous mesh does not stop; kill it") from error


def _check_ports(mesh: Mesh) -> None:
    """Refuse to start half a mesh: every port must be free."""
    taken = [f"{port} ({what})" for what, address, port in mesh.ports() if not port_is_free(address, port)]
    if taken:
        raise LocalError(
            f"ports in use: {', '.join(taken)}; "
            "stop what listens there (`ss -ltnp` names it), or choose others with --port-base"
        )


def _prepare(mesh: Mesh, services: Sequence[str], say: Say) -> dict[str, dict[str, str]]:
    """Make what is missing on disk: certificates, secrets, the database cluster, folders."""
    certs.ensure(mesh.state)
    webhooks = endpoints.ensure_webhooks(mesh)
    for name in services:
        private_directory(mesh.state / "services" / name)
    private_directory(mesh.state / "audit")
    opened = postgres.initialise(mesh.postgres)
    for folder in (folder for folder in opened if not folder.is_relative_to(mesh.state)):
        say(f"note: {folder} is now traversable (o+x), for PostgreSQL cannot run as root")
    for role in postgres.ROLES:
        mesh.postgres.password(role)
    return webhooks


async def _start(mesh: Mesh, services: Sequence[str]) -> asyncio.subprocess.Process:
    """Start the supervisor, which starts the stores. Called from the main thread: its death is what children watch."""
    stores = [postgres.program(mesh.postgres), valkey.program(mesh.valkey), temporal.program(mesh.temporal)]
    groups = [
        supervise.Group("stores", stores),
        supervise.Group("services", [service_program(mesh, name) for name in services], autostart=False),
    ]
    command = write_spec(supervise.program(mesh.supervisor, groups), mesh.supervisor.run)
    # a session of its own, so that Ctrl-C reaches us alone and we stop things in order
    return await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, start_new_session=True)


async def _bring_up(
    mesh: Mesh, services: Sequence[str], webhooks: dict[str, dict[str, str]], publish: Publish, say: Say
) -> None:
    """Bring up stores, roles and migrations, all services at once, configuration, and at last endpoints.json."""
    temporal_ready = asyncio.create_task(temporal.wait_ready(mesh.temporal))
    try:
        await asyncio.gather(postgres.wait_ready(mesh.postgres), valkey.wait_ready(mesh.valkey))
        await postgres.provision(mesh.postgres)
        await postgres.migrate(mesh.postgres.dsn(postgres.OWNER))
        if services:
            await asyncio.to_thread(supervise.call, mesh.supervisor, "supervisor.startProcessGroup", "services", False)
        await asyncio.gather(temporal_ready, *(reach.wait_serving(mesh, name) for name in services))
    finally:
        temporal_ready.cancel()
    async with reach.channels(mesh) as channels:
        try:
            drift = await publish(channels, mesh.config)
        except BootError as error:
            raise LocalError(str(error)) from error
        except grpc.aio.AioRpcError as error:
            raise LocalError(f"the configuration in {mesh.config} is refused: {error.details()}") from error
    for line in drift:
        say(line)
    content = endpoints.describe(mesh, webhooks)
    endpoints.write(mesh, content)
    say(f"ready: {content['bridge']} (everything else: {mesh.endpoints_file})")


async def _watch(mesh: Mesh, say: Say) -> None:
    """Tell when a child fails and when it is given up; while the mesh comes up, a hopeless child ends it."""
    known: dict[str, str] = {}
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        try:
            current = await asyncio.to_thread(supervise.status, mesh.supervisor)
        except LocalError:
            continue  # not up yet, or ending: whoever waits for its process says so
        for child in current:
            if child.state in {"BACKOFF", "FATAL"} and known.get(child.name) != child.state:
                ending = "was given up" if child.state == "FATAL" else "stopped and is started again"
                say(f"{child.name} {ending}: {child.why}")
            known[child.name] = child.state
            hopeless = child.state == "FATAL" or (child.state == "BACKOFF" and child.why.startswith(BOOT_ERROR))
            if hopeless and not mesh.endpoints_file.exists():
                raise LocalError(f"{child.name} does not start: {child.why}")


async def _stop(child: asyncio.subprocess.Process, died: asyncio.Task[int]) -> None:
    """Stop services, then stores: the supervisor knows the order."""
    if child.returncode is None:
        child.terminate()
    try:
        await asyncio.wait_for(asyncio.shield(died), STOP_SECONDS)
    except TimeoutError:
        child.kill()  # its children are on a leash
        await died


async def _shipped_publish(channels: Callable[[str], grpc.aio.Channel], config: Path) -> list[str]:
    """Publish with the module that knows how; it knows every API, so it is imported when they all run."""
    from services.local.publish import publish  # noqa: PLC0415 - as said

    return await publish(channels, config)


def read_status(state: Path) -> list[supervise.ProcessStatus]:
    """Return what became of each process of the mesh on STATE, those given up with their last words.

    Raises LocalError when no mesh runs there.
    """
    return supervise.status(Mesh(state.resolve()).supervisor)
