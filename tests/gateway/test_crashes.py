"""The gateway is killed at each boundary of an effect; what is left is resolved to what truly happened."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import asyncpg
import grpc.aio
import pytest

from opsmesh.audit.v1 import audit_service_pb2
from opsmesh.gateway.v1 import effect_service_pb2
from opsmesh.tools.workload.v1 import workload_tool_service_pb2 as workload_pb
from services.gateway.domain import Key, intent_id
from services.local.supervise import call
from services.local.waiting import until
from services.mesh.errors import Refusal
from tests.gateway.world import PROGRAM, RESTART, Mesh, RestartRequest

Event = audit_service_pb2.AuditEvent
State = effect_service_pb2.Effect
STOP, START, INFO = "supervisor.stopProcess", "supervisor.startProcess", "supervisor.getProcessInfo"
# A gateway whose lane resolves nothing.
ASLEEP = """
import sys
from services.__main__ import main
from services.gateway.resolver import Resolver

async def sleep(resolver):
    pass

Resolver.sweep = sleep
sys.exit(main(["gateway"]))
"""


async def killed_while(mesh: Mesh, request: RestartRequest, held: asyncio.Event, grant: bytes) -> None:
    """Begin an effect, kill the gateway when `held` says that it has come to the boundary, and start it again."""

    async def begin() -> None:
        with suppress(Refusal, grpc.aio.AioRpcError):
            await mesh.call(request, grant)

    calling = asyncio.create_task(begin())
    try:
        await asyncio.wait_for(held.wait(), 40)
        await mesh.stop_hard()
    finally:
        calling.cancel()
        held.clear()
        mesh.audit.mode = "keep"
    await mesh.start()


@asynccontextmanager
async def locked(mesh: Mesh, table: str, mode: str) -> AsyncIterator[None]:
    """Lock a table of the gateway's, so that it waits in the middle of a transaction; let go at the end."""
    connection = await asyncpg.connect(mesh.database.dsn("postgres"))
    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE gateway.{table} IN {mode} MODE")
            yield
    finally:
        await connection.close()


async def waiting(mesh: Mesh, words: str) -> None:
    """Wait until the gateway waits for a lock in a statement with these words."""

    async def look() -> None:
        statement = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND position($1 IN query) > 0"
        assert await mesh.execute(statement, words)

    await until(look, words, 40, AssertionError)


@pytest.mark.parametrize(("table", "words"), [("effects", "INSERT INTO effects"), ("fences", "INSERT INTO fences")])
async def test_killed_in_transaction_1(mesh: Mesh, table: str, words: str) -> None:
    """Before the row, or between the row and the fence: there is no row, and the same request is done, once."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    grant = mesh.sign(await mesh.mint(request))
    async with locked(mesh, table, "EXCLUSIVE"):
        calling = asyncio.create_task(mesh.call(request, grant))
        await waiting(mesh, words)
        await mesh.stop_hard()
    with pytest.raises(grpc.aio.AioRpcError):
        await calling
    assert await mesh.rows(request) == 0
    await mesh.start()
    # Minted anew: the first one may have expired while the gateway started on a busy machine.
    assert (await mesh.call(request, mesh.sign(await mesh.mint(request)))).process_id
    assert mesh.workload.start_count() == starts + 1
    assert [one.details["try"] for one in mesh.audit.of(request.request_id, Event.PHASE_INTENT)] == ["1"]


async def test_killed_before_the_precondition_is_read(mesh: Mesh) -> None:
    """The intent is acknowledged, the state not read yet: FAILED, never done."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    grant = mesh.sign(await mesh.mint(request))
    mesh.proxy.hold = ("before", INFO)
    await killed_while(mesh, request, mesh.proxy.held, grant)
    await assert_failed(mesh, request, grant, "was not restarted")
    assert mesh.workload.start_count() == starts


