"""The kill switch as executions feel it, on the real engine: what is in scope stops, everything else goes on."""

import signal
import uuid

import pytest
from temporalio.client import Client

from opsmesh.automation.v1 import automation_service_pb2
from opsmesh.guardrails.v1 import guardrails_service_pb2 as guardrails
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal
from tests.automation.fakes import TARGET, Hold
from tests.automation.world import ENDED, Mesh, state_of, steps_of

RESTART = "opsmesh.tools.workload.v1.WorkloadToolService/RestartWorkload"
AWAITING = frozenset({"AWAITING_APPROVAL"})


async def slow(mesh: Mesh) -> str:
    """Start an execution that has restarted, and pauses before its next try of a check."""
    mesh.gateway.health = [False, False]
    execution_id = await mesh.start("slow")
    await mesh.until(lambda: any(rpc == "CheckHealth" for rpc, _ in mesh.gateway.seen))
    return execution_id


@pytest.mark.parametrize(
    "scope",
    [
        {"everything": True},
        {"environment": "demo"},
        {"target_id": TARGET},
        {"playbook_id": "slow"},
        {"tool": "opsmesh.tools.workload.v1.WorkloadToolService/CheckHealth"},
    ],
    ids=lambda scope: next(iter(scope)),
)
async def test_scope_stops(mesh: Mesh, scope: dict[str, object]) -> None:
    """What a scope covers is cancelled at the engine, names its kill, frees its lock and is reported STOPPED."""
    execution_id = await slow(mesh)
    kill_id = mesh.guardrails.engage(**scope)
    execution = await mesh.reached(execution_id)
    assert (state_of(execution), execution.kill_id) == ("CANCELLED", kill_id)
    assert kill_id in execution.detail
    assert steps_of(execution) == {"restart": "SUCCEEDED", "verify": "CANCELLED"}
    assert mesh.guardrails.locks == {}
    await mesh.until(lambda: mesh.guardrails.stop_of(kill_id, execution_id) == "STOPPED")
    handle = (await Client.connect(mesh.temporal.address)).get_workflow_handle(execution_id)
    status = (await handle.describe()).status
    assert status is not None
    assert status.name in {"CANCELED", "COMPLETED"}


async def test_one_execution_and_nothing_else(mesh: Mesh) -> None:
    """A kill of one execution leaves another one of the same playbook and target alone."""
    killed, other = await slow(mesh), await slow(mesh)
    kill_id = mesh.guardrails.engage(execution_id=killed)
    assert state_of(await mesh.reached(killed)) == "CANCELLED"
    assert state_of(await mesh.get(other)) not in ENDED
    assert mesh.guardrails.stop_of(kill_id, other) == ""
    assert not (await mesh.get(other)).cancel_requested
    await mesh.cancel(other)
    await mesh.reached(other)


async def test_finished_step_is_not_in_scope(mesh: Mesh) -> None:
    """A kill of a tool whose step is done does not touch the execution."""
    execution_id = await slow(mesh)
    kill_id = mesh.guardrails.engage(tool=RESTART)
    await mesh.until(lambda: kill_id in mesh.guardrails.reports)
    assert not (await mesh.get(execution_id)).cancel_requested
    await mesh.cancel(execution_id)
    await mesh.reached(execution_id)


async def test_start_is_refused(mesh: Mesh) -> None:
    """A playbook with an effect is refused KILLED while a kill covers it, and starts after the release."""
    kill_id = mesh.guardrails.engage(environment="demo")
    await mesh.until(lambda: kill_id in mesh.guardrails.reports)
    with pytest.raises(Refusal) as refused:
        await mesh.start("tried")
    assert (refused.value.name, refused.value.metadata["kill_id"]) == ("KILLED", kill_id)
    assert refused.value.retry_after
    mesh.guardrails.release(kill_id)
    assert state_of(await mesh.run("tried")) == "SUCCEEDED"


async def test_start_again_gets_the_stored_answer(mesh: Mesh) -> None:
    """The same StartExecution is answered from the store also under a kill: it starts nothing."""
    request = automation_service_pb2.StartExecutionRequest(
        request_id=str(uuid.uuid4()), playbook_id="tried", incident_id=str(uuid.uuid4())
    )
    first = await mesh.call("StartExecution", request)
    await mesh.reached(first.execution.execution_id)
    kill_id = mesh.guardrails.engage(everything=True)
    await mesh.until(lambda: kill_id in mesh.guardrails.reports)
    assert await mesh.call("StartExecution", request) == first


