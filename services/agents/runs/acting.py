"""Reads and actions of a run: with a read grant, or judged one by one and sent once; an open effect is asked after."""

import time
from dataclasses import replace
from typing import Final

import structlog
from google.protobuf.message import Message

from opsmesh.gateway.v1 import effect_service_pb2
from opsmesh.guardrails.v1 import approval_service_pb2 as approvals
from opsmesh.guardrails.v1 import guardrails_service_pb2 as guardrails
from services.agents.runs.domain import Run, RunState, Step, StepState
from services.agents.runs.work import Work, changes, request_of, tool_of, with_request
from services.mesh import policy
from services.mesh.failures import After, CallError, after_failure
from services.mesh.loop import unless_stopped

# A read grant is renewed this long before its end, in seconds.
PASS_MARGIN: Final = 30.0
READ_TRIES: Final = 5
AUTHORISE_TRIES: Final = 5
ACTION_TRIES: Final = 10
# Refusals that are over soon, although their status says otherwise.
PASSING: Final = frozenset({"DEADLINE_EXCEEDED", "CLAIM_REQUIRED"})
CALL_SECONDS: Final = 60.0
PAUSE_MAX: Final = 10.0
PEOPLE: Final = "human/"
_EFFECT: Final = effect_service_pb2.Effect
log = structlog.get_logger("opsmesh.agents.runs")
VERDICTS: Final = {value: name.removeprefix("VERDICT_") for name, value in guardrails.Verdict.items() if value}


async def fetch(work: Work, step: Step) -> Message:
    """Call a tool that reads, with the run's read grant. Raises CallError and StoppedError."""
    tool = tool_of(step)
    if work.read_pass is None or work.read_pass.expire - time.time() < PASS_MARGIN:
        work.read_pass = await unless_stopped(work.outside.read_pass(work.run.run_id), work.stop)
    try:
        seconds = longest(step)
        call = work.outside.call(tool, step.request or b"", seconds, work.read_pass.grant)
        return await unless_stopped(call, work.stop)
    except CallError as error:
        if error.after is After.AUTHORISE:
            work.read_pass = None
        raise


async def read(work: Work, step: Step) -> bool:
    """Read; what stands in the way for a moment is tried again, what does not is told to the model."""
    try:
        answer = await fetch(work, step)
    except CallError as error:
        return await _not_read(work, step, error)
    await work.save(work.answered(step, answer), state=RunState.RUNNING)
    return True


async def _not_read(work: Work, step: Step, error: CallError) -> bool:
    """Say what a failed read means."""
    if error.reason == "KILLED":
        return await work.killed(error, step)
    step = replace(step, tries=step.tries + 1, reason=error.reason[:64], detail=error.detail)
    if step.tries < READ_TRIES and error.after is After.AUTHORISE:
        await work.save(step)
        return True
    if step.tries < READ_TRIES and error.after is After.AGAIN:
        return await work.park(_pause(error, work.pace.again), step)
    await work.save(work.refused(step, error.reason, error.detail, answered=True))
    return True


async def act(work: Work, step: Step) -> bool:
    """Bring an action one piece further: ask after it, wait for people, have it judged, send it once."""
    try:
        if step.sent:
            if (answer := await _known(work, step)) is not None:
                return await _done(work, step, answer)
            # It never began: whatever stands in its way by now, such as the time of the run, counts again.
            await work.save(replace(step, sent=False))
            return True
        if step.state is StepState.AWAITING_APPROVAL:
            waiting = await _approved(work, step)
            if waiting is None:
                return await work.park(work.pace.approval)
            step = waiting
        return await _judge(work, step)
    except CallError as error:
        return await _failed(work, _newest(work, step), error)


async def settle(work: Work, step: Step) -> Step:
    """Return how an action that was sent has ended, for a run that stops. Raises CallError while it is under way."""
    effect = await work.outside.effect(tool_of(step), _request_id(step))
    state = effect.state if effect else _EFFECT.STATE_NOT_STARTED
    if state == _EFFECT.STATE_STARTED:
        raise CallError("EFFECT_IN_FLIGHT", "what was begun ends first", After.AGAIN, None)
    if state == _EFFECT.STATE_SUCCEEDED:
        return replace(step, state=StepState.SUCCEEDED, detail="ended after the run was asked to stop")
    if state == _EFFECT.STATE_UNKNOWN:
        return replace(step, state=StepState.UNKNOWN, reason="EFFECT_UNKNOWN")
    return replace(step, state=StepState.FAILED if effect else StepState.CANCELLED)


