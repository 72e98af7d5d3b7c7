"""uvicorn as one of our workers: it starts and stops with the process, which alone listens to signals."""

import asyncio
import ssl
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from services.bridge.connections import Connection
from services.mesh.errors import BootError

GRACE = 3
KEEP_ALIVE = 75
# Each may hold a body of 1 MiB.
CONNECTIONS_MAX = 512


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
            http=Connection,
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
