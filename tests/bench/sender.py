"""Senders of webhooks, a process of its own: `python -m tests.bench.sender ORDER`, a JSON file; prints JSON by lane.

A lane posts prepared requests, each once and in order, at a rate or as quickly as its connections allow. What is
answered with 429 or 503 is posted again after Retry-After, as a sender that means it does, or given up when the lane
does not insist. As little Python as that takes, for it shares the cores with what it measures.
"""

import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import uvloop

HEAD_END: Final = b"\r\n\r\n"
LENGTH: Final = b"content-length: "
AFTER: Final = b"retry-after: "
AGAIN: Final = (429, 503)
ACCEPTED: Final = 202
TEXT_MAX: Final = 300


@dataclass(slots=True)
class Outcome:
    """What a lane saw: answers by status, the seconds to each 202 by when it came, and the whole time."""

    statuses: dict[int, int] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    seconds: float = 0.0
    given_up: int = 0
    wrong: str = ""


class Lane:
    """Prepared requests and the connections that post them."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.host, self.port = order["host"], order["port"]
        self.insists: bool = order["insists"]
        self.outcome = Outcome()
        self._connections: int = order["connections"]
        self._seconds: float = order["seconds"]
        self._waiting = deque(_requests(Path(order["file"]), order["sizes"]))
        self._step = 1 / order["rate"] if order["rate"] else 0.0
        self._loop = asyncio.get_running_loop()
        self._idle: list[Connection] = []
        self._open = 0
        self._over = self._loop.create_future()
        self._later = 0
        self._anew: asyncio.Task[None] | None = None

    async def run(self) -> Outcome:
        """Connect, post everything, or as much as the seconds allow; return what was seen."""
        for _ in range(self._connections):
            await self._connect()
        self._began = self._next = self._loop.time()
        self._end = self._began + self._seconds
        self._serve()
        await self._over
        self.outcome.seconds = self._loop.time() - self._began
        return self.outcome

    def free(self, connection: "Connection") -> None:
        """Take a connection back."""
        self._idle.append(connection)
        self._serve()

    def again(self, request: bytes, seconds: float) -> None:
        """Post a request once more after some seconds, or give it up."""
        if self.insists:
            self._later += 1
            self._loop.call_later(seconds, self._due_again, request)
        else:
            self.outcome.given_up += 1

    def lost(self, connection: "Connection", why: str) -> None:
        """Connect anew in place of one that was quiet for too long; what waits for an answer must not be hung up on."""
        if connection not in self._idle:
            self.fail(why)
            return
        self._idle.remove(connection)
        self._open -= 1
        if not self._over.done():
            self._anew = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        _, made = await self._loop.create_connection(lambda: Connection(self), self.host, self.port)
        self._idle.append(made)
        self._open += 1

    def fail(self, why: str) -> None:
        """End with what must not happen."""
        self.outcome.wrong = why
        self._finish()

    def _due_again(self, request: bytes) -> None:
        self._later -= 1
        self._waiting.appendleft(request)
        self._serve()

    def _serve(self) -> None:
        """Post what is due on the connections that are free."""
        now = self._loop.time()
        while self._waiting and self._idle and now < self._end:
            if self._step and now < self._next:
                if self._next - now > self._step / 2 or len(self._idle) == self._open:
                    self._loop.call_at(self._next, self._serve)
                return
            self._next += self._step
            self._idle.pop().post(self._waiting.popleft())
        if len(self._idle) == self._open and not self._later and (not self._waiting or now >= self._end):
            self._finish()

    def _finish(self) -> None:
        if not self._over.done():
            self._over.set_result(None)


class Connection(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._answer = b""
        self._request = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what is written to."""
        self._transport = cast("asyncio.Transport", transport)

    def post(self, request: bytes) -> None:
        """Post a request; the lane hears of the answer."""
        self._request, self._answer, self._began = request, b"", time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Tell the lane once the answer is whole."""
        self._answer += data
        head = self._answer.find(HEAD_END)
        if head < 0 or len(self._answer) < head + len(HEAD_END) + int(self._header(LENGTH) or 0):
            return
        took = time.perf_counter() - self._began
        status = int(self._answer[9:12])
        outcome = self._lane.outcome
        outcome.statuses[status] = outcome.statuses.get(status, 0) + 1
        if status == ACCEPTED:
            outcome.times.append(took)
        elif status in AGAIN:
            outcome.refused.append(took)
            self._lane.again(self._request, float(self._header(AFTER) or 1))
        else:
            self._lane.fail(f"answered with {self._answer[:TEXT_MAX]!r}")
            return
        self._lane.free(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell when the other side hung up."""
        self._lane.lost(self, repr(error or ConnectionError("the bridge closed the connection")))

    def _header(self, name: bytes) -> bytes:
        start = self._answer.find(name)
        return b"" if start < 0 else self._answer[start + len(name) : self._answer.index(b"\r", start)]


def _requests(path: Path, sizes: Sequence[int]) -> list[bytes]:
    """Return the requests of a file, one behind the other in it."""
    content = path.read_bytes()
    found, at = [], 0
    for size in sizes:
        found.append(content[at : at + size])
        at += size
    return found


async def send(orders: dict[str, dict[str, Any]]) -> dict[str, Outcome]:
    """Run all lanes at once."""
    lanes = {name: Lane(order) for name, order in orders.items()}
    outcomes = await asyncio.gather(*(lane.run() for lane in lanes.values()))
    return dict(zip(lanes, outcomes, strict=True))


if __name__ == "__main__":
    found = uvloop.run(send(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
    sys.stdout.write(json.dumps({name: asdict(outcome) for name, outcome in found.items()}))
