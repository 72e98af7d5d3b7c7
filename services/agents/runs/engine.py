"""One piece of a run after the other: which comes next follows from its rows alone, so that any process can go on."""

from dataclasses import replace
from typing import Any, Final

import structlog

from opsmesh.agents.v1 import model_service_pb2 as pb
from services.agents.runs import acting, delegating, reporting
from services.agents.runs.domain import (
    USELESS_MAX,
    Kind,
    Run,
    RunState,
    Step,
    StepState,
    answers_of,
    last_reply,
    limit_reached,
    useless_replies,
)
from services.agents.runs.domain import derived_id as id_of
from services.agents.runs.peers import CLAIM_SECONDS, LIFETIME_SECONDS
from services.agents.runs.store import Notes
from services.agents.runs.thinking import DELEGATE, REPORT, calls_of, question
from services.agents.runs.work import IDENTITY, Work, kind_of, shown, with_request
from services.agents.store import INCIDENT, METHOD
from services.agents.templates.checking import changed_tools
from services.mesh.call import current, working
from services.mesh.errors import Refusal
from services.mesh.failures import After, CallError
from services.mesh.loop import StoppedError, unless_stopped
from services.mesh.models.paid import paid
from services.mesh.models.tool_calls import Dropped, Parsed, ToolCall, quoted, read_call
from services.mesh.models.untrusted import sanitise
from services.mesh.telemetry import parse

SECONDS: Final = 90.0
MODEL_SECONDS: Final = 60.0
MODEL_SECONDS_MIN: Final = 1.0
TEXT_MAX: Final = 16_000
# A model may be there again later.
LATER: Final = frozenset({"MODEL_UNAVAILABLE", "BUDGET_EXHAUSTED", "MODEL_REFUSED", "STORE_UNAVAILABLE"})
LIMIT: Final = "RUN_LIMIT_REACHED"
CLAIM_MARGIN: Final = CLAIM_SECONDS / 2
DOING: Final = frozenset({Kind.ACTION, Kind.DELEGATE})
log = structlog.get_logger("opsmesh.agents.runs")


async def advance(work: Work) -> bool:
    """Do the next piece of work; False when this worker is done with the run. Raises LostError."""
    work.tick()
    run = work.run
    person = run.requester if run.requester.startswith(acting.PEOPLE) else ""
    trace = parse(run.traceparent)
    with working(IDENTITY, f"run/{run.template_id}", SECONDS, trace=trace, on_behalf_of=person):
        if not run.open:
            return await close(work)
        if run.stopping or work.stop.is_set():
            return await cancel(work)
        try:
            return await _next(work)
        except StoppedError:
            return True


async def _next(work: Work) -> bool:
    """Do what comes next for a run that goes on."""
    run = work.run
    step = next((one for one in run.steps if one.open), None)
    if step is not None and (step.sent or step.kind is Kind.DELEGATE):
        # Something is under way outside: whatever else has changed, its end is seen first.
        await _claimed_still(work)
        return await _go_on(work, step)
    if _overdue(run):
        return await _limited(work, ("time", f"{run.time_limit:.0f} s"))
    if gone := changed_tools(work.frame.pins):
        return await work.end(RunState.FAILED, "TEMPLATE_DISABLED", f"changed since it began: {', '.join(gone)}")
    if not await _prepared(work):
        return not work.run.open
    if step is not None:
        return await _go_on(work, step)
    return await (_finish(work) if run.report is not None else _begin_next(work))


async def _finish(work: Work) -> bool:
    """Prove what a run that has reported left behind, then let it end."""
    if waiting := reporting.to_prove(work):
        return await reporting.begin_proof(work, waiting[0])
    return await work.end(RunState.SUCCEEDED, health_proved=reporting.proved(work.run))


