"""What people may answer, and what follows: over the real chain, with real certificates."""

import uuid
from typing import Any

import grpc.aio
import pytest

from opsmesh.audit.v1 import audit_service_pb2
from opsmesh.guardrails.v1 import approval_service_pb2 as pb
from opsmesh.guardrails.v1 import guardrails_service_pb2 as judging
from services.mesh import policy
from tests.guardrails.people import APPROVER, SECOND, Approval, Case, approve, asks, read, refused, waiting
from tests.guardrails.world import CHECKOUT, PAYMENTS, RESTART, VAULT, House, failures, reason_of, restart, rule

Event = audit_service_pb2.AuditEvent


async def outcomes(home: House, rpc: str, count: int) -> list[Event]:
    """Wait until audit has so many outcomes or records of an RPC, and return them."""
    while True:
        found = [
            one
            for one in home.audit.events.values()
            if one.action.endswith(f"ApprovalService/{rpc}") and one.phase != Event.PHASE_INTENT
        ]
        if len(found) >= count:
            return found
        await home.events(len(home.audit.events) + 1)


async def test_a_yes_lets_exactly_these_bytes_through(home: House) -> None:
    """One yes to a HIGH action is APPROVED; the same bytes get a grant that names the approval, others ask anew."""
    await home.publish(asks())
    case = await waiting(home)
    shown = case.approval
    assert shown.short_digest == policy.digest(RESTART, case.request).hex()[:12]
    assert (shown.approvers_needed, list(shown.groups_needed), list(shown.votes)) == (1, [], [])
    assert list(shown.requesters) == ["service/automation"]
    assert shown.request == case.request.SerializeToString(deterministic=True)
    done = await case.approve(comment="go on")
    assert done.state == Approval.STATE_APPROVED
    vote = done.votes[0]
    assert (vote.person, vote.answer, list(vote.groups)) == ("human/approver", pb.Vote.ANSWER_APPROVE, ["ops"])
    assert vote.comment == "go on"
    assert 299 <= done.execute_before_time.seconds - vote.vote_time.seconds <= 301
    answer = await case.again()
    assert answer.judgement.verdict == judging.VERDICT_ALLOW
    assert answer.approval_id == case.approval_id
    grant = home.opened(answer.grant)
    assert grant.approval_id == case.approval_id
    assert grant.request_digest == policy.digest(RESTART, case.request)
    assert dict(grant.precondition) == dict(shown.judgement.precondition)
    assert (await case.now()).HasField("execute_time")
    case.request.reason = "another"
    other = await case.again()
    assert not other.grant
    assert other.approval_id != case.approval_id
    done_event = (await outcomes(home, "Approve", 1))[0]
    assert (done_event.outcome, done_event.actor) == (Event.OUTCOME_SUCCEEDED, "human/approver")
    assert (done_event.target, done_event.environment) == (CHECKOUT, "demo")
    assert done_event.details["approval_id"] == case.approval_id


async def test_a_no_is_final(home: House) -> None:
    """A rejected action is denied with who said no and why, cannot be approved any more, and stays rejected."""
    await home.publish(asks())
    case = await waiting(home)
    done = await case.reject(comment="not on a Friday")
    assert (done.state, done.close_reason) == (Approval.STATE_REJECTED, "APPROVAL_REJECTED")
    assert done.close_detail == "human/approver said no: not on a Friday"
    assert await refused(case.approve(SECOND)) == "APPROVAL_CLOSED"
    assert await refused(case.reject(SECOND)) == "APPROVAL_CLOSED"
    answer = await case.again()
    assert failures(answer) == {"policy": "APPROVAL_REJECTED"}
    assert "not on a Friday" in next(one.detail for one in answer.judgement.checks if one.name == "policy")
    await home.publish(rule("all", "ALLOW"))
    assert failures(await case.again()) == {"policy": "APPROVAL_REJECTED"}


async def test_a_yes_cannot_be_taken_back_by_a_no(home: House) -> None:
    """Once APPROVED, a rejection is refused: what stops it then is the kill switch."""
    await home.publish(asks())
    case = await waiting(home)
    await case.approve()
    assert await refused(case.reject(SECOND)) == "APPROVAL_CLOSED"


async def test_who_asked_cannot_approve(home: House) -> None:
    """The person who asked may not approve, but may take it back."""
    await home.publish(asks())
    await home.lock(name="operator")
    request = restart()
    answer = await home.authorize(request, name="operator")
    approval = await read(home, answer.approval_id)
    assert list(approval.requesters) == ["human/operator"]
    assert await refused(approve(home.approvals("operator"), approval)) == "APPROVER_IS_REQUESTER"
    case = Case(home, request, judging.ActionContext(), approval)
    done = await case.reject("operator")
    assert done.state == Approval.STATE_REJECTED


