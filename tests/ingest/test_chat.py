"""What people say in chats: from the router alone, each message an incident of its own that nothing else joins."""

import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from opsmesh.ingest.v1 import ingest_service_pb2_grpc, signal_pb2
from services.ingest.correlation import Correlation, Rule
from services.ingest.main import parsers_of
from services.ingest.mapping import entry_of, facts_of
from services.ingest.servicer import IngestServicer
from services.ingest.signal import DeliveryFacts, Severity, Status, Unreadable
from services.ingest.sources import chat
from services.mesh.writes import Writes
from tests.ingest.house import ROOT, House, alert, delivery, entry, notification
from tests.ingest.test_lanes import Decision, MemoryRouter, following, reached
from tests.ingest.test_servicer import NoAudit
from tests.mesh.world import World

DIGEST = "ab" * 32


def wish(**changes: Any) -> dict[str, Any]:
    """Return a message as the router tells of it."""
    words = {
        "message_id": str(uuid.uuid4()),
        "conversation_id": str(uuid.uuid4()),
        "message_digest": DIGEST,
        "person": "human/operator",
        "time": "2026-03-01T10:00:00.5Z",
        "title": "restart checkout in demo",
        "description": "it is slow again",
        "targets": ["svc:demo/checkout"],
    }
    return words | changes


def told(words: Any) -> pb.StreamEntry:
    """Return the delivery of a message."""
    return entry_of(delivery(json.dumps(words).encode(), "chat"), chat.parse)


def parsed(words: Any) -> list[Any]:
    """Parse a message."""
    return chat.parse(json.dumps(words).encode(), DeliveryFacts("chat"))


def test_a_message_is_read_as_it_says() -> None:
    """It fires without a severity, on the targets it names; ids, digest and person are its labels."""
    words = wish()
    (found,) = parsed(words)
    assert (found.status, found.severity, found.dedup_key) == (
        Status.FIRING,
        Severity.UNSPECIFIED,
        words["message_id"],
    )
    assert (found.summary, found.description, found.rule_name) == ("restart checkout in demo", "it is slow again", "")
    assert [one.key for one in found.targets] == ["svc:demo/checkout"]
    names = ("message_id", "conversation_id", "message_digest", "person")
    assert found.labels == {name: words[name] for name in names}
    assert not found.warnings


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"message_id": "7"}, "message_id"),
        ({"message_id": str(uuid.uuid4()).upper()}, "message_id"),
        ({"conversation_id": None}, "conversation_id"),
        ({"message_digest": "ab"}, "message_digest"),
        ({"message_digest": "AB" * 32}, "message_digest"),
        ({"person": "service/router"}, "person"),
        ({"person": "human/operator\n"}, "person"),
        ({"time": "soon"}, "time"),
        ({"title": " "}, "title"),
        ({"description": 7}, "description"),
        ({"targets": "svc:demo/checkout"}, "targets"),
        ({"targets": ["-x"]}, "targets"),
        ({"targets": ["a"] * 9}, "targets"),
        ({"severity": "critical"}, "severity"),
    ],
)
def test_what_breaks_the_contract_is_refused(changes: dict[str, Any], field: str) -> None:
    """By the field's name; nothing is guessed at."""
    with pytest.raises(Unreadable) as caught:
        parsed(wish(**changes))
    assert [one.field for one in caught.value.errors] == [field]


async def test_each_message_is_an_incident_of_its_own(house: House) -> None:
    """Two of the same words on the same target are two; the same message told twice is one."""
    first, second = wish(), wish()
    await house.take(told(first), told(second))
    await house.take(told(first))
    rows = await house.rows("SELECT source, firing, severity, signal_count, duplicate_count, snapshot FROM incidents")
    assert sorted((row["signal_count"], row["duplicate_count"]) for row in rows) == [(1, 0), (2, 1)]
    assert {(row["source"], row["firing"], row["severity"]) for row in rows} == {("chat", True, "UNSPECIFIED")}
    found = [pb.Incident.FromString(row["snapshot"]) for row in rows]
    assert {one.labels["message_id"] for one in found} == {first["message_id"], second["message_id"]}
    assert {one.targets[0].target_id for one in found} == {"svc:demo/checkout"}


