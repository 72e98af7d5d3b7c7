"""Executions on the real engine and database: what is done, what is left, and who is told."""

from opsmesh.guardrails.v1 import approval_service_pb2
from opsmesh.guardrails.v1 import guardrails_service_pb2 as guardrails
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal
from tests.automation.fakes import TARGET
from tests.automation.world import Mesh, state_of, steps_of

AWAITING = frozenset({"AWAITING_APPROVAL"})


async def test_repair(mesh: Mesh) -> None:
    """A restart that helps proves health, tells people, gives the lock back and is on record."""
    execution = await mesh.run("restart-workload")
    assert state_of(execution) == "SUCCEEDED", execution
    assert steps_of(execution) == dict.fromkeys(("check", "restart", "verify", "notify"), "SUCCEEDED")
    assert execution.health_proved
    assert mesh.guardrails.locks == {}
    assert [rpc for rpc, _ in mesh.gateway.done] == ["RestartWorkload", "SendNotice"]
    restart = execution.steps[1]
    assert (restart.target_id, restart.attempt, restart.tool.rpartition("/")[2]) == (TARGET, 1, "RestartWorkload")
    action = "opsmesh.automation.v1.AutomationService/StartExecution"
    started = [one for one in mesh.audit.events if one.action == action]
    assert started[-1].execution_id == execution.execution_id
    context = mesh.guardrails.asked[0][1]
    assert (context.execution_id, context.step_id, context.rule_set_version) == (execution.execution_id, "restart", 3)


async def test_who_asked_in_a_chat_goes_with_every_action(mesh: Mesh) -> None:
    """The token of the start is in the context of each action that is judged, and in nothing that is shown."""
    mesh.guardrails.verdicts["RestartWorkload"] = [guardrails.VERDICT_REQUIRE_APPROVAL]
    execution_id = await mesh.start("restart-workload", identity_token=b"signed")
    execution = await mesh.reached(execution_id, AWAITING)
    mesh.guardrails.vote(execution.steps[1].approval_id, yes=True)
    execution = await mesh.reached(execution_id)
    assert state_of(execution) == "SUCCEEDED", execution
    assert len(mesh.guardrails.asked) == 3
    assert {context.identity_token for _, context in mesh.guardrails.asked} == {b"signed"}
    assert b"signed" not in execution.SerializeToString()


async def test_untrusted_title_is_cut(mesh: Mesh) -> None:
    """A title longer than a notice may carry is cut to its bound: the notice still goes out."""
    execution = await mesh.run("notify-person")
    assert state_of(execution) == "SUCCEEDED", execution
    (notice,) = [request for rpc, request in mesh.gateway.seen if rpc == "SendNotice"]
    assert len(notice.title) == 200
    assert mesh.guardrails.locks == {}
    assert not execution.health_proved


async def test_a_notice_carries_what_the_starter_says(mesh: Mesh) -> None:
    """A note reaches people as one line, and a NUL in it holds nothing up."""
    execution = await mesh.reached(await mesh.start("notify-person", note="Answer it:\nis it\0planned?"))
    assert state_of(execution) == "SUCCEEDED", execution
    (notice,) = [request for rpc, request in mesh.gateway.seen if rpc == "SendNotice"]
    assert notice.detail == "Answer it: is it planned?"


async def test_values_of_answers(mesh: Mesh) -> None:
    """An argument is taken out of an earlier step's answer."""
    execution = await mesh.run("health-report")
    assert state_of(execution) == "SUCCEEDED", execution
    (notice,) = [request for rpc, request in mesh.gateway.seen if rpc == "SendNotice"]
    assert notice.title == "Checkout is down"


async def test_nothing_to_repair(mesh: Mesh) -> None:
    """A workload that is healthy already is neither restarted nor locked."""
    mesh.gateway.healthy = True
    execution = await mesh.run("restart-workload")
    assert steps_of(execution) == {
        "check": "SUCCEEDED",
        "restart": "SKIPPED",
        "verify": "SUCCEEDED",
        "notify": "SKIPPED",
    }
    assert mesh.gateway.done == []


async def test_read_is_tried_again(mesh: Mesh) -> None:
    """A check whose expectation fails is tried again until it holds."""
    mesh.gateway.health = [False, False, False]
    execution = await mesh.run("restart-workload")
    assert state_of(execution) == "SUCCEEDED"
    assert execution.steps[2].attempt == 3


async def test_effect_is_tried_again(mesh: Mesh) -> None:
    """A failed effect is tried again under a new request_id, as often as the playbook says."""
    mesh.gateway.turns["RestartWorkload"] = ["fail", "fail"]
    execution = await mesh.run("tried")
    assert state_of(execution) == "SUCCEEDED", execution
    assert execution.steps[0].attempt == 3
    assert len({request_id for _, request_id in mesh.gateway.done}) == 3


async def test_failure_is_undone_and_told(mesh: Mesh) -> None:
    """When a later step fails, what had succeeded is undone, then the failure step runs."""
    mesh.gateway.health = [False, False]
    execution = await mesh.run("undone")
    assert state_of(execution) == "FAILED"
    assert steps_of(execution) == {
        "restart": "COMPENSATED",
        "verify": "FAILED",
        "restart.undo": "SUCCEEDED",
        "tell": "SUCCEEDED",
    }
    assert [rpc for rpc, _ in mesh.gateway.done] == ["RestartWorkload", "RestartWorkload", "SendNotice"]
    assert "verify failed" in execution.detail
    assert not execution.health_proved
    assert mesh.guardrails.locks == {}


