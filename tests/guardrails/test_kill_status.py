"""What is told about kills: to people by status, to services by leases."""

import time
import uuid

import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from services.guardrails.kills import lease as leases
from tests.guardrails.killing import Kill, Stop, engage, lease, release, report, status
from tests.guardrails.world import (
    CHECKOUT,
    House,
    failures,
    reason_of,
    restart,
)

REPORTERS = {"service/automation", "service/agents", "service/gateway"}


async def test_status_says_who_has_stopped(home: House) -> None:
    """A kill names who has not reported; each report replaces what was said of a subject; what goes on comes first."""
    kill = await engage(home)
    (found,) = await status(home)
    assert {one.reporter for one in found.stops} == REPORTERS
    assert {one.state for one in found.stops} == {Stop.STATE_NOT_REPORTED}
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    execution, going = Stop.KIND_EXECUTION, Stop.STATE_UNSTOPPED
    await report(home, kill, *(Stop(kind=execution, subject=one, state=going) for one in (first, second)))
    await report(home, kill, name="agents")
    deadline = Timestamp(seconds=int(time.time()) + 30)
    flight = Stop(kind=Stop.KIND_EFFECT, subject=first, state=Stop.STATE_IN_FLIGHT, deadline_time=deadline)
    await report(home, kill, flight, name="gateway")
    await report(home, kill, Stop(kind=Stop.KIND_EXECUTION, subject=first, state=Stop.STATE_STOPPED))
    (found,) = await status(home, kill)
    told = [(one.reporter, one.kind, one.subject, one.state) for one in found.stops]
    assert told == [
        ("service/automation", Stop.KIND_EXECUTION, second, Stop.STATE_UNSTOPPED),
        ("service/gateway", Stop.KIND_EFFECT, first, Stop.STATE_IN_FLIGHT),
        ("service/automation", Stop.KIND_EXECUTION, first, Stop.STATE_STOPPED),
    ]
    assert found.stops[1].deadline_time == deadline
    assert all(one.HasField("report_time") for one in found.stops)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await report(home, Kill(kill_id=str(uuid.uuid4())))
    assert reason_of(raised.value) == "NOT_FOUND"


async def test_what_was_told_to_stop_stays_stopped(home: House) -> None:
    """An execution that was ever reported under a kill gets no grant, also after the release; another one does."""
    await home.publish()
    context = await home.ready()
    kill = await engage(home)
    await report(home, kill, Stop(kind=Stop.KIND_EXECUTION, subject=context.execution_id, state=Stop.STATE_UNSTOPPED))
    await release(home, kill, "operator", "approver")
    assert failures(await home.authorize(restart(), context)) == {"safety": "KILLED"}
    await home.fetch("UPDATE guardrails.locks SET expire_time = now() RETURNING true")
    assert (await home.authorize(restart(), await home.ready())).grant


async def test_followers_hear_at_once(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever follows leases is woken by an Engage and a Release within a quarter of a second, whenever it looks."""
    monkeypatch.setattr(leases, "LOOK_SECONDS", 30.0)
    stream = home.leases("automation").WatchLease(pb.WatchLeaseRequest(instance="test"))
    told = aiter(stream)
    assert not (await anext(told)).lease.kills
    engaged, released = [], []
    for number in range(1, 6):
        kill = await engage(home, pb.KillScope(target_id=CHECKOUT))
        asked = time.monotonic()
        named = {one.kill_id: one for one in (await anext(told)).lease.kills}[kill.kill_id]
        engaged.append(time.monotonic() - asked)
        assert (named.epoch, named.released) == (kill.epoch, False)
        await release(home, kill)
        asked = time.monotonic()
        assert [one.released for one in (await anext(told)).lease.kills] == [True] * number
        released.append(time.monotonic() - asked)
    # The quickest: a busy machine may hold up any of them, but a look comes only every 30 s.
    assert min(engaged) < 0.25
    assert min(released) < 0.25
    stream.cancel()


async def test_a_released_kill_leaves_the_lease(home: House) -> None:
    """A lease names a released kill for a minute, longer than any grant lives, and not after that."""
    kill = await engage(home, pb.KillScope(target_id=CHECKOUT))
    await release(home, kill)
    for age, count in ((59, 1), (61, 0)):
        sql = "UPDATE guardrails.kills SET release_time = now() - make_interval(secs => $1) RETURNING true"
        await home.fetch(sql, age)
        assert len((await lease(home)).kills) == count
    assert await status(home) == []
    (found,) = await status(home, include_released=True)
    assert found.state == Kill.STATE_RELEASED


async def test_too_many_kills_leave_room_for_everything(home: House) -> None:
    """256 kills are listed in pages, newest first; one more is refused; everything is always possible."""
    await home.fetch(
        "WITH made AS (INSERT INTO guardrails.kills (kill_id, epoch, kind, value, reason, engager) "
        "SELECT gen_random_uuid(), n, 'environment', 'e' || n, 'a test', 'human/operator' "
        "FROM generate_series(1, 256) AS n) UPDATE guardrails.state SET kill_epoch = 256 RETURNING true"
    )
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await engage(home, pb.KillScope(environment="demo"))
    assert reason_of(raised.value) == "OVERLOADED"
    assert "engage everything" in str(raised.value.details())
    assert (await engage(home)).epoch == 257
    seen, token = [], ""
    while True:
        answer = await home.leases("operator").GetStatus(pb.GetStatusRequest(page_size=100, page_token=token))
        seen += [kill.epoch for kill in answer.kills]
        token = answer.next_page_token
        if not token:
            break
    assert seen == list(range(257, 0, -1))
    assert len((await lease(home)).kills) == 257
