"""Calls that pile up leave room for the kill switch."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from services.guardrails.places import Places
from services.mesh.errors import Refusal


class Slow:
    """A servicer whose calls last until `done`."""

    def __init__(self) -> None:
        self.done = asyncio.Event()
        self.begun = asyncio.Semaphore(0)

    async def Ask(self, request: Any, _: Any) -> Any:  # noqa: N802  as in an IDL
        """Answer when it is done."""
        self.begun.release()
        await self.done.wait()
        return request

    async def Follow(self, request: Any, _: Any) -> AsyncGenerator[Any, None]:  # noqa: N802  as in an IDL
        """Answer at once, and end when it is done."""
        yield request
        await self.done.wait()


async def test_a_full_house_refuses_at_once() -> None:
    """With every place taken, by calls or streams, one more is OVERLOADED; a place that was left is free."""
    first, second = Slow(), Slow()
    Places(3).share([(lambda *_: None, first), (lambda *_: None, second)])
    calls = [asyncio.create_task(first.Ask(n, None)) for n in range(2)]
    for _ in calls:
        await first.begun.acquire()
    stream = second.Follow(2, None)
    assert await anext(stream) == 2
    for servicer in (first, second):
        with pytest.raises(Refusal) as raised:
            await servicer.Ask(3, None)
        assert raised.value.name == "OVERLOADED"
        with pytest.raises(Refusal):
            await anext(servicer.Follow(3, None))
    await stream.aclose()
    second.done.set()
    assert await second.Ask(4, None) == 4
    first.done.set()
    assert await asyncio.gather(*calls) == [0, 1]
