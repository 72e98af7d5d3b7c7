"""What somebody with a real certificate tries beyond what it may: each of these once worked, or nearly."""

import asyncio
import uuid
from datetime import UTC, datetime
from pathlib import Path

import grpc.aio
import pytest

from opsmesh.config.v1 import policies_pb2
from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from services.guardrails.kills.file import Order
from services.guardrails.kills.status import STORED_MAX
from services.local.waiting import until
from tests.guardrails.killing import Stop, engage, lease, release, report, status
from tests.guardrails.people import asks, waiting
from tests.guardrails.world import CHECKOUT, PAYMENTS, House, RestartRequest, failures, house, reason_of, restart
from tests.mesh.world import World
from tests.stores import Database

CAP = policies_pb2.EffectCap(cap_id="one", scope=policies_pb2.EffectCap.SCOPE_TARGET, effects_per_hour=1)


async def test_a_request_id_takes_no_place_of_another_target(home: House) -> None:
    """A request id that was counted for one target is granted for no other, so that no place is taken in vain."""
    await home.publish(effect_caps=[CAP])
    checkout, payments = await home.ready(CHECKOUT), await home.ready(PAYMENTS)
    first, second = restart(CHECKOUT), restart(PAYMENTS)
    assert (await home.authorize(first, checkout)).grant
    assert (await home.authorize(second, payments)).grant
    # The cap of payments is used up; what checkout has paid for is no way around it, and cannot be given back.
    first.target_id = PAYMENTS
    denied = await home.authorize(first, payments)
    assert not denied.grant
    assert failures(denied) == {"policy": "REQUEST_ID_REUSED"}
    rows = await home.fetch("SELECT target_id FROM guardrails.effects_ledger ORDER BY target_id")
    assert [row["target_id"] for row in rows] == [CHECKOUT, PAYMENTS]


async def test_a_service_reports_only_what_it_runs(home: House) -> None:
    """Agents can neither say that an execution has stopped, nor bar one for ever under a kill that it is not in."""
    await home.publish()
    context = await home.ready()
    kill = await engage(home, pb.KillScope(target_id=PAYMENTS))
    lie = Stop(kind=Stop.KIND_EXECUTION, subject=context.execution_id, state=Stop.STATE_STOPPED)
    for name in ("agents", "gateway"):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await report(home, kill, lie, name=name)
        assert reason_of(raised.value) == "INVALID_ARGUMENT"
    (told,) = await status(home, kill)
    assert {stop.state for stop in told.stops} == {Stop.STATE_NOT_REPORTED}
    # The id of an execution, told as that of a run.
    await report(home, kill, Stop(kind=Stop.KIND_RUN, subject=context.execution_id, state=lie.state), name="agents")
    assert (await home.authorize(restart(), context)).grant


async def test_an_execution_once_stopped_stays_so(home: House) -> None:
    """What automation reported is refused for ever, also after the release, whatever request id it comes under."""
    await home.publish()
    context = await home.ready()
    kill = await engage(home, pb.KillScope(target_id=CHECKOUT))
    await report(home, kill, Stop(kind=Stop.KIND_EXECUTION, subject=context.execution_id, state=Stop.STATE_UNSTOPPED))
    await release(home, kill)
    assert failures(await home.authorize(restart(), context)) == {"safety": "KILLED"}


async def test_reports_have_an_end(home: House) -> None:
    """A service can fill no disk with reports: of one kill only so many are kept."""
    kill = await engage(home)
    await home.fetch(
        "INSERT INTO guardrails.kill_stops (kill_id, reporter, kind, subject, state, detail, report_time) "
        "SELECT $1, 'service/agents', 2, n::text, 1, '', now() FROM generate_series(1, $2) AS n RETURNING true",
        uuid.UUID(kill.kill_id),
        STORED_MAX,
    )
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await report(home, kill, Stop(kind=Stop.KIND_RUN, subject="more", state=Stop.STATE_STOPPED), name="agents")
    assert reason_of(raised.value) == "OVERLOADED"
    await report(home, kill, name="agents")


async def test_words_that_the_database_refuses_stop_all_the_same(home: House) -> None:
    """A kill whose reason PostgreSQL cannot store as it is, is stored without it: leases are not lost for ever."""
    await home.publish()
    kill = await engage(home, reason="stop\x00now")
    assert kill.durable
    assert (await lease(home)).kills[0].kill_id == kill.kill_id
    assert (await status(home, kill))[0].reason == "stop now"
    released = await release(home, kill, "operator", "approver")
    assert released.state == pb.Kill.STATE_RELEASED


