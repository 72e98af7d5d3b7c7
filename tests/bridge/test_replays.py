"""Signed webhooks over real HTTP: what comes again, what is too large, and what was not understood."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.bridge.connections import HEADERS_MAX
from services.bridge.senders.memory import ENTRY_BYTES, Answers, delivery_id_of, key_of
from services.bridge.senders.proof import Proof
from services.local.signing import HEADERS, proof_of
from tests.bridge.house import PARSER_OF, Bridge, MemoryIngest, running, unavailable, write_config
from tests.ingest.house import alert, notification

SOURCES = """
sources:
  - {source: github, hmac_github: {}}
  - {source: pagerduty, hmac_pagerduty: {secret_file: github}}
  - {source: sentry, hmac_sentry: {secret_file: github}}
  - {source: slack, hmac_slack: {secret_file: github}}
  - {source: standard, hmac_standard: {}}
  - {source: grafana, hmac_grafana: {secret_file: github}}
  - {source: splunk, hmac_splunk: {secret_file: github}}
"""
SECRETS = {"github": "old secret\nnew secret\n", "standard": "whsec_bmV3IHNlY3JldA==\n"}
KINDS = {name: f"hmac-{name}" for name in ("github", "pagerduty", "sentry", "slack", "standard", "grafana", "splunk")}
GOOD = notification(alert())


@pytest.fixture
def ingest(monkeypatch: pytest.MonkeyPatch) -> MemoryIngest:
    """Give an ingest that reads every source as Alertmanager's."""
    for name in KINDS:
        monkeypatch.setitem(PARSER_OF, name, "alertmanager")
    return MemoryIngest()


@pytest.fixture
async def bridge(tmp_path: Path, ingest: MemoryIngest) -> AsyncIterator[Bridge]:
    """Give a running bridge with a source of every signing scheme."""
    async with running(write_config(tmp_path, SOURCES, SECRETS), ingest) as made:
        yield made


def sign(source: str, body: bytes = GOOD) -> dict[str, str]:
    """Return the headers of a sender."""
    secret = SECRETS["standard"].strip() if source == "standard" else "new secret"
    return proof_of({"auth": KINDS[source], "header": HEADERS[KINDS[source]]}, secret, body)


async def post(
    bridge: Bridge, source: str, body: bytes = GOOD, headers: Mapping[str, str] | None = None
) -> httpx.Response:
    """Post as a source."""
    return await bridge.post(body, f"/v1/webhooks/{source}", sign(source, body) if headers is None else headers)


@pytest.mark.parametrize("source", KINDS)
async def test_a_replay_is_answered_as_the_first_and_has_no_second_effect(
    bridge: Bridge, ingest: MemoryIngest, source: str
) -> None:
    """The same request ten times, with other unsigned ids: the same 202, one delivery; a forged one stays 401."""
    headers = sign(source)
    first = await post(bridge, source, headers=headers)
    ids = ({"X-GitHub-Delivery": str(n), "X-Webhook-Id": str(n), "Request-ID": str(n)} for n in range(10))
    again = [await post(bridge, source, headers=headers | one) for one in ids]
    assert first.status_code == 202
    assert {(one.status_code, one.content) for one in again} == {(202, first.content)}
    assert len(ingest.entries) == 1
    assert (await post(bridge, source, GOOD + b" ", headers)).status_code == 401
    assert (await post(bridge, source, notification(alert("Other")))).status_code == 202
    assert len(ingest.entries) == 2


@pytest.mark.parametrize("source", sorted(set(KINDS) - {"grafana"}))
async def test_a_replay_after_a_restart_is_the_same_delivery(
    tmp_path: Path, bridge: Bridge, ingest: MemoryIngest, source: str
) -> None:
    """A bridge that remembers nothing gives the same ids: ingest, which has rows of them, records nothing twice."""
    headers = sign(source)
    first = await post(bridge, source, headers=headers)
    async with running(tmp_path, ingest) as other:
        again = await post(other, source, headers=headers)
    assert again.json() == first.json()
    one, two = ingest.entries
    assert one.delivery.delivery_id == two.delivery.delivery_id


async def test_replays_at_the_same_moment(bridge: Bridge, ingest: MemoryIngest) -> None:
    """Two peers of a sender at once: both are answered with the same signals, under one delivery id."""
    answers = await asyncio.gather(*(post(bridge, "github") for _ in range(20)))
    assert {one.status_code for one in answers} == {202}
    assert len({one.content for one in answers}) == 1
    assert len({one.delivery.delivery_id for one in ingest.entries}) == 1


async def test_what_was_not_accepted_is_not_remembered(bridge: Bridge, ingest: MemoryIngest) -> None:
    """503 and 422 are no answers for good: the same request again is looked at again."""
    ingest.error = unavailable()
    assert (await post(bridge, "github")).status_code == 503
    ingest.error = None
    assert (await post(bridge, "github")).status_code == 202
    assert [(await post(bridge, "github", b"rubbish")).status_code for _ in range(2)] == [422, 422]
    assert len(ingest.entries) == 3


