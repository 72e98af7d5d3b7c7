"""What became of signals, asked over mTLS on the real stores."""

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import grpc.aio
import pytest

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from opsmesh.ingest.v1 import signal_pb2
from opsmesh.ingest.v1.signals_pb2 import ListSignalsRequest
from services.ingest.lookup import query
from services.ingest.mapping import entry_of, signal_id_of
from services.ingest.retention import rules
from services.ingest.sources import PARSERS
from services.ingest.stream import Claimed
from services.ingest.worker import letter_of
from services.mesh.client import refusal_of
from services.mesh.retention import Retention
from tests.ingest.house import alert, contents, delivery, entry, eventually, notification
from tests.ingest.test_change import told
from tests.ingest.test_servicer import Served, served, world
from tests.ingest.test_worker import running
from tests.stores import Database

__all__ = ["served", "world"]
Record = signal_pb2.SignalRecord
MANY = 30_000
# What a page of 50 may look at, in blocks of 8 KiB; all of the table are thousands.
BLOCKS_MAX = 500


async def ask(served: Served, signal_id: str, name: str = "operator") -> pb.GetSignalResponse:
    """Return what became of a signal."""
    async with served.stub(name) as stub:
        answer: pb.GetSignalResponse = await stub.GetSignal(pb.GetSignalRequest(signal_id=signal_id))
    return answer


