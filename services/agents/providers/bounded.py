"""HTTP to providers, bounded: a reply has a largest size, is never compressed, and never leads elsewhere.

Provider libraries read whole replies into memory, follow redirects with the key in hand and unpack what they get;
so the limits are below them, in the transport, which also notes what it saw: libraries name failures differently.
"""

from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

import httpx

REPLY_BYTES_MAX: Final = 4 * 1024 * 1024
CONNECT_SECONDS: Final = 5.0
CONNECTIONS_MAX: Final = 32
REDIRECTS: Final = range(300, 400)
NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


@dataclass(slots=True)
class Seen:
    """What the transport saw of one call."""

    status: int = 0
    retry_after: float | None = None
    not_sent: bool = False
    broken: bool = False
    timed_out: bool = False
    too_large: bool = False
    redirected: bool = False


current: Final[ContextVar[Seen | None]] = ContextVar("opsmesh_model_http", default=None)


class ReplyRefusedError(httpx.TransportError):
    """A reply is not read any further."""


class _BoundedStream(httpx.AsyncByteStream):
    """A body that ends in an error once it is too large."""

    def __init__(self, inner: httpx.AsyncByteStream, seen: Seen) -> None:
        self._inner = inner
        self._seen = seen

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the body, up to the limit."""
        total = 0
        try:
            async for chunk in self._inner:
                total += len(chunk)
                if total > REPLY_BYTES_MAX:
                    self._seen.too_large = True
                    raise ReplyRefusedError(f"the reply is larger than {REPLY_BYTES_MAX} bytes")
                yield chunk
        except httpx.TransportError as error:
            self._seen.broken = True
            self._seen.timed_out = isinstance(error, httpx.TimeoutException)
            raise

    async def aclose(self) -> None:
        """Close the connection's side of it."""
        await self._inner.aclose()


class BoundedTransport(httpx.AsyncBaseTransport):
    """An httpx transport with these limits, around the ordinary one."""

    def __init__(self) -> None:
        # Proxies and certificates of the environment are for whoever configures the process, not for a provider.
        self._inner = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=CONNECTIONS_MAX))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; the body of the answer is bounded."""
        seen = current.get() or Seen()
        seen.status, seen.broken = 0, False
        # A small compressed reply may be a large one.
        request.headers["accept-encoding"] = "identity"
        timeouts = dict(request.extensions.get("timeout") or {})
        timeouts["connect"] = min(timeouts.get("connect") or CONNECT_SECONDS, CONNECT_SECONDS)
        request.extensions["timeout"] = timeouts
        try:
            response = await self._inner.handle_async_request(request)
        except NOT_SENT:
            seen.not_sent = True
            raise
        except httpx.TransportError as error:
            seen.broken = True
            seen.timed_out = isinstance(error, httpx.TimeoutException)
            raise
        seen.status = response.status_code
        seen.retry_after = _seconds(response.headers.get("retry-after", ""))
        if response.status_code in REDIRECTS:
            seen.redirected = True
            await response.aclose()
            raise ReplyRefusedError("redirects are not followed: they would carry the key elsewhere")
        if response.headers.get("content-encoding", "identity") != "identity":
            seen.too_large = True
            await response.aclose()
            raise ReplyRefusedError("the reply is compressed, which was not asked for")
        if not isinstance(response.stream, httpx.AsyncByteStream):
            raise ReplyRefusedError("the reply cannot be read asynchronously")
        return httpx.Response(
            status_code=response.status_code,
            headers=response.headers,
            stream=_BoundedStream(response.stream, seen),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._inner.aclose()


def _seconds(text: str) -> float | None:
    """Return a Retry-After in seconds; its other form, a date, is rare and ignored."""
    return float(min(int(text), 3600)) if text.isascii() and text.isdigit() else None
