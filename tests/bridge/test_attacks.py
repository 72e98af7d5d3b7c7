"""What somebody without the secret tries over HTTP, and what a sender with one may not cause."""

import asyncio
import base64
import gzip
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from services.local.signing import HEADERS, proof_of
from tests.bridge.house import BEARER, PARSER_OF, Bridge, MemoryIngest, running, write_config
from tests.ingest.house import alert, notification

TOPIC = "arn:aws:sns:eu-west-1:123456789012:alarms"
SIGNED = ("github", "pagerduty", "sentry", "slack", "standard", "grafana", "splunk")
SOURCES = f"""
sources:
  - {{source: alertmanager, bearer: {{}}}}
  - {{source: basic, basic: {{}}}}
  - {{source: sns, sns: {{topics: ["{TOPIC}"], secret_file: basic}}}}
  - {{source: github, hmac_github: {{}}}}
  - {{source: pagerduty, hmac_pagerduty: {{secret_file: github}}}}
  - {{source: sentry, hmac_sentry: {{secret_file: github}}}}
  - {{source: slack, hmac_slack: {{secret_file: github}}}}
  - {{source: grafana, hmac_grafana: {{secret_file: github}}}}
  - {{source: splunk, hmac_splunk: {{secret_file: github}}}}
  - {{source: standard, hmac_standard: {{}}}}
"""
STANDARD = "whsec_" + base64.b64encode(b"k" * 32).decode()
SECRETS = {"alertmanager": "new-secret\n", "basic": "sns:pass:word\n", "github": "a key\n", "standard": STANDARD}
BASIC = {"Authorization": "Basic " + base64.b64encode(b"sns:pass:word").decode()}
GOOD = notification(alert())
# Another writer of JSON would write each of these in another way, or not at all.
ODD = [
    b'{"alerts" :[{"status":"firing","labels":{"alertname":"caf\\u00e9","n":"1"}} ] }\r\n\r\n',
    b'\xef\xbb\xbf{"alerts":[{"status":"firing","labels":{"alertname":"x"}}]}',
    b'{"alerts":[{"status":"resolved","status":"firing","labels":{"b":"1","a":"2"}}]}',
    b'{"alerts":[{"status":"firing","labels":{"alertname":"x","v":1.0e2,"w":-0,"big":123456789012345678901234567890}}]}',
    b'{"alerts":[{"labels":{"alertname":"\xff\xfe raw \x01"}}],}',
]


@pytest.fixture
def ingest(monkeypatch: pytest.MonkeyPatch) -> MemoryIngest:
    """Give an ingest that reads every source as Alertmanager's."""
    for name in (*SIGNED, "basic", "sns"):
        monkeypatch.setitem(PARSER_OF, name, "alertmanager")
    return MemoryIngest()


@pytest.fixture
async def bridge(tmp_path: Path, ingest: MemoryIngest) -> AsyncIterator[Bridge]:
    """Give a running bridge."""
    async with running(write_config(tmp_path, SOURCES, SECRETS), ingest) as made:
        yield made


def sign(source: str, body: bytes) -> dict[str, str]:
    """Return the headers of a sender of a source."""
    auth = f"hmac-{source}"
    return proof_of({"auth": auth, "header": HEADERS[auth]}, SECRETS.get(source, "a key").strip(), body)


@pytest.mark.parametrize("source", sorted(set(SIGNED) - {"standard"}))
async def test_signatures_are_of_the_bytes_that_came(bridge: Bridge, ingest: MemoryIngest, source: str) -> None:
    """Bodies that any re-serialisation would change are let in as signed and kept so; re-serialised they are not."""
    for number, body in enumerate(ODD):
        headers = sign(source, body)
        assert (await bridge.post(body, f"/v1/webhooks/{source}", headers)).status_code == 202
        assert ingest.entries[number].delivery.body == body
        other = body.strip() if body.strip() != body else body + b" "
        assert (await bridge.post(other, f"/v1/webhooks/{source}", headers)).status_code == 401
        try:
            again = json.dumps(json.loads(body)).encode()
        except ValueError:
            continue
        assert (await bridge.post(again, f"/v1/webhooks/{source}", headers)).status_code == 401
    assert len(ingest.entries) == len(ODD)


