"""A step that needs a person: it holds nothing while it waits, and does exactly what people said, once."""

import signal
import time

import pytest

from opsmesh.guardrails.v1 import approval_service_pb2
from opsmesh.guardrails.v1 import guardrails_service_pb2 as guardrails
from opsmesh.tools.workload.v1 import workload_tool_service_pb2 as workload
from opsmesh.type.v1 import error_reason_pb2
from services.automation.workflow import APPROVAL_POLL
from services.mesh.errors import Refusal
from tests.automation.fakes import TARGET, Hold
from tests.automation.world import Execution, Mesh, state_of, steps_of

AWAITING = frozenset({"AWAITING_APPROVAL"})
Approval = approval_service_pb2.Approval


async def waiting(mesh: Mesh, playbook_id: str = "tried") -> Execution:
    """Start a playbook whose restart needs a person, and wait until it waits."""
    mesh.guardrails.verdicts["RestartWorkload"] = [guardrails.VERDICT_REQUIRE_APPROVAL]
    return await mesh.reached(await mesh.start(playbook_id), AWAITING)


def approval_of(execution: Execution) -> str:
    """Return the approval that the step waits for."""
    return next(step.approval_id for step in execution.steps if step.approval_id)


async def test_yes_goes_on_at_once(mesh: Mesh) -> None:
    """After a yes the very bytes that were approved are sent, under a new fence, sooner than it looks by itself."""
    execution = await waiting(mesh)
    assert mesh.guardrails.locks == {}
    said = time.monotonic()
    mesh.guardrails.vote(approval_of(execution), yes=True)
    await mesh.until(lambda: mesh.gateway.done)
    assert time.monotonic() - said < APPROVAL_POLL
    ended = await mesh.reached(execution.execution_id)
    assert state_of(ended) == "SUCCEEDED", ended
    assert len(set(mesh.guardrails.bytes)) == 1
    assert len(mesh.guardrails.fences) == 2
    assert ended.steps[0].approval_id == approval_of(execution)


async def test_no_says_who_and_why(mesh: Mesh) -> None:
    """A no fails the step with the person and the comment; nothing is tried again."""
    execution = await waiting(mesh)
    mesh.guardrails.vote(approval_of(execution), yes=False, comment="not on a Friday")
    ended = await mesh.reached(execution.execution_id)
    step = ended.steps[0]
    assert (state_of(ended), step.reason, step.attempt) == ("FAILED", "APPROVAL_REJECTED", 1)
    assert "human/approver" in step.detail
    assert "not on a Friday" in step.detail
    assert mesh.gateway.done == []


async def test_late_execution_is_told_apart(mesh: Mesh) -> None:
    """An approval that expired says in whose words: nobody answered, or nobody executed in time."""
    execution = await waiting(mesh)
    told = "approved, but not executed in time"
    mesh.guardrails.change(approval_of(execution), Approval.STATE_EXPIRED, close_detail=told)
    ended = await mesh.reached(execution.execution_id)
    assert (ended.steps[0].reason, told in ended.steps[0].detail) == ("APPROVAL_EXPIRED", True)


async def test_amended(mesh: Mesh) -> None:
    """What people amended is what runs: their bytes, on their target, under its lock."""
    execution = await waiting(mesh)
    request = workload.RestartWorkloadRequest.FromString(mesh.guardrails.bytes[0])
    request.target_id, request.reason = "svc:demo/cart", "this one instead"
    new = mesh.guardrails.replace(approval_of(execution), Approval.STATE_AMENDED, request.SerializeToString())
    seen: list[str] = []

    async def follows() -> None:
        seen[:] = [approval_of(await mesh.get(execution.execution_id))]

    await mesh.until_true(follows, lambda: seen == [new.approval_id])
    assert mesh.gateway.done == []
    mesh.guardrails.vote(new.approval_id, yes=True)
    hold = Hold()
    mesh.gateway.turns["RestartWorkload"] = [hold]
    await hold.began.wait()
    assert list(mesh.guardrails.locks) == ["svc:demo/cart"]
    hold.go.set()
    ended = await mesh.reached(execution.execution_id)
    assert state_of(ended) == "SUCCEEDED", ended
    (sent,) = [one for rpc, one in mesh.gateway.seen if rpc == "RestartWorkload"]
    assert sent == request
    assert (ended.steps[0].target_id, ended.steps[0].request_id) == ("svc:demo/cart", request.request_id)


