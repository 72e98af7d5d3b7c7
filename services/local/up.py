"""`opsmesh up`: bring the mesh of one machine up, keep it up, and take it down again.

This process stays as long as the mesh, so it imports little; `bringup` does the work at the start.
"""

import asyncio
import fcntl
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import psutil

from services.local import supervise
from services.local.files import LocalError, port_is_free, private_directory
from services.local.layout import DEFAULT_PORT_BASE, LOOPBACK, SERVICES, Mesh, plan
from services.local.process import Program, leashed, tuned, write_spec

STOP_SECONDS = 24
ORPHAN_SECONDS = 15
WATCH_SECONDS = 0.5
CALM_SECONDS = 2.0
BOOT_ERROR = "exit status 78"  # sysexits.h: wrong configuration, which no second start mends
Say = Callable[[str], None]


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
    say: Say = speak,
) -> int:
    """Run the mesh under STATE until SIGINT or SIGTERM; return the exit code (0 for a clean stop).

    Call it from the main thread, whose end its children notice. Raises LocalError, with everything stopped, when the
    mesh cannot come up.
    """
    mesh = plan(state, config, models, listen, port_base)
    if mesh.models and not mesh.models.is_file():
        raise LocalError(f"{mesh.models} does not exist; --models wants the file with the models")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        with _only_one(mesh):
            mesh.endpoints_file.unlink(missing_ok=True)
            await _end_of_predecessor(mesh, say)
            _check_secrets(mesh)
            _check_ports(mesh)
            return await _run(_Children(mesh, services, say), stop)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _run(children: "_Children", stop: asyncio.Event) -> int:
    """Keep the mesh until somebody wants it to stop, or it cannot go on."""
    work = asyncio.create_task(children.live())
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
        children.say("stopping")
        return 0
    finally:
        for task in (work, stopped):
            task.cancel()
        await asyncio.gather(work, stopped, return_exceptions=True)
        await children.stop()


@contextmanager
def _only_one(mesh: Mesh) -> Iterator[None]:
    """Hold the lock on the state folder; raises LocalError when another mesh holds it."""
    run = private_directory(mesh.state / "run")
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


def _check_secrets(mesh: Mesh) -> None:
    """Refuse to start with a key or password that others may read: not every one is read by a service that looks."""
    kept = (*mesh.pki.glob("*.key"), *(path for path in (mesh.state / "secrets").rglob("*") if path.is_file()))
    opened = sorted(path for path in kept if path.stat().st_mode & 0o077)
    if opened:
        names = " ".join(map(str, opened))
        raise LocalError(f"secret files that others may read: {names}. NEXT: chmod 600 {names}")


def _check_ports(mesh: Mesh) -> None:
    """Refuse to start half a mesh: every port must be free."""
    taken = [f"{port} ({what})" for what, address, port in mesh.ports() if not port_is_free(address, port)]
    if taken:
        raise LocalError(
            f"ports in use: {', '.join(taken)}; "
            "stop what listens there (`ss -ltnp` names it), or choose others with --port-base"
        )


