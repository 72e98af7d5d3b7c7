"""One restart per request id, whatever the caller does: on a real gateway, PostgreSQL and supervisord."""

import asyncio
import time
import uuid

import pytest

from opsmesh.audit.v1 import audit_service_pb2
from opsmesh.gateway.v1 import effect_service_pb2, effect_service_pb2_grpc
from opsmesh.tools.workload.v1 import workload_tool_service_pb2 as workload_pb
from opsmesh.tools.workload.v1 import workload_tool_service_pb2_grpc as workload_rpc
from services.gateway.domain import LEASE_SECONDS
from services.local.waiting import until
from services.mesh.errors import Refusal
from tests.gateway.fakes import POLICY_SET
from tests.gateway.world import RESTART, TARGET, Mesh

Event = audit_service_pb2.AuditEvent
State = effect_service_pb2.Effect


async def test_a_granted_restart_is_done_and_on_record(mesh: Mesh) -> None:
    """A new process runs, and audit holds the intent and the outcome with what the grant said."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    grant = await mesh.mint(request, incident_id="i-1", step_id="restart", decision_id="d-1", rule_set_version=3)
    answer = await mesh.call(request, mesh.sign(grant))
    assert answer.state == workload_pb.Workload.STATE_RUNNING
    assert str(answer.previous_process_id) == grant.precondition["process_id"]
    assert answer.process_id not in {0, answer.previous_process_id}
    assert mesh.workload.start_count() == starts + 1
    await mesh.until(lambda: mesh.audit.of(request.request_id, Event.PHASE_OUTCOME))
    intent, outcome = (
        mesh.audit.of(request.request_id, phase)[0] for phase in (Event.PHASE_INTENT, Event.PHASE_OUTCOME)
    )
    for event in (intent, outcome):
        assert (event.action, event.actor, event.target) == (RESTART, "service/automation", TARGET)
        assert (event.environment, event.incident_id, event.step_id) == ("demo", "i-1", "restart")
        assert (event.decision_id, event.rule_set_version, event.policy_set_version) == ("d-1", 3, POLICY_SET)
        assert event.trace_id
        assert event.request_digest == grant.request_digest.hex()
    assert (intent.outcome, outcome.outcome) == (Event.OUTCOME_UNSPECIFIED, Event.OUTCOME_SUCCEEDED)
    assert intent.event_id == str(uuid.uuid5(uuid.NAMESPACE_OID, f"{RESTART}/{request.request_id}/1"))


async def test_the_same_request_again_gets_the_stored_answer(mesh: Mesh) -> None:
    """After an answer that was lost, the same id is answered without a grant, an effect or an audit event."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    grant = mesh.sign(await mesh.mint(request))
    first = await mesh.call(request, grant)
    await mesh.until(lambda: mesh.audit.of(request.request_id, Event.PHASE_OUTCOME))
    known = [one.event_id for one in mesh.audit.events.values() if one.request_id == request.request_id]
    assert await mesh.call(request, grant) == first
    assert await mesh.call(request, None) == first
    assert mesh.workload.start_count() == starts + 1
    assert [one.event_id for one in mesh.audit.events.values() if one.request_id == request.request_id] == known


async def test_a_caller_that_hangs_up_interrupts_nothing(mesh: Mesh) -> None:
    """A call cancelled while the tool acts ends SUCCEEDED, and the same id gets the answer."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    grant = mesh.sign(await mesh.mint(request))
    mesh.proxy.calls.clear()
    calling = asyncio.create_task(mesh.call(request, grant))
    await mesh.until(lambda: "supervisor.stopProcess" in mesh.proxy.calls)
    calling.cancel()
    await mesh.until(lambda: mesh.audit.of(request.request_id, Event.PHASE_OUTCOME))
    assert (await mesh.effect(request)).state == State.STATE_SUCCEEDED
    assert (await mesh.call(request, grant)).process_id
    assert mesh.workload.start_count() == starts + 1


async def test_fifty_calls_at_once_restart_once(mesh: Mesh) -> None:
    """Fifty concurrent calls of one request: one restart, one answer, for the rest EFFECT_IN_FLIGHT until then."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    grant = mesh.sign(await mesh.mint(request))
    refusals: list[Refusal] = []

    async def once() -> int:
        try:
            return int((await mesh.call(request, grant)).process_id)
        except Refusal as refusal:
            refusals.append(refusal)
            return 0

    while not all(answers := await asyncio.gather(*(once() for _ in range(50)))):
        pass
    assert len(set(answers)) == 1
    assert {(one.name, one.retry_after is not None) for one in refusals} == {("EFFECT_IN_FLIGHT", True)}
    assert mesh.workload.start_count() == starts + 1
    assert len(mesh.audit.of(request.request_id, Event.PHASE_INTENT)) == 1


