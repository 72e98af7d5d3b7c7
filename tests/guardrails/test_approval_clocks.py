"""Two clocks, both the database's: until when people may answer, and until when what they approved may be done."""

import asyncio
import time
from typing import Any

from opsmesh.audit.v1 import audit_service_pb2
from opsmesh.guardrails.v1 import approval_service_pb2 as pb
from services.guardrails import main
from tests.guardrails.people import SECOND, Approval, approve, asks, read, refused, until_closed, waiting
from tests.guardrails.world import House, failures, restart

Event = audit_service_pb2.AuditEvent
UNANSWERED = "nobody answered in time"
UNEXECUTED = "approved, but not executed in time"
# In nanoseconds. A busy machine sweeps later than it should; how often it should is looked at apart.
LATE = 5_000_000_000


def words(answer: Any) -> str:
    """Return what the policy check found."""
    return next(str(one.detail) for one in answer.judgement.checks if one.name == "policy")


async def test_silence_is_told_apart_from_a_no(home: House) -> None:
    """An unanswered approval is EXPIRED with other words than a rejected one, soon, and on record."""
    await home.publish(asks(seconds=1))
    case = await waiting(home)
    over = await until_closed(home, case.approval_id)
    assert (over.state, over.close_reason, over.close_detail) == (
        Approval.STATE_EXPIRED,
        "APPROVAL_EXPIRED",
        UNANSWERED,
    )
    late = over.update_time.ToNanoseconds() - over.expire_time.ToNanoseconds()
    assert 0 <= late < LATE
    answer = await case.again()
    assert failures(answer) == {"policy": "APPROVAL_EXPIRED"}
    assert UNANSWERED in words(answer)
    assert await refused(case.approve()) == "APPROVAL_CLOSED"
    assert await refused(case.reject()) == "APPROVAL_CLOSED"
    async with asyncio.timeout(40):
        while not [one for one in home.audit.events.values() if one.actor == "service/guardrails"]:
            home.audit.arrived.clear()
            await home.audit.arrived.wait()
    (record,) = [one for one in home.audit.events.values() if one.actor == "service/guardrails"]
    assert (record.reason, record.outcome) == ("APPROVAL_EXPIRED", Event.OUTCOME_DENIED)
    assert (record.details["approval_id"], record.details["close_detail"]) == (case.approval_id, UNANSWERED)


def test_it_is_swept_twice_a_second() -> None:
    """The sweep comes at least twice a second, so that what is over is swept within one."""
    assert main.SWEEP_SECONDS <= 0.5


async def test_what_was_approved_must_be_done_in_time(home: House) -> None:
    """The second clock ends an approval that nobody executed, with words of its own; a grant never outlives it."""
    await home.publish(asks(execute=1))
    case = await waiting(home)
    approved = await case.approve()
    over = await until_closed(home, case.approval_id)
    assert (over.state, over.close_detail) == (Approval.STATE_EXPIRED, UNEXECUTED)
    assert over.execute_before_time == approved.execute_before_time
    late = over.update_time.ToNanoseconds() - over.execute_before_time.ToNanoseconds()
    assert 0 <= late < LATE
    answer = await case.again()
    assert failures(answer) == {"policy": "APPROVAL_EXPIRED"}
    assert UNEXECUTED in words(answer)


async def test_a_grant_ends_with_the_second_clock(home: House) -> None:
    """A grant ends at the latest when its approval may no more be executed; after that there is no other."""
    await home.publish(asks(execute=20))
    case = await waiting(home)
    approved = await case.approve()
    grant = home.opened((await case.again()).grant)
    assert grant.expire_time == approved.execute_before_time
    # The clock of the row moves instead of the test's.
    await home.fetch("UPDATE guardrails.approvals SET execute_before_time = clock_timestamp() RETURNING state")
    assert failures(await case.again()) == {"policy": "APPROVAL_EXPIRED"}
    # It was executed in time, so it stays what it is.
    assert (await case.now()).state == Approval.STATE_APPROVED


async def test_both_clocks_count_before_the_sweep(home: House) -> None:
    """What is over by the database's clock is over for every reader and every answer, whether it was swept or not."""
    await home.publish(asks())
    case = await waiting(home)
    await home.fetch("UPDATE guardrails.approvals SET expire_time = clock_timestamp() RETURNING state")
    assert (await case.now()).state == Approval.STATE_EXPIRED
    assert await refused(case.approve()) == "APPROVAL_CLOSED"
    listed = await home.approvals().ListApprovals(pb.ListApprovalsRequest(state=Approval.STATE_PENDING))
    assert not listed.approvals
    request = restart()
    other = await read(home, (await home.authorize(request, case.context)).approval_id)
    await approve(home.approvals(), other)
    over = (
        "UPDATE guardrails.approvals SET execute_before_time = clock_timestamp() WHERE approval_id = $1 RETURNING state"
    )
    await home.fetch(over, other.approval_id)
    assert failures(await home.authorize(request, case.context)) == {"policy": "APPROVAL_EXPIRED"}


async def test_the_watcher_hears_everything_once(home: House) -> None:
    """A follower gets what waits at once, then each change in order, none of them twice."""
    await home.publish(asks())
    case = await waiting(home)
    seen: list[tuple[str, int]] = []
    async with asyncio.timeout(40):
        stream = home.approvals(SECOND).WatchApprovals(pb.WatchApprovalsRequest())
        async for answer in stream:
            one = answer.approval
            seen.append((one.approval_id, one.state))
            if len(seen) == 1:
                await case.approve()
            elif len(seen) == 2:
                await case.again()
            elif len(seen) == 3:
                other = await read(home, (await home.authorize(restart(), case.context)).approval_id)
            elif len(seen) == 4:
                assert one.approval_id == other.approval_id
                break
    assert seen[:3] == [
        (case.approval_id, Approval.STATE_PENDING),
        (case.approval_id, Approval.STATE_APPROVED),
        (case.approval_id, Approval.STATE_APPROVED),
    ]
    filtered = home.approvals().WatchApprovals(
        pb.WatchApprovalsRequest(incident_id="00000000-0000-4000-8000-000000000000")
    )
    started = time.monotonic()
    async with asyncio.timeout(40):
        async for answer in filtered:
            assert not answer.HasField("approval")
            break
    assert time.monotonic() - started >= 9
