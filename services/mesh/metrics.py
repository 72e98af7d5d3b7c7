"""/metrics and /healthz over plain HTTP on an address of their own, in a thread of their own."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from services.mesh.errors import BootError

SOCKET_SECONDS: Final = 5


class _Handler(BaseHTTPRequestHandler):
    """Answers GET of the two paths."""

    timeout = SOCKET_SECONDS
    server_version = "opsmesh"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer with the metrics, or that this process is alive."""
        if self.path == "/metrics":
            self._answer(200, generate_latest(), CONTENT_TYPE_LATEST)
        elif self.path == "/healthz":
            self._answer(200, b"ok\n", "text/plain; charset=utf-8")
        else:
            self._answer(404, b"not found\n", "text/plain; charset=utf-8")

    def _answer(self, code: int, body: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name is the standard library's
        """Write no access log: a scraper comes every few seconds."""


class MetricsServer:
    """Serves metrics on `address`, `host:port`; `port` tells the port in use."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        try:
            self._server = ThreadingHTTPServer((host, int(port)), _Handler)
        except OSError as error:
            raise BootError(f"cannot listen on OPSMESH_METRICS={address}: {error}. NEXT: free the port") from None
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and free the port."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()
