"""Background work that outlives its mistakes: a bounded period, a logged error, a bounded backoff."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

BACKOFF_MAX: Final = 30.0
log = structlog.get_logger("opsmesh.loop")


async def wait(stop: asyncio.Event, seconds: float, wake: asyncio.Event | None = None) -> bool:
    """Wait until `stop`, or `wake` (which is cleared), or `seconds` have passed; say whether to stop."""
    events = [stop] if wake is None else [stop, wake]
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
    if wake is not None:
        wake.clear()
    return stop.is_set()


async def every(
    stop: asyncio.Event, seconds: float, work: Callable[[], Awaitable[object]], wake: asyncio.Event | None = None
) -> None:
    """Run `work` every `seconds` (sooner when `wake` is set) until `stop`.

    An exception is logged and the next try waits twice as long as the last, up to 30 s.
    """
    failures = 0
    while not stop.is_set():
        started = time.monotonic()
        try:
            await work()
            failures = 0
        except Exception:
            failures += 1
            log.exception("worker failed", worker=getattr(work, "__qualname__", repr(work)), failures=failures)
        pause = min(BACKOFF_MAX, max(seconds, 0.1) * 2 ** min(failures, 10)) if failures else seconds
        if await wait(stop, max(0.0, pause - (time.monotonic() - started)), None if failures else wake):
            return
