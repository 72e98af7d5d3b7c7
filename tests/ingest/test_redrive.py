"""Dead letters that people hand in again or throw away, over mTLS on the real stores."""

import asyncio
import json
import uuid
from collections import Counter

import grpc.aio
import pytest

from opsmesh.audit.v1 import audit_service_pb2
from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from opsmesh.ingest.v1 import letters_pb2
from services.ingest.mapping import result_of
from services.ingest.redrive import redrive
from services.ingest.signal import DeliveryFacts, ParsedSignal
from services.ingest.sources import PARSERS
from services.ingest.stream import Claimed
from services.ingest.worker import letter_of
from tests.ingest.house import alert, delivery, entry, eventually, notification
from tests.ingest.test_servicer import Served, served, world
from tests.ingest.test_worker import Culprit, running

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
    """The delivery is on the stream as it came, the letter is gone, its row tells the rest; audit knows who and why."""
    body = notification(alert())
    delivery_id = await aside(served, body)
    async with served.stub() as stub:
        answer = await stub.RedriveDeadLetters(request(delivery_id))
    (result,) = answer.results
    (stored,) = await served.house.stored()
    assert (result.state, result.new_delivery_id) == (Result.STATE_REDRIVEN, stored.delivery.delivery_id)
    assert (stored.delivery.body, stored.delivery.content_type) == (body, "application/json")
    assert stored.delivery.delivery_id == delivery_id
    assert await served.house.dispositions() == ["DEAD_LETTER"]
    await served.house.take(stored)
    assert await served.house.dispositions() == ["OPENED"]
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


def careless(_body: bytes, _facts: DeliveryFacts) -> list[ParsedSignal]:
    """Fail as a parser with a mistake does."""
    raise ZeroDivisionError


async def test_a_parser_that_is_not_mended_yet_costs_its_own_letters_only(served: Served) -> None:
    """What it fails at stays a letter and says why; the letters of other senders in the same call are handed in."""
    house, body = served.house, json.dumps({"title": "Disk", "status": "firing"}).encode()
    one = entry(body, "generic")
    await house.store.put_aside(letter_of(Claimed(b"2-0", one.SerializeToString(), 5), "it cannot be stored"))
    broken, fine = await aside(served, notification(alert())), one.delivery.delivery_id
    parsers = {"alertmanager": careless, "generic": PARSERS["generic"]}
    async with house.pool.acquire() as connection, connection.transaction():
        results = await redrive(connection, request(broken, fine), parsers, house.appender)
    assert [one.state for one in results] == [Result.STATE_MALFORMED, Result.STATE_REDRIVEN]
    assert list(results[0].errors) == ["body: the parser of this source failed (ZeroDivisionError)"]
    assert [one.delivery.delivery_id for one in await house.stored()] == [fine]
    left = await house.rows("SELECT delivery_id FROM dead_letters")
    assert [str(row["delivery_id"]) for row in left] == [broken]


async def test_handing_in_twice_has_one_effect(served: Served) -> None:
    """The same request gets the stored answer; a crash between stream and store leaves a letter that has no effect."""
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
    assert await served.house.dispositions() == ["OPENED"]
    assert await counts(served) == [(1, 0)]


async def counts(served: Served) -> list[tuple[int, int]]:
    """Return how many signals and duplicates each incident has."""
    rows = await served.house.rows("SELECT signal_count, duplicate_count FROM incidents")
    return [(row["signal_count"], row["duplicate_count"]) for row in rows]


async def test_two_people_hand_in_at_once(served: Served) -> None:
    """Of ten requests at the same moment one hands it in, the others are told that it is no dead letter; one effect."""
    delivery_id = await aside(served, notification(alert()))
    async with served.stub() as stub:
        answers = await asyncio.gather(*(stub.RedriveDeadLetters(request(delivery_id)) for _ in range(10)))
    states = Counter(one.results[0].state for one in answers)
    assert states == {Result.STATE_REDRIVEN: 1, Result.STATE_NOT_FOUND: 9}
    await served.house.take(*await served.house.stored())
    assert (await served.house.dispositions(), await counts(served)) == (["OPENED"], [(1, 0)])
    assert len(await served.house.rows("SELECT 1 FROM outbox")) == 10


