"""The one sequencer on real PostgreSQL: every event once, in one chain, acknowledged when durable."""

import asyncio
from pathlib import Path

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opsmesh.audit.v1 import audit_service_pb2 as audit
from opsmesh.type.v1 import error_reason_pb2
from services.audit.checkpoints import CheckpointFile
from services.audit.events import LAST_SECOND, make_storable
from services.audit.store import LogIsTaken, PostgresAppender
from services.audit.waiting import BATCH_EVENTS, QUEUE_EVENTS, WRITER_EVENTS, Waiter, WaitingRoom
from services.local.waiting import until
from services.mesh.errors import Refusal
from tests.audit.events import event, events
from tests.audit.running import Audit, opened


async def test_sequences_follow_the_order_of_the_request(audit_log: Audit) -> None:
    """Events get the numbers 1, 2, 3 in the order in which they were given."""
    assert await audit_log.append(events(3)) == [1, 2, 3]
    assert await audit_log.append(events(2)) == [4, 5]


async def test_the_same_event_again_has_the_same_sequence(audit_log: Audit) -> None:
    """An event_id is stored once: later, in the same commit, in the same request, in upper case."""
    first = event()
    (sequence,) = await audit_log.append([first])
    again = event(first.event_id)
    shouted = event(first.event_id.upper())
    fresh = event()
    twice = [fresh, event(fresh.event_id), again]
    answers = await asyncio.gather(audit_log.append([again]), audit_log.append([shouted]), audit_log.append(twice))
    assert list(answers) == [[sequence], [sequence], [2, 2, sequence]]
    assert (await audit_log.verify()).events == 2


async def test_an_event_id_of_another_writer_is_refused(audit_log: Audit) -> None:
    """Nobody can take the id of another's intent and make it believe that the intent is on record."""
    taken = event()
    await audit_log.append([taken], "service/router")
    with pytest.raises(Refusal, match="written by service/router"):
        await audit_log.append([event(taken.event_id)], "service/gateway")
    fresh = event()
    answers = await asyncio.gather(
        audit_log.append([fresh], "service/router"),
        audit_log.append([event(fresh.event_id)], "service/gateway"),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [list, Refusal]


async def test_the_log_sets_writer_and_time(audit_log: Audit) -> None:
    """What a writer claims about sequence, writer and append time is not believed."""
    lie = event()
    lie.sequence, lie.writer = 77, "service/audit"
    lie.append_time.seconds = 1
    assert await audit_log.append([lie], "service/router") == [1]
    stored = await audit_log.log.get(lie.event_id)
    assert stored is not None
    assert (stored.sequence, stored.writer) == (1, "service/router")
    assert abs(stored.append_time.seconds - stored.event_time.seconds) < 60
    assert stored.append_time.nanos % 1000 == 0


async def test_concurrent_writers_make_one_chain(audit_log: Audit) -> None:
    """A hundred callers at once: every event once, no gap, no fork, and far fewer commits than events."""
    before = await _commits(audit_log)
    answers = await asyncio.gather(*(audit_log.append(events(5), f"service/w{number}") for number in range(100)))
    assert sorted(sequence for answer in answers for sequence in answer) == list(range(1, 501))
    report = await audit_log.verify()
    assert (report.intact, report.events) == (True, 500)
    assert await _commits(audit_log) - before < 60


async def _commits(audit_log: Audit) -> int:
    """Return how many transactions wrote rows."""
    connection = await asyncpg.connect(audit_log.database.dsn("reader"))
    found: int = await connection.fetchval("SELECT count(DISTINCT xmin::text) FROM audit.events")
    await connection.close()
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(max_size=60), min_size=15, max_size=15),
    details=st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=40), max_size=5),
    seconds=st.integers(0, LAST_SECOND),
    nanos=st.integers(0, 999_999_999),
    version=st.integers(0, 2**63 - 1),
)
def test_columns_give_back_what_is_hashed(
    texts: list[str], details: dict[str, str], seconds: int, nanos: int, version: int
) -> None:
    """Any event that passes validation becomes storable, and stays so."""
    made = event()
    names = "actor on_behalf_of action target environment region incident_id decision_id execution_id step_id reason "
    names += "request_id request_digest trace_id writer"
    for name, text in zip(names.split(), texts, strict=True):
        setattr(made, name, text)
    made.details.clear()
    made.details.update(details)
    made.event_time.seconds, made.event_time.nanos = seconds, nanos
    made.rule_set_version = version
    make_storable(made, "service/router")
    again = audit.AuditEvent.FromString(made.SerializeToString())
    make_storable(again, "service/router")
    assert again == made
    assert "\0" not in str(made)


async def test_odd_texts_survive_the_database(audit_log: Audit) -> None:
    """NUL, emoji, quotes, backslashes and extreme times: what is read back is what was hashed."""
    odd = ["\0", "a\0b", "\U0001f600", "\"\\'", "\ud7ff\ue000", " ", "\r\n\t", "null", "{}"]
    made = [event(note=text) for text in odd]
    for one, text in zip(made, odd, strict=True):
        one.target, one.actor = text, text or "x"
        one.details[text] = text
    made[0].event_time.seconds, made[1].event_time.seconds = 0, LAST_SECOND
    await audit_log.append(made)
    report = await audit_log.verify()
    assert (report.intact, report.events) == (True, len(odd))


async def test_a_time_no_column_can_hold_is_refused(audit_log: Audit) -> None:
    """A time outside 1970 to 9999 is an invalid argument, and nothing of the request is stored."""
    bad = event()
    bad.event_time.seconds = 1 << 60
    with pytest.raises(Refusal) as raised:
        await audit_log.append([event(), bad])
    assert raised.value.reason == error_reason_pb2.ERROR_REASON_INVALID_ARGUMENT
    assert (await audit_log.verify()).events == 0


