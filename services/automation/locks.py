"""The target locks of executions: taken before the first effect, kept while steps run, given back at every end."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog

from services.automation.calls import LOCK_SECONDS, Calls
from services.automation.progress import Progress
from services.mesh.failures import CallError

RENEW_SECONDS: Final = LOCK_SECONDS / 3
log = structlog.get_logger("opsmesh.automation.locks")


class Locks:
    """What this process knows of held locks; the table knows it, too, for whoever goes on after a crash."""

    def __init__(self, progress: Progress, calls: Calls) -> None:
        self._progress = progress
        self._calls = calls
        self._held: dict[str, dict[str, int]] = {}
        self._renewed: dict[str, float] = {}

    async def take(self, execution_id: str, target_id: str) -> None:
        """Take the lock of a target, or keep it. Raises CallError."""
        held = await self.held(execution_id)
        fence = await self._calls.acquire(execution_id, target_id)
        self._renewed[execution_id] = time.monotonic()
        if held.get(target_id) != fence:
            await self._progress.hold(execution_id, target_id, fence)
            held[target_id] = fence

    async def held(self, execution_id: str) -> dict[str, int]:
        """Return the locks of an execution: target to fence."""
        if (known := self._held.get(execution_id)) is not None:
            return known
        read = await self._progress.held(execution_id)
        # Another task of this execution may have been faster: there is one dictionary.
        return self._held.setdefault(execution_id, read)

    async def keep(self, execution_id: str) -> None:
        """Renew what is held when it is time. A lock that was lost is noticed where it counts, at the gateway."""
        if time.monotonic() - self._renewed.get(execution_id, 0.0) < RENEW_SECONDS:
            return
        for target_id, fence in dict(await self.held(execution_id)).items():
            try:
                await self._calls.renew(execution_id, target_id, fence)
            except CallError as error:
                log.warning("lock not renewed", execution_id=execution_id, target=target_id, error=str(error))
        self._renewed[execution_id] = time.monotonic()

    @asynccontextmanager
    async def keeping(self, execution_id: str) -> AsyncIterator[None]:
        """Keep the locks of an execution while a step runs, however long it takes."""

        async def forever() -> None:
            while True:
                await self.keep(execution_id)
                await asyncio.sleep(RENEW_SECONDS)

        keeper = asyncio.create_task(forever())
        try:
            yield
        finally:
            keeper.cancel()

    async def release(self, execution_id: str) -> None:
        """Give everything back; what cannot be given back now is free after its time to live."""
        held = dict(await self.held(execution_id))
        for target_id, fence in held.items():
            try:
                await self._calls.release(execution_id, target_id, fence)
            except CallError as error:
                log.warning("lock not released", execution_id=execution_id, target=target_id, error=str(error))
            await self._progress.let_go(execution_id, target_id, fence)
        self._held.pop(execution_id, None)
        self._renewed.pop(execution_id, None)
