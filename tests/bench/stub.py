"""A process manager that does at once what it is told: what is left of a tool's time is the mesh's."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import Any
from xmlrpc.server import SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

from services.gateway.tools.supervisord import RUNNING, STOPPED


class _Handler(SimpleXMLRPCRequestHandler):
    """Keeps connections open, as supervisord does."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True


class _Server(ThreadingMixIn, SimpleXMLRPCServer):
    """A thread a connection."""

    daemon_threads = True


@dataclass(slots=True)
class Manager:
    """One program, and where its manager listens."""

    url: str = ""
    process_id: int = 1000
    state: int = RUNNING

    def get(self, _: Any) -> Any:
        """Tell about the program."""
        return {"state": self.state, "pid": self.process_id, "start": 1, "spawnerr": ""}

    def stop(self, _: Any, __: Any, /) -> Any:
        """Stop it."""
        self.state = STOPPED
        return True

    def start(self, _: Any, __: Any, /) -> Any:
        """Start it, as another process."""
        self.state = RUNNING
        self.process_id += 1
        return True


@contextmanager
def serving(manager: Manager | None = None) -> Iterator[Manager]:
    """Serve a manager on a free port of this machine."""
    manager = manager or Manager()
    with _Server(("127.0.0.1", 0), requestHandler=_Handler, logRequests=False) as server:
        server.register_function(manager.get, "supervisor.getProcessInfo")
        server.register_function(manager.stop, "supervisor.stopProcess")
        server.register_function(manager.start, "supervisor.startProcess")
        manager.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield manager
        finally:
            server.shutdown()
