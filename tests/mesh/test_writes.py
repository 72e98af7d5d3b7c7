"""Writes happen once, and audit learns of them, whatever fails in between."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import grpc.aio
import pytest

from opsmesh.audit.v1 import audit_service_pb2 as pb
from opsmesh.automation.v1 import playbook_service_pb2 as playbooks
from opsmesh.type.v1 import error_reason_pb2
from services.mesh import policy
from services.mesh.call import working
from services.mesh.errors import STATUS_KEY, BootError, Refusal, to_status
from services.mesh.postgres import Connection, Pool, answers, check_revision, open_pool
from services.mesh.settings import PostgresSettings
from services.mesh.writes import Subject, Writes, event
from tests.mesh.world import ROOT, World
from tests.stores import Database

INTENT = "opsmesh.automation.v1.PlaybookService/PublishPlaybook"
OUTBOX = "opsmesh.automation.v1.AutomationService/StartExecution"
SUCCEEDED, FAILED = pb.AuditEvent.OUTCOME_SUCCEEDED, pb.AuditEvent.OUTCOME_FAILED


def refused(refusal: Refusal) -> grpc.aio.AioRpcError:
    """Return a refusal as its caller sees it."""
    status = to_status(refusal, "opsmesh.audit").SerializeToString()
    return grpc.aio.AioRpcError(refusal.code, grpc.aio.Metadata(), grpc.aio.Metadata((STATUS_KEY, status)), None, None)


class FakeAudit:
    """Keeps events by id, as the log does; `down` makes it silent, `deaf` makes it keep events and not say so."""

    def __init__(self) -> None:
        self.events: dict[str, pb.AuditEvent] = {}
        self.down = self.deaf = False
        self.poison: dict[str, Refusal] = {}
        self.on_append: Any = None

    async def AppendEvents(self, request: pb.AppendEventsRequest, **_: Any) -> pb.AppendEventsResponse:  # noqa: N802
        """Keep the events, unless down."""
        silence = grpc.aio.AioRpcError(
            grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), None, None
        )
        if self.down:
            raise silence
        for one in request.events:
            if one.event_id in self.poison:
                raise refused(self.poison[one.event_id])
        for one in request.events:
            self.events.setdefault(one.event_id, one)
        if self.on_append:
            await self.on_append()
        if self.deaf:
            raise silence
        return pb.AppendEventsResponse(sequences=[1] * len(request.events))

    def outcomes(self) -> list[tuple[str, str]]:
        """Return phase and outcome of every event, in order."""
        return [
            (pb.AuditEvent.Phase.Name(one.phase)[6:], pb.AuditEvent.Outcome.Name(one.outcome)[8:])
            for one in self.events.values()
        ]


@pytest.fixture(scope="module")
def settings(database: Database, tmp_path_factory: pytest.TempPathFactory) -> PostgresSettings:
    """Give the settings of gateway on a database of this module."""
    base = World(tmp_path_factory.mktemp("world")).settings("gateway")
    return PostgresSettings(
        **base.model_dump(),
        postgres_dsn=database.dsn("gateway", with_password=False),
        postgres_password_file=database.password_file("gateway"),
    )


@pytest.fixture
async def pool(settings: PostgresSettings) -> AsyncIterator[Pool]:
    """Give the pool of gateway, its house tables empty."""
    async with await open_pool(settings, "gateway") as opened:
        await opened.execute("DELETE FROM requests")
        await opened.execute("DELETE FROM outbox")
        yield opened


@pytest.fixture
def audit() -> FakeAudit:
    """Give an audit log."""
    return FakeAudit()


@pytest.fixture
def writes(pool: Pool, audit: FakeAudit) -> Writes:
    """Give what is tested."""
    return Writes(pool, "gateway", audit)


class Change:
    """A change that counts how often it happened, in a row of the outbox table's transaction."""

    def __init__(self, error: Exception | None = None) -> None:
        self.count = 0
        self.error = error

    async def __call__(self, _: Connection) -> playbooks.PublishPlaybookResponse:
        """Change, or fail."""
        self.count += 1
        if self.error:
            raise self.error
        return playbooks.PublishPlaybookResponse(playbook=playbooks.PlaybookVersion(version=self.count))