async def refused(served: Served, signal_id: str, name: str = "operator") -> tuple[str, str]:
    """Return the reason for which it is not told, and the words."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(served, signal_id, name)
    refusal = refusal_of(caught.value)
    assert refusal
    return refusal.name, str(caught.value.details())


async def listed(served: Served, **words: Any) -> list[signal_pb2.SignalRecord]:
    """Return all signals that a request finds, page by page."""
    found: list[signal_pb2.SignalRecord] = []
    request = ListSignalsRequest(**words)
    async with served.stub() as stub:
        while True:
            page = await stub.ListSignals(request)
            found += page.signals
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


async def test_a_signal_is_shown_with_what_it_came_as(served: Served) -> None:
    """The exact bytes, how they proved themselves, kept headers, the disposition, and the incident."""
    sent = delivery(b' {"id": "disk-1", "title": "disk\\u0007full", "host": "db-1", "status": "firing"}\n', "generic")
    sent.headers["x-github-event"] = "push"
    one = entry_of(sent, PARSERS["generic"])
    await served.house.take(one)
    answer = await ask(served, one.signals[0].signal_id)
    (row,) = await served.house.rows("SELECT incident_id FROM incidents")
    assert answer.record.signal == one.signals[0]
    assert (answer.record.disposition, answer.record.incident_id) == (
        Record.DISPOSITION_OPENED,
        str(row["incident_id"]),
    )
    assert (answer.body_size, answer.HasField("dead_letter")) == (len(sent.body), False)
    # PostgreSQL keeps microseconds.
    sent.receive_time.nanos -= sent.receive_time.nanos % 1000
    assert answer.delivery == sent


async def test_what_opened_no_incident_is_shown_too(served: Served) -> None:
    """A change has its row and its bytes like an alert, and says that it belongs to no incident."""
    one = told()
    await served.house.take(one)
    answer = await ask(served, one.signals[0].signal_id)
    assert (answer.record.disposition, answer.record.incident_id) == (Record.DISPOSITION_CHANGE, "")
    assert answer.delivery.body == one.delivery.body


async def test_what_was_not_understood_is_shown_with_its_reason(served: Served) -> None:
    """The id that its sender was told finds the bytes, and why they are a dead letter, also once that is discarded."""
    one = entry(b"rubbish \x00\xff")
    await served.house.take(one)
    signal_id = signal_id_of(one.delivery.delivery_id, 0)
    answer = await ask(served, signal_id)
    assert answer.record.disposition == Record.DISPOSITION_DEAD_LETTER
    assert (answer.record.signal.signal_id, answer.record.signal.source) == (signal_id, "alertmanager")
    assert answer.delivery.body == one.delivery.body
    assert "not JSON" in answer.dead_letter.reason
    assert (answer.dead_letter.body, answer.dead_letter.body_size) == (b"", len(one.delivery.body))
    await served.house.pool.execute("DELETE FROM dead_letters")
    answer = await ask(served, signal_id)
    assert (answer.HasField("dead_letter"), answer.delivery.delivery_id) == (False, one.delivery.delivery_id)


async def test_what_could_not_be_recorded_is_shown_from_its_letter(served: Served) -> None:
    """Poison has no delivery of its own: its letter has the bytes; of one that is broken the bytes are left."""
    one = entry(notification(alert("a"), alert("b")))
    letter = letter_of(Claimed(b"1-0", one.SerializeToString(), 5), "it cannot be stored")
    await served.house.store.put_aside(letter)
    answer = await ask(served, one.signals[1].signal_id)
    assert (answer.delivery, answer.record.signal.index) == (one.delivery, 1)
    assert (answer.dead_letter.reason, answer.dead_letter.delivery_count) == ("it cannot be stored", 5)
    await served.house.pool.execute("UPDATE dead_letters SET delivery = '\\xff'")
    answer = await ask(served, one.signals[1].signal_id)
    assert (answer.delivery.body, answer.delivery.HasField("receive_time")) == (one.delivery.body, False)


async def test_a_large_delivery_fits_into_an_answer(served: Served) -> None:
    """A body of 1 MiB comes back whole, beside a signal that is as large as it gets."""
    labels = {f"label-{number}": "\u20ac" * 2600 for number in range(128)}
    text = json.dumps({"id": "big", "title": "big", "status": "firing", "labels": labels}, ensure_ascii=False).encode()
    body = text + b" " * (1024 * 1024 - len(text))
    one = entry(body, "generic")
    await served.house.take(one)
    answer = await ask(served, one.signals[0].signal_id)
    assert (answer.delivery.body, answer.body_size) == (body, len(body))
    assert len(answer.record.signal.SerializeToString()) > 500_000


async def test_an_unknown_signal_says_why_that_may_be(served: Served) -> None:
    """NOT_FOUND has its own reason: nobody accepted it, or it waits for its record, or it is too old."""
    one = entry(notification(alert()))
    signal_id = one.signals[0].signal_id
    await served.house.appender.append(contents([one]))
    name, words = await refused(served, signal_id)
    assert name == "SIGNAL_NOT_FOUND"
    assert f"there is no record of signal {signal_id}" in words
    assert "it waits for its record: ask again" in words
    async with running(served.house.worker()):
        await eventually(lambda: served.house.rows("SELECT 1 FROM signals"))
    assert (await ask(served, signal_id)).record.disposition == Record.DISPOSITION_OPENED


async def test_what_is_too_old_is_gone(served: Served) -> None:
    """After the days of retention there is no record; what outlives its bytes says that these are not kept."""
    one = entry(notification(alert()))
    await served.house.take(one)
    signal_id = one.signals[0].signal_id
    old, retention = timedelta(days=31), Retention(served.house.pool, *rules(30))
    await served.house.pool.execute("UPDATE deliveries SET create_time = now() - $1::interval", old)
    await retention.forget()
    answer = await ask(served, signal_id)
    assert (answer.record.signal, answer.HasField("delivery"), answer.body_size) == (one.signals[0], False, 0)
    await served.house.pool.execute("UPDATE signals SET record_time = now() - $1::interval", old)
    await retention.forget()
    assert (await refused(served, signal_id))[0] == "SIGNAL_NOT_FOUND"
    assert await listed(served) == []


async def test_signals_are_listed_in_pages_and_filtered(served: Served) -> None:
    """Newest first, every one once, whatever the page; filters by source, incident, key and disposition hold."""
    first = entry(notification(alert("a"), alert("b")))
    generic = [entry(json.dumps({"id": f"x-{n}", "status": "down"}).encode(), "generic") for n in range(2)]
    bad = entry(b"bad")
    for taken in ([first], [entry(first.delivery.body)], generic, [bad]):
        await served.house.take(*taken)
    (row,) = await served.house.rows("SELECT incident_id FROM incidents WHERE title = 'a on checkout'")
    incident = str(row["incident_id"])

    async def check(is_wanted: Callable[[signal_pb2.SignalRecord], bool], count: int, **words: Any) -> None:
        wanted = [one for one in everything if is_wanted(one)]
        assert len(wanted) == count
        for size in (1, 2, 50):
            assert await listed(served, page_size=size, **words) == wanted

    everything = await listed(served)
    assert len(everything) == 7
    order = [(one.record_time.ToNanoseconds(), one.signal.signal_id) for one in everything]
    assert order == sorted(order, reverse=True)
    assert everything[0].signal.delivery_id == bad.delivery.delivery_id
    key, duplicate, dead = first.signals[1].dedup_key, Record.DISPOSITION_DUPLICATE, Record.DISPOSITION_DEAD_LETTER
    await check(lambda _: True, 7)
    await check(lambda one: one.signal.source == "generic", 2, source="generic")
    await check(lambda one: one.incident_id == incident, 2, incident_id=incident)
    await check(lambda one: one.signal.dedup_key == key, 2, dedup_key=key)
    await check(lambda one: one.disposition == duplicate, 2, disposition=duplicate)
    await check(lambda one: one.disposition == dead, 1, disposition=dead, source="alertmanager")
    chosen: dict[str, Any] = {"incident_id": incident, "disposition": duplicate, "source": "alertmanager"}
    await check(lambda one: one.incident_id == incident and one.disposition == duplicate, 1, **chosen)
    await check(lambda _: False, 0, source="nobody")
    await check(lambda _: False, 0, dedup_key=key, source="generic")


async def test_a_page_token_is_of_its_filter(served: Served) -> None:
    """A token of another list is refused."""
    await served.house.take(entry(notification(alert("a"), alert("b"))))
    async with served.stub() as stub:
        page = await stub.ListSignals(ListSignalsRequest(page_size=1))
        with pytest.raises(grpc.aio.AioRpcError, match="page token"):
            await stub.ListSignals(ListSignalsRequest(page_token=page.next_page_token, source="generic"))


@pytest.mark.parametrize("name", ["bridge", "gateway", "audit", "router", "agents", "approver"])
async def test_who_may_not_see_letters_may_not_see_raw_bytes(served: Served, name: str) -> None:
    """Who may see incidents may not see raw bytes for that: refused both, whether there is such a signal or not."""
    one = entry(notification(alert()))
    await served.house.take(one)
    for signal_id in (one.signals[0].signal_id, str(uuid.uuid4())):
        assert (await refused(served, signal_id, name))[0] == "PERMISSION_DENIED"
    async with served.stub(name) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListSignals(ListSignalsRequest())
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_page_is_found_without_looking_at_the_rest(served: Served, database: Database) -> None:
    """Among many signals of a busy source nothing makes the store read them all, not even what there is none of."""
    await served.house.pool.execute(
        "INSERT INTO signals (signal_id, delivery_id, index, source, dedup_key, event_key, status, severity, "
        "disposition, incident_id, record_time, signal) SELECT gen_random_uuid(), gen_random_uuid(), 0, "
        "CASE WHEN n < 3 THEN 'rare' ELSE 'busy' END, CASE WHEN n < 3 THEN 'rare' ELSE 'key-' || n % 5000 END, '', "
        "'FIRING', 'ERROR', CASE WHEN n < 3 THEN 'TEST' ELSE 'DUPLICATE' END, "
        "CASE WHEN n < 3 THEN NULL ELSE $2::uuid END, now() - n * interval '1 second', '' "
        "FROM generate_series(1, $1) AS n",
        MANY,
        uuid.UUID(int=1),
    )
    await served.house.pool.execute("UPDATE signals SET record_time = now() - interval '20 days' WHERE source = 'rare'")
    # As autovacuum does it: only its owner may.
    owner = await asyncpg.connect(database.dsn("owner"))
    await owner.execute("ANALYZE ingest.signals")
    await owner.close()
    wishes: list[dict[str, Any]] = [
        {},
        {"source": "rare"},
        {"source": "busy"},
        {"source": "nobody"},
        {"disposition": Record.DISPOSITION_TEST},
        {"disposition": Record.DISPOSITION_STALE},
        {"source": "busy", "disposition": Record.DISPOSITION_TEST},
        {"dedup_key": "rare"},
        {"dedup_key": "key-1", "source": "nobody"},
        {"incident_id": str(uuid.UUID(int=1))},
        {"incident_id": str(uuid.UUID(int=2)), "disposition": Record.DISPOSITION_TEST},
    ]
    last = (datetime.now(UTC) - timedelta(hours=1), uuid.uuid4())
    for words, after in ((words, after) for words in wishes for after in (None, last)):
        sql, arguments = query(ListSignalsRequest(**words), 50, after)
        (row,) = await served.house.rows(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", *arguments)
        (explained,) = json.loads(row[0])
        looked_at = explained["Plan"]["Shared Hit Blocks"] + explained["Plan"]["Shared Read Blocks"]
        assert "Seq Scan" not in row[0], words
        assert looked_at < BLOCKS_MAX, words
