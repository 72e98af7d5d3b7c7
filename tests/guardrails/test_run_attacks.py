"""What a compromised `agents` tries with runs, each with its real certificate: nothing of it is granted."""

import asyncio
from typing import Any

import grpc.aio
import pytest

from opsmesh.config.v1 import inventory_pb2
from opsmesh.guardrails.v1 import guardrails_service_pb2 as pb
from opsmesh.guardrails.v1 import kill_switch_service_pb2 as kill_pb
from opsmesh.guardrails.v1 import target_lock_service_pb2 as lock_pb
from services.gateway.grants import to_domain
from services.gateway.lease import about
from services.guardrails.runs.domain import DEPTH_MAX, RUNS_MAX
from services.mesh import kills
from tests.guardrails import running
from tests.guardrails.killing import engage, release, report
from tests.guardrails.running import act, claim, context, lock, publish, reads, refused, register, uid, working
from tests.guardrails.world import (
    CHECKOUT,
    NOTICE,
    PAYMENTS,
    PRODUCTION,
    House,
    failures,
    notice,
    reason_of,
    restart,
    rule,
)


async def test_another_templates_tool(home: House) -> None:
    """A tool that is of another template is TOOL_NOT_OF_RUN, whatever else is in order; the notice, too."""
    await publish(home)
    looking = await working(home, template_id="look")
    assert failures(await act(home, looking)) == {"policy": "TOOL_NOT_OF_RUN"}
    told = await home.authorize(notice(), context(looking), method=NOTICE, name="agents")
    assert failures(told) == {"policy": "TOOL_NOT_OF_RUN"}
    assert not told.grant


async def test_a_tool_that_was_dropped(home: House) -> None:
    """What a template may do is asked of the active policy set each time: what it drops is gone at once."""
    await publish(home)
    run = await working(home)
    assert failures(await act(home, run)) == {}
    await publish(home, agents=[running.allowance("repair", "CheckHealth")])
    assert failures(await act(home, run)) == {"policy": "TOOL_NOT_OF_RUN"}
    assert [name.rpartition("/")[2] for name in (await reads(home, run_id=run.run_id)).methods] == ["CheckHealth"]
    await publish(home, agents=[])
    assert failures(await act(home, run)) == {"policy": "TOOL_NOT_OF_RUN"}
    assert await refused(reads(home, run_id=run.run_id)) == "TOOL_NOT_OF_RUN"


async def test_another_incidents_target(home: House) -> None:
    """A target that is not the run's is refused at registration, claim, lock and action, dependencies included."""
    await publish(home)
    run = await working(home)
    for target in (PAYMENTS, PRODUCTION):
        assert await refused(claim(home, run.run_id, target)) == "TARGET_NOT_OF_RUN"
        assert await refused(lock(home, run.run_id, target)) == "TARGET_NOT_OF_RUN"
        # Not even with a lock and a claim of another run of the same agents.
        await working(home, target)
        assert failures(await act(home, run, restart(target)))["safety"] == "TARGET_NOT_OF_RUN"
        other = home.ingest.open(CHECKOUT)
        assert await refused(register(home, other, target)) == "TARGET_NOT_OF_INCIDENT"
    assert PRODUCTION not in (await reads(home, run_id=run.run_id)).target_ids


async def test_another_incident_or_decision(home: House) -> None:
    """An action says the incident and decision that its run was registered for, or nothing is granted."""
    await publish(home)
    run = await working(home, decision_id=uid())
    # What it does not say counts as another one, too.
    assert failures(await act(home, run))["safety"] == "RUN_NOT_OPEN"
    for fields in ({"incident_id": home.ingest.open(CHECKOUT)}, {"incident_id": ""}, {"decision_id": uid()}):
        assert failures(await act(home, run, **fields))["safety"] == "RUN_NOT_OPEN"


async def test_a_closed_incident(home: House) -> None:
    """Nobody registers, acts or reads for an incident that is over or that nobody knows."""
    await publish(home)
    over = home.ingest.open(CHECKOUT, state="STATE_RESOLVED")
    for incident in (over, uid()):
        assert await refused(register(home, incident, CHECKOUT)) == "INCIDENT_NOT_OPEN"
        asked = {"decision_id": uid(), "incident_id": incident}
        assert await refused(reads(home, "router", **asked)) == "INCIDENT_NOT_OPEN"
    run = await register(home, home.ingest.open(CHECKOUT), CHECKOUT)
    await running.owned(home, "UPDATE guardrails.runs SET incident_id = $1", over)
    run.incident_id = over
    assert "INCIDENT_NOT_OPEN" in failures(await act(home, run)).values()
    assert await refused(reads(home, run_id=run.run_id)) == "INCIDENT_NOT_OPEN"