@dataclass(slots=True)
class _Children:
    """The processes of one run: the one that brings the mesh up, and the supervisor."""

    mesh: Mesh
    services: Sequence[str]
    say: Say
    known: dict[str, supervise.ProcessStatus] = field(default_factory=dict)
    bringup: asyncio.subprocess.Process | None = None
    supervisor: asyncio.subprocess.Process | None = None

    async def live(self) -> None:
        """Start everything and watch it; ends only by raising LocalError."""
        arguments = [json.dumps(self.mesh.describe()), json.dumps(list(self.services))]
        work = Program("bringup", [sys.executable, "-m", "services.local.bringup", *arguments], env=tuned())
        self.bringup = await _spawn(write_spec(work, self.mesh.supervisor.run), asyncio.subprocess.PIPE)
        await self._hear("prepared")
        self.supervisor = await _spawn(leashed(self.mesh.supervisor.run, self.mesh.supervisor.name))
        died = asyncio.create_task(self.supervisor.wait())
        watch = asyncio.create_task(self._watch())
        ready = asyncio.create_task(self._hear("ready"))
        try:
            await asyncio.wait({ready, died, watch}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
                await asyncio.wait({died, watch}, return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                watch.result()
            log = self.mesh.supervisor.logs / "supervisord.log"
            raise LocalError(f"supervisord ended with {await died}, so everything was stopped; see {log}")
        finally:
            for task in (ready, died, watch):
                task.cancel()
            await asyncio.gather(ready, died, watch, return_exceptions=True)

    async def _hear(self, wanted: str) -> None:
        """Repeat what the bring-up says until it says WANTED; raises LocalError when it fails."""
        if self.bringup is None or self.bringup.stdout is None:
            raise LocalError("the bring-up was not started; this is a bug")
        async for line in self.bringup.stdout:
            told = json.loads(line)
            if told["event"] == "error":
                raise LocalError(told["text"])
            if told["text"]:
                self.say(told["text"])
            if told["event"] == wanted:
                return
        raise LocalError(f"the bring-up ended with {await self.bringup.wait()}; its last words are above")

    async def _watch(self) -> None:
        """Tell when a child fails and when it is given up; while the mesh comes up, a hopeless child ends it."""
        while True:
            await asyncio.sleep(CALM_SECONDS if self.mesh.endpoints_file.exists() else WATCH_SECONDS)
            try:
                current = await asyncio.to_thread(supervise.status, self.mesh.supervisor)
            except LocalError:
                continue  # not up yet, or ending: whoever waits for its process says so
            for child in current:
                before = self.known.get(child.name)
                self.known[child.name] = child
                if child.state not in {"BACKOFF", "FATAL"} or (before and before.state == child.state):
                    continue
                ending = "was given up" if child.state == "FATAL" else "stopped and is started again"
                self.say(f"{child.name} {ending}: {child.why}")
                hopeless = child.state == "FATAL" or child.why.startswith(BOOT_ERROR)
                if hopeless and not self.mesh.endpoints_file.exists():
                    raise LocalError(f"{child.name} does not start: {child.why}")

    async def stop(self) -> None:
        """Stop services, then stores (the supervisor knows the order), and return when nothing is left."""
        await _end(self.bringup)
        self.mesh.endpoints_file.unlink(missing_ok=True)
        await _end(self.supervisor)
        # only when the supervisor was killed: its children are on a leash, and stopping by themselves
        orphans = []
        for pid in {child.pid for child in self.known.values() if child.pid}:
            with suppress(psutil.NoSuchProcess):
                orphans.append(psutil.Process(pid))
        await asyncio.to_thread(psutil.wait_procs, orphans, ORPHAN_SECONDS)


async def _spawn(command: Sequence[str], stdout: int = asyncio.subprocess.DEVNULL) -> asyncio.subprocess.Process:
    """Start a child in a session of its own, so that Ctrl-C reaches us alone and things stop in order."""
    return await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=stdout, start_new_session=True
    )


async def _end(child: asyncio.subprocess.Process | None) -> None:
    """Stop CHILD, by force after 24 s."""
    if child is None:
        return
    if child.returncode is None:
        child.terminate()
    try:
        await asyncio.wait_for(child.wait(), STOP_SECONDS)
    except TimeoutError:
        child.kill()  # its children are on a leash
        await child.wait()


def become_up(
    state: Path,
    config: Path | None = None,
    models: Path | None = None,
    listen: str = LOOPBACK,
    port_base: int = DEFAULT_PORT_BASE,
) -> NoReturn:
    """Replace this process by `up` alone, without whatever a command line has imported; never returns."""
    described = json.dumps(plan(state, config, models, listen, port_base).describe())
    os.execv(sys.executable, [sys.executable, "-m", "services.local.up", described])  # noqa: S606 - no shell wanted


def main(described: str) -> int:
    """Run what `become_up` described; a LocalError is told in its words, without a traceback."""
    mesh = Mesh.parse(json.loads(described))
    try:
        return asyncio.run(run_up(mesh.state, mesh.config, mesh.models, mesh.listen, mesh.port_base))
    except LocalError as error:
        sys.stderr.write(f"opsmesh up: {error}\n")
    except OSError as error:
        sys.stderr.write(f"opsmesh up: {error}; --state wants a folder that can be written\n")
    return 1


def read_status(state: Path) -> list[supervise.ProcessStatus]:
    """Return what became of each process of the mesh on STATE, those given up with their last words.

    Raises LocalError when no mesh runs there.
    """
    return supervise.status(Mesh(state.resolve()).supervisor)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
