"""The kill switch over the real chain: what it stops, what it leaves alone, and what stays void."""

import asyncio
import uuid
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from opsmesh.guardrails.v1 import approval_service_pb2 as approval_pb
from opsmesh.guardrails.v1 import guardrails_service_pb2 as judge_pb
from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from services.guardrails.kills import store as kill_store
from services.mesh import kills
from tests.guardrails import running
from tests.guardrails.killing import Kill, engage, lease, release
from tests.guardrails.world import (
    CHECKOUT,
    NOTICE,
    PRODUCTION,
    RESTART,
    Context,
    House,
    failures,
    notice,
    restart,
    rule,
)

NAMES = st.sampled_from(["", "a", "b"])
SETS = st.frozensets(st.sampled_from(["a", "b"]))
FACTS = st.builds(
    kills.Facts,
    environments=SETS,
    targets=SETS,
    tools=SETS,
    playbook_id=NAMES,
    execution_id=NAMES,
    run_id=NAMES,
    ancestors=SETS,
)
KINDS = ("environment", "target_id", "tool", "playbook_id", "execution_id", "run_id")
SCOPES = st.one_of(st.just(("everything", "")), st.tuples(st.sampled_from(KINDS), st.sampled_from(["a", "b"])))


@given(about=FACTS, scope=SCOPES, epoch=st.integers(1, 9), granted=st.integers(0, 9), released=st.booleans())
def test_a_scope_stops_its_own_and_nothing_else(
    about: kills.Facts, scope: tuple[str, str], epoch: int, granted: int, *, released: bool
) -> None:
    """A stored scope comes back as it was; it stops what bears its name, and voids only what is older than itself."""
    kind, value = scope
    row = {"kill_id": uuid.uuid4(), "kind": kind, "value": value, "epoch": epoch, "released": released}
    kill = kill_store.leased(row)
    assert kill_store.parts(kill.scope) == scope
    mine = {
        "everything": True,
        "environment": value in about.environments,
        "target_id": value in about.targets,
        "tool": value in about.tools,
        "playbook_id": value == about.playbook_id,
        "execution_id": value == about.execution_id,
        "run_id": value == about.run_id or value in about.ancestors,
    }[kind]
    stops = mine and (not released or epoch > granted)
    assert bool(kills.stopping([kill], about, granted)) == stops


async def test_each_scope_stops_its_own_actions(home: House) -> None:
    """Of three actions a kill of each scope stops those with its name; others go on; released, all do."""
    await running.publish(home)
    run = await running.register(home, home.ingest.open(CHECKOUT), CHECKOUT)
    await running.claim(home, run.run_id)
    executions = [
        Context(
            incident_id=home.ingest.open(target), execution_id=str(uuid.uuid4()), step_id="restart", playbook_id=one
        )
        for target, one in ((CHECKOUT, "one"), (PRODUCTION, "two"))
    ]

    async def may(target: str, context: Context) -> bool:
        await home.fetch("UPDATE guardrails.locks SET expire_time = now() RETURNING true")
        if context.run_id:
            await running.lock(home, context.run_id, target)
        else:
            await home.lock(target, context.execution_id)
        answer = await home.authorize(restart(target), context, name="agents" if context.run_id else "automation")
        assert answer.judgement.verdict in {judge_pb.VERDICT_ALLOW, judge_pb.VERDICT_DENY}
        assert failures(answer) in ({}, {"safety": "KILLED"})
        assert bool(answer.grant) == (not failures(answer))
        return bool(answer.grant)

    async def verdicts() -> list[bool]:
        first, second = executions
        return [await may(CHECKOUT, first), await may(PRODUCTION, second), await may(CHECKOUT, running.context(run))]

    scopes: list[tuple[dict[str, Any], list[bool]]] = [
        ({"everything": True}, [False, False, False]),
        ({"environment": "demo"}, [False, True, False]),
        ({"environment": "elsewhere"}, [True, True, True]),
        ({"target_id": PRODUCTION}, [True, False, True]),
        ({"tool": RESTART}, [False, False, False]),
        ({"tool": NOTICE}, [True, True, True]),
        ({"playbook_id": "one"}, [False, True, True]),
        ({"execution_id": executions[1].execution_id}, [True, False, True]),
        ({"run_id": str(uuid.uuid4())}, [True, True, True]),
    ]
    for scope, expected in scopes:
        kill = await engage(home, pb.KillScope(**scope))
        assert await verdicts() == expected, scope
        await release(home, kill, "operator", "approver")
    assert await verdicts() == [True, True, True]
    kill = await engage(home, pb.KillScope(run_id=run.run_id))
    context = running.context(run)
    assert failures(await home.authorize(restart(), context, name="agents")) == {"safety": "KILLED"}
    assert [await may(CHECKOUT, executions[0]), await may(PRODUCTION, executions[1])] == [True, True]
    await release(home, kill, "operator")
    # What was stopped by its own name never goes on.
    assert await running.refused(running.lock(home, run.run_id)) == "RUN_NOT_OPEN"