async def _begin_next(work: Work) -> bool:
    """Answer the next call of the newest reply; when every call has its answer, ask the model."""
    run = work.run
    reply = last_reply(run.steps)
    if reply is not None and reply.reply is not None:
        answers = answers_of(reply, run.steps)
        calls = calls_of(pb.GenerateResponse.FromString(reply.reply))
        for call, why in calls:
            if call.call_id not in answers:
                return await _answer(work, call, why, [one for one, _ in calls], list(answers.values()))
        if useless_replies(run.steps) >= USELESS_MAX:
            detail = f"{USELESS_MAX} replies in a row could not be used"
            return await work.end(RunState.FAILED, reporting.INVALID, detail)
    if reached := limit_reached(run, work.frame.template.max_steps):
        return await _limited(work, reached)
    return await _ask(work, Step(run.next_number, Kind.MODEL))


def _overdue(run: Run) -> bool:
    """Say whether the time is up: not for a run that waits for people, or that has reported and is only proved."""
    waits = run.state is RunState.AWAITING_APPROVAL or run.report is not None
    return run.begun and run.worked >= run.time_limit and not waits


async def _limited(work: Work, reached: tuple[str, str]) -> bool:
    """End a run at its limit."""
    what, limit = reached
    waited = f"; it waited: {work.run.reason}" if work.run.reason else ""
    return await work.end(RunState.FAILED, LIMIT, f"the limit of {what} is reached: {limit}{waited}")


async def _prepared(work: Work) -> bool:
    """Have the run registered, and its targets claimed in the name of the first run of its path."""
    run = work.run
    try:
        if not run.registered:
            requester = await work.outside.register(run)
            # Guardrails knows the person of a token; whoever started a run by hand is known here only.
            person = requester if requester.startswith(acting.PEOPLE) else run.requester
            await work.save(registered=True, requester=person)
        await _claim(work)
    except CallError as error:
        return await _not_prepared(work, error)
    if not work.run.begun:
        await work.save(begun=True, state=RunState.RUNNING, reason="", detail="")
    return True


async def _claim(work: Work) -> None:
    """Claim every target, or none, when it is time: who waits for one holds no other. Raises CallError."""
    run = work.run
    if run.depth > 1 or run.claim_left >= CLAIM_MARGIN:
        return
    taken: list[str] = []
    for target_id in run.target_ids:
        try:
            await work.outside.claim(run.root_run_id, target_id)
        except CallError:
            for held in taken if not run.begun else ():
                await work.outside.release_claim(run.root_run_id, held)
            raise
        taken.append(target_id)
    await work.save(notes=Notes(claimed=CLAIM_SECONDS))
    work.run = replace(work.run, claim_left=float(CLAIM_SECONDS))


async def _claimed_still(work: Work) -> None:
    """Keep the claims if that is possible: what is under way is looked after in any case."""
    try:
        await _claim(work)
    except CallError as error:
        log.warning("claims not kept", run_id=work.run.run_id, error=str(error))


async def _not_prepared(work: Work, error: CallError) -> bool:
    """Wait for what passes by itself; what does not ends the run."""
    if error.reason == "KILLED":
        await work.killed(error)
        return False
    passing = error.after in {After.AGAIN, After.RETRY} or error.reason == "CLAIM_HELD"
    if not passing:
        await work.end(RunState.FAILED, error.reason, error.detail)
        return False
    if work.run.age > LIFETIME_SECONDS:
        await work.end(RunState.FAILED, LIMIT, f"it waited too long: {error.reason}")
        return False
    state = work.run.state if work.run.begun else RunState.PENDING
    return await work.park(work.pace.claim, state=state, reason=error.reason[:64], detail=error.detail)


async def _go_on(work: Work, step: Step) -> bool:
    """Go on with a step that has no end yet."""
    match step.kind:
        case Kind.MODEL:
            return await _ask(work, step)
        case Kind.READ:
            return await acting.read(work, step)
        case Kind.ACTION:
            return await acting.act(work, step)
        case Kind.DELEGATE:
            return await delegating.look(work, step)
        case _:
            return await reporting.prove(work, step)


