"""Prepared requests and the processes that post them: what the storm and the crowd of senders have in common."""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from services.local.endpoints import webhook_headers
from tests.bench.table import percentile

MANY: Final = 600.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a lane of senders saw: answers by status, milliseconds to each 202 and to each refusal, seconds in all."""

    statuses: Mapping[int, int]
    times: Sequence[float]
    refused: Sequence[float]
    seconds: float

    @property
    def accepted(self) -> int:
        """Return how many were answered with 202."""
        return len(self.times)

    @property
    def turned_away(self) -> int:
        """Return how many answers were not a 202."""
        return sum(count for status, count in self.statuses.items() if status != 202)

    @property
    def rate(self) -> float:
        """Return how many were accepted a second."""
        return self.accepted / self.seconds

    def at(self, percent: int) -> float:
        """Return a percentile of the milliseconds to a 202."""
        return percentile(self.times, percent)

    @property
    def told(self) -> str:
        """Return rate and percentiles."""
        return f"{self.rate:,.0f}/s, p50 {self.at(50):.1f} ms, p99 {self.at(99):.1f} ms"


def together(found: Sequence[Seen]) -> Seen:
    """Return several lanes as one."""
    statuses: Counter[int] = Counter()
    for one in found:
        statuses.update(one.statuses)
    times = [taken for one in found for taken in one.times]
    refused = [taken for one in found for taken in one.refused]
    return Seen(statuses, times, refused, max(one.seconds for one in found))


def lane(
    file: Path,
    hook: Mapping[str, str],
    bodies: Sequence[bytes],
    *,
    connections: int,
    rate: float = 0.0,
    seconds: float = MANY,
    insists: bool = True,
) -> dict[str, Any]:
    """Write requests with the proof of their sender to a file; return the order that posts them.

    They are posted at a rate, or without one as quickly as the connections allow, until all are or the seconds passed.
    """
    url = urlsplit(hook["url"])
    sizes = []
    with file.open("wb") as out:
        for body in bodies:
            proof = webhook_headers(dict(hook), body) | {"Content-Type": "application/json", "Host": url.netloc}
            lines = [f"POST {url.path} HTTP/1.1", *(f"{name}: {value}" for name, value in proof.items())]
            head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
            sizes.append(out.write(head.encode() + body))
    return {
        "host": url.hostname,
        "port": url.port,
        "file": str(file),
        "sizes": sizes,
        "connections": connections,
        "rate": rate,
        "seconds": seconds,
        "insists": insists,
    }


async def post(file: Path, orders: Mapping[str, Mapping[str, Any]]) -> dict[str, Seen]:
    """Post what several lanes are ordered to in a process of their own; RuntimeError when one was answered wrongly."""
    file.write_text(json.dumps(orders), encoding="utf-8")  # noqa: ASYNC240  nothing else runs yet
    command = [sys.executable, "-m", "tests.bench.sender", str(file)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    found = json.loads(out)
    for name, one in found.items():
        if one["wrong"]:
            raise RuntimeError(f"{name}: {one['wrong']}")
    return {
        name: Seen(
            {int(status): count for status, count in one["statuses"].items()},
            [1000 * taken for taken in one["times"]],
            [1000 * taken for taken in one["refused"]],
            one["seconds"],
        )
        for name, one in found.items()
    }