async def test_a_request_id_belongs_to_its_content_and_caller(mesh: Mesh) -> None:
    """Other content, or another caller with the same content, is refused with REQUEST_ID_REUSED."""
    request = mesh.restart()
    await mesh.call(request, mesh.sign(await mesh.mint(request)))
    other = mesh.restart()
    other.request_id, other.reason = request.request_id, "another reason"
    with pytest.raises(Refusal, match="REQUEST_ID_REUSED"):
        await mesh.call(other, mesh.sign(await mesh.mint(other)))
    with pytest.raises(Refusal, match="REQUEST_ID_REUSED"):
        await mesh.call(request, mesh.sign(await mesh.mint(request, caller="human/operator")), "operator")


async def test_a_changed_state_is_refused_with_the_difference(mesh: Mesh) -> None:
    """A precondition that no longer holds: STATE_CHANGED says how, nothing is done, the intent ends FAILED."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    found = await mesh.found()
    grant = mesh.make(request, found | {"process_id": "1"})
    with pytest.raises(Refusal, match="STATE_CHANGED") as caught:
        await mesh.call(request, mesh.sign(grant))
    assert caught.value.metadata["diff"] == f"process_id was 1, is {found['process_id']}"
    assert mesh.workload.start_count() == starts
    effect = await mesh.effect(request)
    assert (effect.state, effect.reason) == (State.STATE_NOT_STARTED, "STATE_CHANGED")
    await mesh.until(lambda: mesh.audit.of(request.request_id, Event.PHASE_OUTCOME))
    outcome = mesh.audit.of(request.request_id, Event.PHASE_OUTCOME)[0]
    assert (outcome.outcome, outcome.reason) == (Event.OUTCOME_FAILED, "STATE_CHANGED")
    # Authorised anew, the same request goes ahead as its second try.
    assert (await mesh.call(request, mesh.sign(await mesh.mint(request)))).process_id
    assert len(mesh.audit.of(request.request_id, Event.PHASE_INTENT)) == 2


async def test_a_fence_that_is_passed_while_the_intent_is_on_its_way_stops_the_effect(mesh: Mesh) -> None:
    """The last check looks at the fence, too: whoever lost the lock after transaction 1 does nothing any more."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    grant = mesh.sign(await mesh.mint(request))
    mesh.proxy.hold = ("before", "supervisor.getProcessInfo")
    calling = asyncio.create_task(mesh.call(request, grant))
    await asyncio.wait_for(mesh.proxy.held.wait(), 40)
    try:
        await mesh.execute("UPDATE gateway.fences SET fence = fence + 1 WHERE target_id = $1", TARGET)
        mesh.proxy.release()
        with pytest.raises(Refusal, match="FENCE_STALE"):
            await calling
    finally:
        mesh.proxy.held.clear()
        await mesh.execute("UPDATE gateway.fences SET fence = fence - 1 WHERE target_id = $1", TARGET)
    assert mesh.workload.start_count() == starts
    assert (await mesh.effect(request)).state == State.STATE_NOT_STARTED


