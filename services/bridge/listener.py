"""uvicorn as one of our workers: it starts and stops with the process, which alone listens to signals."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.mesh.errors import BootError

GRACE = 3
KEEP_ALIVE = 75
# Each may hold a body of 1 MiB.
CONNECTIONS_MAX = 512


class _Corked:
    """A transport that sends at once what is written in one turn of the loop: head and body in one system call."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        """Leave everything else to the transport."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send at the end of this turn."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        """Send what waits, then close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts:
            parts, self._parts = self._parts, []
            self._transport.write(b"".join(parts))


class _Protocol(HttpToolsProtocol):
    """uvicorn's own, on a corked transport."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Cork it."""
        super().connection_made(_Corked(transport))  # type: ignore[arg-type]


class _Server(uvicorn.Server):
    """A server that leaves the process's signal handlers alone."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield


class Listener:
    """Serves APP on ADDRESS (HOST:PORT)."""

    def __init__(self, app: ASGIApp, address: str) -> None:
        host, _, port = address.rpartition(":")
        config = uvicorn.Config(
            app,
            host=host.strip("[]"),
            port=int(port),
            http=_Protocol,
            loop="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            # Nothing here depends on a sender's address, and whoever sends such a header could claim any.
            proxy_headers=False,
            limit_concurrency=CONNECTIONS_MAX,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=GRACE,
        )
        self._address = address
        self._server = _Server(config)

    async def started(self) -> bool:
        """Say whether it listens."""
        return self._server.started

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until STOP, then let requests finish. Raises BootError when the address is taken."""
        serving = asyncio.create_task(self._server.serve())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            self._server.should_exit = True
            await serving
        except SystemExit as error:  # uvicorn's way to say that it cannot listen
            raise BootError(f"cannot listen on OPSMESH_HTTP={self._address}\nNEXT: free the port") from error
        finally:
            stopping.cancel()
