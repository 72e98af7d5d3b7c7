"""A secret in the URL, for senders that can send no header: it opens, and nobody is ever told it."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.bridge.senders.doors import load_doors
from services.bridge.senders.proof import Knock, Proof
from services.mesh.errors import BootError
from tests.bridge.house import BEARER, PARSER_OF, Bridge, MemoryIngest, running, unavailable, write_config
from tests.ingest.house import alert, notification

TOKEN, OLD = "tok-0123456789.abcdef_0123456789~A", "old-0123456789.abcdef_0123456789~B"
SOURCES = """
sources:
  - {source: splunk, url_token: {}}
  - {source: azure-monitor, url_token: {secret_file: splunk, header: X-Webhook-Secret}}
  - {source: alertmanager, bearer: {}}
  - {source: open, none: {}}
  - {source: slow, url_token: {secret_file: splunk}, quota: {per_second: 1, burst: 1}}
"""
SECRETS = {"splunk": f"{OLD}\n{TOKEN}\n", "alertmanager": f"{TOKEN}\nnew-secret\n"}
GOOD = notification(alert())


@pytest.fixture
def ingest(monkeypatch: pytest.MonkeyPatch) -> MemoryIngest:
    """Give an ingest that reads every source as Alertmanager's."""
    for name in ("splunk", "azure-monitor", "open", "slow"):
        monkeypatch.setitem(PARSER_OF, name, "alertmanager")
    return MemoryIngest()


@pytest.fixture
async def bridge(tmp_path: Path, ingest: MemoryIngest) -> AsyncIterator[Bridge]:
    """Give a running bridge."""
    async with running(write_config(tmp_path, SOURCES, SECRETS), ingest) as made:
        yield made


async def status(bridge: Bridge, path: str, headers: dict[str, str] | None = None, method: str = "POST") -> int:
    """Return what a request without other credentials is answered with."""
    url = f"{bridge.url}/v1/webhooks/{path}"
    return (await bridge.http.request(method, url, content=GOOD, headers=headers)).status_code


async def test_the_last_part_of_the_path_opens(bridge: Bridge, ingest: MemoryIngest) -> None:
    """Each of several secrets, by POST and PUT, however its characters are written."""
    for path in (f"splunk/{TOKEN}", f"splunk/{OLD}", f"azure-monitor/{TOKEN}", f"splunk/{TOKEN.replace('t', '%74')}"):
        assert await status(bridge, path) == 202
    assert await status(bridge, f"splunk/{TOKEN}", method="PUT") == 202
    assert all(one.delivery.authenticity.verified for one in ingest.entries)


@pytest.mark.parametrize(
    "path",
    [
        "splunk",
        "splunk/" + TOKEN[:-1],
        "splunk/" + TOKEN + "x",
        "splunk/" + TOKEN + "/",
        "splunk/" + TOKEN + "/x",
        "splunk/x/" + TOKEN,
        "splunk//" + TOKEN,
        "splunk/" + TOKEN.upper(),
        "splunk/" + TOKEN + "%0A",
        "splunk/" + TOKEN + "%00",
        f"splunk/{OLD}%0A{TOKEN}",
        "splunk/%C3%A9",
        "splunk/%FF",
        "splunk?token=" + TOKEN,
        "splunk/x?" + TOKEN,
        "splunk/x#" + TOKEN,
        "azure-monitor/x",
    ],
)
async def test_nothing_else_opens(bridge: Bridge, ingest: MemoryIngest, path: str) -> None:
    """401 for what is not exactly a secret, wherever else it stands."""
    assert await status(bridge, path) == 401
    assert await status(bridge, path, {"Authorization": f"Bearer {TOKEN}", "X-Token": TOKEN}) == 401
    assert not ingest.entries


@pytest.mark.parametrize("path", [f"alertmanager/{TOKEN}", "alertmanager/x", f"open/{TOKEN}", f"nobody/{TOKEN}"])
async def test_other_sources_have_no_longer_paths(bridge: Bridge, path: str) -> None:
    """404, whatever else the request shows: a secret that is meant for a header must get used to no URL."""
    assert await status(bridge, path) == 404
    assert await status(bridge, path, BEARER) == 404


async def test_a_header_stands_for_it_where_it_is_named(bridge: Bridge) -> None:
    """What a proxy writes; a wrong token in the path is not made good by it, and no other source takes it."""
    header = {"X-Webhook-Secret": TOKEN}
    assert await status(bridge, "azure-monitor", header) == 202
    assert await status(bridge, "azure-monitor/x", header) == 401
    assert await status(bridge, "splunk", header) == 401
    url = f"{bridge.url}/v1/webhooks/azure-monitor"
    doubled = [("X-Webhook-Secret", TOKEN), ("X-Webhook-Secret", TOKEN)]
    assert (await bridge.http.post(url, content=GOOD, headers=doubled)).status_code == 401


async def test_nobody_is_told_the_token(bridge: Bridge, ingest: MemoryIngest, caplog: pytest.LogCaptureFixture) -> None:
    """No log, metric, answer or delivery holds it, whatever becomes of the request."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.WARNING, logger="httpx")  # the client here
    caplog.set_level(logging.WARNING, logger="httpcore")
    seen: list[str] = []
    codes: set[int] = set()

    async def tell(path: str, body: bytes = GOOD, method: str = "POST") -> None:
        answer = await bridge.http.request(method, f"{bridge.url}/v1/webhooks/{path}", content=body)
        seen.append(f"{answer.headers} {answer.text}")
        codes.add(answer.status_code)

    with capture_logs() as logs:
        await tell(f"splunk/{TOKEN}")
        await tell(f"splunk/{TOKEN}x")
        await tell(f"alertmanager/{TOKEN}")
        await tell(f"alertmanager/{TOKEN}/")
        await tell(f"nobody/{TOKEN}")
        await tell(f"splunk/{TOKEN}", b"rubbish")
        await tell(f"splunk/{TOKEN}", b"x" * (1 << 21))
        for method in ("GET", "DELETE", "OPTIONS", "TRACE"):
            await tell(f"splunk/{TOKEN}", method=method)
            await tell(f"splunk/{TOKEN}/", method=method)
        await tell(f"slow/{TOKEN}")
        await tell(f"slow/{TOKEN}")
        ingest.error = unavailable()
        await tell(f"splunk/{TOKEN}")
    assert {202, 401, 404, 405, 413, 422, 503} <= codes
    seen += [str(logs), caplog.text, (await bridge.http.get(f"{bridge.url}/metrics")).text]
    seen += [str(one) for one in ingest.entries]
    assert "opsmesh_webhooks_total" in seen[-1 - len(ingest.entries)]
    for text in seen:
        assert TOKEN not in text
    assert TOKEN not in repr(Knock(bridge.http.headers, b"", 0, token=TOKEN))  # type: ignore[arg-type]
    assert TOKEN not in repr(Proof(hidden=(TOKEN.encode(),)))


@pytest.mark.parametrize("secret", ["a/b", "a b", "ä" * 40, "a%41", "a?b", "a#b", "a+b"])
def test_a_secret_must_stand_in_a_path_as_it_is(tmp_path: Path, secret: str) -> None:
    """One that would have to be escaped refuses the boot, and is not told there either."""
    write_config(tmp_path, "sources:\n- {source: splunk, url_token: {}}\n", {"splunk": secret})
    with pytest.raises(BootError, match="letters, digits") as caught:
        load_doors(tmp_path, tmp_path)
    assert secret not in str(caught.value).replace("NEXT", "")
