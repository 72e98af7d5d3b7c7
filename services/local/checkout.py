"""The demo's workload under a process manager of its own: a supervisord that the mesh's gateway may talk to."""

import asyncio
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx

from services.local import supervise
from services.local.files import LocalError, private_directory
from services.local.process import HOUSE, Program, write_spec
from services.local.waiting import until

NAME = "checkout"
SCRIPT = HOUSE / "deploy" / "demo" / "checkout" / "checkout.py"
STOP_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Workload:
    """A running checkout: its supervisor, its port, the process to stop, and the log it writes."""

    instance: supervise.Instance
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def health_url(self) -> str:
        """Return the URL that answers 200 while it is healthy."""
        return f"http://127.0.0.1:{self.port}/healthz"

    @property
    def break_url(self) -> str:
        """Return the URL that breaks it when posted to."""
        return f"http://127.0.0.1:{self.port}/break"

    def backend(self) -> dict[str, str]:
        """Return how the gateway reaches its process manager: a config.v1.SupervisordBackend."""
        return {
            "server_url": f"unix://{self.instance.socket}",
            "program": NAME,
            "username": supervise.USERNAME,
            "password_file": str(self.instance.password_file),
        }

    def start_count(self) -> int:
        """Return how often it was started, by the process manager's own record."""
        record = (self.instance.logs / "supervisord.log").read_text()
        return record.count(f"spawned: '{NAME}'")


async def start_workload(directory: Path, port: int) -> Workload:
    """Run checkout on PORT under a supervisord in DIRECTORY; returns once it is healthy and its manager says so.

    Call it from the main thread: when that ends, the workload is told to stop. Raises LocalError when it does not come.
    """
    instance = supervise.Instance(private_directory(directory) / "run", directory / "logs", start_seconds=1)
    log = directory / "logs" / f"{NAME}.jsonl"
    words = [sys.executable, "-I", "-S", str(SCRIPT), str(port), str(log)]
    checkout = Program(NAME, words, cwd=directory, stop_seconds=5)
    manager = supervise.program(instance, [supervise.Group("", [checkout])])
    command = write_spec(manager, instance.run)
    # not asyncio's: the workload outlives the event loop that starts it
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603, ASYNC220 - ours
    workload = Workload(instance, port, process, log)
    try:
        await until(lambda: _ask(workload), NAME, 60, httpx.HTTPError, LocalError)
    except BaseException:
        await stop_workload(workload)
        raise
    return workload


async def _ask(workload: Workload) -> None:
    async with httpx.AsyncClient(timeout=2, trust_env=False) as client:
        (await client.get(workload.health_url)).raise_for_status()
    # It answers before its manager counts it as started, and whoever reads its state in between sees it change.
    (program,) = await asyncio.to_thread(supervise.status, workload.instance)
    if program.state != "RUNNING":
        raise LocalError(f"its process manager says {program.state}")


async def stop_workload(workload: Workload) -> None:
    """Stop checkout and its supervisor."""
    workload.process.send_signal(signal.SIGTERM)
    try:
        await asyncio.to_thread(workload.process.wait, STOP_SECONDS)
    except subprocess.TimeoutExpired:
        workload.process.kill()  # its children are on a leash
        await asyncio.to_thread(workload.process.wait, STOP_SECONDS)
