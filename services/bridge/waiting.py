"""Deliveries that wait for ingest: sources take turns, and when there is no room, who waits with most gives way."""

import asyncio
from collections import deque
from collections.abc import Container
from dataclasses import dataclass

from opsmesh.ingest.v1 import ingest_service_pb2 as ingest


class FullError(Exception):
    """Too much waits for ingest already; the sender must come again."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A delivery, and who is told what became of it."""

    delivery: ingest.Delivery
    answer: asyncio.Future[ingest.DeliveryResult]

    @property
    def size(self) -> int:
        """Return the bytes of its body."""
        return len(self.delivery.body)


class FairQueue:
    """A queue for each source; bounded together by items and bytes."""

    def __init__(self, items_max: int, bytes_max: int) -> None:
        self._items_max = items_max
        self._bytes_max = bytes_max
        # In order of turns: who was served last is last.
        self._queues: dict[str, deque[Waiting]] = {}
        self._sizes: dict[str, int] = {}
        self._items = 0
        self.bytes = 0

    def __len__(self) -> int:
        """Return how many wait."""
        return self._items

    def put(self, one: Waiting) -> None:
        """Let a delivery wait. FullError when there is no room, and no other source waits with more than this one."""
        source = one.delivery.source
        while self._items >= self._items_max or self.bytes + one.size > self._bytes_max:
            self._make_room(source, one.size)
        self._queues.setdefault(source, deque()).append(one)
        self._sizes[source] = self._sizes.get(source, 0) + one.size
        self._items += 1
        self.bytes += one.size

    def first(self, away: Container[str] = ()) -> Waiting | None:
        """Return whose turn it is, of the sources that are not away."""
        source = self._turn(away)
        return None if source is None else self._queues[source][0]

    def _turn(self, away: Container[str]) -> str | None:
        return next((one for one in self._queues if one not in away), None)

    def take(self, away: Container[str] = ()) -> Waiting:
        """Take whose turn it is; its source is last from then on."""
        source = self._turn(away)
        if source is None:
            raise LookupError("nobody's turn")
        queue = self._queues.pop(source)
        one = queue.popleft()
        if queue:
            self._queues[source] = queue
        self._took(source, one)
        return one

    def _make_room(self, source: str, size: int) -> None:
        """Send the newest delivery of the source with most away, if that has more than SOURCE would have then."""
        if self._items >= self._items_max:
            most = max(self._queues, key=lambda name: len(self._queues[name]), default=source)
            ours, theirs = len(self._queues.get(source, ())) + 1, len(self._queues.get(most, ()))
        else:
            most = max(self._sizes, key=lambda name: self._sizes[name], default=source)
            ours, theirs = self._sizes.get(source, 0) + size, self._sizes.get(most, 0)
        if most == source or theirs <= ours:
            raise FullError
        queue = self._queues[most]
        one = queue.pop()
        if not queue:
            del self._queues[most]
        self._took(most, one)
        if not one.answer.done():
            one.answer.set_exception(FullError())

    def _took(self, source: str, one: Waiting) -> None:
        self._items -= 1
        self.bytes -= one.size
        self._sizes[source] -= one.size
        if source not in self._queues:
            del self._sizes[source]