async def test_amended_to_another_try(mesh: Mesh) -> None:
    """Bytes that carry another request id than this try's are not sent, whoever approved them."""
    execution = await waiting(mesh)
    request = workload.RestartWorkloadRequest.FromString(mesh.guardrails.bytes[0])
    request.request_id = execution.execution_id
    new = mesh.guardrails.replace(approval_of(execution), Approval.STATE_AMENDED, request.SerializeToString())
    mesh.guardrails.vote(new.approval_id, yes=True)
    ended = await mesh.reached(execution.execution_id)
    assert (state_of(ended), ended.steps[0].reason) == ("FAILED", "APPROVAL_VOID")
    assert mesh.gateway.done == []


async def test_state_changed_before_the_grant(mesh: Mesh) -> None:
    """A state that changed since the question makes one new question; changed again, the try has failed."""
    mesh.guardrails.drifts = 1
    execution = await waiting(mesh)
    mesh.guardrails.vote(approval_of(execution), yes=True)
    await mesh.until(lambda: len(mesh.guardrails.approvals) == 2)
    renewed = list(mesh.guardrails.approvals)[1]
    assert mesh.gateway.done == []
    mesh.guardrails.vote(renewed, yes=True)
    ended = await mesh.reached(execution.execution_id)
    assert (state_of(ended), ended.steps[0].approval_id) == ("SUCCEEDED", renewed)
    assert mesh.guardrails.locks == {}


async def test_state_changes_twice(mesh: Mesh) -> None:
    """The second change fails the try, and the next try asks with a request of its own."""
    mesh.guardrails.drifts = 2
    execution = await waiting(mesh)
    mesh.guardrails.vote(approval_of(execution), yes=True)
    await mesh.until(lambda: len(mesh.guardrails.approvals) == 2)
    mesh.guardrails.verdicts["RestartWorkload"] = [guardrails.VERDICT_DENY]
    mesh.guardrails.vote(list(mesh.guardrails.approvals)[1], yes=True)
    ended = await mesh.reached(execution.execution_id)
    assert (state_of(ended), ended.steps[0].attempt, ended.steps[0].reason) == ("FAILED", 2, "POLICY_DENIED")
    assert mesh.gateway.done == []


async def test_state_changed_at_the_gateway(mesh: Mesh) -> None:
    """The gateway's STATE_CHANGED is authorised anew once under the same request id, then it fails the try."""
    changed = Refusal(error_reason_pb2.ERROR_REASON_STATE_CHANGED, target=TARGET, diff="process_id: 1 -> 2")
    mesh.gateway.turns["RestartWorkload"] = [changed, changed]
    ended = await mesh.run("tried")
    assert (state_of(ended), ended.steps[0].attempt) == ("SUCCEEDED", 2)
    ids = [one.request_id for rpc, one in mesh.gateway.seen if rpc == "RestartWorkload"]
    assert [ids.count(one) for one in dict.fromkeys(ids)] == [2, 1]


async def test_void_by_a_kill(mesh: Mesh) -> None:
    """An approval that a kill made worthless cancels the execution and names the kill."""
    execution = await waiting(mesh)
    kill_id = "8a2b6d6e-2f6f-4d0b-9d86-0a6f0f4b7c11"
    told = f"kill {kill_id} (everything) stops this"
    mesh.guardrails.change(approval_of(execution), Approval.STATE_VOID, close_reason="KILLED", close_detail=told)
    ended = await mesh.reached(execution.execution_id)
    assert (state_of(ended), ended.steps[0].reason, ended.kill_id) == ("CANCELLED", "KILLED", kill_id)


async def test_waiting_blocks_nobody(mesh: Mesh) -> None:
    """While one execution waits for a person, another one on the same target runs to its end."""
    execution = await waiting(mesh)
    other = await mesh.run("tried")
    assert state_of(other) == "SUCCEEDED"
    mesh.guardrails.vote(approval_of(execution), yes=True)
    assert state_of(await mesh.reached(execution.execution_id)) == "SUCCEEDED"


@pytest.mark.parametrize("answered", [False, True], ids=["while-waiting", "right-after-the-answer"])
async def test_killed_automation(mesh: Mesh, *, answered: bool) -> None:
    """Automation killed while a person thinks, or right after the answer, goes on at the approved step, once."""
    execution = await waiting(mesh, "restart-workload")
    hold = Hold()
    if answered:
        mesh.gateway.turns["RestartWorkload"] = [hold]
        mesh.guardrails.vote(approval_of(execution), yes=True)
        await hold.began.wait()
    await mesh.stop_process(signal.SIGKILL)
    if not answered:
        mesh.guardrails.vote(approval_of(execution), yes=True)
    hold.go.set()
    await mesh.start_process()
    ended = await mesh.reached(execution.execution_id)
    assert state_of(ended) == "SUCCEEDED", ended
    assert steps_of(ended)["restart"] == "SUCCEEDED"
    assert mesh.gateway.count("RestartWorkload") == 1
    assert sum(1 for rpc, _ in mesh.gateway.seen if rpc == "CheckHealth") == 2
