"""People are told about approvals and kills: each notice once, in the same words, whatever restarts."""

import signal
import time
import uuid

from opsmesh.guardrails.v1 import approval_service_pb2, kill_switch_service_pb2
from opsmesh.guardrails.v1 import guardrails_service_pb2 as guardrails
from opsmesh.tools.notify.v1 import notify_tool_service_pb2 as notify
from services.automation.telling import of_approval, of_kill
from services.mesh import policy
from tests.automation.fakes import TARGET
from tests.automation.world import Mesh

AWAITING = frozenset({"AWAITING_APPROVAL"})
Approval = approval_service_pb2.Approval
Kind = notify.SendNoticeRequest.Kind
NOW = time.time()


def approval(state: "Approval.State.ValueType", age: float = 0.0, *votes: approval_service_pb2.Vote) -> Approval:
    """Return an approval of 100 s that was asked for `age` seconds ago."""
    made = Approval(approval_id=str(uuid.uuid4()), state=state, method="opsmesh.tools.x.v1.X/RestartWorkload")
    made.create_time.FromNanoseconds(int((NOW - age) * 1e9))
    made.expire_time.FromNanoseconds(int((NOW - age + 100) * 1e9))
    made.judgement.target_id = TARGET
    made.votes.extend(votes)
    return made


def kinds(made: Approval) -> list[str]:
    """Return which notices an approval makes now."""
    return [telling.kind for telling in of_approval(made, NOW)]


def test_kinds_of_an_approval() -> None:
    """A question, a reminder at half-time, an answer, an end; a replaced one is told by what replaces it."""
    asked, reminded = "APPROVAL_REQUESTED", "APPROVAL_REMINDER"
    assert kinds(approval(Approval.STATE_PENDING, 49)) == [asked]
    assert kinds(approval(Approval.STATE_PENDING, 51)) == [asked, reminded]
    vote = approval_service_pb2.Vote(person="human/approver", answer=approval_service_pb2.Vote.ANSWER_APPROVE)
    assert kinds(approval(Approval.STATE_PENDING, 51, vote)) == [asked]
    assert kinds(approval(Approval.STATE_APPROVED)) == ["APPROVAL_ANSWERED"]
    assert kinds(approval(Approval.STATE_REJECTED)) == ["APPROVAL_ANSWERED"]
    assert kinds(approval(Approval.STATE_EXPIRED)) == ["APPROVAL_EXPIRED"]
    assert kinds(approval(Approval.STATE_VOID)) == ["APPROVAL_EXPIRED"]
    assert kinds(approval(Approval.STATE_AMENDED)) == []


def test_hostile_words_are_bounded() -> None:
    """Whatever people wrote, the notice is valid, and the same facts make the same bytes."""
    vote = approval_service_pb2.Vote(person="human/approver", comment="x" * 512)
    made = approval(Approval.STATE_REJECTED, 0.0, vote, vote, vote)
    (one,), (again,) = of_approval(made, 0.0), of_approval(made, 9e9)
    policy.validate(one.request)
    assert one.request.SerializeToString(deterministic=True) == again.request.SerializeToString(deterministic=True)
    kill = kill_switch_service_pb2.Kill(kill_id=str(uuid.uuid4()), reason="y" * 512, engager="human/operator")
    kill.scope.everything = True
    kill.state = kill_switch_service_pb2.Kill.STATE_RELEASED
    for telling in of_kill(kill):
        policy.validate(telling.request)
    assert [telling.kind for telling in of_kill(kill)] == ["KILL_ENGAGED", "KILL_RELEASED"]


def told(mesh: Mesh, subject: str) -> list[str]:
    """Return the kinds of what people were told about a subject, in order."""
    mine = [one for one in mesh.gateway.told if subject in {one.approval_id, one.kill_id}]
    return [Kind.Name(one.kind).removeprefix("KIND_") for one in mine]


async def asked(mesh: Mesh) -> tuple[str, str]:
    """Let an execution ask for an approval; return both ids."""
    mesh.guardrails.verdicts["RestartWorkload"] = [guardrails.VERDICT_REQUIRE_APPROVAL]
    execution = await mesh.reached(await mesh.start("tried"), AWAITING)
    return execution.execution_id, execution.steps[0].approval_id


async def test_question_reminder_answer(mesh: Mesh) -> None:
    """People hear of the question, once more at half-time, and of the answer, on the channel `ops`."""
    execution_id, approval_id = await asked(mesh)
    await mesh.until(lambda: told(mesh, approval_id) == ["APPROVAL_REQUESTED"])
    pending = mesh.guardrails.approvals[approval_id]
    pending.create_time.FromSeconds(int(time.time()) - 200)
    pending.expire_time.FromSeconds(int(time.time()) + 100)
    mesh.guardrails.change(approval_id, Approval.STATE_PENDING)
    await mesh.until(lambda: told(mesh, approval_id) == ["APPROVAL_REQUESTED", "APPROVAL_REMINDER"])
    mesh.guardrails.vote(approval_id, yes=False, comment="no")
    await mesh.until(lambda: told(mesh, approval_id)[2:] == ["APPROVAL_ANSWERED"])
    await mesh.reached(execution_id)
    assert {one.channel for one in mesh.gateway.told} == {"ops"}
    assert mesh.gateway.told[0].target_id == TARGET
    assert mesh.gateway.told[0].approval_id == approval_id


async def test_across_restarts(mesh: Mesh) -> None:
    """Nothing is told twice, and what happened while automation was dead is told by the next process."""
    execution_id, approval_id = await asked(mesh)
    kill_id = mesh.guardrails.engage(environment="elsewhere")
    await mesh.until(lambda: told(mesh, approval_id) and told(mesh, kill_id))
    await mesh.stop_process(signal.SIGKILL)
    # Closed, and for longer than any stream or lease would still name it.
    mesh.guardrails.change(approval_id, Approval.STATE_EXPIRED, close_detail="nobody answered in time")
    mesh.guardrails.forget(kill_id)
    await mesh.start_process()
    await mesh.until(lambda: told(mesh, approval_id)[-1] == "APPROVAL_EXPIRED" and told(mesh, kill_id)[1:])
    await mesh.reached(execution_id)
    assert told(mesh, approval_id) == ["APPROVAL_REQUESTED", "APPROVAL_EXPIRED"]
    assert told(mesh, kill_id) == ["KILL_ENGAGED", "KILL_RELEASED"]


async def test_kill_and_release(mesh: Mesh) -> None:
    """A kill and its release are told, also while nothing is running."""
    kill_id = mesh.guardrails.engage(everything=True)
    await mesh.until(lambda: told(mesh, kill_id) == ["KILL_ENGAGED"])
    mesh.guardrails.release(kill_id)
    await mesh.until(lambda: told(mesh, kill_id) == ["KILL_ENGAGED", "KILL_RELEASED"])
    engaged = next(one for one in mesh.gateway.told if one.kill_id == kill_id)
    assert "everything" in engaged.title
    assert "human/operator" in engaged.detail


async def test_channel_is_down(mesh: Mesh) -> None:
    """A notice that does not go out is tried again under the same request id until it does."""
    mesh.gateway.mute = 2
    kill_id = mesh.guardrails.engage(environment="elsewhere")
    await mesh.until(lambda: told(mesh, kill_id) == ["KILL_ENGAGED"])
    assert mesh.gateway.mute == 0
