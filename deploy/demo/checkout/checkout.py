# ruff: noqa: INP001 - a program, not a module of a package
"""The demo's workload: `python checkout.py PORT LOG`, a small shop till that can break and that only a restart repairs.

GET /healthz answers 200 {"status": "ok"}, or 503 after POST /break; the damage lives in this process alone. What it did
is appended to LOG as JSON lines, with what its visitors call themselves: text that anybody may choose.
"""

import json
import sys
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Till(ThreadingHTTPServer):
    """The service and its health."""

    broken = False
    daemon_threads = True
    log = Path()

    def note(self, level: str, message: str) -> None:
        """Append a line to the log."""
        line = {"@timestamp": datetime.now(UTC).isoformat(), "log.level": level, "message": message}
        with self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")


class Answers(BaseHTTPRequestHandler):
    """The two things one can ask."""

    server: Till
    timeout = 5

    def do_GET(self) -> None:
        """Say how it goes."""
        if self.path != "/healthz":
            visitor = self.headers.get("User-Agent", "")
            self.server.note("info", f"unknown path {self.path}, asked for by {visitor}")
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
        self.server.note(
            "error", "connection pool exhausted: 64 of 64 connections in use, none was given back for 30 s"
        )
        self._answer(HTTPStatus.OK, "broken")

    def _answer(self, code: HTTPStatus, status: str) -> None:
        body = json.dumps({"status": status}).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    till = Till(("127.0.0.1", int(sys.argv[1])), Answers)
    till.log = Path(sys.argv[2])
    till.note("info", "started")
    till.serve_forever()
