"""Who engages and who lets go: one person or several, once each, on record."""

import asyncio
import uuid

import grpc.aio
import pytest

from opsmesh.config.v1 import policies_pb2
from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from opsmesh.guardrails.v1 import policy_service_pb2 as policy_pb
from tests.guardrails.killing import EVERYTHING, Kill, engage, release, status
from tests.guardrails.world import (
    CHECKOUT,
    House,
    failures,
    inventory,
    reason_of,
    restart,
    rule,
)


async def test_two_people_release_everything(home: House) -> None:
    """One person leaves a kill of everything RELEASE_PENDING, however often; another lets it go. It holds meanwhile."""
    await home.publish()
    context = await home.ready()
    kill = await engage(home)
    assert (kill.state, kill.releasers_needed, kill.durable) == (Kill.STATE_ENGAGED, 2, True)
    for _ in range(3):
        pending = await release(home, kill, "operator")
        assert (pending.state, list(pending.releasers)) == (Kill.STATE_RELEASE_PENDING, ["human/operator"])
    assert failures(await home.authorize(restart(), context)) == {"safety": "KILLED"}
    done = await release(home, kill, "approver")
    assert done.state == Kill.STATE_RELEASED
    assert set(done.releasers) == {"human/operator", "human/approver"}
    assert (await release(home, kill, "approver2")).release_time == done.release_time
    assert (await home.authorize(restart(), context)).grant


async def test_policy_says_how_many_release(home: House) -> None:
    """The policy set may ask three people for everything and two for the rest, or one for everything."""
    await home.publish()
    for everything, others in ((3, 2), (1, 1)):
        request = policy_pb.PublishPolicySetRequest(
            request_id=str(uuid.uuid4()),
            policy_set=policies_pb2.PolicySet(
                rules=[rule("all", "ALLOW")],
                kill_release=policies_pb2.KillRelease(everything=everything, others=others),
            ),
            inventory=inventory(),
        )
        await home.policies().PublishPolicySet(request)
        for scope, needed in ((EVERYTHING, everything), (pb.KillScope(target_id=CHECKOUT), others)):
            kill = await engage(home, scope)
            people = ["operator", "approver", "approver2"]
            for name in people[: needed - 1]:
                assert (await release(home, kill, name)).state == Kill.STATE_RELEASE_PENDING
            assert (await release(home, kill, people[needed - 1])).state == Kill.STATE_RELEASED


async def test_one_person_releases_the_rest(home: House) -> None:
    """A kill of a narrower scope is released by one person, without any policy set, too."""
    kill = await engage(home, pb.KillScope(playbook_id="restart"))
    assert kill.releasers_needed == 1
    assert (await release(home, kill, "approver")).state == Kill.STATE_RELEASED


async def test_the_same_engage_is_one_kill(home: House) -> None:
    """Engage again under the same request_id is the same kill; other content is refused, and so is who may not."""
    request_id = str(uuid.uuid4())
    first, again = [await engage(home, request_id=request_id) for _ in range(2)]
    assert first == again
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await engage(home, pb.KillScope(environment="demo"), request_id=request_id)
    assert reason_of(raised.value) == "REQUEST_ID_REUSED"
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await engage(home, name="automation")
    assert reason_of(raised.value) == "PERMISSION_DENIED"
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await engage(home, pb.KillScope())
    assert reason_of(raised.value) == "INVALID_ARGUMENT"
    assert len(await status(home)) == 1


async def test_audit_down_stops_a_release_and_no_kill(home: House) -> None:
    """With audit down Engage works and its record follows later; Release is refused and the kill holds."""
    home.audit.down = True
    kill = await engage(home)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await release(home, kill)
    assert reason_of(raised.value) == "AUDIT_UNAVAILABLE"
    assert [one.state for one in await status(home)] == [Kill.STATE_ENGAGED]
    home.audit.down = False
    async with asyncio.timeout(40):
        while not any(one.action.endswith("/Engage") for one in home.audit.events.values()):
            home.audit.arrived.clear()
            await home.audit.arrived.wait()
    (engaged,) = (one for one in home.audit.events.values() if one.action.endswith("/Engage"))
    assert engaged.actor == "human/operator"
    assert engaged.details["scope"] == "everything"
    assert engaged.details["kill_id"] == kill.kill_id