async def test_for_whom_it_is_cannot_approve(home: House) -> None:
    """The person a run acts for may not approve; somebody else may."""
    await home.publish(asks())
    case = await waiting(home, on_behalf_of="human/approver")
    assert list(case.approval.requesters) == ["service/automation", "human/approver"]
    assert await refused(case.approve(APPROVER)) == "APPROVER_IS_REQUESTER"
    assert (await case.approve(SECOND)).state == Approval.STATE_APPROVED


async def test_critical_needs_two_people(home: House) -> None:
    """A CRITICAL action waits for a second person though policy asks for one; the same person does not count twice."""
    await home.publish(asks(approvers=1))
    case = await waiting(home, VAULT)
    assert case.approval.approvers_needed == 2
    assert (await case.approve(APPROVER)).state == Approval.STATE_PENDING
    assert await refused(case.approve(APPROVER)) == "ALREADY_ANSWERED"
    assert not (await case.again()).grant
    assert (await case.approve(SECOND)).state == Approval.STATE_APPROVED
    assert (await case.again()).grant


async def test_groups_are_all_needed_through_different_people(home: House) -> None:
    """With ops AND leads, two people of ops are not enough, and a person of both stands for one only."""
    await home.publish(asks("ops", "leads"))
    case = await waiting(home)
    assert (case.approval.approvers_needed, list(case.approval.groups_needed)) == (2, ["leads", "ops"])
    assert (await case.approve(APPROVER)).state == Approval.STATE_PENDING
    assert (await case.approve("operator")).state == Approval.STATE_PENDING
    assert not (await case.again()).grant
    assert (await case.approve(SECOND)).state == Approval.STATE_APPROVED
    alone = await waiting(home, PAYMENTS)
    assert (await alone.approve(SECOND)).state == Approval.STATE_PENDING


async def test_a_person_names_what_they_saw(home: House) -> None:
    """An answer that names another digest is refused, whatever it says; a longer prefix of the right one is taken."""
    await home.publish(asks())
    case = await waiting(home)
    for call in (case.approve, case.reject):
        assert await refused(call(request_digest="0" * 12)) == "APPROVAL_DIGEST_MISMATCH"
    assert await refused(case.approve(request_digest=case.approval.request_digest[:11])) == "INVALID_ARGUMENT"
    assert await refused(case.amend(change={"reason": "b"}, request_digest="f" * 64)) == "APPROVAL_DIGEST_MISMATCH"
    assert (await case.now()).state == Approval.STATE_PENDING
    done = await case.approve(request_digest=case.approval.request_digest)
    assert done.state == Approval.STATE_APPROVED


async def test_the_same_answer_again_is_the_same_answer(home: House) -> None:
    """A repeated request_id gets the stored answer; with other content it is refused."""
    await home.publish(asks())
    case, request_id = await waiting(home), str(uuid.uuid4())
    first = await case.approve(request_id=request_id)
    assert await case.approve(request_id=request_id) == first
    assert await refused(case.approve(request_id=request_id, comment="b")) == "REQUEST_ID_REUSED"
    assert len((await case.now()).votes) == 1


@pytest.mark.parametrize("name", ["automation", "agents", "router"])
async def test_a_service_answers_nothing(home: House, name: str) -> None:
    """No service of the mesh may approve, reject or amend."""
    await home.publish(asks())
    case = await waiting(home)
    calls: list[Any] = [case.approve(name), case.reject(name), case.amend(name, change={"reason": "b"})]
    for call in calls:
        assert await refused(call) == "PERMISSION_DENIED"


async def test_without_audit_only_a_no_is_heard(home: House) -> None:
    """While audit is down Approve and Amend are refused and change nothing; Reject works and is told later."""
    await home.publish(asks())
    case = await waiting(home)
    home.audit.down = True
    assert await refused(case.approve()) == "AUDIT_UNAVAILABLE"
    assert await refused(case.amend(change={"reason": "b"})) == "AUDIT_UNAVAILABLE"
    assert await case.now() == case.approval
    assert (await case.reject(SECOND)).state == Approval.STATE_REJECTED
    home.audit.down = False
    assert (await outcomes(home, "Reject", 1))[0].outcome == Event.OUTCOME_SUCCEEDED


