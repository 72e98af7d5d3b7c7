"""Followers of guardrails' streams: bounded silence, a fresh start after every end, one log line for each change."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio
import structlog

from services.mesh.loop import StoppedError, every, unless_stopped

PERIOD: Final = 0.5
# The streams of guardrails give a sign of life every 10 s.
SILENCE: Final = 25.0
# The type stubs do not know it.
EOF: Final[object] = vars(grpc.aio)["EOF"]
log = structlog.get_logger("opsmesh.streams")


class Follower:
    """Hands every message of a stream to `take`, for as long as it can be had."""

    def __init__(self, name: str, follow: Callable[[], Any], take: Callable[[Any], object]) -> None:
        self._name = name
        self._follow = follow
        self._take = take
        self._down = False

    async def work(self, stop: asyncio.Event) -> None:
        """Follow until `stop`; a stream that ends or breaks off is followed anew within a second."""

        async def once() -> None:
            try:
                await unless_stopped(self._read(), stop)
            except StoppedError:
                return
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                if not self._down:
                    log.warning("stream lost", stream=self._name, error=str(error)[:200])
                self._down = True

        await every(stop, PERIOD, once)

    async def _read(self) -> None:
        call = self._follow()
        try:
            while True:
                async with asyncio.timeout(SILENCE):
                    message = await call.read()
                if message is EOF:
                    return
                if self._down:
                    log.info("stream found again", stream=self._name)
                self._down = False
                self._take(message)
        finally:
            call.cancel()
