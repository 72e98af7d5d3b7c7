"""Kills: told or polled, matched by scope, looked at twice and once more at the gate; what had begun is reported."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from opsmesh.audit.v1 import audit_service_pb2
from opsmesh.gateway.v1 import effect_service_pb2
from services.gateway.domain import LEASE_SECONDS
from services.mesh.errors import Refusal
from tests.gateway.test_notices import a_notice
from tests.gateway.world import NOTICE, RESTART, TARGET, Mesh

State = effect_service_pb2.Effect
STOP, START, INFO = "supervisor.stopProcess", "supervisor.startProcess", "supervisor.getProcessInfo"
PLAYBOOK = "restart-workload"
EXECUTION, RUN = str(uuid.uuid4()), str(uuid.uuid4())
INSIDE = [
    {"everything": True},
    {"environment": "demo"},
    {"target_id": TARGET},
    {"tool": RESTART},
    {"playbook_id": PLAYBOOK},
    {"execution_id": EXECUTION},
    {"run_id": RUN},
]
OUTSIDE = [
    {"environment": "production"},
    {"target_id": "svc:demo/other"},
    {"tool": NOTICE},
    {"playbook_id": "other"},
    {"execution_id": RUN},
    {"run_id": EXECUTION},
]
NAMED = {"playbook_id": PLAYBOOK, "execution_id": EXECUTION, "run_id": RUN}


@pytest.fixture(autouse=True)
async def released(mesh: Mesh) -> AsyncIterator[None]:
    """Begin and end each test without a kill that holds: what was released stays in the leases."""
    yield
    told = mesh.guardrails
    told.answering = told.telling = told.taking = True
    told.withdrawn = False
    told.release()
    mesh.audit.mode = "keep"


async def heard(mesh: Mesh) -> None:
    """Wait until the gateway has what was told and asked for."""
    polls = mesh.guardrails.polls
    await mesh.until(lambda: mesh.guardrails.polls > polls + 1)


async def engaged(mesh: Mesh, **scope: Any) -> str:
    """Engage a kill and wait until the gateway knows it: it reports on each."""
    kill_id = mesh.guardrails.engage(**scope)
    await mesh.until(lambda: [one for one in mesh.guardrails.reports if one.kill_id == kill_id])
    return kill_id


@pytest.mark.parametrize("scope", INSIDE, ids=lambda scope: next(iter(scope)))
async def test_a_kill_stops_what_was_granted_in_its_scope_for_ever(mesh: Mesh, scope: dict[str, object]) -> None:
    """KILLED with id and scope and no row; after its release the old grant stays void, a new one passes."""
    request, later = mesh.restart(), mesh.restart()
    grant = mesh.sign(await mesh.mint(request, kill_epoch=mesh.guardrails.epoch, **NAMED))
    kill_id = await engaged(mesh, **scope)
    for step in ("engaged", "released"):
        with pytest.raises(Refusal, match="KILLED") as caught:
            await mesh.call(request, grant)
        assert caught.value.metadata["kill_id"] == kill_id
        assert caught.value.metadata["scope"].split(" ")[0] in next(iter(scope))
        if step == "engaged":
            mesh.guardrails.release()
            await heard(mesh)
    assert await mesh.rows(request) == 0
    fresh = await mesh.mint(later, kill_epoch=mesh.guardrails.epoch, **NAMED)
    assert (await mesh.call(later, mesh.sign(fresh))).process_id


@pytest.mark.parametrize("scope", OUTSIDE, ids=lambda scope: next(iter(scope)))
async def test_a_kill_changes_nothing_outside_its_scope(mesh: Mesh, scope: dict[str, object]) -> None:
    """A grant minted before it, for something else, goes through while it holds."""
    request = mesh.restart()
    grant = await mesh.mint(request, kill_epoch=mesh.guardrails.epoch, **NAMED)
    await engaged(mesh, **scope)
    assert (await mesh.call(request, mesh.sign(grant))).process_id


async def test_a_grant_minted_after_the_release_is_not_stopped_by_what_we_heard_last(mesh: Mesh) -> None:
    """The gateway asks once more before it says KILLED to a grant that is newer than the kill it knows."""
    await engaged(mesh, everything=True)
    mesh.guardrails.telling = False
    mesh.guardrails.release()
    request = mesh.restart()
    grant = await mesh.mint(request, kill_epoch=mesh.guardrails.epoch)
    assert (await mesh.call(request, mesh.sign(grant))).process_id


async def test_a_notice_is_not_stopped(mesh: Mesh) -> None:
    """People are told of kills, too."""
    notice = a_notice()
    grant = await mesh.mint(notice, NOTICE, environment="demo")
    await engaged(mesh, everything=True)
    assert (await mesh.call(notice, mesh.sign(grant))).notice_id


async def test_what_is_told_counts_before_the_next_poll(mesh: Mesh) -> None:
    """While polls get no answer, a kill that is told stops the effect whose precondition is just being read."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    grant = mesh.sign(await mesh.mint(request, kill_epoch=mesh.guardrails.epoch))
    mesh.proxy.hold = ("before", INFO)
    calling = asyncio.create_task(mesh.call(request, grant))
    await asyncio.wait_for(mesh.proxy.held.wait(), 40)
    mesh.proxy.held.clear()
    mesh.guardrails.answering = False
    kill_id = mesh.guardrails.engage(tool=RESTART)
    # The gateway reports what the kill found: it has heard of it.
    await mesh.until(lambda: mesh.guardrails.states(kill_id, request.request_id) == ["IN_FLIGHT"])
    mesh.proxy.release()
    with pytest.raises(Refusal, match="KILLED"):
        await calling
    assert mesh.workload.start_count() == starts
    effect = await mesh.effect(request)
    assert (effect.state, effect.reason) == (State.STATE_NOT_STARTED, "KILLED")
    await mesh.until(lambda: mesh.guardrails.states(kill_id, request.request_id) == ["IN_FLIGHT", "STOPPED"])
    await mesh.until(lambda: mesh.audit.of(request.request_id, audit_service_pb2.AuditEvent.PHASE_OUTCOME))


