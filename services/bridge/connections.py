"""One connection: uvicorn's own protocol, with the bounds that it does not have. Nobody has proved anything yet."""

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Where the certificate of a TLS connection is put, in the scope's state.
CERTIFICATE = "client_certificate"
# For the head of a request, from its first byte; or from the beginning of the connection.
HEAD_SECONDS = 20.0
# Requests that wait behind another on one connection; no sender of webhooks has any.
PIPELINED_MAX = 16
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


class _TooMuchError(Exception):
    """Ends the reading of a connection: raised within the parser's callbacks, it stops there."""


class Connection(HttpToolsProtocol):
    """Bounds what a connection holds before an application sees it, and for how long; knows the client's certificate.

    Where all connections are taken, the one that was quiet for longest gives way, if nothing is being done for it.
    """

    _in_head = False
    _header_bytes = 0
    # Read since the last byte of a body, or of a whole request: what the parser may be holding.
    _held = 0
    # Of a body that is not for the parser.
    _due = 0
    quiet_since = 0.0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Cork it, remember the client's certificate, and wait for a head."""
        super().connection_made(_Corked(transport))  # type: ignore[arg-type]
        # A path may end with a secret, and uvicorn asks the loggers of the process, which are anybody's to set up.
        self.access_log = False
        session = transport.get_extra_info("ssl_object")
        certificate = session.getpeercert(binary_form=True) if session is not None else None
        if certificate:
            self.app_state = self.app_state | {CERTIFICATE: certificate}
        self.quiet_since = self.loop.time()
        self._await_head()
        if self.limit_concurrency and len(self.connections) >= self.limit_concurrency:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._end_wait()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, within bounds; the parser tells of a header only when it has all of it."""
        if self.transport.is_closing():
            return
        self._held += len(data)
        self._unset_keepalive_if_required()
        self._feed(data)
        if self._held > HEADERS_MAX and not self.transport.is_closing():
            self.send_400_response("")
        self.quiet_since = self.loop.time()
        # uvicorn's own timer ends with the first byte, whatever that begins.
        if self.is_idle():
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong, and close; it is larger than may be, or no HTTP."""
        if max(self._header_bytes, self._held) > HEADERS_MAX:
            self.transport.write(TOO_LARGE)
            self.transport.close()
        else:
            super().send_400_response(msg)

    def on_message_begin(self) -> None:
        """Begin to count."""
        if len(self.pipeline) >= PIPELINED_MAX:
            raise _TooMuchError
        self._header_bytes, self._in_head = 0, True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count the path."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header; one behind the body is none, for who read the head alone never saw it."""
        if self._in_head:
            self._count(len(name) + len(value))
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Go on, with as much time as the application gives."""
        self._in_head = False
        self._end_wait()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass it on; the application bounds it."""
        self._held = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Begin anew; of a request that offers an upgrade the parser has left the body to us."""
        self._held = 0
        self._due = self._length() if self.parser.should_upgrade() else 0
        if not self._due:
            super().on_message_complete()

    def is_idle(self) -> bool:
        """Say whether no request is being answered here."""
        return self.cycle is None or self.cycle.response_complete

    def _feed(self, data: bytes) -> None:
        """Parse; an offer of another protocol, as Java's client makes with each request, is passed over."""
        if self._due:
            body, data = data[: self._due], data[self._due :]
            self._due -= len(body)
            self.on_body(body)
            if not self._due:
                super().on_message_complete()
        if not data:
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            following = data[offer.args[0] :]
            if self._due:
                self._feed(following)
            elif following or self._has(b"transfer-encoding"):
                self.send_400_response("Invalid HTTP request received.")
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def _has(self, name: bytes) -> bool:
        return any(one == name for one, _ in self.headers)

    def _length(self) -> int:
        lengths = [value for name, value in self.headers if name == b"content-length"]
        return int(lengths[0]) if len(lengths) == 1 and not self._has(b"transfer-encoding") else 0

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > HEADERS_MAX:
            raise _TooMuchError

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _end_wait(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _make_room(self) -> None:
        others = (one for one in self.connections if isinstance(one, Connection) and one is not self)
        idle = [one for one in others if one.is_idle()]
        if idle:
            quietest = min(idle, key=lambda one: one.quiet_since)
            # It counts no longer: it is told of its end only in the next turn.
            self.connections.discard(quietest)
            quietest.transport.close()