@contextmanager
def calling(method: str = INTENT, identity: str = "human/operator", seconds: float = 10) -> Iterator[None]:
    """Be in a call of `method`."""
    with working(identity, method, seconds, policy=policy.method_policy(method)):
        yield


async def publish(writes: Writes, change: Change, request_id: str, method: str = INTENT, **call: Any) -> int:
    """Publish once and return the version in the answer."""
    request = playbooks.PublishPlaybookRequest(request_id=request_id)
    with calling(method, **call):
        answer = await writes.once(request, playbooks.PublishPlaybookResponse, change, Subject(target="t"))
    return answer.playbook.version


async def test_an_intent_comes_before_the_change_and_an_outcome_after_it(writes: Writes, audit: FakeAudit) -> None:
    """Audit acknowledges the intent before anything changes; the outcome follows through the outbox."""
    change = Change()
    seen: list[int] = []

    async def note() -> None:
        seen.append(change.count)

    audit.on_append = note
    await publish(writes, change, str(uuid4()))
    assert audit.outcomes() == [("INTENT", "UNSPECIFIED")]
    assert seen == [0]
    await writes.deliver()
    assert audit.outcomes()[1:] == [("OUTCOME", "SUCCEEDED")]
    assert [one.target for one in audit.events.values()] == ["t", "t"]


@pytest.mark.parametrize("method", [INTENT, OUTBOX])
async def test_the_same_request_gets_the_stored_answer(writes: Writes, audit: FakeAudit, method: str) -> None:
    """A repeated request changes nothing and writes nothing new."""
    change, request_id = Change(), str(uuid4())
    assert await publish(writes, change, request_id, method) == 1
    assert await publish(writes, change, request_id, method) == 1
    await writes.deliver()
    assert change.count == 1
    assert len(audit.events) == (2 if method == INTENT else 1)


@pytest.mark.parametrize("method", [INTENT, OUTBOX])
async def test_ten_at_once_change_once(writes: Writes, method: str) -> None:
    """Concurrent repetitions of one request make one change and get one answer."""
    change, request_id = Change(), str(uuid4())
    versions = await asyncio.gather(*(publish(writes, change, request_id, method) for _ in range(10)))
    assert versions == [1] * 10
    assert change.count == 1


async def test_every_intent_of_a_race_ends(writes: Writes, audit: FakeAudit) -> None:
    """Also the repetitions that lost a race have an outcome for each intent."""
    request_id = str(uuid4())
    await asyncio.gather(*(publish(writes, Change(), request_id) for _ in range(5)))
    await writes.deliver()
    phases = [phase for phase, _ in audit.outcomes()]
    assert phases.count("INTENT") == phases.count("OUTCOME")


@pytest.mark.parametrize("method", [INTENT, OUTBOX])
async def test_other_content_under_the_same_id_is_refused(writes: Writes, method: str) -> None:
    """A used request_id with other content, or by somebody else, is ALREADY_EXISTS."""
    request_id = str(uuid4())
    await publish(writes, Change(), request_id, method)
    with pytest.raises(Refusal, match="REQUEST_ID_REUSED"):
        await publish(writes, Change(), request_id, method, identity="human/approver")
    other = playbooks.PublishPlaybookRequest(request_id=request_id, validate_only=True)
    with calling(method), pytest.raises(Refusal, match="REQUEST_ID_REUSED"):
        await writes.once(other, playbooks.PublishPlaybookResponse, Change())


async def test_without_audit_nothing_changes(writes: Writes, audit: FakeAudit, pool: Pool) -> None:
    """An intent that is not acknowledged refuses the write; the failure is told when audit is back."""
    audit.down = True
    change = Change()
    with pytest.raises(Refusal, match="AUDIT_UNAVAILABLE"):
        await publish(writes, change, str(uuid4()))
    assert change.count == 0
    audit.down = False
    await writes.deliver()
    assert [one.reason for one in audit.events.values()] == ["AUDIT_UNAVAILABLE"]
    assert await pool.fetchval("SELECT count(*) FROM outbox") == 0