async def unlock(work: Work, step: Step) -> Step:
    """Give back the lock that the run holds; one that cannot be given back now lapses by itself."""
    held = work.lock
    if held is None:
        return replace(step, fence=0)
    try:
        await work.outside.unlock(work.run.run_id, held.target_id, held.fence)
    except CallError:
        return step
    if held.number != step.number:
        await work.save(replace(held, fence=0))
    return replace(step, fence=0)


async def keep(work: Work) -> None:
    """Keep the lock that the run holds; one that was lost is taken anew before the next write."""
    held = work.lock
    if held is None or not work.run.open:
        return
    try:
        await work.outside.keep_lock(work.run.run_id, held.target_id, held.fence)
    except CallError as error:
        log.warning("lock not kept", run_id=work.run.run_id, target=held.target_id, error=str(error))


def longest(step: Step) -> float:
    """Return how long a call of a step may take, in seconds."""
    tool = tool_of(step)
    return min(CALL_SECONDS, policy.seconds(tool.policy.max_duration) or CALL_SECONDS)


def context_of(run: Run, step: Step) -> guardrails.ActionContext:
    """Return where an action comes from: the same for every try, for approvals are bound to it."""
    return guardrails.ActionContext(
        incident_id=run.incident_id,
        decision_id=run.decision_id,
        run_id=run.run_id,
        step_id=f"step-{step.number}",
        on_behalf_of=run.requester if run.requester.startswith(PEOPLE) else "",
    )


async def _known(work: Work, step: Step) -> Message | None:
    """Return the gateway's answer to an action that was sent before, None when it never began. Raises CallError."""
    tool = tool_of(step)
    effect = await work.outside.effect(tool, _request_id(step))
    if effect is None or effect.state == _EFFECT.STATE_NOT_STARTED:
        return None
    if effect.state == _EFFECT.STATE_STARTED:
        raise CallError("EFFECT_IN_FLIGHT", "it was sent before and is still under way", After.AGAIN, None)
    if effect.state == _EFFECT.STATE_UNKNOWN:
        raise CallError("EFFECT_UNKNOWN", effect.detail, After.UNKNOWN, None)
    try:
        # A finished effect is answered from the gateway's store without a grant.
        return await work.outside.call(tool, step.request or b"", longest(step), b"")
    except CallError as error:
        if error.reason == "GRANT_MISSING":
            return None
        raise


async def _approved(work: Work, step: Step) -> Step | None:
    """Return the step as people want it, None while they have not answered; guardrails says what their answer means."""
    approval = await work.outside.approval(step.approval_id)
    if approval.state == approvals.Approval.STATE_PENDING:
        return None
    step = replace(step, state=StepState.RUNNING, approval_id=approval.approval_id)
    if approval.state == approvals.Approval.STATE_APPROVED and approval.request:
        tool = tool_of(step)
        step = with_request(step, tool, tool.request_class.FromString(approval.request))
    await work.save(step, state=RunState.RUNNING, approval_id="")
    return step


async def _judge(work: Work, step: Step) -> bool:
    """Lock, have it judged, and go on as guardrails says."""
    tool, run = tool_of(step), work.run
    if changes(tool) and step.target_id:
        step = await _lock(work, step)
    judged = await unless_stopped(work.outside.authorize(tool, step.request or b"", context_of(run, step)), work.stop)
    judgement = judged.judgement
    step = replace(step, verdict=VERDICTS.get(judgement.verdict, ""), approval_id=judged.approval_id)
    if judgement.verdict == guardrails.VERDICT_ALLOW:
        return await _send(work, step, judged)
    failed = [check for check in judgement.checks if not check.passed]
    detail = "; ".join(f"{check.name}: {check.detail}" for check in failed) or judgement.risk_detail
    if judgement.verdict == guardrails.VERDICT_REQUIRE_APPROVAL:
        step = replace(await unlock(work, step), state=StepState.AWAITING_APPROVAL, detail=judgement.risk_detail)
        told = f"step {step.number} waits for approval {judged.approval_id}"
        state = RunState.AWAITING_APPROVAL
        return await work.park(
            work.pace.approval, step, state=state, approval_id=judged.approval_id, reason="", detail=told
        )
    if judgement.verdict == guardrails.VERDICT_OBSERVE:
        told = f"policy only observes: rule {judgement.policy_rule_id} of policy set {judgement.policy_set_version}"
        step = replace(await unlock(work, step), state=StepState.OBSERVED, detail=told)
        return await work.end(RunState.OBSERVED, "", told, step)
    reason = judgement.reason or "POLICY_DENIED"
    raise CallError(reason, detail, after_failure(reason, "PERMISSION_DENIED", effect=False), None)


