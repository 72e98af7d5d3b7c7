"""Background work that outlives its mistakes: a bounded period, a logged error, a bounded backoff."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog
from tenacity import AsyncRetrying, RetryCallState, RetryError, retry_if_exception_type, wait_random_exponential

T = TypeVar("T")
BACKOFF_MIN: Final = 0.1
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

    An exception is logged and the work tried again, each time after twice as long, up to 30 s.
    """
    name = getattr(work, "__qualname__", repr(work))

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning("worker failed", worker=name, failures=state.attempt_number, error=repr(error), exc_info=error)

    async def pause(delay: float) -> None:
        await wait(stop, delay)

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(Exception),
        wait=wait_random_exponential(multiplier=max(seconds, BACKOFF_MIN), max=BACKOFF_MAX),
        stop=lambda _: stop.is_set(),
        sleep=pause,
        before_sleep=tell,
    )
    while not stop.is_set():
        started = time.monotonic()
        try:
            await retrying(_call, work)
        except RetryError:
            return
        if await wait(stop, max(0.0, seconds - (time.monotonic() - started)), wake):
            return


async def _call(work: Callable[[], Awaitable[object]]) -> None:
    """Await the work, whatever kind of callable it is."""
    await work()


class StoppedError(Exception):
    """Somebody asked to stop before anything was sent."""


async def unless_stopped(call: Awaitable[T], stop: asyncio.Event) -> T:
    """Await a call that nothing is lost by ending; raises StoppedError when a stop comes first."""
    task, stopped = asyncio.ensure_future(call), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise StoppedError
    finally:
        task.cancel()
        stopped.cancel()