@pytest.mark.parametrize("over", ["ended", "expired"])
async def test_a_run_that_is_over(home: House, over: str) -> None:
    """Ended or expired: no action, no reads, no claim, no lock, no child, and it is never registered again."""
    await publish(home)
    run = await working(home)
    if over == "ended":
        await running.end(home, run.run_id)
    else:
        await running.owned(home, "UPDATE guardrails.runs SET expire_time = now()")
    answer = await act(home, run)
    assert failures(answer) == {"safety": "RUN_NOT_OPEN"}
    assert not answer.grant
    again = {"template_id": run.template_id, "run_id": run.run_id}
    for call in (
        reads(home, run_id=run.run_id),
        claim(home, run.run_id),
        lock(home, run.run_id),
        register(home, run.incident_id, CHECKOUT, parent_run_id=run.run_id),
        register(home, run.incident_id, CHECKOUT, **again),
    ):
        assert await refused(call) == "RUN_NOT_OPEN"


async def test_the_end_of_a_run_is_that_of_its_children(home: House) -> None:
    """Whoever ends a run ends all that it started; a child outlives its parent in no case."""
    await publish(home)
    root = await register(home, home.ingest.open(CHECKOUT), CHECKOUT, lifetime_duration={"seconds": 60})
    child = await register(
        home, root.incident_id, CHECKOUT, parent_run_id=root.run_id, lifetime_duration={"seconds": 86400}
    )
    grandchild = await register(home, root.incident_id, CHECKOUT, parent_run_id=child.run_id)
    assert child.expire_time == grandchild.expire_time == root.expire_time
    other = await register(home, root.incident_id, CHECKOUT)
    await running.end(home, root.run_id)
    for run in (root, child, grandchild):
        assert failures(await act(home, run))["safety"] == "RUN_NOT_OPEN"
    assert failures(await act(home, other))["safety"] != "RUN_NOT_OPEN"


async def test_a_run_is_never_another(home: House) -> None:
    """Registered again with another template, incident, decision, parent, target or person: CONFLICT."""
    await publish(home)
    incident = home.ingest.open(CHECKOUT, PAYMENTS)
    run = await register(home, incident, CHECKOUT)
    parent = await register(home, incident, CHECKOUT)
    spoken, _ = running.chat(home)
    said = await register(home, spoken, CHECKOUT)
    same: dict[str, Any] = {"run_id": run.run_id}
    for call in (
        register(home, incident, CHECKOUT, **same, template_id="look"),
        register(home, home.ingest.open(CHECKOUT), CHECKOUT, **same),
        register(home, incident, CHECKOUT, **same, decision_id=uid()),
        register(home, incident, CHECKOUT, **same, parent_run_id=parent.run_id),
        register(home, incident, PAYMENTS, **same),
        register(home, incident, CHECKOUT, PAYMENTS, **same),
        register(home, spoken, CHECKOUT, run_id=said.run_id, identity_token=running.token(home, spoken)),
    ):
        assert await refused(call) == "CONFLICT"


async def test_a_run_of_two_incidents_at_once(home: House) -> None:
    """Registered for eight incidents at the same time, a run is one's; the others hear CONFLICT."""
    await publish(home)
    run_id = uid()
    answers = await asyncio.gather(
        *(register(home, home.ingest.open(CHECKOUT), CHECKOUT, run_id=run_id) for _ in range(8)),
        return_exceptions=True,
    )
    reasons = [reason_of(one) for one in answers if isinstance(one, grpc.aio.AioRpcError)]
    assert reasons == ["CONFLICT"] * 7


