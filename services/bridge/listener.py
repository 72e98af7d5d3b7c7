"""uvicorn as one of our workers: it starts and stops with the process, which alone listens to signals."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

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
    """Serves APP on ADDRESS (HOST:PORT)."""

    def __init__(self, app: Starlette, address: str) -> None:
        host, _, port = address.rpartition(":")
        config = uvicorn.Config(
            app,
            host=host.strip("[]"),
            port=int(port),
            http="httptools",
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
