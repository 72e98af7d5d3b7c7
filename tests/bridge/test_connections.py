"""What somebody without a secret does to the connections themselves: holds them, fills them, hides headers in them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.bridge import connections, listener
from services.bridge.connections import HEADERS_MAX, PIPELINED_MAX
from tests.bridge.house import Bridge, MemoryIngest, running, write_config
from tests.ingest.house import alert, eventually, notification

GOOD = notification(alert())
HEAD = b"POST /v1/webhooks/alertmanager HTTP/1.1\r\nHost: x\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n%x\r\n%s\r\n0\r\n" % (len(GOOD), GOOD)
TRAILER = b"Authorization: Bearer new-secret\r\n\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def bridge(tmp_path: Path) -> AsyncIterator[Bridge]:
    """Give a running bridge."""
    async with running(write_config(tmp_path), MemoryIngest()) as made:
        yield made


async def connect(bridge: Bridge, told: bytes = b"") -> Streams:
    """Return a connection of its own on which some bytes are written."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(bridge.url.rpartition(":")[2]))
    writer.write(told)
    return reader, writer


async def rest(reader: asyncio.StreamReader) -> bytes:
    """Return what comes until the connection is closed, within 20 s."""
    try:
        return await asyncio.wait_for(reader.read(), 20)
    except ConnectionResetError:
        return b""


async def test_what_follows_a_body_is_no_header(bridge: Bridge) -> None:
    """A trailer proves nothing, however early it comes: who reads the head alone would never have seen it."""
    reader, writer = await connect(bridge, CHUNKED + TRAILER)
    assert (await rest(reader)).startswith(b"HTTP/1.1 401")
    writer.close()


@pytest.mark.parametrize(
    "told",
    [
        b"",
        b"POST /v1/webhooks/alertmanager HT",
        HEAD + b"X: y",
        b"\r\n",
        HEALTH + b"\r\n",
        HEALTH + b"POST /",
        b"POST /nobody HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n",
    ],
)
async def test_who_begins_a_request_brings_its_head_soon(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch, told: bytes
) -> None:
    """A connection is closed when no head comes, not at first and not after a request: also when single bytes do."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    reader, writer = await connect(bridge, told)
    reading = asyncio.create_task(rest(reader))

    async def closed() -> bool:
        if told:
            writer.write(b"\r\n" if told == b"\r\n" or told.endswith(b"\r\n\r\n\r\n") else b"x")
        return reading.done()

    assert await eventually(closed)
    await reading
    writer.close()


async def test_a_trailer_is_bounded(bridge: Bridge) -> None:
    """The parser keeps a header until it is whole: one that never ends closes the connection."""
    reader, writer = await connect(bridge, CHUNKED + b"X: ")
    reading = asyncio.create_task(rest(reader))
    written = 0
    while not reading.done() and written < 64 << 20:
        writer.write(b"x" * HEADERS_MAX)
        written += HEADERS_MAX
        try:
            await asyncio.wait_for(writer.drain(), 10)
        except ConnectionError:
            break
        await asyncio.wait({reading}, timeout=0)
    await reading
    assert written < 8 << 20
    writer.close()


OFFER = HEAD + b"Authorization: Bearer new-secret\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"


@pytest.mark.parametrize("size", [1, 100, 1 << 20])
async def test_an_offer_of_another_protocol_is_passed_over(bridge: Bridge, size: int) -> None:
    """Java's client offers HTTP/2 with each request: its body is read all the same, and so is the next request."""
    reader, writer = await connect(bridge)
    told = (OFFER + b"Content-Length: %d\r\n\r\n%s" % (len(GOOD), GOOD)) * 2
    for at in range(0, len(told), size):
        writer.write(told[at : at + size])
        await writer.drain()
        await asyncio.wait({asyncio.create_task(writer.drain())})
    answers = b""
    while answers.count(b'"signal_id"') < 2:
        part = await asyncio.wait_for(reader.read(1 << 16), 20)
        assert part, answers
        answers += part
    assert answers.count(b"HTTP/1.1 202") == 2
    writer.close()


@pytest.mark.parametrize("hidden", [HEALTH, b"0\r\n\r\n" + HEALTH])
async def test_no_request_hides_behind_an_offer(bridge: Bridge, hidden: bytes) -> None:
    """What follows a head without a length, or in chunks, is read by nobody as a request."""
    for lines in (b"Transfer-Encoding: chunked\r\n", b""):
        reader, writer = await connect(bridge, OFFER + lines + b"\r\n" + hidden)
        assert b"HTTP/1.1 200" not in await rest(reader)
        writer.close()


async def test_few_requests_wait_on_one_connection(bridge: Bridge) -> None:
    """Those behind the first cost memory before anything looks at them: beyond some, the connection is closed."""
    reader, writer = await connect(bridge, HEALTH * PIPELINED_MAX)
    answers = b""
    while answers.count(b"HTTP/1.1 200") < PIPELINED_MAX:
        answers += await asyncio.wait_for(reader.read(1 << 16), 20)
    writer.close()
    reader, writer = await connect(bridge, HEALTH * 3000)
    assert (await rest(reader)).count(b"HTTP/1.1 200") <= PIPELINED_MAX + 1
    writer.close()


async def test_who_does_nothing_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all connections are taken by some who say nothing, whoever comes is served: the quiet ones are closed."""
    monkeypatch.setattr(listener, "CONNECTIONS_MAX", 8)
    async with running(write_config(tmp_path), MemoryIngest()) as bridge:
        quiet = [await connect(bridge, told) for told in [b"", HEALTH] * 8]
        for _ in range(3):
            told = HEAD + b"Authorization: Bearer new-secret\r\nConnection: close\r\n"
            reader, writer = await connect(bridge, told + b"Content-Length: %d\r\n\r\n%s" % (len(GOOD), GOOD))
            assert (await rest(reader)).startswith(b"HTTP/1.1 202")
            writer.close()
        for _, one in quiet:
            one.close()


@pytest.mark.parametrize("path", ["/v1/webhooks/alertmanager/", "/healthz/", "/v2/enqueue/", "/api/webhook/"])
async def test_nobody_is_sent_elsewhere(bridge: Bridge, path: str) -> None:
    """A slash too many is 404: a sender follows no redirection, or sends its secret after it."""
    assert (await bridge.post(GOOD, path)).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "//v1/webhooks/alertmanager",
        "/v1/webhooks//alertmanager",
        "/v1/webhooks/x/../open",
        "/v1/webhooks/open;a=b",
        "/v1//webhooks/open",
        "/V1/webhooks/open",
        "/v1/webhooks/Open",
        "/v1/webhooks/open%00",
        "/v1/webhooks/%6fpen%2f",
        "/v1/webhooks/\u043epen",
    ],
)
async def test_other_spellings_of_a_path_are_no_path(bridge: Bridge, path: str) -> None:
    """404, for a source that lets everybody in, too."""
    request = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}".encode()
    reader, writer = await connect(bridge, request)
    assert (await rest(reader))[:13] in {b"HTTP/1.1 404 ", b"HTTP/1.1 400 "}
    writer.close()