async def _ask(work: Work, step: Step) -> bool:
    """Ask the model; the same step asks the same question under the same id, so nothing is paid for twice."""
    if not work.run.steps or work.run.steps[-1].number < step.number:
        await work.save(step)
        if work.stop.is_set():
            return True
    request = question(work.run, work.frame, step.number)
    # A model that hangs must not take longer than the run may.
    seconds = max(MODEL_SECONDS_MIN, min(MODEL_SECONDS, work.run.time_limit - work.run.worked))
    try:
        outer = current()
        person = outer.on_behalf_of
        with working(IDENTITY, METHOD, seconds, trace=outer.trace, request_id=request.request_id, on_behalf_of=person):
            reply = await unless_stopped(work.means.boundary.generate(request), work.stop)
    except Refusal as refusal:
        return await _not_answered(work, step, refusal)
    usage = reply.usage
    text = sanitise(reply.text, TEXT_MAX).text if reply.text else ""
    done = replace(
        shown(step, text),
        state=StepState.SUCCEEDED,
        reason="",
        detail="",
        reply=reply.SerializeToString(),
        prompt_digest=reply.prompt_digest,
        model=reply.model,
        input_tokens=step.input_tokens + usage.input_tokens,
        output_tokens=step.output_tokens + usage.output_tokens,
        estimated=step.estimated or usage.estimated,
        cost_micros=step.cost_micros + reply.cost_micros,
        latency_seconds=reply.latency_duration.ToNanoseconds() / 1e9,
        recorded=reply.recorded,
    )
    await work.save(
        done,
        state=RunState.RUNNING,
        reason="",
        detail="",
        token_count=work.run.token_count + usage.input_tokens + usage.output_tokens,
        cost_micros=work.run.cost_micros + reply.cost_micros,
        recorded=work.run.recorded or reply.recorded,
    )
    return True


async def _not_answered(work: Work, step: Step, refusal: Refusal) -> bool:
    """Wait for a model that may be there later; else the run has failed: the boundary told it why, and asked again.

    What its tries cost counts for the step and the run as if it had answered.
    """
    used = {name: paid(refusal, name) for name in ("input_tokens", "output_tokens", "cost_micros")}
    told = replace(
        step,
        tries=step.tries + 1,
        reason=refusal.name,
        detail=_why(refusal)[:1024],
        model=refusal.metadata.get("model", step.model),
        **{name: getattr(step, name) + count for name, count in used.items()},
    )
    counted: dict[str, Any] = {
        "token_count": work.run.token_count + used["input_tokens"] + used["output_tokens"],
        "cost_micros": work.run.cost_micros + used["cost_micros"],
    }
    # What an incident may cost counts for its whole life: to wait for it would only hold up others.
    spent = refusal.name == "BUDGET_EXHAUSTED" and refusal.metadata.get("scope") == INCIDENT.lower()
    if refusal.name in LATER and not spent:
        pause = max(work.pace.model, min(refusal.retry_after or 0.0, 30.0))
        # Who waits for a provider holds up nobody.
        waits = replace(await acting.unlock(work, told), tries=step.tries)
        changes = {"state": RunState.PENDING, "reason": refusal.name, "detail": told.detail} | counted
        return await work.park(pause, waits, notes=None, **changes)
    if refusal.name == "GENERATION_IN_FLIGHT":
        return await work.park(work.pace.again)
    failed = replace(told, state=StepState.FAILED)
    return await work.end(RunState.FAILED, refusal.name, told.detail, failed, **counted)


def _why(refusal: Refusal) -> str:
    """Return why a model did not answer: in its own words, or which budget does not allow it."""
    said = refusal.metadata
    if left := said.get("left"):
        return f"the budget of {said.get('scope')} {said.get('subject')}: {left}"
    return said.get("detail") or refusal.name


