"""A service process from its start to its end."""

import asyncio
import os
import signal
import subprocess
import sys

import grpc.aio
import pytest

from services.mesh.loop import every, wait
from services.mesh.server import serve
from tests.mesh.fakes import FakeAudit, servicers
from tests.mesh.world import ROOT, World


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m services` to its end without any setting but those given."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OPSMESH_")}
    return subprocess.run(
        [sys.executable, "-m", "services", *arguments],
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_unknown_service_is_a_usage_error() -> None:
    """Exit 64, and the names that exist."""
    done = start("postman")
    assert done.returncode == 64
    assert "gateway" in done.stderr


def test_missing_settings_end_the_start() -> None:
    """Exit 78, each variable by name with its mend, no traceback."""
    done = start("audit", OPSMESH_LISTEN="127.0.0.1:0")
    assert done.returncode == 78
    assert "OPSMESH_TLS_CERT is not set. NEXT: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_start_imports_no_exporter() -> None:
    """The OpenTelemetry SDK, its exporter and model libraries cost seconds: only imported when asked for."""
    code = "import sys, services.mesh.server, services.mesh.client, services.mesh.writes; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    heavy = ("opentelemetry.sdk", "opentelemetry.exporter", "litellm", "temporalio", "sqlalchemy")
    assert [name for name in done.stdout.split() if name.startswith(heavy)] == []


async def test_sigterm_drains_and_stops_the_workers(world: World) -> None:
    """After SIGTERM the workers are told to stop and serve returns."""
    started, stopped = asyncio.Event(), asyncio.Event()

    async def worker(stop: asyncio.Event) -> None:
        started.set()
        await stop.wait()
        stopped.set()

    running = asyncio.create_task(serve(world.settings("audit"), servicers(FakeAudit()), workers=[worker]))
    await started.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(running, 30)
    assert stopped.is_set()


async def test_a_broken_worker_ends_the_process(world: World) -> None:
    """A worker that fails for good is not survived in silence: the process ends and is started again."""

    async def worker(_: asyncio.Event) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await asyncio.wait_for(serve(world.settings("audit"), servicers(FakeAudit()), workers=[worker]), 30)


async def test_a_worker_that_ignores_stop_is_cancelled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker has five seconds to stop, then it is cancelled."""
    monkeypatch.setattr("services.mesh.server.WORKER_GRACE", 0.05)
    started = asyncio.Event()

    async def worker(_: asyncio.Event) -> None:
        started.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(serve(world.settings("audit"), servicers(FakeAudit()), workers=[worker]))
    await started.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(running, 30)


async def test_periodic_work_survives_its_mistakes() -> None:
    """An exception is followed by another try; stop ends the waiting at once."""
    stop, tries = asyncio.Event(), []

    async def work() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise grpc.aio.UsageError("first")
        stop.set()

    await asyncio.wait_for(every(stop, 0.01, work), 30)
    assert len(tries) == 2


async def test_waiting_ends_when_woken_or_stopped() -> None:
    """`wake` ends a wait and is used up; `stop` says to leave."""
    stop, wake = asyncio.Event(), asyncio.Event()
    wake.set()
    assert await asyncio.wait_for(wait(stop, 60, wake), 30) is False
    assert not wake.is_set()
    stop.set()
    assert await asyncio.wait_for(wait(stop, 60, wake), 30) is True