async def test_what_has_begun_is_finished_and_reported(mesh: Mesh) -> None:
    """IN_FLIGHT with its deadline, again until guardrails takes it, and STOPPED when it ended; also after a crash."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    grant = mesh.sign(await mesh.mint(request, kill_epoch=mesh.guardrails.epoch))
    mesh.proxy.hold = ("before", START)
    calling = asyncio.create_task(mesh.call(request, grant))
    await asyncio.wait_for(mesh.proxy.held.wait(), 40)
    mesh.proxy.held.clear()
    mesh.guardrails.taking = False
    kill_id = mesh.guardrails.engage(environment="demo")
    await heard(mesh)
    assert not mesh.guardrails.states(kill_id, request.request_id)
    mesh.guardrails.taking = True
    await mesh.until(lambda: mesh.guardrails.states(kill_id, request.request_id) == ["IN_FLIGHT"])
    stop = next(one for report in mesh.guardrails.reports for one in report.stops if one.subject == request.request_id)
    assert stop.deadline_time == (await mesh.effect(request)).deadline_time
    await mesh.stop_hard()
    calling.cancel()
    mesh.guardrails.release()
    await mesh.start()
    await mesh.let_pass(request)
    await mesh.until(lambda: mesh.guardrails.states(kill_id, request.request_id)[-1] == "STOPPED")
    assert mesh.workload.start_count() == starts
    assert await mesh.execute("SELECT count(*) FROM gateway.stops") == 0
    again = mesh.restart()
    assert (await mesh.call(again, mesh.sign(await mesh.mint(again, kill_epoch=mesh.guardrails.epoch)))).process_id


async def test_a_kill_that_found_nothing_is_reported_too(mesh: Mesh) -> None:
    """One report without a stop, so that the gateway does not count as silent."""
    kill_id = mesh.guardrails.engage(target_id="svc:demo/other")
    await mesh.until(lambda: [one for one in mesh.guardrails.reports if one.kill_id == kill_id])
    await heard(mesh)
    assert {len(one.stops) for one in mesh.guardrails.reports if one.kill_id == kill_id} == {0}


async def test_a_withdrawn_lease_stops_everything_until_a_later_poll(mesh: Mesh) -> None:
    """A fresh lease is worth nothing once it was withdrawn; the next poll that succeeds mends it."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    grant = mesh.sign(await mesh.mint(request, kill_epoch=mesh.guardrails.epoch))
    mesh.proxy.hold = ("before", INFO)
    calling = asyncio.create_task(mesh.call(request, grant))
    await asyncio.wait_for(mesh.proxy.held.wait(), 40)
    mesh.proxy.held.clear()
    mesh.guardrails.withdrawn = True
    mesh.guardrails.tell()
    # Another caller sees it: then the gateway has heard.
    probe = mesh.restart()
    probed = mesh.sign(
        mesh.make(probe, {"process_id": "1", "state": "STATE_RUNNING"}, kill_epoch=mesh.guardrails.epoch)
    )
    reason = ""
    while reason != "LEASE_STALE":
        with pytest.raises(Refusal) as caught:
            await mesh.call(probe, probed)
        reason = caught.value.name
    # One that grew stale by itself would be older.
    assert float(caught.value.metadata["age"].removesuffix(" s")) < LEASE_SECONDS
    mesh.proxy.release()
    with pytest.raises(Refusal, match="LEASE_STALE"):
        await calling
    assert mesh.workload.start_count() == starts
    mesh.guardrails.withdrawn = False
    await heard(mesh)
    again = mesh.sign(await mesh.mint(request, kill_epoch=mesh.guardrails.epoch))
    assert (await mesh.call(request, again)).process_id


async def test_a_broken_stream_is_followed_again(mesh: Mesh) -> None:
    """The gateway follows; when the stream ends it comes back."""
    await mesh.until(lambda: mesh.guardrails.watchers == 1)
    mesh.guardrails.breaking = True
    mesh.guardrails.tell()
    await mesh.until(lambda: not mesh.guardrails.breaking and mesh.guardrails.watchers == 1)