async def _answer(work: Work, call: ToolCall, why: str, calls: list[ToolCall], answered: list[Step]) -> bool:
    """Answer one call of a reply: with a step that does it, or that says why not."""
    run, number = work.run, work.run.next_number
    # The last step of all may be the report.
    reached = limit_reached(run, work.frame.template.max_steps)
    if reached and call.name != REPORT:
        return await _limited(work, reached)
    found = read_call(call, work.frame.offers, id_of(run.run_id, "action", number))
    offer = work.frame.offers.get(call.name)
    tool = work.frame.tool(offer) if offer else None
    kind = kind_of(tool) if tool else {REPORT: Kind.REPORT, DELEGATE: Kind.DELEGATE}.get(call.name, Kind.READ)
    step = Step(
        number,
        kind,
        tool=tool.name if tool else quoted(call.name),
        call_id=call.call_id,
        arguments_json=sanitise(call.arguments, TEXT_MAX).text,
    )
    if why or isinstance(found, Dropped):
        reason = why or (found.reason if isinstance(found, Dropped) else "")
        await work.save(work.refused(step, reporting.INVALID, reason, dropped=True))
        return True
    if told := _out_of_place(kind, calls, answered):
        await work.save(work.refused(step, LIMIT, told))
        return True
    return await _begin(work, step, found)


def _out_of_place(kind: Kind, calls: list[ToolCall], answered: list[Step]) -> str:
    """Return why a call that is fine by itself is not done in this reply."""
    if kind is Kind.REPORT and len(calls) > 1:
        return "a report comes alone, after you have seen every result: nothing was reported"
    if kind in DOING and any(one.kind in DOING and not one.dropped for one in answered):
        return "at most one call that changes something in a reply: this one was not done"
    return ""


async def _begin(work: Work, step: Step, found: Parsed) -> bool:
    """Begin the step of a call that was understood."""
    if step.kind is Kind.REPORT:
        return await reporting.report(work, step, found.request)
    if step.kind is Kind.DELEGATE:
        return await delegating.delegate(work, step, found.request)
    tool = work.frame.tool(found.offer)
    if tool is None:
        await work.save(work.refused(step, reporting.INVALID, "there is no such tool", dropped=True))
        return True
    await work.save(with_request(step, tool, found.request), state=RunState.RUNNING)
    return True


async def cancel(work: Work) -> bool:
    """Stop: no further step is begun; what was sent, and the runs below, end first."""
    if not work.run.stopping and (now := await work.means.store.run(work.run.run_id)) is not None:
        work.run = now
    if any(one.open for one in await work.means.store.children(work.run.run_id)):
        return await work.park(work.pace.again)
    run = work.run
    step = next((one for one in run.steps if one.open), None)
    ended: list[Step] = []
    if step is not None and step.sent:
        try:
            step = await acting.settle(work, step)
        except CallError as error:
            return await work.park(work.pace.again, replace(step, detail=error.detail))
        ended = [step]
    reason = "KILLED" if run.kill_id else ""
    detail = run.cancel_reason or "somebody asked it to stop"
    state = RunState.UNKNOWN if step is not None and step.state is StepState.UNKNOWN else RunState.CANCELLED
    return await work.end(state, reason, detail, *ended)


async def close(work: Work) -> bool:
    """Give back what an ended run holds, and have it ended at guardrails; tried again until guardrails answers."""
    run = work.run
    try:
        if work.lock is not None and run.state is not RunState.UNKNOWN:
            await acting.unlock(work, work.lock)
        for target_id in run.target_ids if run.registered and run.depth == 1 else ():
            await work.outside.release_claim(run.root_run_id, target_id)
        # Also where it is not known to be registered: the answer to that may have been lost.
        await work.outside.end(run.run_id)
    except CallError as error:
        log.warning("run not closed", run_id=run.run_id, error=str(error))
        if error.after in {After.AGAIN, After.RETRY} and run.age < 2 * LIFETIME_SECONDS:
            return await work.park(work.pace.closing)
    log.info("run ended", run_id=run.run_id, state=run.state, reason=run.reason)
    return await work.park(0.0, closed=True)
