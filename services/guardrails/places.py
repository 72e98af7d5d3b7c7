"""Places for calls: judgements, locks and answers share a number of them, so that kills always find one free.

The server sheds calls above its own limit whatever they are; this limit is lower, and the kill switch is not counted.
"""

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from functools import wraps
from typing import Any, Final

from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal
from services.mesh.server import Servicers

# Of the 1000 calls that the server takes at once.
ORDINARY_MAX: Final = 900
RETRY_SECONDS: Final = 0.5


class Places:
    """Counts the calls of some servicers, and refuses those that find no place with OVERLOADED."""

    def __init__(self, limit: int = ORDINARY_MAX) -> None:
        self._limit = limit
        self._taken = 0

    def share(self, servicers: Servicers) -> Servicers:
        """Let all methods of these servicers take their places here."""
        for _, servicer in servicers:
            for name, method in inspect.getmembers(servicer, inspect.ismethod):
                if name[0].isupper():
                    setattr(servicer, name, self._streaming(method) if _streams(method) else self._single(method))
        return servicers

    @contextmanager
    def _one(self) -> Iterator[None]:
        """Hold one place, or refuse."""
        if self._taken >= self._limit:
            limit = f"{self._limit} calls"
            raise Refusal(error_reason_pb2.ERROR_REASON_OVERLOADED, retry_after=RETRY_SECONDS, limit=limit)
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    def _single(self, method: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        """Return a method that answers once, in a place."""

        @wraps(method)
        async def placed(request: Any, context: Any) -> Any:
            with self._one():
                return await method(request, context)

        return placed

    def _streaming(
        self, method: Callable[[Any, Any], AsyncGenerator[Any, None]]
    ) -> Callable[[Any, Any], AsyncIterator[Any]]:
        """Return a method that answers with a stream, in a place."""

        @wraps(method)
        async def placed(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._one():
                async with aclosing(method(request, context)) as answers:
                    async for answer in answers:
                        yield answer

        return placed


def _streams(method: Callable[..., Any]) -> bool:
    """Say whether a method answers with a stream."""
    return inspect.isasyncgenfunction(method)
