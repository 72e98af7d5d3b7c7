"""Dead letters that people hand in again or throw away, over mTLS on the real stores."""

import uuid

import grpc.aio
import pytest

from opsmesh.audit.v1 import audit_service_pb2
from opsmesh.ingest.v1 import letters_pb2
from services.ingest.stream import Claimed
from services.ingest.worker import letter_of
from tests.ingest.house import alert, delivery, entry, notification
from tests.ingest.test_servicer import Served, served, world

__all__ = ["served", "world"]
Result = letters_pb2.DeadLetterResult


def request(*delivery_ids: str, request_id: str = "") -> letters_pb2.RedriveDeadLettersRequest:
    """Return the wish to hand these in again."""
    return letters_pb2.RedriveDeadLettersRequest(
        request_id=request_id or str(uuid.uuid4()), delivery_ids=delivery_ids, reason="the parser is mended"
    )


async def aside(served: Served, body: bytes, source: str = "alertmanager") -> str:
    """Put a delivery aside as a worker does after the fifth try; return its id."""
    one = entry(body)
    one.delivery.source = source
    await served.house.store.put_aside(letter_of(Claimed(b"1-0", one.SerializeToString(), 5), "it cannot be stored"))
    return one.delivery.delivery_id


async def test_what_can_be_processed_now_is_handed_in_again(served: Served) -> None:
    """The delivery is on the stream as it came, under another id, the letter is gone, and audit knows who and why."""
    body = notification(alert())
    delivery_id = await aside(served, body)
    async with served.stub() as stub:
        answer = await stub.RedriveDeadLetters(request(delivery_id))
    (result,) = answer.results
    (stored,) = await served.house.stored()
    assert (result.state, result.new_delivery_id) == (Result.STATE_REDRIVEN, stored.delivery.delivery_id)
    assert (stored.delivery.body, stored.delivery.content_type) == (body, "application/json")
    assert stored.delivery.delivery_id != delivery_id
    await served.house.take(stored)
    assert sorted(await served.house.dispositions()) == ["DEAD_LETTER", "OPENED"]
    assert not await served.house.rows("SELECT 1 FROM dead_letters")
    rows = await served.house.rows("SELECT event FROM outbox")
    (event,) = [audit_service_pb2.AuditEvent.FromString(row["event"]) for row in rows]
    assert (event.actor, event.details["reason"]) == ("human/operator", "the parser is mended")
    assert event.details["delivery_ids_0"] == delivery_id


async def test_each_letter_is_answered_by_itself(served: Served) -> None:
    """What still cannot be understood, has no parser or is not there stays what it is, and says so."""
    rubbish, nobody = entry(b"rubbish"), await aside(served, b"{}", "nobody")
    await served.house.take(rubbish)
    missing = str(uuid.uuid4())
    async with served.stub() as stub:
        answer = await stub.RedriveDeadLetters(request(rubbish.delivery.delivery_id, nobody, missing))
    assert [one.state for one in answer.results] == [
        Result.STATE_MALFORMED,
        Result.STATE_UNKNOWN_SOURCE,
        Result.STATE_NOT_FOUND,
    ]
    assert "not JSON" in answer.results[0].errors[0]
    assert not await served.house.stored()
    assert len(await served.house.rows("SELECT 1 FROM dead_letters")) == 2


async def test_handing_in_twice_has_one_effect(served: Served) -> None:
    """The same request gets the stored answer; a crash between stream and store makes copies, which are no effect."""
    delivery_id = await aside(served, notification(alert()))
    letters = await served.house.rows("SELECT * FROM dead_letters")
    wish = request(delivery_id)
    async with served.stub() as stub:
        first = await stub.RedriveDeadLetters(wish)
        assert await stub.RedriveDeadLetters(wish) == first
        assert len(await served.house.stored()) == 1
        await served.house.pool.execute(
            "INSERT INTO dead_letters VALUES ($1, $2, $3, $4, $5, $6, $7)", *letters[0].values()
        )
        await stub.RedriveDeadLetters(request(delivery_id))
    await served.house.take(*await served.house.stored())
    assert sorted(await served.house.dispositions()) == ["DEAD_LETTER", "DUPLICATE", "OPENED"]


async def test_what_is_thrown_away_is_gone_but_for_its_rows(served: Served) -> None:
    """The letter goes, the row of its signal and the audit event stay; an approver may neither."""
    delivery_id = await aside(served, notification(alert()))
    wish = letters_pb2.DiscardDeadLettersRequest(
        request_id=str(uuid.uuid4()), delivery_ids=[delivery_id, str(uuid.uuid4())], reason="a test of the sender"
    )
    async with served.stub("approver") as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.DiscardDeadLetters(wish)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    async with served.stub() as stub:
        answer = await stub.DiscardDeadLetters(wish)
    assert [one.state for one in answer.results] == [Result.STATE_DISCARDED, Result.STATE_NOT_FOUND]
    assert await served.house.dispositions() == ["DEAD_LETTER"]
    assert not await served.house.rows("SELECT 1 FROM dead_letters")
    assert len(await served.house.rows("SELECT 1 FROM outbox")) == 1


def test_a_delivery_is_kept_without_its_body_twice() -> None:
    """What a letter keeps of its delivery is all but the body, which is kept apart."""
    one = delivery(b"x" * 1000)
    found = letter_of(Claimed(b"1-0", entry(b"x" * 1000).SerializeToString(), 5), "no")
    assert (found.body, len(found.delivery) < one.ByteSize() - 900) == (one.body, True)
