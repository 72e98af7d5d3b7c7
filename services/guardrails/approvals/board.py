"""Follows approvals: those that wait at once, then every change; other replicas' changes within half a second."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Final
from uuid import UUID

from services.guardrails.approvals.rules import Approval
from services.guardrails.approvals.store import ApprovalStore

LOOK_SECONDS: Final = 0.5
REPEAT_SECONDS: Final = 10.0


class ApprovalBoard:
    """Tells followers; `clock` is monotonic, in seconds."""

    def __init__(self, store: ApprovalStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Let the followers of this process look now."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, incident_id: str) -> AsyncIterator[Approval | None]:
        """Yield what waits, then every change, and None after 10 s of silence, until the caller leaves."""
        known: dict[UUID, datetime] = {}
        told, first = self._clock(), True
        while True:
            changed = self._changed
            heads = await self._store.changed(incident_id, waiting=first)
            news = [one for one in heads if known.get(one.approval_id) != one.update_time and (one.waits or not first)]
            # What is too old to be looked at again need not be remembered.
            known = {one.approval_id: one.update_time for one in heads}
            first = False
            for head in news:
                approval = await self._store.read(head.approval_id)
                if approval:
                    told = self._clock()
                    yield approval
            if self._clock() - told >= REPEAT_SECONDS:
                told = self._clock()
                yield None
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await changed.wait()
            except TimeoutError:
                continue