async def test_a_preview_says_it_and_a_notice_goes_on(home: House) -> None:
    """A preview under a kill says KILLED and which; telling people is never stopped."""
    await home.publish()
    kill = await engage(home)
    request = judge_pb.PreviewActionRequest(
        method=RESTART, request_json=f'{{"request_id": "{uuid.uuid4()}", "target_id": "{CHECKOUT}", "reason": "why"}}'
    )
    judgement = (await home.guardrails("operator").PreviewAction(request)).judgement
    (safety,) = (check for check in judgement.checks if check.name == "safety")
    assert (safety.reason, judgement.verdict) == ("KILLED", judge_pb.VERDICT_DENY)
    assert kill.kill_id in safety.detail
    assert "everything" in safety.detail
    assert (await home.authorize(notice(), method=NOTICE)).grant


async def test_what_was_granted_before_stays_void(home: House) -> None:
    """A grant from before a kill is void in its scope by the lease, also after the release; outside it is not."""
    await home.publish()
    grants = []
    for target in (CHECKOUT, PRODUCTION):
        context = await home.ready(target)
        grants.append(home.opened((await home.authorize(restart(target), context)).grant))
    kill = await engage(home, pb.KillScope(target_id=CHECKOUT))
    assert kill.epoch > grants[0].kill_epoch

    async def void() -> list[bool]:
        named = (await lease(home)).kills
        return [
            bool(
                kills.stopping(named, kills.facts(environment=one.environment, target_id=one.target_id), one.kill_epoch)
            )
            for one in grants
        ]

    assert await void() == [True, False]
    assert (await release(home, kill)).state == Kill.STATE_RELEASED
    assert await void() == [True, False]
    assert (await lease(home)).kills[0].released


async def test_approvals_in_scope_are_void_for_ever(home: House) -> None:
    """A kill ends the approvals in its scope, open or given, as VOID, and leaves others alone; a release mends none."""
    await home.publish(rule("ask", "REQUIRE_APPROVAL"))
    asked = []
    for target in (CHECKOUT, CHECKOUT, PRODUCTION):
        await home.fetch("UPDATE guardrails.locks SET expire_time = now() RETURNING true")
        context, request = await home.ready(target), restart(target)
        asked.append((request, context, (await home.authorize(request, context)).approval_id))
    stub = home.approvals("approver")
    first = (await stub.GetApproval(approval_pb.GetApprovalRequest(approval_id=asked[0][2]))).approval
    await stub.Approve(
        approval_pb.ApproveRequest(
            request_id=str(uuid.uuid4()), approval_id=asked[0][2], request_digest=first.short_digest
        )
    )
    kill = await engage(home, pb.KillScope(environment="demo"))

    async def states() -> list[tuple[int, str]]:
        found = [
            (await stub.GetApproval(approval_pb.GetApprovalRequest(approval_id=one))).approval for _, _, one in asked
        ]
        return [(one.state, one.close_reason) for one in found]

    void = (approval_pb.Approval.STATE_VOID, "KILLED")
    expected = [void, void, (approval_pb.Approval.STATE_PENDING, "")]
    assert await states() == expected
    await release(home, kill)
    assert await states() == expected
    for request, context, _ in asked[:2]:
        await home.fetch("UPDATE guardrails.locks SET expire_time = now() RETURNING true")
        await home.lock(CHECKOUT, context.execution_id)
        assert failures(await home.authorize(request, context)) == {"policy": "APPROVAL_VOID"}


async def test_an_approval_to_tell_people_stays(home: House) -> None:
    """A notice that waits for approval is not voided by a kill of everything: what only tells is never stopped."""
    await home.publish(rule("ask", "REQUIRE_APPROVAL"))
    request = notice()
    approval_id = (await home.authorize(request, method=NOTICE)).approval_id
    await engage(home)
    stub, read = home.approvals("approver"), approval_pb.GetApprovalRequest(approval_id=approval_id)
    shown = (await stub.GetApproval(read)).approval
    answer = approval_pb.ApproveRequest(
        request_id=str(uuid.uuid4()), approval_id=approval_id, request_digest=shown.short_digest
    )
    assert (await stub.Approve(answer)).approval.state == approval_pb.Approval.STATE_APPROVED
    assert (await home.authorize(request, method=NOTICE)).grant


async def test_an_approval_that_slipped_past_is_void_too(home: House) -> None:
    """An approval that was being answered while a kill was engaged is worth nothing, and the sweep says so."""
    await home.publish(rule("ask", "REQUIRE_APPROVAL"))
    context, request = await home.ready(), restart()
    approval_id = (await home.authorize(request, context)).approval_id
    kill = await engage(home, pb.KillScope(target_id=CHECKOUT))
    await release(home, kill)
    # As its answer would have left it, had it committed a moment later.
    await home.fetch(
        "UPDATE guardrails.approvals SET state = 'APPROVED', close_reason = '', close_detail = '', "
        "execute_before_time = now() + interval '5 minutes' RETURNING true"
    )
    await home.lock(CHECKOUT, context.execution_id)
    assert failures(await home.authorize(request, context)) == {"policy": "APPROVAL_VOID"}
    read = approval_pb.GetApprovalRequest(approval_id=approval_id)
    async with asyncio.timeout(30):
        while (await home.approvals().GetApproval(read)).approval.state != approval_pb.Approval.STATE_VOID:
            pass