async def test_an_intent_whose_acknowledgement_is_lost_still_ends(writes: Writes, audit: FakeAudit) -> None:
    """Audit kept the intent and we never heard: the outcome FAILED follows."""
    audit.deaf = True
    with pytest.raises(Refusal, match="AUDIT_UNAVAILABLE"):
        await publish(writes, Change(), str(uuid4()))
    audit.deaf = False
    await writes.deliver()
    assert audit.outcomes() == [("INTENT", "UNSPECIFIED"), ("OUTCOME", "FAILED")]


async def test_an_outbox_write_does_not_need_audit(writes: Writes, audit: FakeAudit) -> None:
    """What lowers risk goes on while audit is down, and is delivered later."""
    audit.down = True
    assert await publish(writes, Change(), str(uuid4()), OUTBOX) == 1
    with pytest.raises(grpc.aio.AioRpcError):
        await writes.deliver()
    audit.down = False
    await writes.deliver()
    assert audit.outcomes() == [("RECORD", "SUCCEEDED")]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Refusal(error_reason_pb2.ERROR_REASON_NO_POLICY_SET), "NO_POLICY_SET"),
        (RuntimeError("unforeseen"), "INTERNAL"),
    ],
)
async def test_a_failed_change_is_told_and_may_be_tried_again(
    writes: Writes, audit: FakeAudit, error: Exception, reason: str
) -> None:
    """The outcome names the reason; the request_id is free again, because nothing was done."""
    request_id = str(uuid4())
    with pytest.raises(type(error)):
        await publish(writes, Change(error), request_id)
    await writes.deliver()
    assert [one.reason for one in audit.events.values()] == ["", reason]
    assert await publish(writes, Change(), request_id) == 1


async def test_a_crash_between_intent_and_change_ends_as_failed(writes: Writes, audit: FakeAudit, pool: Pool) -> None:
    """When the process dies after the intent, the pessimistic outcome goes out by itself."""
    dying = Change(asyncio.CancelledError())  # type: ignore[arg-type]  # what a killed task sees
    with pytest.raises(asyncio.CancelledError):
        await publish(writes, dying, str(uuid4()))
    await writes.deliver()
    assert audit.outcomes() == [("INTENT", "UNSPECIFIED")]
    await pool.execute("UPDATE outbox SET ready_time = now()")
    await writes.deliver()
    assert audit.outcomes()[1:] == [("OUTCOME", "FAILED")]


async def test_a_change_that_comes_too_late_does_not_happen(writes: Writes, audit: FakeAudit, pool: Pool) -> None:
    """Once FAILED has gone out, the change is rolled back: the log never says less than the truth."""

    class Late(Change):
        async def __call__(self, connection: Connection) -> playbooks.PublishPlaybookResponse:
            await pool.execute("UPDATE outbox SET ready_time = now()")
            await writes.deliver()
            return await super().__call__(connection)

    with pytest.raises(Refusal, match="DEADLINE_EXCEEDED"):
        await publish(writes, Late(), str(uuid4()))
    assert audit.outcomes() == [("INTENT", "UNSPECIFIED"), ("OUTCOME", "FAILED")]
    assert await pool.fetchval("SELECT count(*) FROM requests") == 0


async def test_two_workers_deliver_each_event(writes: Writes, audit: FakeAudit, pool: Pool) -> None:
    """Several workers share the outbox; every event arrives."""
    with calling():
        events = [event(pb.AuditEvent.PHASE_RECORD, SUCCEEDED) for _ in range(250)]
        async with pool.acquire() as connection, connection.transaction():
            await writes.enqueue(connection, *events)
    await asyncio.gather(writes.deliver(), Writes(pool, "gateway", audit).deliver())
    await writes.deliver()
    assert set(audit.events) == {one.event_id for one in events}


async def test_the_worker_is_woken_by_a_commit(writes: Writes, audit: FakeAudit) -> None:
    """The outcome is delivered without waiting for the next round, and the worker stops when told."""
    stop, arrived = asyncio.Event(), asyncio.Event()
    worker = asyncio.create_task(writes.outbox_worker(stop))

    async def note() -> None:
        arrived.set()

    audit.on_append = note
    await publish(writes, Change(), str(uuid4()), OUTBOX)
    await asyncio.wait_for(arrived.wait(), 30)
    stop.set()
    await asyncio.wait_for(worker, 30)


