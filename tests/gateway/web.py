"""A small HTTP server for tests of backends: it keeps what it was asked, and answers as a test says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs


@dataclass(frozen=True, slots=True)
class Asked:
    """One request; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def form(self) -> dict[str, str]:
        """Return a form's fields."""
        return {name: values[-1] for name, values in parse_qs(self.body.decode(), keep_blank_values=True).items()}


# Status and body; None never answers.
Responder = Callable[[Asked], tuple[int, bytes] | None]


@dataclass
class Web:
    """A server on a port of its own."""

    respond: Responder
    asked: list[Asked] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        """Return its address."""
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)
            }
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            asked = Asked(head[0].split()[0], head[0].split()[1], headers, body)
            self.asked.append(asked)
            answer = self.respond(asked)
            if answer is None:
                await reader.read()  # until the other side gives up
                return
            start = f"HTTP/1.1 {answer[0]} X\r\nContent-Length: {len(answer[1])}\r\nConnection: close\r\n\r\n"
            writer.write(start.encode() + answer[1])
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the other side left early: some tests are about that
        finally:
            writer.close()


@asynccontextmanager
async def web(respond: Responder) -> AsyncIterator[Web]:
    """Serve."""
    found = Web(respond)
    server = await asyncio.start_server(found._serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
