"""Webhooks under load: `python -m tests.bench.intake`.

The bar: bridge and ingest as processes, mTLS, the full chain, authenticated, parsed, on disk before the 202, over 64
connections: at least 0.35 of what bare redis-py does with 64 tasks that each append one entry after the other.
The load generator shares the cores.
"""

import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import quantiles
from typing import Final

from redis.asyncio import Redis

from services.local import postgres as pg
from tests import stores
from tests.bridge.test_processes import Mesh
from tests.ingest.house import alert, notification
from tests.ingest.test_faults import Machine

CONNECTIONS: Final = 64
SECONDS: Final = 5.0
RATIO_MIN: Final = 0.35
ROUNDS: Final = 2
Work = Callable[[], Awaitable[None]]


async def rate(makes: list[Work]) -> tuple[float, float, float]:
    """Return rounds a second, p50 and p99 in milliseconds, of workers that each do one round after the other."""
    times: list[float] = []
    end = time.perf_counter() + SECONDS

    async def repeat(work: Work) -> None:
        while (began := time.perf_counter()) < end:
            await work()
            times.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(repeat(work) for work in makes))
    cuts = quantiles(times, n=100)
    return len(times) / (time.perf_counter() - began), cuts[49] * 1000, cuts[98] * 1000


class Connection:
    """One keep-alive connection that posts the same webhook."""

    def __init__(self, port: int, body: bytes) -> None:
        self._port = port
        head = (
            "POST /v1/webhooks/alertmanager HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer new-secret\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._request = head.encode() + body

    async def open(self) -> None:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def post(self) -> None:
        """Post once; anything but a 202 ends the benchmark."""
        self._writer.write(self._request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 202"):
            raise RuntimeError(f"answered with {head[:200]!r}")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await self._reader.readexactly(length)

    async def close(self) -> None:
        """Disconnect."""
        self._writer.close()
        await self._writer.wait_closed()


async def bare(machine: Machine, body: bytes) -> tuple[float, float, float]:
    """Append the body itself, one entry a command."""
    client = Redis.from_url(machine.valkey.url("ingest"), max_connections=CONNECTIONS)

    async def add() -> None:
        await client.xadd("signals:bench", {b"e": body})

    try:
        return await rate([add] * CONNECTIONS)
    finally:
        await client.delete("signals:bench")
        await client.aclose()


async def webhooks(mesh: Mesh, body: bytes) -> tuple[float, float, float]:
    """Post the body as Alertmanager does."""
    connections = [Connection(mesh.http_port, body) for _ in range(CONNECTIONS)]
    for one in connections:
        await one.open()
    try:
        return await rate([one.post for one in connections])
    finally:
        for one in connections:
            await one.close()


async def main(folder: Path) -> int:
    """Print the rates side by side; the exit code says whether the bar is reached."""
    machine = Machine(folder)
    pg.initialise(machine.postgres)
    await machine.start("valkey")
    await machine.start("postgres")
    await pg.provision(machine.postgres)
    await pg.migrate(machine.postgres.dsn(pg.OWNER))
    mesh = Mesh(machine)
    body = notification(alert())
    best = 0.0
    async with AsyncExitStack() as stack:
        for program in mesh.programs():
            await stack.enter_async_context(stores.running(program, folder))
        await mesh.says(200)
        for _ in range(ROUNDS):
            alone, through = await bare(machine, body), await webhooks(mesh, body)
            best = max(best, through[0] / alone[0])
            sys.stdout.write(
                f"bare XADD {alone[0]:7.0f}/s  p50 {alone[1]:.2f} ms   webhooks {through[0]:7.0f}/s  "
                f"p50 {through[1]:.2f} ms  p99 {through[2]:.2f} ms   ratio {through[0] / alone[0]:.2f}\n"
            )
        await mesh.http.aclose()
    await machine.close()
    sys.stdout.write(f"intake: {best:.2f} of bare XADD; the bar is {RATIO_MIN}\n")
    return 0 if best >= RATIO_MIN else 1


if __name__ == "__main__":
    place = Path(tempfile.mkdtemp(prefix="opsmesh-bench-"))
    try:
        code = asyncio.run(main(place))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    sys.exit(code)
