"""Approvals over the real chain: bound to exact bytes, and no answer means no."""

import asyncio
import time
import uuid
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from opsmesh.guardrails.v1 import approval_service_pb2 as pb
from opsmesh.guardrails.v1 import guardrails_service_pb2 as judging
from services.mesh import policy
from tests.guardrails.world import RESTART, House, Rule, failures, reason_of, restart, rule


def asks(**ttl: int) -> Rule:
    """Return a rule that asks a person for everything, by default for five minutes."""
    made = rule("ask", "REQUIRE_APPROVAL")
    made.approval.ttl_duration.CopyFrom(Duration(**ttl))
    return made


async def listed(home: House, **fields: Any) -> list[pb.Approval]:
    """Return all approvals that a filter matches, page by page."""
    found: list[pb.Approval] = []
    request = pb.ListApprovalsRequest(page_size=2, **fields)
    while True:
        answer = await home.approvals().ListApprovals(request)
        found += answer.approvals
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token


async def test_what_needs_a_person_waits_for_one(home: House) -> None:
    """REQUIRE_APPROVAL makes one PENDING approval with everything that a person must see, and no grant."""
    await home.publish(asks())
    context, request = await home.ready(), restart()
    answer = await home.authorize(request, context)
    assert answer.judgement.verdict == judging.VERDICT_REQUIRE_APPROVAL
    assert not answer.grant
    approval = (await home.approvals().GetApproval(pb.GetApprovalRequest(approval_id=answer.approval_id))).approval
    assert approval.state == pb.Approval.STATE_PENDING
    assert approval.method == RESTART
    assert approval.request_digest == policy.digest(RESTART, request).hex()
    assert (approval.requester, approval.request_id) == ("service/automation", request.request_id)
    assert approval.judgement.request_json.startswith('{"request_id"')
    assert dict(approval.judgement.precondition) == {"process_id": "41", "state": "STATE_RUNNING"}
    assert approval.context == context
    assert approval.expire_time.seconds - approval.create_time.seconds == 300
    event = next(one for one in await home.events(3) if one.action.endswith("AuthorizeAction"))
    assert event.reason == "APPROVAL_PENDING"


async def test_the_same_question_is_asked_once(home: House) -> None:
    """Ten authorisations of the same bytes at once share one approval; other bytes and callers have their own."""
    await home.publish(asks())
    context, request = await home.ready(), restart()
    answers = await asyncio.gather(*(home.authorize(request, context) for _ in range(10)))
    assert len({one.approval_id for one in answers}) == 1
    request.reason = "another"
    assert (await home.authorize(request, context)).approval_id != answers[0].approval_id
    assert len(await listed(home)) == 2


async def test_no_answer_means_no(home: House) -> None:
    """An approval is EXPIRED soon after its time, and the action is denied from then on."""
    await home.publish(asks(seconds=1))
    context, request = await home.ready(), restart()
    answer = await home.authorize(request, context)
    expires = answer.expire_time.ToNanoseconds() / 1e9
    states = "SELECT state FROM guardrails.approvals"
    async with asyncio.timeout(20):
        while (await home.fetch(states))[0]["state"] == "PENDING":
            assert time.time() < expires + 5.0
    assert time.time() >= expires
    again = await home.authorize(request, context)
    assert again.judgement.verdict == judging.VERDICT_DENY
    assert failures(again) == {"policy": "APPROVAL_EXPIRED"}
    assert again.approval_id == answer.approval_id
    approval = (await home.approvals().GetApproval(pb.GetApprovalRequest(approval_id=answer.approval_id))).approval
    assert approval.state == pb.Approval.STATE_EXPIRED


async def test_time_is_over_before_the_sweep(home: House) -> None:
    """An approval whose time is over counts as EXPIRED even where the sweeper has not passed."""
    await home.publish(asks())
    context, request = await home.ready(), restart()
    await home.authorize(request, context)
    # Whether the sweeper comes in between or not: the answer is the same.
    await home.fetch("UPDATE guardrails.approvals SET expire_time = clock_timestamp() RETURNING state")
    assert failures(await home.authorize(request, context)) == {"policy": "APPROVAL_EXPIRED"}


async def test_approvals_are_listed_newest_first(home: House) -> None:
    """Lists are paged, newest first, and filtered by state and incident."""
    await home.publish(asks())
    context = await home.ready()
    asked = [(await home.authorize(restart(), context)).approval_id for _ in range(5)]
    assert [one.approval_id for one in await listed(home)] == asked[::-1]
    assert len(await listed(home, state=pb.Approval.STATE_PENDING)) == 5
    assert await listed(home, state=pb.Approval.STATE_EXPIRED) == []
    assert len(await listed(home, incident_id=context.incident_id)) == 5
    assert await listed(home, incident_id=str(uuid.uuid4())) == []


async def test_an_unknown_approval_is_not_found(home: House) -> None:
    """GetApproval of an id that nobody gave out is NOT_FOUND."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await home.approvals().GetApproval(pb.GetApprovalRequest(approval_id=str(uuid.uuid4())))
    assert reason_of(raised.value) == "NOT_FOUND"


async def test_a_policy_that_changed_its_mind_is_heard(home: House) -> None:
    """A pending action is judged anew: once policy allows it, the same request is granted."""
    await home.publish(asks())
    context, request = await home.ready(), restart()
    assert not (await home.authorize(request, context)).grant
    version = await home.publish()
    answer = await home.authorize(request, context)
    assert home.opened(answer.grant).policy_set_version == version == 2
