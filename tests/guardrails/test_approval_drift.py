"""What people saw must still hold when it is done: precondition drift, one renewal, then no."""

from opsmesh.gateway.v1 import effect_service_pb2
from opsmesh.guardrails.v1 import guardrails_service_pb2 as judging
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal
from tests.guardrails.people import APPROVER, SECOND, Approval, approve, asks, read, refused, waiting
from tests.guardrails.world import RESTART, House, failures

Effect = effect_service_pb2.Effect


async def test_a_changed_state_is_asked_about_once_more(home: House) -> None:
    """Drift makes the approval VOID with the diff and asks anew; approved, it is granted with the new snapshot."""
    await home.publish(asks())
    case = await waiting(home)
    await case.approve()
    home.gateway.process_id = 77
    answer = await case.again()
    assert (answer.judgement.verdict, answer.grant) == (judging.VERDICT_REQUIRE_APPROVAL, b"")
    old, new = await case.now(), await read(home, answer.approval_id)
    assert (old.state, old.close_reason, old.superseded_by) == (
        Approval.STATE_VOID,
        "STATE_CHANGED",
        new.approval_id,
    )
    assert "process_id 41 -> 77" in old.close_detail
    for one in (old, new):
        assert [(change.field, change.before, change.after) for change in one.changes] == [("process_id", "41", "77")]
    assert (new.state, new.renewal, new.amends_approval_id) == (Approval.STATE_PENDING, 1, case.approval_id)
    assert new.judgement.precondition["process_id"] == "77"
    assert list(new.votes) == []
    assert await refused(case.approve(SECOND)) == "APPROVAL_CLOSED"
    assert (await case.again()).approval_id == new.approval_id
    await approve(home.approvals(APPROVER), new)
    grant = home.opened((await case.again()).grant)
    assert grant.approval_id == new.approval_id
    assert grant.precondition["process_id"] == "77"


async def test_the_second_change_is_the_end(home: House) -> None:
    """When the state changed again after the renewal was approved, the action is denied with the diff, for good."""
    await home.publish(asks())
    case = await waiting(home)
    await case.approve()
    home.gateway.process_id = 77
    renewed = await read(home, (await case.again()).approval_id)
    await approve(home.approvals(APPROVER), renewed)
    home.gateway.process_id = 78
    for _ in range(2):
        answer = await case.again()
        assert failures(answer) == {"policy": "STATE_CHANGED"}
        assert "process_id 77 -> 78" in next(one.detail for one in answer.judgement.checks if one.name == "policy")
        assert answer.approval_id == renewed.approval_id
    assert (await case.now(renewed.approval_id)).state == Approval.STATE_VOID
    assert len(await home.fetch("SELECT approval_id FROM guardrails.approvals")) == 2


async def test_an_amended_action_keeps_its_requesters_when_renewed(home: House) -> None:
    """After drift the amender still may not approve."""
    await home.publish(asks())
    case = await waiting(home)
    made = await case.amend(APPROVER, change={"reason": "b"})
    await approve(home.approvals(SECOND), made)
    home.gateway.process_id = 77
    answer = await home.authorize(made.request, case.context)
    renewed = await read(home, answer.approval_id)
    assert renewed.renewal == 1
    assert "human/approver" in renewed.requesters
    assert await refused(approve(home.approvals(APPROVER), renewed)) == "APPROVER_IS_REQUESTER"


async def test_a_state_that_cannot_be_read_is_no_answer(home: House) -> None:
    """While the gateway is away nothing is minted and nothing is made void."""
    await home.publish(asks())
    case = await waiting(home)
    await case.approve()
    home.gateway.refusal = Refusal(error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE, store="docker")
    assert await refused(case.again()) == "STORE_UNAVAILABLE"
    assert (await case.now()).state == Approval.STATE_APPROVED
    home.gateway.refusal = None
    assert (await case.again()).grant


async def test_its_own_effect_is_no_drift(home: House) -> None:
    """After a lost answer of the gateway the changed state is the action's own doing: nobody is asked again."""
    await home.publish(asks())
    case = await waiting(home)
    await case.approve()
    assert (await case.again()).grant
    home.gateway.process_id = 77
    home.effects.states[RESTART, case.request.request_id] = Effect.STATE_SUCCEEDED
    grant = home.opened((await case.again()).grant)
    assert grant.precondition["process_id"] == "41"
    home.effects.states[RESTART, case.request.request_id] = Effect.STATE_NOT_STARTED
    answer = await case.again()
    assert not answer.grant
    assert (await read(home, answer.approval_id)).renewal == 1