async def test_a_parent_of_another_incident(home: House) -> None:
    """A child has its parent's incident, at most its targets, and a template that the parent's may start."""
    await publish(home)
    parent = await register(home, home.ingest.open(CHECKOUT, PAYMENTS), CHECKOUT)
    incident = parent.incident_id
    looking = await register(home, incident, CHECKOUT, template_id="look")
    below: dict[str, Any] = {"parent_run_id": parent.run_id}
    assert await refused(register(home, home.ingest.open(CHECKOUT), CHECKOUT, **below)) == "RUN_NOT_OPEN"
    assert await refused(register(home, incident, PAYMENTS, **below)) == "TARGET_NOT_OF_RUN"
    assert await refused(register(home, incident, CHECKOUT, parent_run_id=uid())) == "RUN_NOT_OPEN"
    assert await refused(register(home, incident, CHECKOUT, parent_run_id=looking.run_id)) == "TOOL_NOT_OF_RUN"
    assert await refused(register(home, incident, CHECKOUT, template_id="unheard", **below)) == "TOOL_NOT_OF_RUN"
    own = uid()
    assert await refused(register(home, incident, CHECKOUT, run_id=own, parent_run_id=own)) == "RUN_NOT_OPEN"


async def test_a_path_of_five(home: House) -> None:
    """Four runs are the longest path, also when each names the same template."""
    await publish(home)
    run = await register(home, home.ingest.open(CHECKOUT), CHECKOUT)
    for depth in range(2, DEPTH_MAX + 1):
        run = await register(home, run.incident_id, CHECKOUT, parent_run_id=run.run_id)
        assert run.depth == depth
    assert await refused(register(home, run.incident_id, CHECKOUT, parent_run_id=run.run_id)) == "RUN_LIMIT_REACHED"


async def test_a_seventeenth_run(home: House) -> None:
    """An incident has 16 runs in all of its life, also when 24 are registered at once and all of them end."""
    await publish(home)
    incident = home.ingest.open(CHECKOUT)

    async def one() -> str:
        try:
            run = await register(home, incident, CHECKOUT)
        except grpc.aio.AioRpcError as error:
            return reason_of(error)
        await running.end(home, run.run_id)
        return ""

    answers = await asyncio.gather(*(one() for _ in range(24)))
    assert sorted(answers) == [""] * RUNS_MAX + ["RUN_LIMIT_REACHED"] * (24 - RUNS_MAX)
    # Another way to write the same id is no other incident.
    home.ingest.incidents[incident.upper()] = home.ingest.incidents[incident]
    assert await refused(register(home, incident.upper(), CHECKOUT)) == "RUN_LIMIT_REACHED"
    assert await register(home, home.ingest.open(CHECKOUT), CHECKOUT)


async def test_a_claim_of_another_run(home: House) -> None:
    """Without the claim of its own root nothing is granted; a run below gives nobody's claim back."""
    await publish(home)
    incident = home.ingest.open(CHECKOUT)
    first, second = await register(home, incident, CHECKOUT), await register(home, incident, CHECKOUT)
    await claim(home, first.run_id)
    assert await refused(claim(home, second.run_id)) == "CLAIM_HELD"
    assert await refused(claim(home, uid())) == "RUN_NOT_OPEN"
    await lock(home, second.run_id)
    assert failures(await act(home, second)) == {"safety": "CLAIM_REQUIRED"}
    child = await register(home, incident, CHECKOUT, parent_run_id=first.run_id)
    giving = lock_pb.ReleaseClaimRequest(request_id=uid(), target_id=CHECKOUT, run_id=child.run_id)
    await home.locks("agents").ReleaseClaim(giving)
    assert await refused(claim(home, second.run_id)) == "CLAIM_HELD"
    await home.fetch("UPDATE guardrails.claims SET expire_time = now() RETURNING true")
    assert failures(await act(home, first))["safety"] == "CLAIM_REQUIRED"


async def test_a_lock_of_another(home: House) -> None:
    """The lock of another run, of an execution with the run's own id, or of nobody is none of this run's."""
    await publish(home)
    incident = home.ingest.open(CHECKOUT)
    first, second = await register(home, incident, CHECKOUT), await register(home, incident, CHECKOUT)
    await claim(home, second.run_id)
    assert failures(await act(home, second)) == {"safety": "LOCK_REQUIRED"}
    held = await lock(home, first.run_id)
    assert held.holder == first.run_id
    assert failures(await act(home, second)) == {"safety": "LOCK_REQUIRED"}
    assert await refused(lock(home, second.run_id)) == "LOCK_HELD"
    await running.unlock(home, held)
    await home.lock(execution_id=second.run_id)
    assert failures(await act(home, second)) == {"safety": "LOCK_REQUIRED"}
    assert await refused(lock(home, uid())) == "RUN_NOT_OPEN"


