"""A model provider that misbehaves on purpose: an OpenAI-compatible HTTP server on a real socket, byte by byte."""

import asyncio
import gzip
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

Behaviour = Callable[[asyncio.StreamWriter], Awaitable[None]]
MEGABYTE = 1024 * 1024


@dataclass
class Provider:
    """Answers each request with the next behaviour, the last one for ever; keeps what it was asked."""

    behaviours: deque[Behaviour] = field(default_factory=deque)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    port: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def api_base(self) -> str:
        """Return the base URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    def will(self, *behaviours: Behaviour) -> None:
        """Set what it does from now on."""
        self.behaviours = deque(behaviours)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, one request."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.headers.append(headers)
            self.requests.append(json.loads(body or b"{}"))
            self.asked.set()
            act = self.behaviours.popleft() if len(self.behaviours) > 1 else self.behaviours[0]
            await act(writer)
        with suppress(ConnectionError):
            writer.close()


@asynccontextmanager
async def providing(*behaviours: Behaviour) -> AsyncIterator[Provider]:
    """Run a provider; connections that hang are cut at the end."""
    provider = Provider(deque(behaviours or [answer(completion("all is well"))]))
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(provider.handle(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=8 * MEGABYTE)
    provider.port = server.sockets[0].getsockname()[1]
    try:
        yield provider
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def completion(
    text: str | None = None, *calls: tuple[str, Any], finish: str = "stop", usage: tuple[int, int] | None = (11, 7)
) -> dict[str, Any]:
    """Return a chat completion; arguments that are no text are written as JSON."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {
                "id": f"call_{index}",
                "type": "function",
                "function": {
                    "name": name,
                    "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments),
                },
            }
            for index, (name, arguments) in enumerate(calls)
        ]
        finish = "tool_calls" if finish == "stop" else finish
    made: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "tiny",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
    }
    if usage:
        made["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return made


def respond(
    body: bytes, status: str = "200 OK", headers: Sequence[str] = (), kind: str = "application/json"
) -> Behaviour:
    """Answer with these bytes."""

    async def act(writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close"]
        writer.write("\r\n".join([*lines, *headers, "", ""]).encode() + body)
        await writer.drain()

    return act


def answer(value: Any) -> Behaviour:
    """Answer with JSON."""
    return respond(json.dumps(value).encode())


def refuse(status: str, *headers: str, text: str = "no") -> Behaviour:
    """Answer with an error as OpenAI writes it."""
    return respond(json.dumps({"error": {"message": text, "type": "x", "code": None}}).encode(), status, headers)


def malformed() -> Behaviour:
    """Answer 200 with what is no JSON."""
    return respond(b'{"choices": [{"message": ')


def something_else() -> Behaviour:
    """Answer 200 with JSON that is no completion."""
    return answer({"hello": "world"})


def truncated() -> Behaviour:
    """Promise more than is sent, and hang up."""

    async def act(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9000\r\n\r\n{")
        await writer.drain()

    return act


def endless() -> Behaviour:
    """Send chunks until the other side has enough."""

    async def act(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b" " * 65536
        while True:
            writer.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            await writer.drain()

    return act


def hang() -> Behaviour:
    """Accept and say nothing."""

    async def act(_: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    return act


def large(size: int = 10 * MEGABYTE) -> Behaviour:
    """Answer with a valid completion of that size."""
    return answer(completion("x" * size))


def bomb() -> Behaviour:
    """Answer with a few kilobytes that unpack to many megabytes."""
    packed = gzip.compress(json.dumps(completion("x" * (50 * MEGABYTE))).encode(), 9)
    return respond(packed, headers=["Content-Encoding: gzip"])


def redirect(location: str) -> Behaviour:
    """Send the caller, and its key, elsewhere."""
    return respond(b"{}", "307 Temporary Redirect", [f"Location: {location}"])


def hang_up() -> Behaviour:
    """Close without a word."""

    async def act(writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    return act
