"""From the stream into PostgreSQL, on the real stores."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from services.ingest import stream
from services.ingest.domain import Inventory
from services.ingest.letters import DeadLetter
from services.ingest.worker import Worker
from tests.ingest.house import House, alert, contents, delivery, entry, eventually, notification


@asynccontextmanager
async def running(worker: Worker) -> AsyncIterator[None]:
    """Run a worker in the background."""
    stop = asyncio.Event()
    task = asyncio.create_task(worker.run(stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, 10)


class Culprit:
    """A store that cannot take one delivery, whatever the batch."""

    def __init__(self, house: House, delivery_id: str) -> None:
        self._store = house.store
        self._delivery_id = delivery_id
        self.tries = 0

    async def record(self, entries: Sequence[pb.StreamEntry], inventory: Inventory) -> bool:
        """Fail on the culprit; only its own tries count."""
        if any(one.delivery.delivery_id == self._delivery_id for one in entries):
            self.tries += len(entries) == 1
            raise LookupError("no")
        return await self._store.record(entries, inventory)

    async def answers(self) -> bool:
        """Answer as ever."""
        return await self._store.answers()

    async def put_aside(self, letter: DeadLetter) -> None:
        """Put aside as ever."""
        await self._store.put_aside(letter)


async def test_an_appended_signal_gets_its_row_and_opens_an_incident(house: House) -> None:
    """One firing alert: one row OPENED, one incident, nothing left pending."""
    await house.appender.append(contents([entry(notification(alert()))]))
    async with running(house.worker()):
        await eventually(lambda: house.rows("SELECT 1 FROM incidents"))
        await eventually(house.idle)
    assert await house.dispositions() == ["OPENED"]
    incident = (await house.rows("SELECT state, target_ids, firing, title FROM incidents"))[0]
    assert tuple(incident) == ("OPEN", ["svc:demo/checkout"], True, "CheckoutDown on checkout")
    assert house.wake.is_set()


async def test_the_same_delivery_again_changes_nothing(house: House) -> None:
    """A delivery that is in the stream twice (a retry after a lost answer) has one row and is no duplicate."""
    one = entry(notification(alert()))
    await house.appender.append(contents([one, one]))
    async with running(house.worker()):
        await eventually(lambda: house.rows("SELECT 1 FROM incidents"))
        await eventually(house.idle)
    assert await house.dispositions() == ["OPENED"]
    row = (await house.rows("SELECT signal_count, duplicate_count FROM incidents"))[0]
    assert tuple(row) == (1, 0)


async def test_three_posts_of_one_alert_are_one_incident_with_two_duplicates(house: House) -> None:
    """The same alert posted three times: OPENED and twice DUPLICATE."""
    body = notification(alert())
    await house.take(entry(body))
    await house.take(entry(body), entry(body))
    assert await house.dispositions() == ["OPENED", "DUPLICATE", "DUPLICATE"]
    row = (await house.rows("SELECT signal_count, duplicate_count, revision FROM incidents"))[0]
    assert tuple(row) == (3, 2, 1)


async def test_a_crash_between_commit_and_acknowledgement_makes_no_second_row(house: House) -> None:
    """What was recorded and never acknowledged is claimed by another worker, and stays one row."""
    reader = house.reader()
    await reader.ensure_group()
    await house.appender.append(contents([entry(notification(alert()))]))
    taken = await reader.read()
    await house.store.record([pb.StreamEntry.FromString(one.content) for one in taken], house.inventory)
    assert await house.pending() == 1
    async with running(house.worker()):
        await eventually(house.idle)
    assert await house.dispositions() == ["OPENED"]


async def test_a_dead_consumers_entries_are_taken_over(house: House) -> None:
    """What a consumer took and never finished is processed by another one."""
    dead = house.reader()
    await dead.ensure_group()
    await house.appender.append(contents([entry(notification(alert(str(number)))) for number in range(10)]))
    assert len(await dead.read()) == 10
    async with running(house.worker()):
        await eventually(house.idle)
    assert await house.dispositions() == ["OPENED"] * 10


async def test_poison_is_put_aside_after_exactly_five_deliveries_and_delays_nobody(house: House) -> None:
    """One entry that cannot be recorded: the others get rows at once, it becomes a dead letter after five tries."""
    poison = delivery(notification(alert("Poison"), alert("Venom")))
    culprit = Culprit(house, poison.delivery_id)
    bad = entry(poison.body, delivery_id=poison.delivery_id)
    good = [entry(notification(alert(str(number)))) for number in range(20)]
    await house.appender.append(contents([*good[:10], bad, *good[10:]]))
    async with running(house.worker(store=culprit)):
        await eventually(lambda: house.rows("SELECT 1 FROM incidents HAVING count(*) = 20"))
        assert not await house.rows("SELECT 1 FROM dead_letters")
        await eventually(lambda: house.rows("SELECT 1 FROM dead_letters"))
        await eventually(house.idle)
    assert culprit.tries == 5
    letter = (await house.rows("SELECT delivery_id, delivery_count, body FROM dead_letters"))[0]
    assert (str(letter["delivery_id"]), letter["delivery_count"], letter["body"]) == (
        poison.delivery_id,
        5,
        poison.body,
    )
    assert (await house.dispositions()).count("DEAD_LETTER") == 2


async def test_what_is_no_entry_at_all_is_put_aside(house: House) -> None:
    """Bytes of somebody else in the stream become a dead letter after five deliveries."""
    await house.client.xadd(stream.STREAM, {stream.FIELD: b"\xff\xff garbage"})
    await house.client.xadd(stream.STREAM, {b"other": b"field"})
    async with running(house.worker()):
        await eventually(lambda: house.rows("SELECT 1 FROM dead_letters HAVING count(*) = 2"))
        await eventually(house.idle)
    letters = await house.rows("SELECT delivery_count FROM dead_letters")
    assert [row["delivery_count"] for row in letters] == [5, 5]


async def test_what_was_not_understood_is_a_dead_letter_with_a_row(house: House) -> None:
    """A malformed delivery has its bytes kept, and one row that says so; redelivery changes nothing."""
    bad = entry(b'{"alerts": 7}')
    await house.take(bad)
    await house.take(bad)
    assert await house.dispositions() == ["DEAD_LETTER"]
    letter = (await house.rows("SELECT reason, body, delivery_count FROM dead_letters"))[0]
    assert tuple(letter) == ("alerts: must be a list of alerts", b'{"alerts": 7}', 1)


async def test_only_what_has_its_rows_is_trimmed(house: House) -> None:
    """Trimming keeps what is pending and what was not handed out."""
    reader = house.reader()
    await reader.ensure_group()
    await house.appender.append(contents([entry(notification(alert(str(number)))) for number in range(5)]))
    taken = await reader.read()
    await house.appender.append(contents([entry(notification(alert("late")))]))
    await reader.trim()
    assert await house.client.xlen(stream.STREAM) == 6
    await reader.acknowledge([one.entry_id for one in taken[:3]])
    await reader.trim()
    assert await house.client.xlen(stream.STREAM) == 3
    await reader.acknowledge([one.entry_id for one in taken[3:]])
    await reader.trim()
    assert await house.client.xlen(stream.STREAM) == 1


async def test_raw_bytes_are_kept_exactly(house: House) -> None:
    """A delivery's bytes are stored as sent, with their hash."""
    body = b"  " + notification(alert()) + b"\r\n"
    await house.take(entry(body))
    row = (await house.rows("SELECT body, sha256 = sha256(body) AS fits, authenticity FROM deliveries"))[0]
    assert tuple(row) == (body, True, "BEARER")


@pytest.mark.parametrize("count", [2])
async def test_two_workers_share_the_stream(house: House, count: int) -> None:
    """Workers at the same time give every signal one row and every incident one opening."""
    entries = [entry(notification(alert(str(number % 7), pod=str(number)))) for number in range(200)]
    for start in range(0, 200, 20):
        await house.appender.append(contents(entries[start : start + 20]))
    workers = [house.worker() for _ in range(count)]
    async with running(workers[0]), running(workers[1]):
        await eventually(lambda: house.rows("SELECT 1 FROM signals HAVING count(*) = 200"))
    found = await house.dispositions()
    assert found.count("OPENED") == 7
    assert len(await house.rows("SELECT 1 FROM incidents")) == 7
