"""From the stream into PostgreSQL, on the real stores."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from services.ingest import stream
from services.ingest.domain import Inventory
from services.ingest.letters import DeadLetter
from services.ingest.worker import Worker, shares
from tests.ingest.house import House, alert, contents, delivery, entry, eventually, notification

# What was put aside before something that opened an incident had its row.
DELAYED = "SELECT 1 FROM dead_letters JOIN incidents ON dead_letters.create_time < incidents.open_time"


@asynccontextmanager
async def running(worker: Worker) -> AsyncIterator[None]:
    """Run a worker in the background."""
    stop = asyncio.Event()
    task = asyncio.create_task(worker.run(stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, 60)


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
        await eventually(lambda: house.rows("SELECT 1 FROM dead_letters"))
        await eventually(house.idle)
    assert culprit.tries == 5
    assert not await house.rows(DELAYED)
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
    await reader.acknowledge(taken[:3])
    await reader.trim()
    assert await house.client.xlen(stream.STREAM) == 3
    await reader.acknowledge(taken[3:])
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


async def append(house: House, source: str, count: int) -> None:
    """Append single alerts of a source, each of another cause, as the servicer does."""
    made = contents([entry(notification(alert(f"{source}{number}")), source) for number in range(count)])
    await house.appender.append(made, [source] * count)


async def test_what_waits_of_one_source_delays_no_other(house: House) -> None:
    """Hundreds of deliveries of one source wait, then comes one of another: it is recorded with the first of them."""
    for source in ("alertmanager", "grafana"):
        await append(house, source, 1)
    await append(house, "alertmanager", 500)
    await append(house, "grafana", 1)
    async with running(house.worker()):
        await eventually(lambda: house.rows("SELECT 1 FROM signals HAVING count(*) = 503"))
        await eventually(house.idle)
    late = "SELECT count(*) FROM signals WHERE record_time <= (SELECT max(record_time) FROM signals WHERE source = $1)"
    assert (await house.rows(late, "grafana"))[0][0] <= 2 * stream.READ_COUNT


async def test_sources_take_turns_in_what_is_read(house: House) -> None:
    """Of a busy source come as many entries as are asked for, of others what they have, one after the other."""
    reader = house.reader()
    await reader.ensure_group()
    for source in ("alertmanager", "grafana"):
        await append(house, source, 1)
    assert len(await reader.read()) == 2
    await append(house, "alertmanager", 10)
    await append(house, "grafana", 2)
    names = [one.stream.partition(":")[2] for one in await reader.read({f"{stream.STREAM}:alertmanager": 6})]
    assert sorted(names[:2]) == sorted(names[2:4]) == ["alertmanager", "grafana"]
    assert names[4:] == ["alertmanager"] * 4
    assert len(await reader.read()) == 4


async def test_a_new_source_is_heard_of_by_who_waits_already(house: House) -> None:
    """A worker that waits gets the first delivery of a source that it did not know, and those that follow it."""
    total = 0
    async with running(house.worker()):
        for source in ("alertmanager", "grafana"):
            for count in (1, 2):
                await append(house, source, count)
                total += count
                await eventually(lambda: house.rows("SELECT 1 FROM signals HAVING count(*) = $1", total))  # noqa: B023  called at once
        await eventually(house.idle)
    assert await stream.waiting(house.client) == 0


async def test_what_nobody_reads_yet_waits(house: House) -> None:
    """What a source has before its stream has a reader is counted as waiting, not as nothing."""
    await append(house, "alertmanager", 1)
    await append(house, "alertmanager", 3)
    assert await stream.waiting(house.client) == 4
    await house.reader().ensure_group()
    assert await stream.waiting(house.client) == 4


async def test_what_is_read_at_once_does_not_grow_with_the_sources(house: House) -> None:
    """However many streams have a backlog, one read takes a batch of all of them, and an equal share of each."""
    sources = [f"source{number}" for number in range(8)]
    one = entry(notification(alert())).SerializeToString()
    for _ in range(2):
        await house.appender.append([one] * len(sources), sources)
    await house.appender.append([one] * (8 * stream.READ_COUNT), sources * stream.READ_COUNT)
    reader = house.reader()
    taken = await reader.read()
    assert len(taken) <= stream.READ_COUNT
    assert {found.stream for found in taken} >= {f"{stream.STREAM}:{source}" for source in sources}
    assert len(await reader.read({f"{stream.STREAM}:source0": stream.READ_COUNT})) <= 2 * stream.READ_COUNT


async def test_every_stream_is_trimmed_and_taken_over(house: House) -> None:
    """What a dead consumer had of a source's own stream is processed by another, and trimmed when it has its rows."""
    dead = house.reader()
    await append(house, "alertmanager", 1)
    await append(house, "alertmanager", 9)
    assert len(await dead.read()) == 10
    assert await stream.waiting(house.client) == 10
    async with running(house.worker()):

        async def none_left() -> bool:
            return await stream.left(house.client) == 0

        await eventually(none_left)
    assert len(await house.dispositions()) == 10


def test_who_tells_much_at_once_has_a_smaller_share() -> None:
    """Streams have as many signals each in a batch, whatever a delivery of theirs carries, and never none."""
    taken = [stream.Claimed(b"1-0", b"", stream=name) for name in ("groups", "singles", "singles", "huge")]
    assert shares(taken, Counter(groups=50, singles=2, huge=1000)) == {"groups": 1, "singles": 85, "huge": 1}
    assert shares(taken[1:3], Counter(singles=2)) == {"singles": stream.READ_COUNT}
    assert shares([], Counter()) == {}


async def test_what_an_older_version_left_is_processed(house: House) -> None:
    """Entries of the one stream that was there before there was one a source get their rows, beside new ones."""
    await house.client.xadd(stream.STREAM, {stream.FIELD: entry(notification(alert("old"))).SerializeToString()})
    await append(house, "alertmanager", 2)
    async with running(house.worker()):
        await eventually(lambda: house.rows("SELECT 1 FROM signals HAVING count(*) = 3"))
        await eventually(house.idle)