async def test_a_full_queue_refuses(audit_log: Audit) -> None:
    """Waiting events are bounded; more are refused with a pause, and what was accepted is stored."""
    requests = [asyncio.create_task(audit_log.append(events(128))) for _ in range(QUEUE_EVENTS // 128 + 8)]
    answers = await asyncio.gather(*requests, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, Refusal)]
    assert refused
    assert {one.reason for one in refused} == {error_reason_pb2.ERROR_REASON_OVERLOADED}
    assert all(one.retry_after for one in refused)
    assert (await audit_log.verify()).events == 128 * (len(answers) - len(refused))


async def test_a_flooder_leaves_room_for_the_others(audit_log: Audit) -> None:
    """While one writer fills its part and more, another's event is accepted, and is in the next commit but one."""
    flood = [asyncio.create_task(audit_log.append(events(128), "service/ingest")) for _ in range(40)]
    await asyncio.sleep(0)
    other = await audit_log.append([event()], "service/gateway")
    assert other[0] <= 2 * 128 + 1
    answers = await asyncio.gather(*flood, return_exceptions=True)
    assert sum(isinstance(one, Refusal) for one in answers) >= 40 - (WRITER_EVENTS // 128) - 2
    assert (await audit_log.verify()).intact


async def test_writers_take_turns() -> None:
    """A commit takes one request of each writer in turn, each writer's in order, up to its size, at least one."""
    loop, room = asyncio.get_running_loop(), WaitingRoom()

    def wait(writer: str, count: int) -> Waiter:
        waiter = Waiter(writer, events(count), loop.create_future())
        room.add(waiter)
        return waiter

    first, second, third = wait("a", 60), wait("a", 60), wait("a", BATCH_EVENTS * 2)
    left, lone = wait("b", 30), wait("c", 8)
    left.sequences.cancel()
    assert room.take() == [first, lone, second]
    assert room.take() == [third]
    assert not room
    for number in range(QUEUE_EVENTS // WRITER_EVENTS):
        wait(f"w{number}", WRITER_EVENTS)
    for writer in ("w0", "late"):
        with pytest.raises(Refusal) as raised:
            wait(writer, 1)
        assert raised.value.reason == error_reason_pb2.ERROR_REASON_OVERLOADED
    assert len(room.take_all()) == QUEUE_EVENTS // WRITER_EVENTS
    wait("late", 1)


async def test_a_caller_that_left_is_not_appended(audit_log: Audit) -> None:
    """A request whose caller gave up before its commit leaves nothing behind, and hurts nobody else."""
    given_up = asyncio.create_task(audit_log.append([event()]))
    await asyncio.sleep(0)
    given_up.cancel()
    assert await audit_log.append([event()]) == [1]


async def test_two_sequencers_cannot_both_append(audit_log: Audit, tmp_path: Path) -> None:
    """A second sequencer waits at the lock and refuses; it takes over, from the true head, when the first ends."""
    with pytest.raises(LogIsTaken):
        await PostgresAppender.open(audit_log.database.dsn("audit"), "")
    await audit_log.append(events(3))
    second = opened(audit_log.database, CheckpointFile(audit_log.key, tmp_path / "second.jsonl"))
    stop = asyncio.Event()
    running = asyncio.create_task(second.run(stop))
    try:
        with pytest.raises(Refusal):
            await second.append(events(1), "service/router")
        await _cut_off(audit_log, "opsmesh-audit-sequencer")

        async def either() -> None:
            for sequencer in (second, audit_log.sequencer):
                if await sequencer.ready():
                    await sequencer.append([event()], "service/router")
                    return
            raise LogIsTaken

        await until(either, "the log", 60, Refusal, LogIsTaken, pause=0.01)
        assert not (await second.ready() and await audit_log.sequencer.ready())
        report = await audit_log.verify()
        assert (report.intact, report.events) == (True, 4)
    finally:
        stop.set()
        await running


async def test_two_appenders_without_the_lock_cannot_fork(audit_log: Audit) -> None:
    """Even an appender that got past the lock with an old head is refused by the database."""
    await audit_log.append(events(2))
    connection = await asyncpg.connect(audit_log.database.dsn("audit"))
    rogue = opened(audit_log.database, audit_log.checkpoints)
    rogue._head = audit_log.sequencer.head
    await audit_log.append(events(1))
    appender = PostgresAppender(connection)
    made = event()
    make_storable(made, "service/router")
    rogue._is_open = True
    waiting = asyncio.create_task(rogue.append([made], "service/router"))
    await asyncio.sleep(0)
    with pytest.raises(asyncpg.IntegrityConstraintViolationError):
        await rogue._commit(appender, rogue._waiters.take())
    with pytest.raises(Refusal):
        await waiting
    await connection.close()
    report = await audit_log.verify()
    assert (report.intact, report.events) == (True, 3)


async def _cut_off(audit_log: Audit, application: str) -> None:
    """Kill the backend of an application's connections."""
    connection = await asyncpg.connect(audit_log.database.dsn("postgres"))
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = $1 AND datname = current_database()",
        application,
    )
    await connection.close()


async def test_a_lost_connection_heals(audit_log: Audit) -> None:
    """After PostgreSQL dropped the sequencer's connection, callers are refused for a moment and then served."""
    await audit_log.append(events(3))
    await _cut_off(audit_log, "opsmesh-audit-sequencer")
    await audit_log.append_again(event())
    report = await audit_log.verify()
    assert (report.intact, report.events) == (True, 4)
