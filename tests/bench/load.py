"""The clients of the intake benchmark, each a process of its own: `python -m tests.bench.load KIND JSON`.

`webhooks` posts one prepared request on each keep-alive connection, again as soon as it is answered, with as little
Python as that takes, for it shares the cores with what it measures. `xadd` is what it is compared with: redis-py as
everybody uses it, as many tasks that each append one entry after the other.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import psutil
import uvloop
from redis.asyncio import Redis

from tests.bench.table import percentile

STREAM = "signals:bench"
ENDED = b"\r\n\r\n"
LENGTH = b"content-length: "


@dataclass(frozen=True, slots=True)
class Load:
    """What a client did: items a second, times in milliseconds, its own CPU time an item in microseconds."""

    items: int
    rate: float
    p50: float
    p99: float
    cpu: float


class Connection(asyncio.Protocol):
    """One keep-alive connection that posts the same bytes until `end`; anything but a 202 is kept as `wrong`."""

    def __init__(self, request: bytes, end: float) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self.times: list[float] = []
        self._request, self._end = request, end
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Post for the first time."""
        self._transport = cast("asyncio.Transport", transport)
        self._post()

    def data_received(self, data: bytes) -> None:
        """Post again once the answer is whole."""
        self._answer += data
        head = self._answer.find(ENDED)
        if head < 0:
            return
        start = self._answer.find(LENGTH) + len(LENGTH)
        body = int(self._answer[start : self._answer.index(b"\r", start)])
        if len(self._answer) < head + len(ENDED) + body:
            return
        now = time.perf_counter()
        self.times.append(now - self._began)
        if not self._answer.startswith(b"HTTP/1.1 202"):
            self._end_with(RuntimeError(f"answered with {self._answer[:300]!r}"))
        elif now >= self._end:
            self._end_with(None)
        else:
            self._answer = b""
            self._post()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell when the other side hung up."""
        self._end_with(error or ConnectionError("the bridge closed the connection"))

    def _post(self) -> None:
        self._began = time.perf_counter()
        self._transport.write(self._request)

    def _end_with(self, error: Exception | None) -> None:
        if self.done.done():
            return
        if error:
            self.done.set_exception(error)
        else:
            self.done.set_result(None)
        self._transport.close()


async def post_webhooks(order: Mapping[str, Any]) -> list[float]:
    """Post on as many connections as there are bodies; return how long each post took."""
    host, port = order["host"], order["port"]
    end = time.perf_counter() + order["seconds"]
    connections = []
    for body in order["bodies"]:
        head = f"POST {order['path']} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {order['authorization']}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body.encode())}\r\n\r\n"
        request = (head + body).encode()
        _, made = await asyncio.get_running_loop().create_connection(lambda: Connection(request, end), host, port)  # noqa: B023  called at once
        connections.append(made)
    await asyncio.gather(*(one.done for one in connections))
    return [taken for one in connections for taken in one.times]


async def append_entries(order: Mapping[str, Any]) -> list[float]:
    """Append each task's body, one entry a command, from as many tasks as there are bodies; return the times."""
    client = Redis.from_url(order["url"], max_connections=len(order["bodies"]))
    times: list[float] = []
    end = time.perf_counter() + order["seconds"]

    async def append(body: bytes) -> None:
        while (began := time.perf_counter()) < end:
            await client.xadd(STREAM, {b"e": body})
            times.append(time.perf_counter() - began)

    await asyncio.gather(*(append(body.encode()) for body in order["bodies"]))
    await client.delete(STREAM)
    await client.aclose()
    return times


def main(kind: str, order: Mapping[str, Any]) -> None:
    """Do what is ordered and print the Load as JSON."""
    me = psutil.Process()
    before, began = me.cpu_times(), time.perf_counter()
    times = uvloop.run(post_webhooks(order)) if kind == "webhooks" else asyncio.run(append_entries(order))
    took, after = time.perf_counter() - began, me.cpu_times()
    cpu = after.user + after.system - before.user - before.system
    load = Load(
        items=len(times),
        rate=len(times) / took,
        p50=percentile(times, 50) * 1000,
        p99=percentile(times, 99) * 1000,
        cpu=cpu / len(times) * 1e6,
    )
    sys.stdout.write(json.dumps(asdict(load)))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