async def _lock(work: Work, step: Step) -> Step:
    """Take or keep the lock of an action's target; a run holds one, so that it waits for none while it has another."""
    held = work.lock
    if held is not None and held.target_id != step.target_id:
        step, held = await unlock(work, step), None
    fence = await unless_stopped(work.outside.lock(work.run.run_id, step.target_id), work.stop)
    if fence == step.fence:
        return step
    step = replace(step, fence=fence)
    before = [replace(held, fence=0)] if held is not None and held.number != step.number else []
    await work.save(step, *before, state=RunState.RUNNING)
    return step


async def _send(work: Work, step: Step, judged: guardrails.AuthorizeActionResponse) -> bool:
    """Note that it is sent, send it, wait for its end: a stop comes before the note or after the end."""
    tool = tool_of(step)
    step = replace(step, sent=True, request=judged.request or step.request)
    if work.stop.is_set():
        return True
    await work.save(step, state=RunState.RUNNING, reason="", did=work.run.did or changes(tool))
    if work.stop.is_set():
        # Asked to stop with the very note: nothing has left yet.
        await work.save(replace(step, sent=False))
        return True
    answer = await work.outside.call(tool, step.request or b"", longest(step), judged.grant)
    return await _done(work, step, answer)


async def _done(work: Work, step: Step, answer: Message) -> bool:
    """Record what an action answered; the lock is kept until the run ends, or waits for others."""
    await work.save(work.answered(step, answer), state=RunState.RUNNING)
    return True


async def _failed(work: Work, step: Step, error: CallError) -> bool:
    """Say what a failed call means for an action and its run."""
    if error.after is After.UNKNOWN and step.sent:
        step = replace(step, state=StepState.UNKNOWN, reason=error.reason[:64], detail=error.detail)
        return await work.end(RunState.UNKNOWN, error.reason, error.detail, step)
    if error.reason == "KILLED":
        return await work.killed(error, await unlock(work, step))
    step = replace(step, tries=step.tries + 1, reason=error.reason[:64], detail=error.detail)
    if error.after is After.AUTHORISE and step.tries < AUTHORISE_TRIES:
        await work.save(step)
        return True
    passing = error.after in {After.AGAIN, After.AUTHORISE} or error.reason in PASSING
    if passing and (step.sent or step.tries < ACTION_TRIES or error.after is After.AGAIN):
        # A claim that was lost in a long pause is taken again before the next try.
        work.run = replace(work.run, claim_left=0.0) if error.reason == "CLAIM_REQUIRED" else work.run
        return await work.park(_pause(error, work.pace.again), step)
    if not work.run.did:
        step = await unlock(work, step)
    await work.save(work.refused(step, error.reason, error.detail, answered=True))
    return True


def _newest(work: Work, step: Step) -> Step:
    """Return a step as it was written last."""
    return next((one for one in work.run.steps if one.number == step.number), step)


def _request_id(step: Step) -> str:
    """Return the id under which the gateway knows an action."""
    return str(getattr(request_of(step), "request_id", ""))


def _pause(error: CallError, usual: float) -> float:
    """Return how long to wait before the next try."""
    if error.retry_after is None or error.reason == "LOCK_HELD":
        # Who does not ask for a lock again soon loses the place in its queue.
        return usual
    return min(PAUSE_MAX, max(error.retry_after, usual / 10))
