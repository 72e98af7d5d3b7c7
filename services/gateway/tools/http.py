"""Bounded HTTP to configured URLs: a deadline for the whole exchange, a largest answer, no redirect, no proxy."""

import asyncio
import ssl
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import httpx

from services.gateway.backends import ConfiguredUrl, Login
from services.gateway.gate import current_gate

# What httpcore calls the moments between which a request leaves.
CONNECTED: Final = "http11.send_request_headers.started"
SENT: Final = "http11.send_request_body.complete"
NOT_DELIVERED: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class NotDeliveredError(Exception):
    """The request certainly did not reach the backend."""


class NoAnswerError(Exception):
    """The request may have reached the backend; its answer did not reach us."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a backend answered; `truncated` when it said more than it may."""

    status: int
    body: bytes
    truncated: bool


@cache
def _trust() -> ssl.SSLContext:
    """Return the system's certificate authorities: loading them takes memory, so once."""
    return ssl.create_default_context()


class Http:
    """A client for one backend, over TCP or over the Unix socket `socket`."""

    def __init__(self, socket: Path | None = None, login: Login | None = None) -> None:
        # A kept connection that the backend has just closed cannot be told from a lost answer: keep none.
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=0)
        uds = str(socket) if socket else None
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(verify=_trust(), uds=uds, limits=limits, trust_env=False),
            auth=httpx.BasicAuth(login.username, login.password) if login else None,
            follow_redirects=False,
            trust_env=False,
        )

    async def request(
        self,
        method: Literal["GET", "POST"],
        url: ConfiguredUrl,
        *,
        seconds: float,
        limit: int,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """Return status and body; raises NotDeliveredError, NoAnswerError, or what the gate refuses with."""
        if seconds <= 0:
            # A process that was paused wakes up too late: others may have acted since.
            raise NotDeliveredError("no time was left")
        try:
            async with (
                asyncio.timeout(seconds),
                self._client.stream(
                    method, url, content=content, headers=headers, timeout=seconds, extensions={"trace": _trace}
                ) as response,
            ):
                body, truncated = await _bounded(response, limit)
                return Reply(response.status_code, body, truncated)
        except NOT_DELIVERED as error:
            raise NotDeliveredError(f"not reached: {type(error).__name__}") from error
        except (httpx.HTTPError, TimeoutError) as error:
            raise NoAnswerError(f"no answer: {type(error).__name__}") from error

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()


async def _trace(event: str, _: dict[str, Any]) -> None:
    """Look through the gate of the effect, if this is one, when nothing has been sent yet."""
    if event == CONNECTED and (gate := current_gate()):
        gate.look()
    elif event == SENT and (gate := current_gate()):
        gate.sent()


async def _bounded(response: httpx.Response, limit: int) -> tuple[bytes, bool]:
    """Read at most `limit` bytes; say whether there was more."""
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > limit:
            return bytes(body[:limit]), True
    return bytes(body), False