async def test_killed_between_the_precondition_and_the_other_last_checks(mesh: Mesh) -> None:
    """The state was as granted, the fence is just being read: FAILED, never done."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    grant = mesh.sign(await mesh.mint(request))
    mesh.proxy.hold = ("before", INFO)
    calling = asyncio.create_task(mesh.call(request, grant))
    await asyncio.wait_for(mesh.proxy.held.wait(), 40)
    mesh.proxy.held.clear()
    async with locked(mesh, "fences", "ACCESS EXCLUSIVE"):
        mesh.proxy.release()
        await waiting(mesh, "SELECT fence FROM fences")
        await mesh.stop_hard()
    with pytest.raises(grpc.aio.AioRpcError):
        await calling
    await mesh.start()
    await assert_failed(mesh, request, grant, "was not restarted")
    assert mesh.workload.start_count() == starts


async def test_killed_in_transaction_2(mesh: Mesh) -> None:
    """The act is done and its outcome not written: SUCCEEDED once it is resolved, and the answer is given."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    grant = mesh.sign(await mesh.mint(request))
    mesh.proxy.hold = ("after", START)
    calling = asyncio.create_task(mesh.call(request, grant))
    await asyncio.wait_for(mesh.proxy.held.wait(), 40)
    mesh.proxy.held.clear()
    async with locked(mesh, "effects", "EXCLUSIVE"):
        mesh.proxy.release()
        await waiting(mesh, "UPDATE effects SET state = $4")
        await mesh.stop_hard()
    with pytest.raises(grpc.aio.AioRpcError):
        await calling
    await mesh.start()
    await mesh.let_pass(request)
    assert (await mesh.call(request, grant)).process_id
    assert mesh.workload.start_count() == starts + 1
    await mesh.until(lambda: mesh.audit.of(request.request_id, Event.PHASE_OUTCOME))
    assert [one.outcome for one in mesh.audit.of(request.request_id, Event.PHASE_OUTCOME)] == [Event.OUTCOME_SUCCEEDED]


async def test_killed_before_the_intent_was_kept(mesh: Mesh) -> None:
    """No intent, so NOT_STARTED: before the deadline EFFECT_IN_FLIGHT, after it the same request is done, once."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    grant = mesh.sign(await mesh.mint(request))
    mesh.audit.mode = "hold"
    await killed_while(mesh, request, mesh.audit.held, grant)
    with pytest.raises(Refusal, match="EFFECT_IN_FLIGHT") as caught:
        await mesh.call(request, grant)
    assert caught.value.retry_after == 0.5
    await mesh.let_pass(request)
    assert (await mesh.effect(request)).state == State.STATE_NOT_STARTED
    assert mesh.workload.start_count() == starts
    assert (await mesh.call(request, mesh.sign(await mesh.mint(request)))).process_id
    assert mesh.workload.start_count() == starts + 1
    # The outcome of the second try is the only one: the first has no intent.
    await mesh.until(lambda: mesh.audit.of(request.request_id, Event.PHASE_OUTCOME))
    assert [one.details["try"] for one in mesh.audit.of(request.request_id, Event.PHASE_INTENT)] == ["2"]


async def test_an_intent_that_somebody_else_wrote_is_none(mesh: Mesh) -> None:
    """The id of an intent can be guessed: an event of another writer under it does not say that we had begun."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    forged = str(intent_id(Key(RESTART, uuid.UUID(request.request_id)), 1))
    mesh.audit.mode = "hold"
    await killed_while(mesh, request, mesh.audit.held, mesh.sign(await mesh.mint(request)))
    mesh.audit.events[forged] = Event(event_id=forged, writer="service/router", phase=Event.PHASE_INTENT)
    await mesh.let_pass(request)
    assert (await mesh.effect(request)).state == State.STATE_NOT_STARTED
    assert mesh.workload.start_count() == starts


async def test_killed_after_the_intent_before_the_act(mesh: Mesh) -> None:
    """An intent and the same process: FAILED, stored, on record, and never done."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    grant = mesh.sign(await mesh.mint(request))
    mesh.audit.mode = "swallow"
    await killed_while(mesh, request, mesh.audit.held, grant)
    await assert_failed(mesh, request, grant, "was not restarted")
    assert mesh.workload.start_count() == starts


async def test_killed_while_the_stop_is_on_its_way(mesh: Mesh) -> None:
    """The stop never arrived: FAILED, the process runs on."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    grant = mesh.sign(await mesh.mint(request))
    mesh.proxy.hold = ("before", STOP)
    await killed_while(mesh, request, mesh.proxy.held, grant)
    await assert_failed(mesh, request, grant, "was not restarted")
    assert mesh.workload.start_count() == starts


