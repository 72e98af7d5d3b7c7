"""Who waits for the next commit: a line per writer, served in turn, so that a writer in a hurry delays only itself."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from opsmesh.audit.v1 import audit_service_pb2 as audit
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal

# One commit: large enough to share a disk sync, small enough that linking it does not hold up the event loop.
BATCH_EVENTS: Final = 128
# Waiting events; more are refused, their writers keep them in their outboxes.
QUEUE_EVENTS: Final = 4096
# Of these, one writer's: whoever floods the log leaves room for the intents of the others.
WRITER_EVENTS: Final = QUEUE_EVENTS // 4


@dataclass(slots=True)
class Waiter:
    """One request: its events and who waits for their sequences."""

    writer: str
    events: Sequence[audit.AuditEvent]
    sequences: "asyncio.Future[list[int]]"


class WaitingRoom:
    """Requests in the order of each writer, writers in turn."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Waiter]] = {}
        self._events: dict[str, int] = {}

    def __bool__(self) -> bool:
        """Say whether anybody waits."""
        return bool(self._lines)

    def add(self, waiter: Waiter) -> None:
        """Let somebody wait; refuses when the room, or the writer's part of it, is full."""
        mine, count = self._events.get(waiter.writer, 0), len(waiter.events)
        if mine + count > WRITER_EVENTS:
            raise _full(f"{WRITER_EVENTS} waiting events of {waiter.writer}")
        if sum(self._events.values()) + count > QUEUE_EVENTS:
            raise _full(f"{QUEUE_EVENTS} waiting events")
        self._lines.setdefault(waiter.writer, deque()).append(waiter)
        self._events[waiter.writer] = mine + count

    def take(self) -> list[Waiter]:
        """Take what one commit carries, a request of each writer in turn; callers that gave up are dropped."""
        taken: list[Waiter] = []
        size = 0
        while self._lines:
            writer = next(iter(self._lines))
            if taken and size + len(self._lines[writer][0].events) > BATCH_EVENTS:
                break
            waiter = self._next(writer)
            if not waiter.sequences.done():
                taken.append(waiter)
                size += len(waiter.events)
        return taken

    def take_all(self) -> list[Waiter]:
        """Take everybody."""
        everybody = [waiter for line in self._lines.values() for waiter in line]
        self._lines.clear()
        self._events.clear()
        return everybody

    def _next(self, writer: str) -> Waiter:
        """Take the first of a writer's line, which then goes behind the others' lines."""
        line = self._lines.pop(writer)
        waiter = line.popleft()
        self._events[writer] -= len(waiter.events)
        if line:
            self._lines[writer] = line
        else:
            del self._events[writer]
        return waiter


def _full(limit: str) -> Refusal:
    return Refusal(error_reason_pb2.ERROR_REASON_OVERLOADED, retry_after=0.1, service="audit", limit=limit)
