"""CloudEvents over HTTP: the handshake that protects others from us being misused, and content types."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.bridge.house import BEARER, Bridge, MemoryIngest, running, write_config

SOURCES = """
sources:
  - {source: cloudevents, bearer: {}, webhook_origins: [eventgrid.azure.net, "https://b.example"]}
  - {source: limited, parser: cloudevents, bearer: {secret_file: cloudevents}, webhook_origins: [a.example],
     quota: {per_second: 2}}
  - {source: closed, parser: cloudevents, bearer: {secret_file: cloudevents}}
  - {source: tokened, parser: cloudevents, url_token: {secret_file: cloudevents}, webhook_origins: [a.example]}
  - {source: alertmanager, bearer: {secret_file: cloudevents}}
"""
ORIGIN = "eventgrid.azure.net"
EVENT = b'{"specversion":"1.0","id":"1","source":"/s","type":"t.down","data":{"status":"firing","host":"a"}}'
BINARY = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t.down"}


@pytest.fixture
async def bridge(tmp_path: Path) -> AsyncIterator[Bridge]:
    """Give a running bridge."""
    config = write_config(tmp_path, SOURCES, {"cloudevents": "new-secret"})
    async with running(config, MemoryIngest(), per_minute=600) as made:
        yield made


async def ask(
    bridge: Bridge, headers: Mapping[str, str] | list[tuple[str, str]], path: str = "cloudevents"
) -> httpx.Response:
    """Ask whether an origin may send."""
    return await bridge.http.options(f"{bridge.url}/v1/webhooks/{path}", headers=headers)


def granted(answer: httpx.Response) -> list[str]:
    """Return what an answer grants."""
    return [name for name in answer.headers if name.startswith("webhook-")]


async def test_an_origin_on_the_list_is_granted(bridge: Bridge) -> None:
    """200 with this origin and what it may send a minute: the quota of its source, or else the limit of a client."""
    answer = await ask(bridge, {"WebHook-Request-Origin": ORIGIN, "WebHook-Request-Rate": "9999"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["webhook-allowed-origin"] == ORIGIN
    assert answer.headers["webhook-allowed-rate"] == "600"
    assert "POST" in answer.headers["allow"]
    answer = await ask(bridge, {"WebHook-Request-Origin": "a.example"}, "limited")
    assert answer.headers["webhook-allowed-rate"] == "120"
    assert (await ask(bridge, {"WebHook-Request-Origin": "A.Example"}, "tokened/x")).status_code == 200


@pytest.mark.parametrize(
    ("headers", "path", "status"),
    [
        ({"WebHook-Request-Origin": "evil.example"}, "cloudevents", 403),
        ({"WebHook-Request-Origin": "*"}, "cloudevents", 403),
        ({"WebHook-Request-Origin": ""}, "cloudevents", 403),
        ({"WebHook-Request-Origin": f"{ORIGIN}.evil.example"}, "cloudevents", 403),
        ({"WebHook-Request-Origin": f"evil.example, {ORIGIN}"}, "cloudevents", 403),
        ([("WebHook-Request-Origin", ORIGIN), ("WebHook-Request-Origin", ORIGIN)], "cloudevents", 403),
        ({"WebHook-Request-Origin": ORIGIN}, "closed", 403),
        ({"WebHook-Request-Origin": ORIGIN}, "alertmanager", 403),
        ({"WebHook-Request-Origin": ORIGIN}, "nobody", 404),
        ({"WebHook-Request-Origin": ORIGIN}, "cloudevents/x", 404),
        ({}, "cloudevents", 405),
        ({"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}, "cloudevents", 405),
    ],
)
async def test_nobody_else_is(
    bridge: Bridge, headers: Mapping[str, str] | list[tuple[str, str]], path: str, status: int
) -> None:
    """Refused without a word that a sender could take for a grant, by a source without a list always."""
    answer = await ask(bridge, headers, path)
    assert (answer.status_code, granted(answer)) == (status, [])
    assert "evil" not in answer.text


@asynccontextmanager
async def running_trap() -> AsyncIterator[tuple[str, list[bytes]]]:
    """Listen, and remember who asks; yields the URL and the first lines."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", asked


async def test_no_callback_is_made(bridge: Bridge) -> None:
    """A URL that is to be asked is not, be the origin on the list or not."""
    async with running_trap() as (url, asked):
        for origin in (ORIGIN, "evil.example"):
            await ask(bridge, {"WebHook-Request-Origin": origin, "WebHook-Request-Callback": url})
        # The trap works, and has been asked by nobody before.
        assert (await bridge.http.get(url)).status_code == 204
        assert len(asked) == 1


async def test_the_limit_of_a_client_counts_questions(tmp_path: Path) -> None:
    """Who asks without end is told to come again."""
    config = write_config(tmp_path, SOURCES, {"cloudevents": "new-secret"})
    async with running(config, MemoryIngest(), per_minute=2) as bridge:
        codes = [(await ask(bridge, {"WebHook-Request-Origin": "x"})).status_code for _ in range(3)]
    assert codes == [403, 403, 429]


@pytest.mark.parametrize(
    ("kind", "binary", "status"),
    [
        ("application/cloudevents+json", False, 202),
        ("application/cloudevents+json; charset=utf-8", False, 202),
        ("Application/CloudEvents+JSON", False, 202),
        ("application/json", False, 202),
        (None, False, 202),
        ("", False, 202),
        ("application/json", True, 202),
        ("text/plain", True, 202),
        ("application/vnd.own+json", False, 202),
        ("application/cloudevents+xml", False, 415),
        ("application/cloudevents+protobuf", True, 415),
        ("application/cloudevents", False, 415),
        ("text/plain", False, 415),
        ("image/png", False, 415),
        ("json", False, 415),
        ("nothing at all", True, 415),
        ("/", False, 415),
    ],
)
async def test_content_types(bridge: Bridge, kind: str | None, binary: bool, status: int) -> None:  # noqa: FBT001  a case
    """415 for what is no type, or none of an event that is understood; application/json and none always are."""
    headers = BEARER | (BINARY if binary else {}) | ({} if kind is None else {"Content-Type": kind})
    body = b'{"status":"firing","host":"a"}' if binary else EVENT
    answer = await bridge.post(body, "/v1/webhooks/cloudevents", headers)
    assert answer.status_code == status, answer.text
    # Who has not proved anything is told nothing of types, and other sources take what comes.
    assert (await bridge.post(body, "/v1/webhooks/cloudevents", {"Content-Type": "x"})).status_code == 401