@pytest.mark.parametrize("boundary", [("after", STOP), ("before", START)])
async def test_killed_between_stop_and_start(mesh: Mesh, boundary: tuple[str, str]) -> None:
    """The workload is found stopped: FAILED; a new request brings it up."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    grant = mesh.sign(await mesh.mint(request))
    mesh.proxy.hold = boundary
    await killed_while(mesh, request, mesh.proxy.held, grant)
    await assert_failed(mesh, request, grant, "does not run")
    again = mesh.restart()
    answer = await mesh.call(again, mesh.sign(await mesh.mint(again)))
    assert (answer.previous_process_id, mesh.workload.start_count()) == (0, starts + 1)


async def test_killed_after_the_start_before_its_answer(mesh: Mesh) -> None:
    """Another process runs: SUCCEEDED, and the same request gets an answer that says so, without another restart."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    grant = mesh.make(request, found := await mesh.found())
    mesh.proxy.hold = ("after", START)
    await killed_while(mesh, request, mesh.proxy.held, mesh.sign(grant))
    await mesh.let_pass(request)
    answer = await mesh.call(request, mesh.sign(grant))
    now = await mesh.found()
    assert answer == workload_pb.RestartWorkloadResponse(
        previous_process_id=int(found["process_id"]),
        process_id=int(now["process_id"]),
        state=workload_pb.Workload.STATE_RUNNING,
    )
    assert mesh.workload.start_count() == starts + 1
    await mesh.until(lambda: mesh.audit.of(request.request_id, Event.PHASE_OUTCOME))
    assert mesh.audit.of(request.request_id, Event.PHASE_OUTCOME)[0].outcome == Event.OUTCOME_SUCCEEDED


async def test_killed_after_the_outcome_was_written(mesh: Mesh) -> None:
    """Transaction 2 is done, the delivery of its outcome is not: the outbox delivers it, the answer is stored."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    grant = mesh.sign(await mesh.mint(request))
    mesh.proxy.hold = ("after", START)
    calling = asyncio.create_task(mesh.call(request, grant))
    await asyncio.wait_for(mesh.proxy.held.wait(), 40)
    mesh.proxy.held.clear()
    mesh.audit.mode = "hold"
    mesh.proxy.release()
    first = await calling
    await asyncio.wait_for(mesh.audit.held.wait(), 40)
    await mesh.stop_hard()
    mesh.audit.held.clear()
    mesh.audit.mode = "keep"
    await mesh.start()
    assert await mesh.call(request, grant) == first
    await mesh.until(lambda: mesh.audit.of(request.request_id, Event.PHASE_OUTCOME))
    assert mesh.workload.start_count() == starts + 1


async def test_the_lane_resolves_without_being_asked(mesh: Mesh) -> None:
    """A due effect is resolved by the gateway itself."""
    request = mesh.restart()
    grant = mesh.sign(await mesh.mint(request))
    mesh.audit.mode = "swallow"
    await killed_while(mesh, request, mesh.audit.held, grant)
    await mesh.let_pass(request)
    await mesh.until(lambda: mesh.audit.of(request.request_id, Event.PHASE_OUTCOME))
    assert mesh.audit.of(request.request_id, Event.PHASE_OUTCOME)[0].outcome == Event.OUTCOME_FAILED


@pytest.mark.parametrize("read", [False, True])
async def test_whoever_asks_resolves_what_is_due(mesh: Mesh, *, read: bool) -> None:
    """While the lane sleeps a due effect is resolved by the same call again, or by whoever reads the effect."""
    request = mesh.restart()
    grant = mesh.sign(await mesh.mint(request))
    state = "SELECT state FROM gateway.effects WHERE request_id = $1::text::uuid"

    async def asked() -> None:
        with suppress(Refusal):
            await (mesh.effect(request) if read else mesh.call(request, grant))
        assert await mesh.execute(state, request.request_id) == "FAILED"

    mesh.audit.mode, mesh.program = "swallow", ("-c", ASLEEP)
    try:
        await killed_while(mesh, request, mesh.audit.held, grant)
        await mesh.overdue(request)
        # More than once only where audit or the workload is too slow to tell.
        await until(asked, "its end", 40, AssertionError)
    finally:
        mesh.program = PROGRAM
        await mesh.stop()
        await mesh.start()


async def test_an_effect_of_a_tool_that_is_gone_is_unknown(mesh: Mesh) -> None:
    """After an upgrade that dropped a tool its lost effects end as UNKNOWN, and the other due ones are resolved."""
    gone, other = "opsmesh.tools.gone.v1.GoneToolService/Undo", mesh.restart()
    request = mesh.restart()
    grant = mesh.sign(await mesh.mint(request))
    mesh.audit.mode = "swallow"
    await killed_while(mesh, request, mesh.audit.held, grant)
    rename = "UPDATE gateway.effects SET method = $2, target_id = 'gone' WHERE request_id = $1::text::uuid"
    await mesh.execute(rename, request.request_id, gone)
    intent = mesh.audit.of(request.request_id, Event.PHASE_INTENT)[0]
    mesh.audit.events[str(intent_id(Key(gone, uuid.UUID(request.request_id)), 1))] = intent
    await mesh.let_pass(request)
    state = "SELECT state FROM gateway.effects WHERE request_id = $1::text::uuid"

    async def ended() -> None:
        assert await mesh.execute(state, request.request_id) == "UNKNOWN"

    await until(ended, "its end", 40, AssertionError)
    assert (await mesh.call(other, mesh.sign(await mesh.mint(other)))).process_id


async def test_a_silent_backend_is_unknown_after_ten_tries_and_a_person_settles_it(mesh: Mesh) -> None:
    """EFFECT_UNKNOWN is stored and never repeated; SettleEffect ends it, once, under the person's name."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    grant = mesh.sign(await mesh.mint(request))
    mesh.proxy.hold = ("before", STOP)
    await killed_while(mesh, request, mesh.proxy.held, grant)
    await mesh.execute(
        "UPDATE gateway.effects SET resolve_tries = 9 WHERE request_id = $1::text::uuid", request.request_id
    )
    mesh.proxy.deaf = True
    try:
        await mesh.let_pass(request)
        with pytest.raises(Refusal, match="EFFECT_UNKNOWN"):
            await mesh.call(request, grant)
    finally:
        mesh.proxy.deaf = False
    with pytest.raises(Refusal, match="EFFECT_UNKNOWN"):
        await mesh.call(request, grant)
    assert mesh.workload.start_count() == starts
    assert [one.outcome for one in mesh.audit.of(request.request_id, Event.PHASE_OUTCOME)] in (
        [],
        [Event.OUTCOME_UNKNOWN],
    )
    settled = await mesh.settle(request, State.STATE_SUCCEEDED, "I looked at it")
    assert (settled.state, settled.settler) == (State.STATE_SUCCEEDED, "human/operator")
    with pytest.raises(Refusal, match="CONFLICT"):
        await mesh.settle(request, State.STATE_FAILED, "no, I did not")
    assert await mesh.call(request, grant) == workload_pb.RestartWorkloadResponse()