async def test_people_are_told_under_a_kill(mesh: Mesh) -> None:
    """What only reads and tells is neither refused nor cancelled, also under a kill of everything."""
    kill_id = mesh.guardrails.engage(everything=True)
    await mesh.until(lambda: kill_id in mesh.guardrails.reports)
    assert state_of(await mesh.run("notify-person")) == "SUCCEEDED"


async def test_no_news_no_start(mesh: Mesh) -> None:
    """Without a lease for 5 s, or after one was withdrawn, only what changes nothing starts; news mends it."""
    mesh.guardrails.deaf = True
    mesh.guardrails.withdraw()
    refusals: list[str] = []
    started: list[str] = []

    async def start() -> None:
        try:
            started.append(await mesh.start("tried"))
        except Refusal as refused:
            refusals.append(refused.name)

    await mesh.until_true(start, lambda: refusals)
    assert refusals[0] == "LEASE_STALE"
    assert state_of(await mesh.run("notify-person")) == "SUCCEEDED"
    mesh.guardrails.deaf = False

    async def retry() -> None:
        refusals.clear()
        await start()

    await mesh.until_true(retry, lambda: not refusals)
    for execution_id in started:
        await mesh.reached(execution_id)


async def test_effect_in_flight_is_waited_for(mesh: Mesh) -> None:
    """An effect that had begun is UNSTOPPED until it ends; then the end is recorded, and nothing more is sent."""
    hold = Hold()
    mesh.gateway.turns["RestartWorkload"] = [hold]
    execution_id = await mesh.start("restart-workload")
    await hold.began.wait()
    kill_id = mesh.guardrails.engage(everything=True)
    await mesh.until(lambda: mesh.guardrails.stop_of(kill_id, execution_id) == "UNSTOPPED")
    # Past the grace the workflow is terminated; the effect's outcome is still found out.
    await mesh.execute(
        "UPDATE automation.executions SET kill_time = now() - interval '6 seconds' WHERE execution_id = $1",
        execution_id,
    )
    handle = (await Client.connect(mesh.temporal.address)).get_workflow_handle(execution_id)
    states: list[str] = []

    async def described() -> None:
        status = (await handle.describe()).status
        states[:] = [status.name if status else ""]

    await mesh.until_true(described, lambda: states != ["RUNNING"])
    assert states == ["TERMINATED"]
    assert state_of(await mesh.get(execution_id)) == "RUNNING"
    hold.go.set()
    execution = await mesh.reached(execution_id)
    assert (state_of(execution), steps_of(execution)["restart"]) == ("CANCELLED", "SUCCEEDED")
    assert steps_of(execution)["verify"] == "CANCELLED"
    await mesh.until(lambda: mesh.guardrails.stop_of(kill_id, execution_id) == "STOPPED")
    assert mesh.guardrails.locks == {}
    assert [rpc for rpc, _ in mesh.gateway.done] == ["RestartWorkload"]


async def test_waiting_for_a_person(mesh: Mesh) -> None:
    """An execution that waits for approval is stopped, too."""
    mesh.guardrails.verdicts["RestartWorkload"] = [guardrails.VERDICT_REQUIRE_APPROVAL]
    execution_id = await mesh.start("tried")
    await mesh.reached(execution_id, AWAITING)
    kill_id = mesh.guardrails.engage(target_id=TARGET)
    execution = await mesh.reached(execution_id)
    assert (state_of(execution), execution.kill_id) == ("CANCELLED", kill_id)


async def test_without_audit_and_across_a_restart(mesh: Mesh) -> None:
    """A kill works while audit is down, and one that came while automation was dead is found by the next process."""
    execution_id = await slow(mesh)
    mesh.audit.down = True
    await mesh.stop_process(signal.SIGKILL)
    kill_id = mesh.guardrails.engage(everything=True)
    await mesh.start_process()
    execution = await mesh.reached(execution_id)
    assert (state_of(execution), execution.kill_id) == ("CANCELLED", kill_id)
    await mesh.until(lambda: mesh.guardrails.stop_of(kill_id, execution_id) == "STOPPED")


async def test_refusal_of_the_gateway(mesh: Mesh) -> None:
    """A kill that reaches the gateway first stops the execution all the same, and nothing is sent again."""
    kill_id = str(uuid.uuid4())
    killed = Refusal(error_reason_pb2.ERROR_REASON_KILLED, kill_id=kill_id, scope="everything")
    mesh.gateway.turns["RestartWorkload"] = [killed]
    execution = await mesh.run("tried")
    assert (state_of(execution), execution.kill_id) == ("CANCELLED", kill_id)
    assert execution.steps[0].reason == "KILLED"
    assert mesh.gateway.done == []