def chunked(path: str, headers: dict[str, str], size: int) -> bytes:
    """Return the head of a request without a length and chunks of a MiB up to a size, without an end."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{lines}Transfer-Encoding: chunked\r\n\r\n".encode()
    return head + (b"100000\r\n" + b"x" * (1 << 20) + b"\r\n") * (size >> 20)


async def tell(bridge: Bridge, request: bytes) -> bytes:
    """Write bytes on a connection of their own; return what is answered until it is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(bridge.url.rpartition(":")[2]))
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), 20)
    except ConnectionResetError:  # it was closed before all was read
        return b""
    finally:
        writer.close()


async def test_a_chunked_body_has_the_same_bounds(bridge: Bridge, ingest: MemoryIngest) -> None:
    """Above 1 MiB: 413 and closed, when it ends before 16 MiB and when it never would; with credentials and without."""
    for headers in (BEARER, {}):
        complete = chunked("/v1/webhooks/alertmanager", headers, 3 << 20) + b"0\r\n\r\n"
        assert (await tell(bridge, complete)).startswith(b"HTTP/1.1 413")
        answer = await tell(bridge, chunked("/v1/webhooks/alertmanager", headers, 18 << 20))
        assert answer.startswith(b"HTTP/1.1 413") or not answer
    # Just as large as may be, and credentials behind it, where nobody looks for them.
    end = b"0\r\nAuthorization: Bearer new-secret\r\n\r\n"
    last = chunked("/v1/webhooks/alertmanager", {"Connection": "close"}, 1 << 20) + end
    assert (await tell(bridge, last)).startswith(b"HTTP/1.1 401")
    assert not ingest.entries
    assert (await bridge.post(GOOD)).status_code == 202


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: -5\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: 99999999999999999999999999\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Content-Length : 5\r\n",
    ],
)
async def test_no_request_hides_in_another(bridge: Bridge, ingest: MemoryIngest, lines: bytes) -> None:
    """A length that two readers could read in two ways ends the connection; what follows it is never looked at."""
    inner = b"POST /v1/webhooks/alertmanager HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer new-secret\r\n"
    inner += b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(GOOD), GOOD)
    outer = b"POST /v1/webhooks/alertmanager HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n0\r\n\r\n"
    answer = await tell(bridge, outer + inner)
    assert b" 202 " not in answer
    assert not ingest.entries


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "identity, gzip", "x"])
async def test_nothing_is_unpacked(bridge: Bridge, ingest: MemoryIngest, encoding: str) -> None:
    """A bomb costs what it weighs: 401 without a secret; with one, or signed as it came, 415 and what to send."""
    bomb = gzip.compress(b"\0" * (64 << 20))
    packed = {"Content-Encoding": encoding, "Content-Type": "application/json"}
    assert (await bridge.post(bomb, headers=packed)).status_code == 401
    for path in ("basic", "sns", *SIGNED):
        assert (await bridge.post(bomb, f"/v1/webhooks/{path}", packed)).status_code == 401
    for path, proof in (("alertmanager", BEARER), ("github", sign("github", bomb))):
        answer = await bridge.post(bomb, f"/v1/webhooks/{path}", packed | proof)
        assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")
    assert not ingest.entries


