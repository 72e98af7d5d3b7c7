"""Poison: exactly five deliveries, then a dead letter, and nobody waits for it, whoever is killed in between."""

import shutil
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from services.ingest import stream
from services.ingest.domain import Inventory
from services.ingest.letters import DeadLetter
from tests.faults.intake_town import Town
from tests.faults.world import short_folder
from tests.ingest.house import House, alert, contents, entry, eventually, notification
from tests.ingest.test_worker import running


class Choosy:
    """A store that cannot take some deliveries, and keeps count of how often each was tried alone."""

    def __init__(self, house: House, poison: Sequence[pb.StreamEntry]) -> None:
        self._store = house.store
        self._poison = {one.delivery.delivery_id for one in poison}
        self.tries: Counter[str] = Counter()
        self.transactions = 0

    async def record(self, entries: Sequence[pb.StreamEntry], inventory: Inventory) -> bool:
        """Fail when one of them is poison."""
        self.transactions += 1
        if bad := [one.delivery.delivery_id for one in entries if one.delivery.delivery_id in self._poison]:
            if len(entries) == 1:
                self.tries[bad[0]] += 1
            raise LookupError("no")
        return await self._store.record(entries, inventory)

    async def answers(self) -> bool:
        """Answer as ever."""
        return await self._store.answers()

    async def put_aside(self, letter: DeadLetter) -> None:
        """Put aside as ever."""
        await self._store.put_aside(letter)


def healthy(name: str, count: int) -> list[pb.StreamEntry]:
    """Return entries that anybody can take."""
    return [entry(notification(alert(f"{name}{number}"))) for number in range(count)]


async def test_several_poison_entries_delay_nobody(house: House) -> None:
    """Healthy ones before, between and after have rows before any poison is put aside; each is tried five times."""
    # Long enough that nothing is taken over while it is still being worked on.
    house.settings = house.settings.model_copy(update={"claim_seconds": 0.5})
    poison = [entry(notification(alert(f"Poison{number}"), alert(f"Venom{number}"))) for number in range(4)]
    choosy = Choosy(house, poison)
    before, between, after = healthy("before", 20), healthy("between", 3), healthy("after", 20)
    mixed = [one for pair in zip(poison, [*between, *healthy("last", 1)], strict=True) for one in pair]
    await house.appender.append(contents([*before, *mixed]))
    async with running(house.worker(store=choosy)):
        await eventually(lambda: house.rows("SELECT 1 FROM incidents HAVING count(*) = 24"))
        last = await house.pool.fetchval("SELECT max(open_time) FROM incidents")
        await house.appender.append(contents(after))
        await eventually(lambda: house.rows("SELECT 1 FROM incidents HAVING count(*) = 44"))
        await eventually(lambda: house.rows("SELECT 1 FROM dead_letters HAVING count(*) = 4"))
        await eventually(house.idle)
    assert not await house.rows("SELECT 1 FROM dead_letters WHERE create_time < $1", last)
    assert set(choosy.tries.values()) == {5}
    letters = await house.rows("SELECT body, reason, delivery_count, source FROM dead_letters")
    assert {row["body"] for row in letters} == {one.delivery.body for one in poison}
    told = {(row["reason"], row["delivery_count"], row["source"]) for row in letters}
    assert told == {("it cannot be stored: LookupError", 5, "alertmanager")}
    assert Counter(await house.dispositions()) == {"OPENED": 44, "DEAD_LETTER": 8}


async def test_one_poison_among_many_costs_few_transactions(house: House) -> None:
    """A full batch with one poison entry is taken apart by halves, not one by one."""
    entries = healthy("good", 127)
    entries.insert(77, poison := entry(notification(alert("Poison"))))
    choosy = Choosy(house, [poison])
    reader = house.reader()
    await reader.ensure_group()
    await house.appender.append(contents(entries))
    await house.worker(reader, choosy).take_new()
    assert Counter(await house.dispositions()) == {"OPENED": 127}
    assert choosy.transactions == 15
    assert await house.pending() == 1


async def test_a_worker_that_dies_in_between_adds_no_delivery_and_loses_none(house: House) -> None:
    """Five deliveries in all, by whichever consumers: one that took it and died counts as one."""
    poison = entry(notification(alert("Poison")))
    choosy = Choosy(house, [poison])
    dead = house.reader()
    await dead.ensure_group()
    await house.appender.append(contents([*healthy("a", 2), poison, *healthy("b", 2)]))
    assert len(await dead.read()) == 5
    async with running(house.worker(store=choosy)):
        await eventually(lambda: house.rows("SELECT 1 FROM dead_letters"))
        await eventually(house.idle)
    assert choosy.tries[poison.delivery.delivery_id] == 4
    (letter,) = await house.rows("SELECT delivery_count FROM dead_letters")
    assert (letter["delivery_count"], Counter(await house.dispositions())["OPENED"]) == (5, 4)


async def test_rubbish_of_two_streams_is_two_letters(house: House) -> None:
    """Entries of two streams may have the same id: neither takes the other's place among the dead letters."""
    await house.appender.append(contents(healthy("new", 1)), ["alertmanager"])
    for lane, content in ((stream.STREAM, b"\xff one"), (f"{stream.STREAM}:alertmanager", b"\xff two")):
        await house.client.xadd(lane, {stream.FIELD: content}, id="9999999999999-1")
    async with running(house.worker()):
        await eventually(lambda: house.rows("SELECT 1 FROM dead_letters HAVING count(*) = 2"))
        await eventually(house.idle)
    assert {row["body"] for row in await house.rows("SELECT body FROM dead_letters")} == {b"\xff one", b"\xff two"}


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    """Give a real bridge, ingest and router, which may be killed."""
    folder = short_folder()
    async with Town(folder, claim_seconds=1.0).up() as made:
        yield made
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(180)
async def test_kill_9_of_ingest_and_valkey_while_poison_goes_round(town: Town) -> None:
    """Bytes that are no entry, between webhooks: dead letters after five deliveries, everything else has its row."""
    redis = Redis.from_url(town.machine.valkey.url("ingest"))
    rubbish = [b"\xff garbage %d" % number for number in range(3)]
    for number, content in enumerate(rubbish):
        assert (await town.mesh.post(notification(alert(f"near{number}")))).status_code == 202
        await redis.xadd(stream.STREAM, {stream.FIELD: content})

    async def goes_round() -> bool:
        try:
            pending = await redis.xpending_range(stream.STREAM, stream.GROUP, "-", "+", 10)
        except ResponseError:
            # Ingest takes signals before its worker has made the group.
            return False
        return any(int(one["times_delivered"]) > 1 for one in pending)

    async def accepted() -> bool:
        return (await town.mesh.post(notification(alert("after", pod=str(uuid.uuid4()))))).status_code == 202

    await eventually(goes_round)
    for name in ("ingest", "valkey"):
        await town.kill(name)
    await eventually(accepted, 60)
    await eventually(lambda: town.rows("SELECT 1 FROM ingest.dead_letters HAVING count(*) = 3"), 60)
    await town.quiet(print)
    letters = await town.rows("SELECT body, reason, delivery_count FROM ingest.dead_letters")
    assert {row["body"] for row in letters} == set(rubbish)
    assert {(row["reason"], row["delivery_count"]) for row in letters} == {("it is not an entry of the stream", 5)}
    found = await town.rows("SELECT title, duplicate_count FROM ingest.incidents")
    assert sorted(row["title"].split()[0] for row in found) == ["after", "near0", "near1", "near2"]
    assert not sum(row["duplicate_count"] for row in found)
    await redis.aclose()
