"""Many answer at once: one winner, and audit says the same as the row."""

import asyncio
import random
import uuid
from typing import Any

import grpc.aio

from opsmesh.audit.v1 import audit_service_pb2
from services.mesh import policy
from tests.guardrails.people import APPROVER, SECOND, Approval, Case, asks, read, waiting
from tests.guardrails.world import RESTART, VAULT, House, reason_of, restart

Event = audit_service_pb2.AuditEvent
SEED = 3
ROUNDS = 60
CROWD = 100
REPEATS = 5
UNANSWERED = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "AUDIT_UNAVAILABLE", "STORE_UNAVAILABLE"}


async def tried(call: Any) -> str:
    """Return the state after a call, or the reason of its refusal."""
    try:
        return str(Approval.State.Name((await call).state))
    except grpc.aio.AioRpcError as error:
        return reason_of(error)


async def insisted(case: Case, name: str) -> str:
    """Approve, and repeat the same request while a busy machine lets it go unanswered: it counts once all the same."""
    request_id = str(uuid.uuid4())
    for _ in range(REPEATS):
        said = await tried(case.approve(name, request_id=request_id))
        if said not in UNANSWERED:
            return said
    return said


async def test_a_hundred_approve_at_once(home: House) -> None:
    """Of 100 simultaneous yeses one approves; 100 simultaneous authorisations get grants for these bytes only."""
    await home.publish(asks())
    case = await waiting(home)
    await asyncio.gather(*(home.channel(name).channel_ready() for name in (APPROVER, SECOND)))
    said = await asyncio.gather(*(insisted(case, (APPROVER, SECOND)[one % 2]) for one in range(CROWD)))
    assert said.count("STATE_APPROVED") == 1
    assert said.count("APPROVAL_CLOSED") == CROWD - 1
    assert len((await case.now()).votes) == 1
    answers = await asyncio.gather(*(case.again() for _ in range(CROWD)))
    digest = policy.digest(RESTART, case.request)
    grants = [home.opened(one.grant) for one in answers]
    # What they open is one effect: the gateway counts by method and request id, which all of them share.
    assert {(one.request_digest, one.request_id, one.approval_id) for one in grants} == {
        (digest, case.request.request_id, case.approval_id)
    }
    first = (await case.now()).execute_time
    await case.again()
    assert (await case.now()).execute_time == first


async def test_two_at_once_are_two(home: House) -> None:
    """Two people who approve a CRITICAL action at the same moment are both counted: it is APPROVED, in every round."""
    await home.publish(asks())
    first = await waiting(home, VAULT)
    for _ in range(10):
        request = restart(VAULT)
        answer = await home.authorize(request, first.context)
        case = Case(home, request, first.context, await read(home, answer.approval_id))
        said = await asyncio.gather(tried(case.approve(APPROVER)), tried(case.approve(SECOND)))
        assert sorted(said) == ["STATE_APPROVED", "STATE_PENDING"]
        assert (await case.now()).state == Approval.STATE_APPROVED


async def test_approve_against_reject_has_one_winner(home: House) -> None:
    """In 60 rounds a yes and a no race: one is taken, the other refused as too late, and audit agrees with the row."""
    await home.publish(asks())
    dice = random.Random(SEED)  # noqa: S311  a reproducible order
    first = await waiting(home)
    winners: dict[str, str] = {}
    for _ in range(ROUNDS):
        request = restart()
        answer = await home.authorize(request, first.context)
        case = Case(home, request, first.context, await read(home, answer.approval_id))
        home.audit.arrived.clear()
        yes = asyncio.create_task(tried(case.approve(APPROVER)))
        if dice.random() < 0.7:
            # The yes has its intent on record and is about to commit.
            async with asyncio.timeout(10):
                await home.audit.arrived.wait()
        no = asyncio.create_task(tried(case.reject(SECOND)))
        said = {await yes, await no}
        state = Approval.State.Name((await case.now()).state)
        assert said == {state, "APPROVAL_CLOSED"}
        assert len((await case.now()).votes) == 1
        granted = bool((await case.again()).grant)
        assert granted == (state == "STATE_APPROVED")
        winners[case.approval_id] = state
    assert set(winners.values()) == {"STATE_APPROVED", "STATE_REJECTED"}
    recorded = await _recorded(home)
    assert recorded == winners


async def _recorded(home: House) -> dict[str, str]:
    """Return what audit says, or is about to be told, that each approval became; nobody says it twice."""
    # An event leaves the outbox after audit has it, so this order misses none.
    owed = [Event.FromString(row["event"]) for row in await home.fetch("SELECT event FROM guardrails.outbox")]
    told = {one.event_id: one for one in owed} | home.audit.events
    found: dict[str, str] = {}
    for event in told.values():
        service, _, rpc = event.action.rpartition("/")
        if service.endswith("ApprovalService") and event.outcome == Event.OUTCOME_SUCCEEDED:
            assert event.details["approval_id"] not in found
            found[event.details["approval_id"]] = {"Approve": "STATE_APPROVED", "Reject": "STATE_REJECTED"}[rpc]
    return found


async def test_amend_against_approve_has_one_winner(home: House) -> None:
    """A yes to the old arguments and other arguments at the same moment: one of them holds, in every round."""
    await home.publish(asks())
    first = await waiting(home)
    for number in range(10):
        request = restart()
        answer = await home.authorize(request, first.context)
        case = Case(home, request, first.context, await read(home, answer.approval_id))
        calls = [tried(case.approve(APPROVER)), tried(case.amend(SECOND, change={"reason": str(uuid.uuid4())}))]
        said = await asyncio.gather(*(calls if number % 2 else calls[::-1]))
        state = (await case.now()).state
        assert "APPROVAL_CLOSED" in said
        assert state in {Approval.STATE_APPROVED, Approval.STATE_AMENDED}
        assert bool((await case.again()).grant) == (state == Approval.STATE_APPROVED)