async def test_an_event_that_breaks_its_bounds_never_enters_the_outbox(writes: Writes, pool: Pool) -> None:
    """An event that audit would refuse would block all after it."""
    with calling():
        bad = event(pb.AuditEvent.PHASE_RECORD, SUCCEEDED, event_id=UUID(int=1))
        bad.actor = ""
        async with pool.acquire() as connection:
            with pytest.raises(Refusal, match="INVALID_ARGUMENT"):
                await writes.enqueue(connection, bad)


async def enqueue(writes: Writes, pool: Pool, count: int) -> list[pb.AuditEvent]:
    """Put `count` events into the outbox."""
    with calling():
        events = [event(pb.AuditEvent.PHASE_OUTCOME, SUCCEEDED) for _ in range(count)]
        async with pool.acquire() as connection, connection.transaction():
            await writes.enqueue(connection, *events)
    return events


async def test_an_event_that_audit_refuses_blocks_no_other(writes: Writes, audit: FakeAudit, pool: Pool) -> None:
    """What audit will never take is kept for a later look, and everything around it arrives."""
    events = await enqueue(writes, pool, 3)
    poisoned = events[1].event_id
    audit.poison[poisoned] = Refusal(error_reason_pb2.ERROR_REASON_INVALID_ARGUMENT)
    await writes.deliver()
    assert set(audit.events) == {events[0].event_id, events[2].event_id}
    kept = await pool.fetch("SELECT event_id FROM outbox WHERE ready_time > now() + interval '59 minutes'")
    assert [str(row["event_id"]) for row in kept] == [poisoned]


async def test_an_event_whose_id_was_taken_by_another_writer_is_told_under_a_new_one(
    writes: Writes, audit: FakeAudit, pool: Pool
) -> None:
    """Ids of effects can be guessed: whoever uses one first hides no outcome and holds up no other."""
    events = await enqueue(writes, pool, 3)
    taken = events[0].event_id
    audit.poison[taken] = Refusal(error_reason_pb2.ERROR_REASON_CONFLICT, resource="event", id=taken)
    await writes.deliver()
    await writes.deliver()
    told = [one for one in audit.events.values() if one.details["event_id_taken"] == taken]
    assert len(told) == 1
    assert len(audit.events) == len(events)
    assert await pool.fetchval("SELECT count(*) FROM outbox") == 0


async def test_nobody_but_retention_forgets_stored_answers(writes: Writes, pool: Pool) -> None:
    """How long an answer is kept is a setting: the worker of the outbox deletes none of any age."""
    await publish(writes, Change(), str(uuid4()), OUTBOX)
    await pool.execute("UPDATE requests SET create_time = now() - interval '29 days'")
    stop = asyncio.Event()
    worker = asyncio.create_task(writes.outbox_worker(stop))
    async with asyncio.timeout(40):
        while await pool.fetchval("SELECT count(*) FROM outbox"):
            pass
    stop.set()
    await worker
    assert await pool.fetchval("SELECT count(*) FROM requests") == 1


async def test_the_schema_must_be_of_our_revision(pool: Pool, tmp_path: Path) -> None:
    """A migration that was not run is a boot error that says how to run it."""
    await check_revision(pool, ROOT / "services" / "gateway" / "migrations")
    (tmp_path / "209911210000_later.sql").write_text("", encoding="utf-8")
    with pytest.raises(BootError, match=r"209911210000\. NEXT: opsmesh migrate"):
        await check_revision(pool, tmp_path)
    assert await answers(pool)


async def test_a_wrong_password_is_a_boot_error(settings: PostgresSettings, tmp_path: Path) -> None:
    """Scram says no; the message does not repeat the password."""
    wrong = tmp_path / "password"
    wrong.write_text("hunter2", encoding="utf-8")
    with pytest.raises(BootError) as raised:
        await open_pool(settings.model_copy(update={"postgres_password_file": wrong}), "gateway")
    assert "hunter2" not in str(raised.value)