async def test_each_service_holds_locks_in_its_own_kind_of_name(home: House) -> None:
    """Agents lock for runs only, automation for executions only, people for neither."""
    await publish(home)
    run = await register(home, home.ingest.open(CHECKOUT), CHECKOUT)
    execution: dict[str, Any] = {"execution_id": uid()}
    of_run: dict[str, Any] = {"run_id": run.run_id}
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("agents", execution),
        ("agents", execution | of_run),
        ("agents", {}),
        ("automation", of_run),
        ("automation", execution | of_run),
        ("automation", {}),
        ("operator", of_run),
        ("operator", execution),
    ]
    for name, fields in wrong:
        stub, about = home.locks(name), fields | {"target_id": CHECKOUT}
        for call in (
            stub.AcquireLock(lock_pb.AcquireLockRequest(request_id=uid(), **about)),
            stub.RenewLock(lock_pb.RenewLockRequest(fence=1, **about)),
            stub.ReleaseLock(lock_pb.ReleaseLockRequest(request_id=uid(), fence=1, **about)),
        ):
            assert await refused(call) == "INVALID_ARGUMENT", (name, fields)


async def test_an_agent_without_a_run(home: House) -> None:
    """No run, an unheard one, or an execution and playbook beside it: nothing is granted; nor to others for a run."""
    await publish(home)
    run = await working(home)
    for fields in (
        {"run_id": ""},
        {"run_id": uid()},
        {"execution_id": uid()},
        {"playbook_id": "trusted"},
        {"run_id": "", "execution_id": run.run_id},
    ):
        answer = await act(home, run, **fields)
        assert failures(answer)["safety"] == "RUN_NOT_OPEN", fields
        assert not answer.grant
    mine = await home.ready(PAYMENTS)
    mine.run_id = run.run_id
    assert failures(await home.authorize(restart(PAYMENTS), mine)) == {"safety": "RUN_NOT_OPEN"}
    assert await refused(home.authorize(restart(), context(run), name="router")) == "PERMISSION_DENIED"


async def test_only_agents_register(home: House) -> None:
    """Router, automation and people register no runs; nobody reads for another kind of subject."""
    await publish(home)
    run = await working(home)
    asked: dict[str, Any] = {"run_id": uid(), "template_id": "repair", "incident_id": run.incident_id}
    for name in ("router", "automation", "operator", "gateway"):
        stub = home.guardrails(name)
        assert await refused(stub.RegisterRun(pb.RegisterRunRequest(request_id=uid(), **asked))) == "PERMISSION_DENIED"
        assert await refused(stub.EndRun(pb.EndRunRequest(request_id=uid(), run_id=run.run_id))) == "PERMISSION_DENIED"
    assert await refused(reads(home, "router", run_id=run.run_id)) == "INVALID_ARGUMENT"
    decision = {"decision_id": uid(), "incident_id": run.incident_id}
    assert await refused(reads(home, "agents", **decision)) == "INVALID_ARGUMENT"
    assert await refused(reads(home, "automation", **decision)) == "PERMISSION_DENIED"
    assert await refused(reads(home, "router", decision_id=uid())) == "INCIDENT_NOT_OPEN"
    assert await refused(reads(home, run_id=run.run_id, incident_id=home.ingest.open(CHECKOUT))) == "RUN_NOT_OPEN"


async def test_a_kill_of_the_run(home: House) -> None:
    """A kill of a run stops it and all below it, reads included, and for ever: a release lets neither go on."""
    await publish(home)
    root = await register(home, home.ingest.open(CHECKOUT), CHECKOUT)
    await claim(home, root.run_id)
    child = await register(home, root.incident_id, CHECKOUT, parent_run_id=root.run_id)
    await lock(home, child.run_id)
    answer = await act(home, child)
    assert failures(answer) == {}
    grant = to_domain(home.opened(answer.grant))
    kill = await engage(home, kill_pb.KillScope(run_id=root.run_id))
    # What was granted to the child before is void at the gateway, too.
    stopped = kill_pb.LeasedKill(kill_id=kill.kill_id, scope=kill.scope, epoch=kill.epoch)
    assert kills.stopping([stopped], about(grant), grant.kill_epoch) == stopped
    assert failures(await act(home, child)) == {"safety": "KILLED"}
    for run in (root, child):
        assert await refused(reads(home, run_id=run.run_id)) == "KILLED"
    # Released, and reported by nobody: it stays stopped, however its id is written.
    await release(home, kill)
    for run_id in (child.run_id, child.run_id.upper()):
        assert failures(await act(home, child, run_id=run_id)) == {"safety": "RUN_NOT_OPEN"}
    assert await refused(lock(home, child.run_id)) == "RUN_NOT_OPEN"
    below = register(home, root.incident_id, CHECKOUT, parent_run_id=child.run_id)
    assert await refused(below) == "RUN_NOT_OPEN"
    assert await refused(reads(home, run_id=child.run_id.upper())) == "KILLED"