@pytest.mark.parametrize("encoding", ["", "Identity", "identity , identity"])
async def test_what_is_not_packed_is_taken(bridge: Bridge, ingest: MemoryIngest, encoding: str) -> None:
    """A sender may say that it did nothing."""
    assert (await bridge.post(GOOD, headers=BEARER | {"Content-Encoding": encoding})).status_code == 202
    pairs = [*BEARER.items(), ("Content-Encoding", "identity"), ("Content-Encoding", "gzip")]
    answer = await bridge.http.post(f"{bridge.url}/v1/webhooks/alertmanager", content=GOOD, headers=pairs)
    assert answer.status_code == 415
    assert len(ingest.entries) == 1


@pytest.mark.parametrize(
    ("source", "headers"),
    [
        ("alertmanager", BEARER),
        ("basic", BASIC),
        *((one, sign(one, GOOD)) for one in SIGNED if one not in {"slack", "standard"}),
    ],
)
async def test_a_proof_is_shown_once(
    bridge: Bridge, ingest: MemoryIngest, source: str, headers: dict[str, str]
) -> None:
    """Twice, with a wrong one before or after it, as a list or folded: nothing opens, in any case of the name."""
    ((name, value),) = headers.items()
    url = f"{bridge.url}/v1/webhooks/{source}"
    for pairs in (
        [(name, value), (name, value)],
        [(name, "wrong"), (name.upper(), value)],
        [(name.lower(), value), (name, "wrong")],
        [(name, f"{value}, {value}")] if source != "pagerduty" else [],
        [(name, f"{value}\t{value}")],
        [(name.replace("-", "_") + "_", value)],
        [(f"X-Forwarded-{name}", value)],
    ):
        assert (await bridge.http.post(url, content=GOOD, headers=pairs)).status_code == 401
    assert not ingest.entries
    assert (await bridge.post(GOOD, f"/v1/webhooks/{source}", headers)).status_code == 202


async def test_unsigned_headers_that_come_twice_change_nothing(bridge: Bridge, ingest: MemoryIngest) -> None:
    """Who replays a signed request may double what nobody signed; it stays the same delivery."""
    url, signed = f"{bridge.url}/v1/webhooks/github", sign("github", GOOD)
    pairs = [*signed.items(), ("X-GitHub-Event", "push"), ("X-GitHub-Event", "ping"), ("X-GitHub-Delivery", "1")]
    first = await bridge.http.post(url, content=GOOD, headers=pairs)
    again = await bridge.http.post(url, content=GOOD, headers=[*pairs, ("X-GitHub-Delivery", "2")])
    assert (first.status_code, again.content) == (202, first.content)
    assert len(ingest.entries) == 1


class Connections:
    """What this process asks names and connections for, but for those on its own machine; none is let out."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.on = False

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Look at an audited event of the interpreter."""
        if not self.on or event not in {"socket.getaddrinfo", "socket.connect"}:
            return
        host = arguments[0] if event == "socket.getaddrinfo" else arguments[1][0]
        host = host.decode() if isinstance(host, bytes) else host
        if host != "127.0.0.1":
            self.asked.append(host)
            raise OSError("no way out of a test")


WATCHED = Connections()
sys.addaudithook(WATCHED.hook)


@pytest.fixture
def watched() -> Iterator[list[str]]:
    """Give the hosts that are asked for while a test runs."""
    WATCHED.asked, WATCHED.on = [], True
    yield WATCHED.asked
    WATCHED.on = False


def envelope(url: str, **changes: str) -> bytes:
    """Return a message of SNS that is right but for its signature."""
    moment = datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    made = {
        "Type": "SubscriptionConfirmation",
        "MessageId": "165545c9-2a5c-472c-8df2-7ff2be2b3b1b",
        "Token": "t" * 64,
        "TopicArn": TOPIC,
        "Message": "You have chosen to subscribe",
        "SubscribeURL": "https://evil.example/?Action=ConfirmSubscription",
        "Timestamp": moment,
        "SignatureVersion": "2",
        "Signature": base64.b64encode(b"s" * 256).decode(),
        "SigningCertURL": url,
    }
    return json.dumps(made | changes).encode()