async def test_without_audit_nothing_happens_and_the_same_id_works_later(mesh: Mesh) -> None:
    """Audit down: AUDIT_UNAVAILABLE, NOT_STARTED, no restart; up again, the same request is done."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    grant = mesh.sign(await mesh.mint(request))
    mesh.audit.mode = "refuse"
    try:
        with pytest.raises(Refusal, match="AUDIT_UNAVAILABLE"):
            await mesh.call(request, grant)
        effect = await mesh.effect(request)
    finally:
        mesh.audit.mode = "keep"
    assert (effect.state, effect.reason) == (State.STATE_NOT_STARTED, "AUDIT_UNAVAILABLE")
    assert mesh.workload.start_count() == starts
    assert (await mesh.call(request, mesh.sign(await mesh.mint(request)))).process_id
    assert mesh.workload.start_count() == starts + 1


async def test_without_a_fresh_lease_nothing_happens(mesh: Mesh) -> None:
    """Two seconds after guardrails fell silent: LEASE_STALE with RetryInfo and no row; with a lease it goes on."""
    request = mesh.restart()
    grant = mesh.sign(await mesh.mint(request, caller="human/operator"))
    mesh.guardrails.answering = False
    asked = time.monotonic()
    try:
        await mesh.until(lambda: time.monotonic() - asked > LEASE_SECONDS)
        starts = mesh.workload.start_count()
        with pytest.raises(Refusal, match="LEASE_STALE") as caught:
            await mesh.call(request, grant, "operator")
        assert caught.value.retry_after == 0.5
        assert await mesh.rows(request) == 0
        assert mesh.workload.start_count() == starts
    finally:
        mesh.guardrails.answering = True
        polls = mesh.guardrails.polls
        await mesh.until(lambda: mesh.guardrails.polls > polls + 1)
    assert (await mesh.call(request, grant, "operator")).process_id


async def test_a_policy_published_meanwhile_makes_a_grant_stale(mesh: Mesh) -> None:
    """A grant of an older policy set is refused with GRANT_STALE; one of a newer set waits for no poll."""
    old, new = mesh.restart(), mesh.restart()
    mesh.guardrails.version = POLICY_SET + 1
    try:
        grant = mesh.sign(await mesh.mint(new, policy_set_version=POLICY_SET + 1))
        assert (await mesh.call(new, grant)).process_id
        with pytest.raises(Refusal, match="GRANT_STALE") as caught:
            await mesh.call(old, mesh.sign(await mesh.mint(old)))
        assert caught.value.metadata["current"].startswith(str(POLICY_SET + 1))
        assert await mesh.rows(old) == 0
    finally:
        mesh.guardrails.version = POLICY_SET
        polls = mesh.guardrails.polls
        await mesh.until(lambda: mesh.guardrails.polls > polls + 1)


async def test_fences_only_grow(mesh: Mesh) -> None:
    """Once a newer holder has acted, an older fence is refused with FENCE_STALE and leaves no row."""
    new, old = mesh.restart(), mesh.restart()
    fence = int(await mesh.execute("SELECT coalesce(max(fence), 0) + 5 FROM gateway.fences"))
    await mesh.call(new, mesh.sign(await mesh.mint(new, fence=fence)))
    starts = mesh.workload.start_count()
    with pytest.raises(Refusal, match="FENCE_STALE") as caught:
        await mesh.call(old, mesh.sign(await mesh.mint(old, fence=fence - 1)))
    assert caught.value.metadata["current"] == str(fence)
    assert (await mesh.rows(old), mesh.workload.start_count()) == (0, starts)
    await mesh.execute("DELETE FROM gateway.fences")


async def test_two_effects_on_a_target_never_overlap(mesh: Mesh) -> None:
    """A newer holder whose predecessor's restart still runs is told to come back, leaves no row, and then acts."""
    first, second, starts = mesh.restart(), mesh.restart(), mesh.workload.start_count()
    mesh.proxy.held.clear()
    mesh.proxy.hold = ("before", "supervisor.startProcess")
    slow = asyncio.create_task(mesh.call(first, mesh.sign(await mesh.mint(first))))
    await mesh.until(mesh.proxy.held.is_set)
    grant = await mesh.mint(second, fence=9)
    with pytest.raises(Refusal, match="EFFECT_IN_FLIGHT") as caught:
        await mesh.call(second, mesh.sign(grant))
    assert caught.value.metadata["request_id"] == first.request_id
    assert await mesh.rows(second) == 0
    mesh.proxy.release()
    assert (await slow).process_id
    assert (await mesh.call(second, mesh.sign(await mesh.mint(second, fence=9)))).process_id
    assert mesh.workload.start_count() == starts + 2
    await mesh.execute("DELETE FROM gateway.fences")


