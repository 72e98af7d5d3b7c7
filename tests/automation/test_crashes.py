"""What is cancelled, killed or lost in the middle of an execution: nothing happens twice, nothing hangs."""

import signal
import uuid

import pytest
from temporalio.client import Client, WorkflowFailureError

from opsmesh.automation.v1 import automation_service_pb2
from opsmesh.gateway.v1 import effect_service_pb2
from opsmesh.guardrails.v1 import guardrails_service_pb2 as guardrails
from services.automation import contract
from services.automation.contract import Start
from services.mesh.errors import Refusal
from tests.automation.fakes import Hold
from tests.automation.world import Mesh, state_of, steps_of


async def test_cancel_waits_for_the_effect(mesh: Mesh) -> None:
    """A cancel in the middle of an effect waits for its outcome, records it, frees the lock, runs nothing more."""
    hold = Hold()
    mesh.gateway.turns["RestartWorkload"] = [hold]
    execution_id = await mesh.start("restart-workload")
    await hold.began.wait()
    asked = await mesh.cancel(execution_id)
    assert asked.cancel_requested
    assert state_of(asked) == "RUNNING"
    hold.go.set()
    execution = await mesh.reached(execution_id)
    assert state_of(execution) == "CANCELLED"
    assert steps_of(execution) == {
        "check": "SUCCEEDED",
        "restart": "SUCCEEDED",
        "verify": "CANCELLED",
        "notify": "CANCELLED",
    }
    assert mesh.guardrails.locks == {}
    assert [rpc for rpc, _ in mesh.gateway.done] == ["RestartWorkload"]
    handle = (await Client.connect(mesh.temporal.address)).get_workflow_handle(execution_id)
    status = (await handle.describe()).status
    assert status is not None
    assert status.name in {"CANCELED", "COMPLETED"}


async def test_cancel_between_tries(mesh: Mesh) -> None:
    """A cancel ends a long pause at once."""
    mesh.gateway.health = [False, False]
    execution_id = await mesh.start("slow")
    await mesh.until(lambda: any(rpc == "CheckHealth" for rpc, _ in mesh.gateway.seen))
    await mesh.cancel(execution_id)
    execution = await mesh.reached(execution_id)
    assert steps_of(execution) == {"restart": "SUCCEEDED", "verify": "CANCELLED"}
    assert mesh.guardrails.locks == {}


async def test_cancel_of_an_approval(mesh: Mesh) -> None:
    """A cancel ends the wait for a person."""
    mesh.guardrails.verdicts["RestartWorkload"] = [guardrails.VERDICT_REQUIRE_APPROVAL]
    execution_id = await mesh.start("tried")
    await mesh.reached(execution_id, frozenset({"AWAITING_APPROVAL"}))
    await mesh.cancel(execution_id)
    execution = await mesh.reached(execution_id)
    assert state_of(execution) == "CANCELLED"
    assert steps_of(execution) == {"restart": "CANCELLED"}


async def test_cancel_twice(mesh: Mesh) -> None:
    """An execution that has ended cannot be cancelled, and says where it stands."""
    execution = await mesh.run("notify-person")
    with pytest.raises(Refusal) as refused:
        await mesh.cancel(execution.execution_id)
    assert refused.value.name == "CONFLICT"
    assert refused.value.metadata["state"] == "SUCCEEDED"


async def test_kill_in_the_middle_of_an_effect(mesh: Mesh) -> None:
    """Automation killed while an effect runs goes on with the same request_id: it happens once."""
    hold = Hold()
    mesh.gateway.turns["RestartWorkload"] = [hold]
    execution_id = await mesh.start("restart-workload")
    await hold.began.wait()
    await mesh.stop_process(signal.SIGKILL)
    hold.go.set()
    await mesh.start_process()
    execution = await mesh.reached(execution_id)
    assert state_of(execution) == "SUCCEEDED", execution
    assert mesh.gateway.count("RestartWorkload") == 1
    assert mesh.gateway.count("SendNotice") == 1
    assert mesh.guardrails.locks == {}


async def test_kill_while_the_effect_goes_on(mesh: Mesh) -> None:
    """An effect still under way after the restart is waited for, not repeated."""
    hold = Hold()
    mesh.gateway.turns["RestartWorkload"] = [hold]
    execution_id = await mesh.start("tried")
    await hold.began.wait()
    await mesh.stop_process(signal.SIGKILL)
    await mesh.start_process()
    await mesh.until(lambda: mesh.gateway.asked_effects)
    hold.go.set()
    execution = await mesh.reached(execution_id)
    assert state_of(execution) == "SUCCEEDED", execution
    assert mesh.gateway.count("RestartWorkload") == 1


