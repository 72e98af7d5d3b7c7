"""The gate before the first byte of an effect: asked when the connection stands, and once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest

from opsmesh.type.v1 import error_reason_pb2
from services.gateway.backends import ConfiguredUrl
from services.gateway.gate import WINDOW, Gate, guarding
from services.gateway.tools.http import Http, NotDeliveredError
from services.mesh.errors import Refusal

ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Backend:
    """Answers everything; counts connections, and keeps what it was sent."""

    def __init__(self) -> None:
        self.connections = 0
        self.heard = b""
        self.url = ConfiguredUrl("")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.heard += await reader.read(64 * 1024)
        writer.write(ANSWER)
        writer.close()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Backend"]:
        """Listen."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            self.url = ConfiguredUrl(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
            yield self


async def post(http: Http, backend: Backend, seconds: float = 5.0) -> int:
    """Send something."""
    return (await http.request("POST", backend.url, seconds=seconds, limit=100, content=b"effect")).status


async def test_a_closed_gate_lets_no_byte_through() -> None:
    """What is refused when the connection stands reaches nobody, and the refusal is the answer."""
    asked: list[int] = []

    async with Backend().serving() as backend:
        http = Http()

        def look() -> None:
            asked.append(backend.connections)
            raise Refusal(error_reason_pb2.ERROR_REASON_KILLED, kill_id="k", scope="everything")

        with guarding(Gate(look)), pytest.raises(Refusal, match="KILLED"):
            await post(http, backend)
        await http.close()
    assert len(asked) == 1
    assert backend.heard == b""


async def test_the_gate_is_asked_once() -> None:
    """What has begun is finished: the second request of the same effect is not asked, and one window is measured."""
    asked: list[None] = []
    before = sum(sample.value for sample in next(iter(WINDOW.collect())).samples if sample.name.endswith("_count"))
    async with Backend().serving() as backend:
        http = Http()
        with guarding(Gate(lambda: asked.append(None))):
            assert [await post(http, backend), await post(http, backend)] == [200, 200]
        # A read has no gate.
        assert await post(http, backend) == 200
        await http.close()
    assert len(asked) == 1
    after = sum(sample.value for sample in next(iter(WINDOW.collect())).samples if sample.name.endswith("_count"))
    assert after == before + 1


async def test_without_time_nothing_is_sent() -> None:
    """A process that wakes up after its deadline does not even connect."""
    async with Backend().serving() as backend:
        http = Http()
        with pytest.raises(NotDeliveredError):
            await post(http, backend, seconds=0.0)
        await http.close()
    assert backend.connections == 0
