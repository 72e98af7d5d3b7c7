"""A source that speaks PagerDuty's Events API, version 2: its clients need no header and get the answers they know."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.bridge.senders import events
from tests.bridge.house import PARSER_OF, Bridge, MemoryIngest, running, write_config

KEY, OLD = "R0123456789abcdef0123456789abcde", "Q0123456789abcdef0123456789abcde"
PATH = "/v1/webhooks/pagerduty-events"
SOURCES = """
sources:
  - {source: pagerduty-events, routing_key: {}}
  - {source: other, parser: pagerduty-events, routing_key: {}}
  - {source: slow, parser: pagerduty-events, routing_key: {secret_file: other}, quota: {per_second: 1, burst: 1}}
"""
SECRETS = {"pagerduty-events": f"{OLD}\n{KEY}\n", "other": "a key of another source, 32 long\n"}
PAYLOAD = {"summary": "Disk full on web-1", "source": "web-1", "severity": "critical"}
TRIGGER: dict[str, Any] = {"routing_key": KEY, "event_action": "trigger", "payload": PAYLOAD}
# Spaces, escapes and numbers that no writer of JSON would write again like this.
ODD = b'{ "routing_key" :  "%s", "event_action":"trigger","payload":{"summary":"caf\\u00e9 \\ud800","source":"w\xff"'
ODD += b',"severity":"info","custom_details":{"n":1.0e2,"n2":1E400, "routing_key":"mine"}} }\n'
ODD %= KEY.encode()


@pytest.fixture
def ingest(monkeypatch: pytest.MonkeyPatch) -> MemoryIngest:
    """Give an ingest that knows the sources."""
    for name in ("other", "slow"):
        monkeypatch.setitem(PARSER_OF, name, "pagerduty-events")
    return MemoryIngest()


@pytest.fixture
async def bridge(tmp_path: Path, ingest: MemoryIngest) -> AsyncIterator[Bridge]:
    """Give a running bridge."""
    async with running(write_config(tmp_path, SOURCES, SECRETS), ingest) as made:
        yield made


async def send(bridge: Bridge, path: str = PATH, **changes: Any) -> httpx.Response:
    """Send an event as a client does: with nothing but its body."""
    event = {name: one for name, one in (TRIGGER | changes).items() if one is not None}
    return await bridge.post(json.dumps(event).encode(), path, {})


@pytest.mark.parametrize("path", [PATH, "/v2/enqueue"])
async def test_a_client_is_answered_as_it_knows_it(bridge: Bridge, ingest: MemoryIngest, path: str) -> None:
    """202 with the key given, and beside it what every sender here is told; also where its library posts to."""
    answer = await send(bridge, path, dedup_key="web-1/disk")
    (signal,) = ingest.entries[0].signals
    assert answer.status_code == 202
    assert answer.json() == {
        "status": "success",
        "message": "Event processed",
        "dedup_key": "web-1/disk",
        "results": [{"signal_id": signal.signal_id}],
    }
    assert ingest.entries[0].delivery.authenticity.verified


async def test_a_key_that_was_made_for_the_client_resolves_its_alert(bridge: Bridge, ingest: MemoryIngest) -> None:
    """Without a dedup_key the answer has one: the alert's own, the same for the same alert, and it means that alert."""
    first, again = await send(bridge), await send(bridge)
    made = first.json()["dedup_key"]
    assert made
    assert again.json()["dedup_key"] == made
    other = await send(bridge, payload=PAYLOAD | {"source": "web-2"})
    assert other.json()["dedup_key"] != made
    resolved = await send(bridge, event_action="resolve", dedup_key=made, payload=None)
    assert resolved.json()["dedup_key"] == made
    keys = [entry.signals[0].dedup_key for entry in ingest.entries]
    assert keys[0] == keys[1] == keys[3] == made


async def test_each_key_opens_while_they_rotate(bridge: Bridge) -> None:
    """The old and the new one, in the body or as a bearer token."""
    for key in (OLD, KEY):
        assert (await send(bridge, routing_key=key)).status_code == 202
        body = json.dumps(TRIGGER | {"routing_key": "anything"}).encode()
        assert (await bridge.post(body, PATH, {"Authorization": f"Bearer {key}"})).status_code == 202