async def test_a_policy_that_needs_more_asks_more(home: House) -> None:
    """What policy needs at execution counts: an approval with too few answers is pending again and keeps them."""
    await home.publish(asks())
    case = await waiting(home)
    await case.approve(APPROVER)
    await home.publish(asks(approvers=2))
    answer = await case.again()
    assert not answer.grant
    assert answer.approval_id == case.approval_id
    now = await case.now()
    assert (now.state, now.approvers_needed, len(now.votes)) == (Approval.STATE_PENDING, 2, 1)
    assert (await case.approve(SECOND)).state == Approval.STATE_APPROVED
    assert (await case.again()).grant


async def test_a_policy_that_denies_is_stronger_than_people(home: House) -> None:
    """An approved action is judged anew: DENY and OBSERVE at execution mint nothing."""
    await home.publish(asks())
    case = await waiting(home)
    await case.approve()
    await home.publish(rule("no", "DENY"))
    assert failures(await case.again()) == {"policy": "POLICY_DENIED"}
    await home.publish(rule("see", "OBSERVE"))
    answer = await case.again()
    assert (answer.judgement.verdict, answer.grant) == (judging.VERDICT_OBSERVE, b"")


async def test_other_arguments_are_asked_for_anew(home: House) -> None:
    """Amend makes a new approval with the diff and both as requesters; the old one says by what it is replaced."""
    await home.publish(asks())
    case = await waiting(home)
    made = await case.amend(APPROVER, change={"reason": "a better one"}, comment="clearer")
    assert made.state == Approval.STATE_PENDING
    assert made.amends_approval_id == case.approval_id
    assert list(made.requesters) == ["service/automation", "human/approver"]
    assert [(one.field, one.before, one.after) for one in made.changes] == [("reason", "a test", "a better one")]
    assert (made.request_id, made.requester) == (case.request.request_id, "service/automation")
    old = await case.now()
    assert (old.state, old.superseded_by) == (Approval.STATE_AMENDED, made.approval_id)
    denied = await case.again()
    assert failures(denied) == {"policy": "APPROVAL_VOID"}
    assert made.approval_id in next(one.detail for one in denied.judgement.checks if one.name == "policy")
    assert await refused(case.approve(SECOND)) == "APPROVAL_CLOSED"
    assert await refused(approve(home.approvals(APPROVER), made)) == "APPROVER_IS_REQUESTER"
    assert (await approve(home.approvals(SECOND), made)).state == Approval.STATE_APPROVED
    answer = await home.authorize(made.request, case.context)
    assert home.opened(answer.grant).approval_id == made.approval_id


async def test_an_amended_target_is_judged_anew(home: House) -> None:
    """A target that is not of the incident, or that policy denies, is refused, and the old approval stays pending."""
    await home.publish(asks(), rule("no", "DENY", targets=[PAYMENTS]))
    case = await waiting(home)
    assert await refused(case.amend(change={"target_id": VAULT})) == "TARGET_NOT_OF_INCIDENT"
    assert await refused(case.amend(change={"target_id": PAYMENTS})) == "POLICY_DENIED"
    assert await refused(case.amend(change={"target_id": "svc:demo/none"})) == "TARGET_UNKNOWN"
    assert (await case.now()).state == Approval.STATE_PENDING


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"nothing": 1}', '{"reason": "a"}', '{"request_id": "b0e7d0dc-6f4e-4a42-8ac6-6a1b2ad7b5a1"}']
)
async def test_what_cannot_be_read_cannot_be_amended(home: House, text: str) -> None:
    """Broken JSON, unknown fields, missing ones and another request id are refused with the field named."""
    await home.publish(asks())
    case = await waiting(home)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await case.amend(change={}, request_json=text)
    assert reason_of(raised.value) == "INVALID_ARGUMENT"
    assert (await case.now()).state == Approval.STATE_PENDING


async def test_amending_nothing_is_refused(home: House) -> None:
    """The same arguments are no amendment; the arguments of an earlier one are not asked for twice."""
    await home.publish(asks())
    case = await waiting(home)
    assert await refused(case.amend(change={})) == "INVALID_ARGUMENT"
    made = await case.amend(change={"reason": "b"})
    back = Case(home, case.request, case.context, made)
    assert await refused(back.amend(change={"reason": "a test"})) == "APPROVAL_VOID"


async def test_an_approval_is_for_what_people_were_shown(home: House) -> None:
    """Approved bytes are worth nothing for another execution or incident than the approval showed."""
    await home.publish(asks())
    case = await waiting(home)
    await case.approve()
    elsewhere = judging.ActionContext()
    elsewhere.CopyFrom(case.context)
    elsewhere.incident_id = home.ingest.open(CHECKOUT)
    answer = await home.authorize(case.request, elsewhere)
    assert failures(answer) == {"policy": "APPROVAL_VOID"}
    assert case.context.incident_id in next(one.detail for one in answer.judgement.checks if one.name == "policy")
    assert (await case.again()).grant