async def test_the_old_and_the_new_secret_are_one_sender(bridge: Bridge, ingest: MemoryIngest) -> None:
    """The same body signed with the old and the new secret is the same request."""
    hook = {"auth": "hmac-github", "header": HEADERS["hmac-github"]}
    answers = [
        await post(bridge, "github", headers=proof_of(hook, one, GOOD)) for one in ("old secret", "new secret", "no")
    ]
    assert [one.status_code for one in answers] == [202, 202, 401]
    assert len(ingest.entries) == 1


async def test_one_sources_signature_is_worth_nothing_elsewhere(bridge: Bridge, ingest: MemoryIngest) -> None:
    """A request for one scheme opens no door of another, and the same secret and body are two sources' own requests."""
    for source in KINDS:
        for other in KINDS:
            if source != other:
                assert (await post(bridge, source, headers=sign(other))).status_code == 401
    assert not ingest.entries
    assert (await post(bridge, "github")).status_code == 202
    assert (await post(bridge, "pagerduty")).status_code == 202
    assert len({one.delivery.delivery_id for one in ingest.entries}) == 2


async def test_huge_headers_are_cut_off(bridge: Bridge, ingest: MemoryIngest) -> None:
    """One large header, many small ones and a long path end in 431 and a closed connection; others go on."""
    port = int(bridge.url.rpartition(":")[2])
    heads = (
        b"POST /v1/webhooks/github HTTP/1.1\r\nX: " + b"x" * (8 << 20),
        b"POST /v1/webhooks/github HTTP/1.1\r\n" + b"X: yyyyyyyy\r\n" * 500_000,
        b"POST /" + b"x" * HEADERS_MAX + b" HTTP/1.1\r\n\r\n",
    )
    for head in heads:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        try:
            assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 431")
        except ConnectionResetError:  # what it still had to say was not read
            assert len(head) > HEADERS_MAX * 2
        writer.close()
    assert (await post(bridge, "github", headers=sign("github") | {"X": "x" * (HEADERS_MAX // 2)})).status_code == 202
    assert len(ingest.entries) == 1


async def test_a_grafana_without_time_may_repeat_itself() -> None:
    """An alert that still fires comes again in the same bytes: remembered a minute, and never the same delivery."""
    answers, proof = Answers(), Proof(b"x", 60)
    answers.keep("grafana", proof, b"first", now=0)
    assert answers.find("grafana", proof, now=60) == b"first"
    assert answers.find("grafana", proof, now=61) is None
    assert answers.find("grafana", proof, now=0) is None
    assert delivery_id_of("grafana", proof) != delivery_id_of("grafana", proof)


def test_a_signed_request_is_remembered_for_a_minute_and_is_the_same_delivery_for_ever() -> None:
    """What ingest has put aside since must reach it again when its sender comes again: it knows what has its row."""
    answers, proof = Answers(), Proof(b"x")
    answers.keep("github", proof, b"first", now=0)
    assert answers.find("github", proof, now=60) == b"first"
    assert answers.find("github", proof, now=61) is None
    assert delivery_id_of("github", proof) == delivery_id_of("github", proof)


def test_schemes_that_cannot_tell_remember_nothing() -> None:
    """Without signed content each request is its own."""
    answers = Answers()
    answers.keep("generic", Proof(), b"first", 0)
    assert answers.find("generic", Proof(), 0) is None
    assert delivery_id_of("generic", Proof()) != delivery_id_of("generic", Proof())


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 300)), max_size=200))
def test_the_memory_is_bounded_and_answers_what_was_last_said(kept: list[tuple[int, int]]) -> None:
    """Whatever is kept, no more than the bound is; what is found is what was kept last; the oldest goes first."""
    answers = Answers(bytes_max=4000)
    last: dict[int, bytes] = {}
    for name, size in kept:
        last[name] = b"x" * size
        answers.keep("s", Proof(bytes([name])), last[name], 0)
        assert answers._bytes <= 4000
        assert answers._bytes == sum(len(one.answer) + ENTRY_BYTES for one in answers._entries.values())
    for name, answer in last.items():
        assert answers.find("s", Proof(bytes([name])), 0) in {answer, None}
    if kept:
        assert answers.find("s", Proof(bytes([kept[-1][0]])), 0) == last[kept[-1][0]]


def test_sources_do_not_share_keys() -> None:
    """The name of a source is part of what is remembered, and cannot be continued by content."""
    assert key_of("a", Proof(b"b")) != key_of("ab", Proof(b""))
    assert key_of("a", Proof(b"x")) != key_of("b", Proof(b"x"))