async def test_a_stopping_gateway_finishes_what_it_began(mesh: Mesh) -> None:
    """SIGTERM while the tool acts: the effect ends SUCCEEDED before the process does, with exit code 0."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    grant = mesh.sign(await mesh.mint(request))
    mesh.proxy.hold = ("before", STOP)
    calling = asyncio.create_task(mesh.call(request, grant))
    await asyncio.wait_for(mesh.proxy.held.wait(), 40)
    mesh.proxy.held.clear()
    stopping = asyncio.create_task(mesh.stop())
    await mesh.until(lambda: mesh.process is None)
    mesh.proxy.release()
    assert (await calling).process_id
    assert await stopping == 0
    assert mesh.workload.start_count() == starts + 1
    await mesh.start()
    assert (await mesh.effect(request)).state == State.STATE_SUCCEEDED


async def assert_failed(mesh: Mesh, request: RestartRequest, grant: bytes, words: str) -> None:
    """Let the deadline pass: EFFECT_FAILED with these words, the same again, and one outcome FAILED on record."""
    await mesh.let_pass(request)
    for _ in range(2):
        with pytest.raises(Refusal, match="EFFECT_FAILED") as caught:
            await mesh.call(request, grant)
        assert words in caught.value.metadata["detail"]
    await mesh.until(lambda: mesh.audit.of(request.request_id, Event.PHASE_OUTCOME))
    assert [one.outcome for one in mesh.audit.of(request.request_id, Event.PHASE_OUTCOME)] == [Event.OUTCOME_FAILED]


async def test_supervisord_still_answers_its_owner(mesh: Mesh) -> None:
    """After all of this the process manager's own view is one running process."""
    info = await asyncio.to_thread(call, mesh.workload.instance, "supervisor.getProcessInfo", "checkout")
    assert info["statename"] == "RUNNING"
