"""Leases: what holds now, read from the database for every poll; followers hear of a change within half a second."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from services.guardrails.policies import Lease, Policies

# Another replica may have published: look at least this often, in seconds.
LOOK_SECONDS: Final = 0.5
REPEAT_SECONDS: Final = 10.0


class LeaseBoard:
    """Reads leases; `clock` is monotonic, in seconds."""

    def __init__(self, policies: Policies, clock: Callable[[], float] = time.monotonic) -> None:
        self._policies = policies
        self._clock = clock
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Let the followers of this process look now."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def read(self) -> Lease:
        """Read what holds now."""
        return await self._policies.lease()

    async def follow(self) -> AsyncIterator[Lease]:
        """Yield what holds at once, then at every change and at least every 10 s, until the caller leaves."""
        known: tuple[int, int] | None = None
        told = 0.0
        while True:
            changed = self._changed
            lease = await self.read()
            state = (lease.policy_set_version, lease.kill_epoch)
            if state != known or self._clock() - told >= REPEAT_SECONDS:
                known, told = state, self._clock()
                yield lease
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await changed.wait()
            except TimeoutError:
                continue
