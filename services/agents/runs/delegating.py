"""Runs that start runs: within what the template, the path, and what is left of the limits allow; nobody is held."""

from dataclasses import replace
from typing import Final

from google.protobuf.message import Message

from opsmesh.agents.v1 import agent_service_pb2 as pb
from opsmesh.router.v1 import outcome_pb2
from services.agents.runs.acting import unlock
from services.agents.runs.domain import Run, RunState, Step, StepState, derived_id
from services.agents.runs.starting import new_child
from services.agents.runs.store import Notes, Park
from services.agents.runs.work import SHOWN, Work, shown
from services.agents.templates.checking import changed_tools
from services.agents.templates.servicer import template_message
from services.mesh.models.showing import show

# What a child's end means for its parent at once: nobody knows what happened, or nothing may happen.
SPREADS: Final = frozenset({RunState.UNKNOWN, RunState.OBSERVED})


async def delegate(work: Work, step: Step, request: Message) -> bool:
    """Start a child run, in one transaction with the step that waits for it."""
    wish = outcome_pb2.DelegateAgent.FromString(request.SerializeToString())
    step = replace(step, tool=wish.template_id)
    row = await work.means.templates.template(wish.template_id)
    if row is None:
        await work.save(work.refused(step, "NOT_FOUND", f"no template {wish.template_id} is published"))
        return True
    if gone := changed_tools(row.pins):
        reason, tools = "TEMPLATE_DISABLED", ", ".join(gone)
        await work.save(work.refused(step, reason, f"template {wish.template_id} is disabled: {tools} changed"))
        return True
    # The child may want to write where this run did.
    step = await unlock(work, step)
    child_id = derived_id(work.run.run_id, "child", step.number)
    child = new_child(work.run, child_id, template_message(row), tuple(wish.target_ids), wish.goal)
    step = replace(step, child_run_id=child_id)
    notes = Notes(children=[child], park=Park(work.pace.child))
    await work.save(step, notes=notes, state=RunState.AWAITING_CHILD, detail=f"step {step.number} waits for {child_id}")
    return False


async def look(work: Work, step: Step) -> bool:
    """Look after the child; once it has ended, what it used is counted and what it reported is shown."""
    child = await work.means.store.run(step.child_run_id)
    if child is None:
        await work.save(work.refused(step, "NOT_FOUND", "the child run is gone"), state=RunState.RUNNING)
        return True
    if child.open:
        return await work.park(work.pace.child)
    used = {
        "token_count": work.run.token_count + child.token_count,
        "cost_micros": work.run.cost_micros + child.cost_micros,
        "recorded": work.run.recorded or child.recorded,
        "did": work.run.did or child.did,
    }
    step = replace(
        shown(step, _told(work, child)),
        state=StepState.SUCCEEDED if child.state is RunState.SUCCEEDED else StepState.FAILED,
        reason=child.reason,
        answered=True,
    )
    if child.state in SPREADS:
        detail = f"run {child.run_id}, which it started, ended {child.state}"
        state = StepState.UNKNOWN if child.state is RunState.UNKNOWN else StepState.OBSERVED
        return await work.end(child.state, child.reason, detail, replace(step, state=state), **used)
    await work.save(step, notes=Notes(waited=child.waited), state=RunState.RUNNING, detail="", **used)
    return True


def _told(work: Work, child: Run) -> str:
    """Return what the model is shown of a child that ended."""
    words = f"run {child.run_id} of template {child.template_id} ended {child.state}"
    if child.reason:
        words += f": {child.reason}"
    if child.report is None:
        return words
    healthy = "its targets were then read and are healthy" if child.health_proved else "health is not proved"
    report = show(pb.RunReport.FromString(child.report), work.frame.marks, SHOWN).text
    return f"{words}; {healthy}. It reported: {report}"
