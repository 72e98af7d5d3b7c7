"""uvicorn as one of our workers: it starts and stops with the process, which alone listens to signals."""

import asyncio
import ssl
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.bridge.app import CERTIFICATE
from services.mesh.errors import BootError

GRACE = 3
KEEP_ALIVE = 75
# Each may hold a body of 1 MiB.
CONNECTIONS_MAX = 512
# Names and values of one request together; the largest honest ones (traces, signatures) take some KiB.
HEADERS_MAX = 32 << 10
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


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
    """uvicorn's own, on a corked transport; it bounds headers, which uvicorn does not, and knows who is connected."""

    _header_bytes = 0
    _in_head = False
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Cork it, and remember the client's certificate."""
        super().connection_made(_Corked(transport))  # type: ignore[arg-type]
        # A path may end with a secret, and uvicorn asks the loggers of the process, which are anybody's to set up.
        self.access_log = False
        session = transport.get_extra_info("ssl_object")
        certificate = session.getpeercert(binary_form=True) if session is not None else None
        if certificate:
            self.app_state = self.app_state | {CERTIFICATE: certificate}

    def data_received(self, data: bytes) -> None:
        """Read on, unless the headers are too large; the parser tells of a header only when it has all of it."""
        if self._refused:
            return
        super().data_received(data)
        if self._in_head:
            self._counted(len(data))

    def on_message_begin(self) -> None:
        """Begin to count."""
        self._header_bytes, self._in_head = 0, True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count the path."""
        if self._counted(len(url)):
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header."""
        if self._counted(len(name) + len(value)):
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Go on, unless it was refused."""
        self._in_head = False
        if not self._refused:
            super().on_headers_complete()

    def _counted(self, size: int) -> bool:
        self._header_bytes += size
        if self._header_bytes <= HEADERS_MAX:
            return True
        if not self._refused:
            self._refused = True
            self.transport.write(TOO_LARGE)
            self.transport.close()
        return False


class _Server(uvicorn.Server):
    """A server that leaves the process's signal handlers alone."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield


class Listener:
    """Serves APP on ADDRESS (HOST:PORT), of the setting NAME; with CONTEXT over TLS."""

    def __init__(
        self, app: ASGIApp, address: str, context: ssl.SSLContext | None = None, name: str = "OPSMESH_HTTP"
    ) -> None:
        host, _, port = address.rpartition(":")
        config = uvicorn.Config(
            app,
            host=host.strip("[]"),
            port=int(port),
            http=_Protocol,
            loop="none",
            lifespan="off",
            access_log=False,
            ws="none",
            log_config=None,
            server_header=False,
            # Nothing here depends on a sender's address, and whoever sends such a header could claim any.
            proxy_headers=False,
            limit_concurrency=CONNECTIONS_MAX,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=GRACE,
            ssl_context_factory=_always(context) if context else None,
        )
        self._address, self._name = address, name
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
            raise BootError(f"cannot listen on {self._name}={self._address}\nNEXT: free the port") from error
        finally:
            stopping.cancel()


def _always(context: ssl.SSLContext) -> Callable[[uvicorn.Config, Callable[[], ssl.SSLContext]], ssl.SSLContext]:
    """Return what uvicorn wants to be given a context by."""
    return lambda _config, _default: context


def tls_context(certificate: Path, key: Path, authorities: Iterable[bytes]) -> ssl.SSLContext:
    """Return a context that asks clients for a certificate of these CAs (DER) and lets those in who show none.

    Those have other ways to prove themselves; a certificate of another CA ends the handshake.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    for authority in authorities:
        context.load_verify_locations(cadata=authority)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context