async def test_an_alert_cannot_join_a_message(house: House) -> None:
    """Not by its names, nor by a key built to be the message's: whatever joins it could change whom it speaks for."""
    words = wish()
    await house.take(told(words))
    await house.take(entry(notification(alert("chat"))))
    forged = {"id": words["message_id"], "status": "down", "alert": words["message_id"], "target": "chat"}
    await house.take(entry(json.dumps(forged | {"host": "chat", "service": "chat"}).encode(), "generic"))
    rows = await house.rows("SELECT signal_count FROM incidents WHERE source = 'chat'")
    assert [row["signal_count"] for row in rows] == [1]
    greedy = Correlation((Rule("all", ("source",)),))
    assert "|" not in facts_of(told(words).signals[0], [], greedy).correlation_key


async def test_a_wish_that_was_done_is_over(house: House) -> None:
    """A report of an agent ends the incident of a chat, where that of an alert would be decided anew."""
    router = MemoryRouter()
    router.next = Decision(state=Decision.STATE_DECIDED, outcome=Decision.OUTCOME_DELEGATE_AGENT, run_id="r-1")
    async with following(house, router):
        await house.store.record([told(wish())], house.inventory)
        house.wake.set()
        await reached(house, "RUNNING")
        router.last().MergeFrom(Decision(state=Decision.STATE_CLOSED, result=Decision.RESULT_REPORTED))
        row = await reached(house, "RESOLVED", following=False)
    assert row["revision"] == 1
    assert row["state_detail"].startswith("the agent reported")


async def test_a_rule_that_asked_does_not_ask_again(house: House) -> None:
    """What a person answered makes a new revision, and the rule that asked is told as one that had its turn."""
    router = MemoryRouter()
    router.next = Decision(state=Decision.STATE_DECIDED, outcome=Decision.OUTCOME_ASK_HUMAN, rule_id="ask")
    async with following(house, router):
        await house.store.record([entry(notification(alert()))], house.inventory)
        house.wake.set()
        await reached(house, "AWAITING_PERSON", started_rule_ids=[])
        router.next = Decision(state=Decision.STATE_AWAITING_MODEL)
        router.last().MergeFrom(Decision(state=Decision.STATE_CLOSED, result=Decision.RESULT_ANSWERED))
        row = await reached(house, "AWAITING_MODEL", revision=2)
    assert row["started_rule_ids"] == ["ask"]
    assert list(router.seen[-1].started_rule_ids) == ["ask"]


@asynccontextmanager
async def answering(house: House, world: World, name: str) -> AsyncIterator[Any]:
    """Run an ingest and connect as somebody."""
    writes = Writes(house.pool, "ingest", NoAudit())
    servicer = IngestServicer(house.appender, house.store, writes, parsers_of(ROOT / "deploy"), lambda: None)
    add = ingest_service_pb2_grpc.add_IngestServiceServicer_to_server
    async with world.serving("ingest", [(add, servicer)]) as server, world.channel(server, name) as channel:
        yield ingest_service_pb2_grpc.IngestServiceStub(channel)


@pytest.mark.parametrize(
    ("name", "states"),
    [
        ("router", [pb.DeliveryResult.STATE_ACCEPTED, pb.DeliveryResult.STATE_UNKNOWN_SOURCE]),
        ("bridge", [pb.DeliveryResult.STATE_UNKNOWN_SOURCE, pb.DeliveryResult.STATE_ACCEPTED]),
        ("operator", [pb.DeliveryResult.STATE_UNKNOWN_SOURCE, pb.DeliveryResult.STATE_ACCEPTED]),
    ],
)
async def test_only_the_router_tells_what_people_said(
    house: House, tmp_path: Path, name: str, states: list["pb.DeliveryResult.State.ValueType"]
) -> None:
    """And it tells nothing else; whatever it claims about authenticity, the record says mTLS."""
    request = pb.SubmitSignalsRequest(
        deliveries=[delivery(json.dumps(wish()).encode(), "chat"), delivery(notification(alert()))]
    )
    async with answering(house, World(tmp_path), name) as stub:
        answer = await stub.SubmitSignals(request)
    assert [one.state for one in answer.results] == states
    (stored,) = await house.stored()
    if name == "router":
        assert stored.delivery.authenticity.method == signal_pb2.Authenticity.METHOD_MTLS