async def test_denied(mesh: Mesh) -> None:
    """A denied step fails with the reason, and is not tried again."""
    mesh.guardrails.verdicts["RestartWorkload"] = [guardrails.VERDICT_DENY]
    execution = await mesh.run("tried")
    assert state_of(execution) == "FAILED"
    assert (execution.steps[0].reason, execution.steps[0].attempt) == ("POLICY_DENIED", 1)
    assert mesh.gateway.done == []


async def test_notice_that_does_not_go_out(mesh: Mesh) -> None:
    """What was seen healthy stays repaired, also when nobody could be told."""
    mesh.guardrails.verdicts["SendNotice"] = [guardrails.VERDICT_DENY]
    execution = await mesh.run("restart-workload")
    assert state_of(execution) == "SUCCEEDED"
    assert execution.health_proved
    assert steps_of(execution)["notify"] == "FAILED"


async def test_target_outside_inventory(mesh: Mesh) -> None:
    """A target that the inventory does not know is no argument."""
    execution = await mesh.run("astray")
    assert state_of(execution) == "FAILED"
    assert execution.steps[0].reason == "TARGET_UNKNOWN"
    assert mesh.guardrails.asked == []


async def test_observed(mesh: Mesh) -> None:
    """At the first OBSERVE nothing more runs, the rest is previewed, nobody is told, nothing is undone."""
    mesh.guardrails.verdicts["RestartWorkload"] = [guardrails.VERDICT_OBSERVE]
    execution = await mesh.run("restart-workload")
    assert state_of(execution) == "OBSERVED"
    assert steps_of(execution) == {
        "check": "SUCCEEDED",
        "restart": "OBSERVED",
        "verify": "SKIPPED",
        "notify": "OBSERVED",
    }
    assert mesh.gateway.done == []
    assert mesh.guardrails.previewed == ["SendNotice"]
    assert mesh.guardrails.locks == {}


async def test_approval_expires(mesh: Mesh) -> None:
    """A step that needs a person waits without a lock, and fails when nobody answers."""
    mesh.guardrails.verdicts["RestartWorkload"] = [guardrails.VERDICT_REQUIRE_APPROVAL]
    execution_id = await mesh.start("tried")
    waiting = await mesh.reached(execution_id, AWAITING)
    assert steps_of(waiting) == {"restart": "AWAITING_APPROVAL"}
    assert mesh.guardrails.locks == {}
    mesh.guardrails.change(waiting.steps[0].approval_id, approval_service_pb2.Approval.STATE_EXPIRED)
    execution = await mesh.reached(execution_id)
    assert state_of(execution) == "FAILED"
    assert execution.steps[0].reason == "APPROVAL_EXPIRED"
    assert mesh.gateway.done == []


async def test_approval_given(mesh: Mesh) -> None:
    """After a person's answer the same try is judged anew, under a lock taken again."""
    mesh.guardrails.verdicts["RestartWorkload"] = [guardrails.VERDICT_REQUIRE_APPROVAL]
    execution_id = await mesh.start("tried")
    waiting = await mesh.reached(execution_id, AWAITING)
    mesh.guardrails.vote(waiting.steps[0].approval_id, yes=True)
    execution = await mesh.reached(execution_id)
    assert state_of(execution) == "SUCCEEDED"
    assert execution.steps[0].attempt == 1
    assert len(mesh.guardrails.asked) == 2


async def test_unknown_is_never_repeated(mesh: Mesh) -> None:
    """An effect whose outcome is unknown ends the execution as UNKNOWN, whatever tries are left."""
    mesh.gateway.turns["RestartWorkload"] = ["unknown"]
    execution = await mesh.run("tried")
    assert state_of(execution) == "UNKNOWN"
    assert steps_of(execution) == {"restart": "UNKNOWN"}
    assert mesh.gateway.count("RestartWorkload") == 1


async def test_lost_reply(mesh: Mesh) -> None:
    """An effect whose answer was lost is asked for again, and happens once."""
    mesh.gateway.turns["RestartWorkload"] = ["lose"]
    execution = await mesh.run("restart-workload")
    assert state_of(execution) == "SUCCEEDED"
    assert mesh.gateway.count("RestartWorkload") == 1


async def test_passing_obstacles(mesh: Mesh) -> None:
    """A stale lease, a silent audit and a stale grant are waited out under the same request_id."""
    mesh.gateway.turns["RestartWorkload"] = [
        Refusal(error_reason_pb2.ERROR_REASON_LEASE_STALE, retry_after=0.1, age="3 s"),
        Refusal(error_reason_pb2.ERROR_REASON_GRANT_STALE, granted="1", current="2"),
        Refusal(error_reason_pb2.ERROR_REASON_AUDIT_UNAVAILABLE, retry_after=0.1),
    ]
    execution = await mesh.run("tried")
    assert state_of(execution) == "SUCCEEDED"
    restarts = {request.request_id for rpc, request in mesh.gateway.seen if rpc == "RestartWorkload"}
    assert len(restarts) == 1
    assert mesh.gateway.count("RestartWorkload") == 1


async def test_lock_of_another(mesh: Mesh) -> None:
    """A target that another execution holds is waited for."""
    mesh.guardrails.locks[TARGET] = ("somebody else", 7)
    execution_id = await mesh.start("tried")
    await mesh.until(lambda: mesh.guardrails.refused)
    assert mesh.gateway.done == []
    del mesh.guardrails.locks[TARGET]
    assert state_of(await mesh.reached(execution_id)) == "SUCCEEDED"