@pytest.mark.parametrize(
    "key", [None, "", " ", KEY[:-1], KEY + " ", KEY.lower(), f"{OLD}\n{KEY}", 1, True, [KEY], {"a": KEY}, "\udc80", "é"]
)
async def test_no_other_key_opens(bridge: Bridge, ingest: MemoryIngest, key: object) -> None:
    """A small 401 that says nothing; nothing reaches ingest, and a wrong body is no reason to say more."""
    for answer in (await send(bridge, routing_key=key), await send(bridge, routing_key=key, event_action="x")):
        assert (answer.status_code, answer.json()) == (401, {"error": "unauthorized"})
    assert not ingest.entries


async def test_another_sources_key_opens_nothing(bridge: Bridge) -> None:
    """Each source has its own; who shows it where nobody looks for it shows nothing."""
    assert (await send(bridge, "/v1/webhooks/other")).status_code == 401
    for body in (b"[%s]" % json.dumps(TRIGGER).encode(), b'"%s"' % KEY.encode(), b"rubbish", b"", b"[" * 100_000):
        assert (await bridge.post(body, PATH, {})).status_code == 401
    nested = json.dumps({"event": TRIGGER, "payload": TRIGGER}).encode()
    assert (await bridge.post(nested, PATH, {})).status_code == 401
    shown = {"X-Routing-Key": KEY, "Cookie": KEY, "Authorization": f"Token token={KEY}"}
    assert (await bridge.post(b"{}", f"{PATH}?routing_key={KEY}", shown)).status_code == 401


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"event_action": None}, "event_action"),
        ({"event_action": "explode"}, "event_action"),
        ({"event_action": ["trigger"]}, "event_action"),
        ({"event_action": "resolve"}, "dedup_key"),
        ({"event_action": "acknowledge", "dedup_key": ""}, "dedup_key"),
        ({"dedup_key": "x" * 256}, "dedup_key"),
        ({"dedup_key": 7}, "dedup_key"),
        ({"payload": None}, "payload"),
        ({"payload": "down"}, "payload"),
        ({"payload": PAYLOAD | {"summary": " "}}, "payload.summary"),
        ({"payload": PAYLOAD | {"source": None}}, "payload.source"),
        ({"payload": PAYLOAD | {"severity": "sev1"}}, "payload.severity"),
        ({"payload": {"summary": "x", "source": "y"}}, "payload.severity"),
    ],
)
async def test_what_pagerduty_would_refuse(
    bridge: Bridge, ingest: MemoryIngest, changes: dict[str, Any], what: str
) -> None:
    """400 with the field, as its clients know it, and nothing is recorded that they believe to be refused."""
    answer = await send(bridge, **changes)
    assert (answer.status_code, answer.json()["status"]) == (400, "invalid event")
    (error,) = answer.json()["errors"]
    assert f"'{what}'" in error
    assert not ingest.entries


async def test_who_shows_a_bearer_token_is_answered_as_everybody(bridge: Bridge, ingest: MemoryIngest) -> None:
    """422 with the fields and a dead letter for what cannot be understood; leniency for what PagerDuty would refuse."""
    bearer = {"Authorization": f"Bearer {KEY}"}
    answer = await bridge.post(b"rubbish", PATH, bearer)
    assert (answer.status_code, set(answer.json())) == (422, {"errors"})
    assert ingest.entries[0].errors
    body = json.dumps(TRIGGER | {"payload": {"summary": "x"}}).encode()
    assert (await bridge.post(body, PATH, bearer)).status_code == 202
    # Several alerts have no one key.
    several = json.dumps([TRIGGER, TRIGGER | {"dedup_key": "a"}]).encode()
    answer = await bridge.post(several, PATH, bearer)
    assert (answer.status_code, set(answer.json()), len(answer.json()["results"])) == (202, {"results"}, 2)


async def test_too_many_are_told_to_come_again(bridge: Bridge) -> None:
    """429 with Retry-After, as the Events API has it."""
    key = SECRETS["other"].strip()
    answers = [await send(bridge, "/v1/webhooks/slow", routing_key=key) for _ in range(2)]
    assert [one.status_code for one in answers] == [202, 429]
    assert int(answers[1].headers["retry-after"]) >= 1