async def test_words_that_the_database_refuses_are_a_wrong_argument(home: House) -> None:
    """Text with a NUL in an answer is refused by name, not as an unexpected error."""
    await home.publish(asks())
    case = await waiting(home)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await case.reject(comment="no\x00no")
    assert reason_of(raised.value) == "INVALID_ARGUMENT"


async def test_a_request_id_for_two_targets_at_once(home: House) -> None:
    """The same request id for two targets at the same instant is granted for one of them, which is counted."""
    await home.publish(effect_caps=[CAP])
    about = {target: await home.ready(target) for target in (CHECKOUT, PAYMENTS)}
    for _ in range(10):
        await home.fetch("DELETE FROM guardrails.effects_ledger RETURNING true")
        one = restart()
        both = [RestartRequest(request_id=one.request_id, target_id=target, reason="race") for target in about]
        answers = await asyncio.gather(*(home.authorize(each, about[each.target_id]) for each in both))
        (granted,) = [answer.judgement.target_id for answer in answers if answer.grant]
        (row,) = await home.fetch("SELECT target_id FROM guardrails.effects_ledger")
        assert row["target_id"] == granted


async def test_an_id_in_capitals_is_the_same_id(home: House) -> None:
    """A kill of one execution stops it however its id is written."""
    await home.publish()
    context = await home.ready()
    await engage(home, pb.KillScope(execution_id=context.execution_id.upper()))
    assert failures(await home.authorize(restart(), context)) == {"safety": "KILLED"}


async def test_who_publishes_releases_no_kill_alone(home: House) -> None:
    """A policy set that asks for fewer people, published while a kill holds, is none for that kill."""
    await home.publish()
    kill = await engage(home)
    await home.publish(kill_release=policies_pb2.KillRelease(everything=1))
    assert (await release(home, kill, "operator")).state == pb.Kill.STATE_RELEASE_PENDING
    assert (await release(home, kill, "approver")).state == pb.Kill.STATE_RELEASED
    later = await engage(home)
    assert (await release(home, later, "operator")).state == pb.Kill.STATE_RELEASED


async def test_nobody_crowds_a_status_out(home: House) -> None:
    """However much one service reports, people see what the others say, and the answer fits into a message."""
    kills = [await engage(home, pb.KillScope(environment=f"e{n}")) for n in range(12)]
    # It comes last among equals.
    mine = Stop(kind=Stop.KIND_EXECUTION, subject=str(uuid.UUID(int=2**128 - 1)), state=Stop.STATE_UNSTOPPED)
    for kill in kills:
        await report(home, kill, mine)
        await home.fetch(
            "INSERT INTO guardrails.kill_stops (kill_id, reporter, kind, subject, state, detail, report_time) "
            "SELECT $1, 'service/agents', 2, n::text, 2, repeat(chr(128512), 512), now() "
            "FROM generate_series(1, 1000) AS n RETURNING true",
            uuid.UUID(kill.kill_id),
        )
    for told in [*await status(home), *await status(home, kills[0])]:
        assert mine.subject in {stop.subject for stop in told.stops}


async def test_a_kill_that_cannot_be_stored_as_told_stops_everything(
    pki: World, postgres: Database, tmp_path: Path
) -> None:
    """What the file holds is stored in any case: as a kill of everything, which people can see and release."""
    told = Order(
        kill_id=uuid.uuid4(),
        caller="human/operator",
        request_id=uuid.uuid4(),
        digest=b"",
        scope=pb.KillScope(environment="demo"),
        reason="a test",
        engage_time=datetime.now(UTC),
        event=b"no audit event",
    )
    (tmp_path / "kills.jsonl").write_bytes(told.line)
    async with postgres.fresh() as database, house(pki, database, tmp_path) as home:
        stopped = pb.Kill(kill_id=str(told.kill_id))

        async def stored() -> None:
            if not (await status(home, stopped))[0].durable:
                raise LookupError

        await until(stored, "the kill", 40, LookupError)
        (found,) = await status(home)
        assert found.scope.everything
        assert [kill.kill_id for kill in (await lease(home)).kills] == [stopped.kill_id]
        assert (await release(home, stopped, "operator", "approver")).state == pb.Kill.STATE_RELEASED
