# ruff: noqa: INP001 - a program, not a module of a package
"""The demo's workload: `python checkout.py PORT`, a small shop till that can break and that only a restart repairs.

GET /healthz answers 200 {"status": "ok"}, or 503 after POST /break; the damage lives in this process alone.
"""

import json
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Till(ThreadingHTTPServer):
    """The service and its health."""

    broken = False
    daemon_threads = True


class Answers(BaseHTTPRequestHandler):
    """The two things one can ask."""

    server: Till
    timeout = 5

    def do_GET(self) -> None:
        """Say how it goes."""
        if self.path != "/healthz":
            self._answer(HTTPStatus.NOT_FOUND, "unknown path")
        elif self.server.broken:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "broken")
        else:
            self._answer(HTTPStatus.OK, "ok")

    def do_POST(self) -> None:
        """Break, until this process ends."""
        if self.path != "/break":
            self._answer(HTTPStatus.NOT_FOUND, "unknown path")
            return
        self.server.broken = True
        self._answer(HTTPStatus.OK, "broken")

    def _answer(self, code: HTTPStatus, status: str) -> None:
        body = json.dumps({"status": status}).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    Till(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
