"""Waiting for a server to come up: bounded, and with words for the person who waits."""

from collections.abc import Awaitable, Callable

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from services.local.files import LocalError


async def until(
    probe: Callable[[], Awaitable[object]], what: str, seconds: float, *refusals: type[Exception], pause: float = 0.05
) -> None:
    """Repeat PROBE until it raises none of REFUSALS; after SECONDS raise LocalError: WHAT is not ready, and why."""

    async def once() -> None:
        # Given a lambda, the retrying library would take its coroutine for the answer.
        await probe()

    try:
        await AsyncRetrying(
            retry=retry_if_exception_type(refusals),
            stop=stop_after_delay(seconds),
            wait=wait_fixed(pause),
            reraise=True,
        )(once)
    except refusals as error:
        raise LocalError(f"{what} is not ready after {seconds:g} s: {error or type(error).__name__}") from error