async def test_a_workload_that_does_not_come_up_is_a_stored_failure(mesh: Mesh) -> None:
    """EFFECT_FAILED with the detail, once and again; audit says FAILED."""
    request = mesh.restart()
    script = mesh.workload.instance.run / "checkout.json"
    good = script.read_text()
    grant = mesh.sign(await mesh.mint(request))
    script.write_text(good.replace("checkout.py", "missing.py"))
    try:
        with pytest.raises(Refusal, match="EFFECT_FAILED") as first:
            await mesh.call(request, grant)
        with pytest.raises(Refusal, match="EFFECT_FAILED") as again:
            await mesh.call(request, grant)
    finally:
        script.write_text(good)
    assert first.value.metadata == again.value.metadata
    assert "did not come up" in first.value.metadata["detail"]
    await mesh.until(lambda: mesh.audit.of(request.request_id, Event.PHASE_OUTCOME))
    assert mesh.audit.of(request.request_id, Event.PHASE_OUTCOME)[0].outcome == Event.OUTCOME_FAILED
    async with mesh.channel() as channel:
        stub = workload_rpc.WorkloadToolServiceStub(channel)

        async def healthy() -> None:
            # Its process manager goes on trying by itself.
            assert (await stub.CheckHealth(workload_pb.CheckHealthRequest(target_id=TARGET))).healthy

        await until(healthy, "the workload", 40, AssertionError)


async def test_a_backend_that_is_not_there_leaves_the_request_to_be_tried_again(mesh: Mesh) -> None:
    """BACKEND_UNAVAILABLE before anything was changed is NOT_STARTED."""
    request = mesh.restart()
    request.target_id = "svc:demo/gone"
    grant = mesh.make(request, {"process_id": "1", "state": "STATE_RUNNING"}, target_id=request.target_id)
    with pytest.raises(Refusal, match="BACKEND_UNAVAILABLE"):
        await mesh.call(request, mesh.sign(grant))
    effect = await mesh.effect(request)
    assert (effect.state, effect.reason) == (State.STATE_NOT_STARTED, "BACKEND_UNAVAILABLE")


async def test_reads_need_no_grant_unless_the_caller_is_marked(mesh: Mesh) -> None:
    """Automation reads freely."""
    async with mesh.channel() as channel:
        stub = workload_rpc.WorkloadToolServiceStub(channel)
        health = await stub.CheckHealth(workload_pb.CheckHealthRequest(target_id=TARGET))
    assert (health.healthy, health.status_code) == (True, 200)


async def test_effects_are_listed_newest_first_in_pages(mesh: Mesh) -> None:
    """Two pages hold all effects of the target, each once."""
    async with mesh.channel() as channel:
        stub = effect_service_pb2_grpc.EffectServiceStub(channel)
        everything = await stub.ListEffects(effect_service_pb2.ListEffectsRequest(page_size=1000))
        size = len(everything.effects) // 2 + 1
        first = await stub.ListEffects(effect_service_pb2.ListEffectsRequest(page_size=size))
        second = await stub.ListEffects(
            effect_service_pb2.ListEffectsRequest(page_size=size, page_token=first.next_page_token)
        )
    assert [*first.effects, *second.effects] == list(everything.effects)
    assert not second.next_page_token
    times = [one.start_time.ToNanoseconds() for one in everything.effects]
    assert times == sorted(times, reverse=True)