HOST = "sns.eu-west-1.amazonaws.com"
RIGHT = f"https://{HOST}/SimpleNotificationService-0.pem"
WRONG = [
    "https://evil.example/a.pem",
    f"https://{HOST}.evil.example/a.pem",
    "https://sns.x.amazonaws.com.evil.com/a.pem",
    "https://sns.evil.com/a.pem",
    f"https://evil.example/{HOST}/a.pem",
    f"https://{HOST}:8443/a.pem",
    f"https://{HOST}@evil.example/a.pem",
    f"https://user:pass@{HOST}/a.pem",
    f"https://{HOST}\\@evil.example/a.pem",
    f"http://{HOST}/a.pem",
    f"file://{HOST}/a.pem",
    f"//{HOST}/a.pem",
    "https://169.254.169.254/latest/meta-data/a.pem",
    "https://[::1]/a.pem",
    "https://2130706433/a.pem",
    "https://0x7f.1/a.pem",
    "https://localhost/a.pem",
    "https://sns.us-east-1.amazonaws.com/a.pem",
    "https://sns.eu-west-1.amazonaws.com./a.pem",
    f"https://{HOST}/redirect?to=https://evil.example/a.pem",
    f"https://{HOST}/..%2fa.pem",
    f"https://{HOST}/a.pem#evil",
    f"https://{HOST}%2eevil.example/a.pem",
]


@pytest.mark.parametrize("url", WRONG)
async def test_no_other_host_is_ever_asked(bridge: Bridge, watched: list[str], url: str) -> None:
    """A sender with the password and a wrong URL: refused, and nobody was looked up or connected to."""
    for kind in ("SubscriptionConfirmation", "UnsubscribeConfirmation", "Notification"):
        answer = await bridge.post(envelope(url, Type=kind, SubscribeURL=url), "/v1/webhooks/sns", BASIC)
        assert answer.status_code == 401
    assert not watched


async def test_nobody_is_asked_for_a_stranger(bridge: Bridge, watched: list[str]) -> None:
    """Without the password not even SNS itself, and neither for another topic, a stale message or version 1."""
    assert (await bridge.post(envelope(RIGHT), "/v1/webhooks/sns", {})).status_code == 401
    bodies = [
        envelope(RIGHT, TopicArn=TOPIC + "x"),
        envelope(RIGHT, Timestamp="2020-01-01T00:00:00.000Z"),
        envelope(RIGHT, SignatureVersion="1"),
        envelope(RIGHT, Signature="not base64"),
    ]
    assert {(await bridge.post(one, "/v1/webhooks/sns", BASIC)).status_code for one in bodies} == {401}
    for source in ("alertmanager", *SIGNED):
        assert (await bridge.post(envelope(RIGHT), f"/v1/webhooks/{source}", {})).status_code == 401
    assert not watched


async def test_who_shows_the_password_makes_us_ask_sns_and_nobody_else(
    bridge: Bridge, ingest: MemoryIngest, watched: list[str]
) -> None:
    """The one host of the topic's region; without an answer nothing is let in, and the sender is to come again."""
    answer = await bridge.post(envelope(RIGHT), "/v1/webhooks/sns", BASIC)
    assert (answer.status_code, int(answer.headers["retry-after"]) > 0) == (503, True)
    assert set(watched) == {HOST}
    assert not ingest.entries


async def test_urls_in_bodies_are_opened_by_nobody(bridge: Bridge, watched: list[str]) -> None:
    """What an alert links to is text, on the way in and whatever header names it."""
    url = "https://evil.example/x"
    body = json.dumps({"alerts": [{"status": "firing", "labels": {"alertname": "x"}, "generatorURL": url}]}).encode()
    named = {
        "Referer": url,
        "X-Forwarded-Host": "evil.example",
        "WebHook-Request-Callback": url,
        "Host": "evil.example",
    }
    assert (await bridge.post(body, headers=BEARER | named)).status_code == 202
    assert not watched
