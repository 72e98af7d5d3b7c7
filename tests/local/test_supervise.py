"""The supervisor restarts what falls, gives up what cannot stand, and takes everything along when it goes."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from tenacity import AsyncRetrying, retry_if_not_result, stop_after_delay, wait_fixed

from services.local.files import LocalError
from services.local.process import Program
from services.local.supervise import Group, Instance, ProcessStatus, call, program, status
from tests.stores import running

SLEEPER = Program("sleeper", [sys.executable, "-c", "import signal; signal.pause()"])
BROKEN = Program(
    "broken",
    [sys.executable, "-c", "import time; print(time.time(), 'no such setting: COLOUR'); raise SystemExit(3)"],
)
TALK = "import signal; [print('x' * 99, flush=True) for _ in range(9000)]; print('end', flush=True); signal.pause()"
CHATTY = Program("chatty", [sys.executable, "-c", TALK])


@asynccontextmanager
async def supervised(folder: Path, *programs: Program, log_bytes: int = 1 << 20) -> AsyncIterator[Instance]:
    """Run PROGRAMS under a supervisord that asks them to stay up a second and rotates their logs at LOG_BYTES."""
    instance = Instance(folder / "run", folder / "logs", start_seconds=1, log_bytes=log_bytes)
    async with running(program(instance, [Group("all", programs)]), folder):
        await until(instance, programs[0].name, {"STARTING", "RUNNING", "BACKOFF"})
        yield instance


async def until(instance: Instance, name: str, states: set[str], *, other_than: int = 0) -> ProcessStatus:
    """Ask until program NAME is in one of STATES (at most 60 s), as another process than OTHER_THAN."""

    async def ask() -> ProcessStatus | None:
        try:
            found = {child.name: child for child in await asyncio.to_thread(status, instance)}[name]
        except LocalError:
            return None
        return found if found.state in states and (not other_than or found.pid != other_than) else None

    retrying = AsyncRetrying(retry=retry_if_not_result(bool), stop=stop_after_delay(60), wait=wait_fixed(0.05))
    found: ProcessStatus | None = await retrying(ask)
    assert found
    return found


async def line_of(log: Path) -> str:
    """Wait, at most 60 s, until LOG ends with a whole line; return all of it."""

    async def read() -> str:
        text = await asyncio.to_thread(log.read_text)
        return text if text.endswith("\n") else ""

    retrying = AsyncRetrying(retry=retry_if_not_result(bool), stop=stop_after_delay(60), wait=wait_fixed(0.05))
    return str(await retrying(read))


async def test_a_killed_child_comes_back(tmp_path: Path) -> None:
    """A child that dies is started again, as a new process."""
    async with supervised(tmp_path, SLEEPER) as instance:
        first = await until(instance, "sleeper", {"RUNNING"})
        psutil.Process(first.pid).kill()
        again = await until(instance, "sleeper", {"RUNNING"}, other_than=first.pid)
        assert again.pid
        assert again.why == ""


async def test_a_child_is_given_up_after_five_starts(tmp_path: Path) -> None:
    """Five starts that did not last, after pauses of 1, 2, 3, 4 s, make it FATAL; status tells exit and last words."""
    async with supervised(tmp_path, BROKEN) as instance:
        given_up = await until(instance, "broken", {"FATAL"})
        starts = [float(line.split()[0]) for line in (tmp_path / "logs" / "broken.log").read_text().splitlines()]
        assert len(starts) == 5
        pauses = [after - before for before, after in pairwise(starts)]
        assert all(pause >= number for number, pause in enumerate(pauses, start=1))
        assert given_up.why.startswith("exit status 3\n")
        assert given_up.why.endswith("no such setting: COLOUR")


@pytest.mark.parametrize("number", [9, 15])
async def test_children_die_with_their_supervisor(tmp_path: Path, number: int) -> None:
    """Not even a killed supervisor leaves a process behind."""
    async with supervised(tmp_path, SLEEPER) as instance:
        child = psutil.Process((await until(instance, "sleeper", {"RUNNING"})).pid)
        psutil.Process(int(instance.pid_file.read_text())).send_signal(number)
        gone, alive = await asyncio.to_thread(psutil.wait_procs, [child], 60)
        assert gone
        assert not alive


async def test_a_child_inherits_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings and proxies of the surroundings do not reach a child; its own do, whatever characters they hold."""
    monkeypatch.setenv("OPSMESH_LISTEN", "outside")
    monkeypatch.setenv("HTTPS_PROXY", "outside")
    odd = """{"a": "100%", 'b': ";x, y"}"""
    code = "import os, json, signal; print(json.dumps(dict(os.environ)), flush=True); signal.pause()"
    async with supervised(tmp_path, Program("env", [sys.executable, "-c", code], {"OPSMESH_PEERS": odd})) as instance:
        await until(instance, "env", {"RUNNING"})
        # A program that counts as running may not have said anything yet.
        said = await line_of(tmp_path / "logs" / "env.log")
    assert "outside" not in said
    assert odd.replace('"', '\\"') in said


async def test_logs_rotate(tmp_path: Path) -> None:
    """A program that says more than a log may hold fills at most that many files; the newest words are in the first."""
    async with supervised(tmp_path, CHATTY, log_bytes=10_000) as instance:
        log = tmp_path / "logs" / "chatty.log"

        async def last() -> bool:
            # The last words may be what filled the log, and so be in the one before it.
            words = [one.read_text() for one in sorted(log.parent.glob("chatty.log*"))[:2]]
            return any(one.endswith("end\n") for one in words)

        await AsyncRetrying(retry=retry_if_not_result(bool), stop=stop_after_delay(60), wait=wait_fixed(0.05))(last)
        files = sorted(file.name for file in log.parent.glob("chatty.log*"))
        assert files == ["chatty.log", *(f"chatty.log.{number}" for number in range(1, instance.log_backups + 1))]
        # supervisord looks at the size after each read of a pipe, which may bring more than a log should hold
        assert sum((log.parent / name).stat().st_size for name in files) < 9000 * 100
        assert log.with_name("chatty.log.1").read_text()


async def test_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    """The socket moves to a short private folder when the state's path is longer than a socket may be."""
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    async with supervised(folder, SLEEPER) as instance:
        assert len(str(instance.socket)) < 100
        assert instance.socket.stat().st_mode & 0o777 == 0o600
        assert instance.socket.parent.stat().st_mode & 0o077 == 0
        with pytest.raises(LocalError, match="BAD_NAME"):
            await asyncio.to_thread(call, instance, "supervisor.startProcess", "nobody")
    instance.socket.parent.rmdir()


def test_status_of_nothing_says_how_to_start(tmp_path: Path) -> None:
    """Asking where no supervisor runs names the folder and the command."""
    with pytest.raises(LocalError, match="opsmesh up"):
        status(Instance(tmp_path / "run", tmp_path / "logs"))