async def test_the_key_does_not_leave_the_bridge(bridge: Bridge, ingest: MemoryIngest) -> None:
    """What is kept is what was sent, byte for byte, but for the key: also where a store or a letter shows it."""
    assert (await bridge.post(ODD, PATH, {})).status_code == 202
    kept = ingest.entries[0].delivery.body
    assert kept == ODD.replace(KEY.encode(), b"*" * len(KEY))
    assert KEY.encode() not in ingest.entries[0].SerializeToString()


SPELLED = "".join(f"\\u{ord(one):04x}" for one in KEY).encode()


@pytest.mark.parametrize(
    ("member", "headers"),
    [
        (b'"\\u0072outing_key":"%s"' % KEY.encode(), {}),
        (b'"routing_key":"%s"' % SPELLED, {}),
        (b'"routing_key":"%s"' % KEY.replace("R", "\\u0052").encode(), {}),
        (b'"x":"a\\"b","routing_key":"%s","client":"%s"' % (KEY.encode(), KEY.encode()), {}),
        (b'"routing_key":"other","routing_key":"%s"' % KEY.encode(), {}),
        (b'"routing_key":"%s","links":[{"routing_key":"%s"}]' % (OLD.encode(), KEY.encode()), {}),
        (b'"routing_key":"%s"' % KEY.encode(), {"Authorization": f"Bearer {KEY}"}),
        (b'"routing_key":"%s"' % SPELLED, {"Authorization": f"Bearer {OLD}"}),
    ],
)
async def test_no_spelling_of_a_key_leaves_the_bridge(
    bridge: Bridge, ingest: MemoryIngest, member: bytes, headers: dict[str, str]
) -> None:
    """However a name or a key is escaped, where else it stands, and whatever proved the sender: asterisks."""
    body = json.dumps({name: one for name, one in TRIGGER.items() if name != "routing_key"}).encode()
    body = b"{" + member + b"," + body[1:]
    assert (await bridge.post(body, PATH, headers)).status_code == 202
    kept = ingest.entries[0].delivery.body
    assert len(kept) == len(body)
    for key in (KEY, OLD):
        assert key not in json.dumps(json.loads(kept))
        assert key.encode() not in ingest.entries[0].SerializeToString()


@pytest.mark.parametrize("key", ['k"b\\c/d\te', "caf\u00e9 \U0001f511 k", "[(.*+?^$|)]"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_keys_of_odd_characters_are_found(key: str, *, ascii_only: bool) -> None:
    """As each writer of JSON escapes them, or could."""
    spelled = "".join(f"\\u{unit}" for unit in key.encode("utf-16-be").hex(" ", 2).upper().split())
    for written in (json.dumps(key, ensure_ascii=ascii_only)[1:-1], spelled, json.dumps(key)[1:-1].replace("/", "\\/")):
        body = f'{{"x":"{key[0]}","routing_key": "{written}"}}'.encode()
        assert json.loads(body)["routing_key"] == key
        kept = events.masked(body, [key.encode()])
        assert len(kept) == len(body)
        assert not json.loads(kept)["routing_key"].strip("*")


async def test_lists_of_events_show_no_key_either(bridge: Bridge, ingest: MemoryIngest) -> None:
    """Who proves itself by a header may send several."""
    body = json.dumps([TRIGGER, TRIGGER | {"routing_key": OLD}]).encode()
    assert (await bridge.post(body, PATH, {"Authorization": f"Bearer {KEY}"})).status_code == 202
    assert ingest.entries[0].delivery.body == body.replace(KEY.encode(), b"*" * 32).replace(OLD.encode(), b"*" * 32)


@given(
    st.dictionaries(
        st.sampled_from(["routing_key", "event_action", "dedup_key", "payload", "x"]), st.text() | st.none()
    )
)
def test_any_event_is_judged(event: dict[str, str | None]) -> None:
    """Whatever it holds: texts about its fields, or nothing; masking changes no length."""
    body = json.dumps(event).encode()
    assert all(isinstance(one, str) for one in events.errors_of(body))
    assert len(events.masked(body, [b"a.b("])) == len(body)


@given(st.binary(max_size=200), st.binary(min_size=1, max_size=20))
def test_any_bytes_are_judged(body: bytes, shown: bytes) -> None:
    """Neither bytes nor a key that means something in a pattern are more than bytes."""
    assert events.errors_of(body)
    assert len(events.masked(body, [shown])) == len(body)
