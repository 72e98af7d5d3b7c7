"""Kills against everything that happens at the same moment: no grant from before one is good for anything after it."""

import asyncio
import statistics
import time
import uuid
from collections.abc import Callable

import asyncpg
import grpc
import grpc.aio

from opsmesh.config.v1 import policies_pb2
from opsmesh.guardrails.v1 import approval_service_pb2 as approval_pb
from opsmesh.guardrails.v1 import guardrails_service_pb2 as judge_pb
from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from services.mesh import kills
from tests.guardrails.killing import EVERYTHING, engage, lease, release
from tests.guardrails.world import CHECKOUT, PRODUCTION, Answer, Context, House, failures, restart, rule

ROUNDS = 6
FIFTY = 50


async def test_engage_against_fifty_authorisations(home: House) -> None:
    """Fifty at once against an Engage: each grant is either void by the lease or was minted for what is not in scope.

    No grant is minted after the answer to the Engage, and none that was minted before carries the kill's epoch.
    """
    unlimited = policies_pb2.EffectCap(cap_id="none", scope=policies_pb2.EffectCap.SCOPE_TARGET)
    await home.publish(effect_caps=[unlimited])
    demo, production = await home.ready(CHECKOUT), await home.ready(PRODUCTION)
    scopes = [EVERYTHING, pb.KillScope(target_id=CHECKOUT), pb.KillScope(environment="demo")]
    for number in range(ROUNDS):
        scope = scopes[number % len(scopes)]
        acknowledged = asyncio.Event()

        async def authorise(target: str, context: Context, over: asyncio.Event) -> tuple[str, bool, Answer]:
            late = over.is_set()
            return target, late, await home.authorize(restart(target), context)

        async def stop(scope: pb.KillScope, over: asyncio.Event) -> pb.Kill:
            kill = await engage(home, scope)
            over.set()
            return kill

        work = [
            asyncio.create_task(authorise(target, context, acknowledged))
            for _ in range(FIFTY // 2)
            for target, context in ((CHECKOUT, demo), (PRODUCTION, production))
        ]
        stopping = asyncio.create_task(stop(scope, acknowledged))
        work += [asyncio.create_task(authorise(CHECKOUT, demo, acknowledged)) for _ in range(FIFTY // 2)]
        kill = await stopping
        late = [await authorise(*one, acknowledged) for one in ((CHECKOUT, demo), (PRODUCTION, production))]
        answers = [*await asyncio.gather(*work), *late]
        named = (await lease(home)).kills
        for target, after, answer in answers:
            environment = "demo" if target == CHECKOUT else "production"
            covered = kills.covers(scope, kills.facts(environment=environment, target_id=target))
            if not answer.grant:
                assert covered
                assert failures(answer) == {"safety": "KILLED"}
                continue
            grant = home.opened(answer.grant)
            facts = kills.facts(environment=grant.environment, target_id=grant.target_id, tool=grant.method)
            assert bool(kills.stopping(named, facts, grant.kill_epoch)) == covered
            assert not (covered and (after or grant.kill_epoch >= kill.epoch))
        await release(home, kill, "operator", "approver")
        kept = (await lease(home)).kills
        for _, _, answer in answers:
            if answer.grant and (grant := home.opened(answer.grant)).kill_epoch < kill.epoch:
                facts = kills.facts(environment=grant.environment, target_id=grant.target_id, tool=grant.method)
                assert bool(kills.stopping(kept, facts, grant.kill_epoch)) == kills.covers(scope, facts)
        await home.fetch("UPDATE guardrails.kills SET release_time = now() - interval '2 minutes' RETURNING true")


async def test_engage_against_answers_of_people(home: House) -> None:
    """Approvals that are given while a kill is engaged are executed by nobody, then or after its release."""
    await home.publish(rule("ask", "REQUIRE_APPROVAL"))
    context = await home.ready()
    requests = [restart() for _ in range(20)]
    asked = [await home.authorize(request, context) for request in requests]
    read = home.approvals("approver")
    which = [approval_pb.GetApprovalRequest(approval_id=one.approval_id) for one in asked]
    shown = [(await read.GetApproval(one)).approval for one in which]

    async def approve(approval: approval_pb.Approval) -> None:
        request = approval_pb.ApproveRequest(
            request_id=str(uuid.uuid4()), approval_id=approval.approval_id, request_digest=approval.short_digest
        )
        try:
            await read.Approve(request)
        except grpc.aio.AioRpcError as error:
            assert error.code() is not grpc.StatusCode.INTERNAL  # noqa: PT017  refused in time is right, too

    answers = [asyncio.create_task(approve(one)) for one in shown]
    kill = await engage(home)
    await asyncio.gather(*answers)
    await release(home, kill, "operator", "approver")
    await home.lock(CHECKOUT, context.execution_id)
    for request in requests:
        answer = await home.authorize(request, context)
        assert answer.judgement.verdict == judge_pb.VERDICT_DENY
        assert failures(answer) == {"policy": "APPROVAL_VOID"}


async def test_fifty_engage_at_once(home: House) -> None:
    """Kills engaged at the same moment each get an epoch of their own, without a gap."""
    engaged = await asyncio.gather(*(engage(home, pb.KillScope(playbook_id=f"p{n}")) for n in range(FIFTY)))
    assert sorted(kill.epoch for kill in engaged) == list(range(1, FIFTY + 1))
    assert (await lease(home)).kill_epoch == FIFTY


async def test_engage_does_not_wait(home: House, record_property: Callable[[str, object], None]) -> None:
    """An Engage is answered while every connection that judgements may use is stuck; and its usual time is told."""
    await home.publish()
    context = await home.ready()
    times = []
    for number in range(30):
        started = time.monotonic()
        kill = await engage(home, pb.KillScope(playbook_id=f"p{number}"))
        times.append(time.monotonic() - started)
        await release(home, kill)
    typical = statistics.median(times)
    record_property("figures", f"Engage is acknowledged in {1000 * typical:.1f} ms (median of 30)")
    assert typical < 0.1
    blocker = await asyncpg.connect(home.database.dsn("guardrails"))
    async with blocker.transaction():
        await blocker.execute("SELECT true FROM guardrails.locks FOR UPDATE")
        stuck = [asyncio.create_task(home.lock(CHECKOUT, context.execution_id)) for _ in range(12)]
        while not await home.fetch("SELECT true FROM pg_stat_activity WHERE wait_event_type = 'Lock' OFFSET 3"):
            pass
        started = time.monotonic()
        await engage(home)
        assert time.monotonic() - started < 3
        assert (await lease(home)).kills
    await blocker.close()
    await asyncio.wait(stuck)