async def test_a_run_that_was_told_to_stop(home: House) -> None:
    """Reported as stopped under a kill of its target, a run and all below it stay so after the release."""
    await publish(home)
    run = await working(home)
    child = await register(home, run.incident_id, CHECKOUT, parent_run_id=run.run_id)
    kill = await engage(home, kill_pb.KillScope(target_id=CHECKOUT))
    stop = kill_pb.Stop(kind=kill_pb.Stop.KIND_RUN, subject=run.run_id, state=kill_pb.Stop.STATE_STOPPED)
    await report(home, kill, stop, name="agents")
    await release(home, kill)
    for run_id in (run.run_id, run.run_id.upper(), child.run_id):
        assert failures(await act(home, run, run_id=run_id)) == {"safety": "KILLED"}
        assert await refused(reads(home, run_id=run_id)) == "KILLED"


async def test_reads_under_a_kill(home: House) -> None:
    """A kill of all targets refuses a read grant, one of some leaves them out; another environment's is no matter."""
    await publish(home)
    incident = home.ingest.open(CHECKOUT)
    run = await register(home, incident, CHECKOUT)
    decision = {"decision_id": uid(), "incident_id": incident}
    for scope, expected in (
        (kill_pb.KillScope(target_id=PAYMENTS), [CHECKOUT]),
        (kill_pb.KillScope(environment="production"), [CHECKOUT, PAYMENTS]),
    ):
        kill = await engage(home, scope)
        for answer in (await reads(home, run_id=run.run_id), await reads(home, "router", **decision)):
            assert list(answer.target_ids) == expected
        await release(home, kill)
    for scope in (kill_pb.KillScope(environment="demo"), kill_pb.KillScope(everything=True)):
        kill = await engage(home, scope)
        assert await refused(reads(home, run_id=run.run_id)) == "KILLED"
        assert await refused(reads(home, "router", **decision)) == "KILLED"
        await release(home, kill, "operator", "approver")


async def test_a_read_grant_fits_into_metadata(home: House) -> None:
    """With many long names what the targets depend on is left out; what is too large even so is refused."""
    names = [f"svc:demo/{index:02}{'x' * 180}" for index in range(32)]
    places = inventory_pb2.Inventory()
    places.entries.add(target_id=names[0], kind="service", environment="demo", depends_on=names[1:])
    for name in names[1:]:
        places.entries.add(target_id=name, kind="service", environment="demo")
    await home.publish(rule("all", "ALLOW"), places=places, agents=running.AGENTS)
    run = await register(home, home.ingest.open(names[0]), names[0])
    answer = await reads(home, run_id=run.run_id)
    assert 6000 - 200 < len(answer.grant) <= 6 * 1024
    assert answer.target_ids[0] == names[0]
    assert 20 < len(answer.target_ids) < 32
    whole = {"decision_id": uid(), "incident_id": home.ingest.open(*names)}
    assert await refused(reads(home, "router", **whole)) == "INVALID_ARGUMENT"


async def test_the_lock_of_a_run_that_is_over(home: House) -> None:
    """It is not kept for ever by asking: after the end of its run it lapses, and others go on."""
    await publish(home)
    held = await lock(home, (run := await working(home)).run_id)
    renewing = lock_pb.RenewLockRequest(target_id=CHECKOUT, fence=held.fence, run_id=run.run_id)
    await home.locks("agents").RenewLock(renewing)
    await running.end(home, run.run_id)
    assert await refused(home.locks("agents").RenewLock(renewing)) == "RUN_NOT_OPEN"