async def test_stop_in_the_middle_of_an_effect(mesh: Mesh) -> None:
    """A clean stop exits 0 within its grace; the next process goes on."""
    hold = Hold()
    mesh.gateway.turns["RestartWorkload"] = [hold]
    execution_id = await mesh.start("tried")
    await hold.began.wait()
    assert await mesh.stop_process() == 0
    hold.go.set()
    await mesh.start_process()
    assert state_of(await mesh.reached(execution_id)) == "SUCCEEDED"
    assert mesh.gateway.count("RestartWorkload") == 1


async def test_workflow_terminated(mesh: Mesh) -> None:
    """A workflow that somebody terminates at the engine is started again from what is recorded."""
    hold = Hold()
    mesh.gateway.turns["RestartWorkload"] = [hold]
    execution_id = await mesh.start("restart-workload")
    await hold.began.wait()
    handle = (await Client.connect(mesh.temporal.address)).get_workflow_handle(execution_id)
    await handle.terminate("a test")
    await mesh.execute("UPDATE automation.executions SET check_time = now() WHERE execution_id = $1", execution_id)
    hold.go.set()
    execution = await mesh.reached(execution_id)
    assert state_of(execution) == "SUCCEEDED"
    assert mesh.gateway.count("RestartWorkload") == 1
    assert sum(1 for rpc, _ in mesh.gateway.seen if rpc == "CheckHealth") == 2


async def test_cancel_of_a_terminated_workflow(mesh: Mesh) -> None:
    """A cancel whose workflow is gone still finds out how the effect ended."""
    hold = Hold()
    mesh.gateway.turns["RestartWorkload"] = [hold]
    execution_id = await mesh.start("tried")
    await hold.began.wait()
    handle = (await Client.connect(mesh.temporal.address)).get_workflow_handle(execution_id)
    await handle.terminate("a test")
    await mesh.cancel(execution_id)
    hold.go.set()
    execution = await mesh.reached(execution_id)
    assert state_of(execution) == "CANCELLED", execution
    assert steps_of(execution) == {"restart": "SUCCEEDED"}
    assert mesh.guardrails.locks == {}


async def test_pending_while_the_engine_is_away(mesh: Mesh) -> None:
    """Without the engine an execution waits as PENDING, can be cancelled, and runs when the engine is back."""
    await mesh.stop_process()
    await mesh.start_process(OPSMESH_TEMPORAL="127.0.0.1:9")
    one, other = await mesh.start("notify-person"), await mesh.start("notify-person")
    assert state_of(await mesh.get(one)) == "PENDING"
    assert state_of(await mesh.cancel(one)) == "CANCELLED"
    await mesh.stop_process()
    await mesh.start_process()
    assert state_of(await mesh.reached(other)) == "SUCCEEDED"
    assert state_of(await mesh.get(one)) == "CANCELLED"
    assert mesh.gateway.count("SendNotice") == 1


async def test_same_start_twice(mesh: Mesh) -> None:
    """The same StartExecution again gets the stored answer and starts nothing."""
    request = automation_service_pb2.StartExecutionRequest(
        request_id=str(uuid.uuid4()), playbook_id="notify-person", incident_id=str(uuid.uuid4())
    )
    first = await mesh.call("StartExecution", request)
    again = await mesh.call("StartExecution", request)
    assert first == again
    await mesh.reached(first.execution.execution_id)
    assert mesh.gateway.count("SendNotice") == 1


async def test_strangers_workflow(mesh: Mesh) -> None:
    """A workflow that somebody starts at the engine's open port, without an execution row, does nothing."""
    client = await Client.connect(mesh.temporal.address)
    stranger = str(uuid.uuid4())
    with pytest.raises(WorkflowFailureError):
        await client.execute_workflow(
            contract.WORKFLOW, Start(stranger, "0" * 64), id=stranger, task_queue=contract.TASK_QUEUE
        )
    assert mesh.gateway.seen == []


async def test_effect_that_never_began(mesh: Mesh) -> None:
    """A try that was noted as sent but that the gateway never saw is sent again under the same id."""
    hold = Hold()
    mesh.gateway.turns["RestartWorkload"] = [hold]
    execution_id = await mesh.start("tried")
    await hold.began.wait()
    await mesh.stop_process(signal.SIGKILL)
    hold.go.set()
    await mesh.until(lambda: mesh.gateway.done)
    (key,) = mesh.gateway.done
    mesh.gateway.effects[key] = (effect_service_pb2.Effect.STATE_NOT_STARTED, None)
    mesh.gateway.done.clear()
    await mesh.start_process()
    assert state_of(await mesh.reached(execution_id)) == "SUCCEEDED"
    assert mesh.gateway.done == [key]