async def test_a_letter_outlives_a_redrive_that_does_not_reach_the_stream(served: Served) -> None:
    """With the stream away the wish is refused and nothing has changed; later it works."""
    delivery_id = await aside(served, notification(alert()))
    served.house.appender._full = True
    async with served.stub() as stub:
        with pytest.raises(grpc.aio.AioRpcError, match="memory"):
            await stub.RedriveDeadLetters(request(delivery_id))
        assert len(await served.house.rows("SELECT 1 FROM dead_letters")) == 1
        served.house.appender._full = False
        (result,) = (await stub.RedriveDeadLetters(request(delivery_id))).results
    assert result.state == Result.STATE_REDRIVEN


async def test_poison_that_is_handed_in_again_is_a_dead_letter_again(served: Served) -> None:
    """After five deliveries more the letter is back, with its bytes; mended, it gets its row at last, once."""
    house = served.house
    body = notification(alert("Poison"), alert("Venom"))
    delivery_id = await aside(served, body)
    async with served.stub() as stub:
        await stub.RedriveDeadLetters(request(delivery_id))
        culprit = Culprit(house, delivery_id)
        async with running(house.worker(store=culprit)):
            await eventually(lambda: house.rows("SELECT 1 FROM dead_letters"))
            await eventually(house.idle)
        (letter,) = await house.rows("SELECT delivery_id::text, delivery_count, body, reason FROM dead_letters")
        assert tuple(letter) == (delivery_id, 5, body, "it cannot be stored: LookupError")
        assert (culprit.tries, await house.dispositions()) == (5, ["DEAD_LETTER"] * 2)
        await stub.RedriveDeadLetters(request(delivery_id))
    async with running(house.worker()):
        await eventually(lambda: house.rows("SELECT 1 FROM incidents HAVING count(*) = 2"))
        await eventually(house.idle)
    assert await house.dispositions() == ["OPENED"] * 2
    assert not await house.rows("SELECT 1 FROM dead_letters")


async def test_a_sender_that_comes_again_after_the_parser_was_mended_is_recorded(served: Served) -> None:
    """A signed delivery, once not understood and now: its row tells, the letter is gone; a replay adds nothing."""
    house, delivery_id = served.house, str(uuid.uuid4())
    await house.take(entry(b"not yet understood", delivery_id=delivery_id))
    assert await house.dispositions() == ["DEAD_LETTER"]
    understood = entry(notification(alert("a"), alert("b")), delivery_id=delivery_id)
    await house.take(understood)
    assert (await house.dispositions(), await counts(served)) == (["OPENED"] * 2, [(1, 0)] * 2)
    assert not await house.rows("SELECT 1 FROM dead_letters")
    await house.take(understood)
    assert (await house.dispositions(), await counts(served)) == (["OPENED"] * 2, [(1, 0)] * 2)


async def test_who_redrives_and_who_sends_again_have_one_effect(served: Served) -> None:
    """A person hands a letter in while its sender, or an attacker, replays the signed request: in any order, once."""
    delivery_id = await aside(served, body := notification(alert()))
    async with served.stub() as stub:
        await stub.RedriveDeadLetters(request(delivery_id))
        async with served.stub("bridge") as bridge:
            wish = pb.SubmitSignalsRequest(deliveries=[delivery(body, delivery_id=delivery_id)])
            (accepted,) = (await bridge.SubmitSignals(wish)).results
        (first, second) = await served.house.stored()
        await served.house.take(second)
        await served.house.take(first)
        (answer,) = (await stub.RedriveDeadLetters(request(delivery_id))).results
    assert answer.state == Result.STATE_NOT_FOUND
    assert list(accepted.signal_ids) == [one.signal_id for one in first.signals]
    assert (await served.house.dispositions(), await counts(served)) == (["OPENED"], [(1, 0)])


async def test_what_has_its_rows_is_no_dead_letter(served: Served) -> None:
    """An entry whose acknowledgement was lost five times was recorded all the same: nobody is shown a letter."""
    one = entry(notification(alert()))
    await served.house.take(one)
    await served.house.store.put_aside(letter_of(Claimed(b"1-0", one.SerializeToString(), 6), "never finished"))
    assert await served.house.dispositions() == ["OPENED"]
    assert not await served.house.rows("SELECT 1 FROM dead_letters")


def test_what_was_not_understood_and_cannot_be_stored_has_the_row_its_sender_was_told_of() -> None:
    """The id in the answer of a malformed delivery is the one that its dead letter gives a row."""
    one = entry(b"rubbish")
    letter = letter_of(Claimed(b"1-0", one.SerializeToString(), 5), "no")
    assert list(letter.signal_ids) == list(result_of(one).signal_ids)


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
