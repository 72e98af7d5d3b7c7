"""What an agent says came of it, held against its own steps; and what opsmesh reads for itself afterwards."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from google.protobuf.message import Message

from opsmesh.agents.v1 import agent_service_pb2 as pb
from services.agents.runs.acting import fetch
from services.agents.runs.domain import Kind, Run, RunState, Step, StepState
from services.agents.runs.thinking import REPORT
from services.agents.runs.work import Work, shown, with_request
from services.mesh.failures import CallError
from services.mesh.tools import find_tool

INVALID: Final = "MODEL_REPLY_INVALID"
SOURCES: Final = frozenset({Kind.READ, Kind.ACTION, Kind.DELEGATE})
DOINGS: Final = frozenset({Kind.ACTION, Kind.DELEGATE})


def wrong(report: pb.RunReport, steps: Sequence[Step], *, did: bool) -> str:
    """Return what a report claims that its run's steps do not show, or nothing."""
    known = {one.number: one for one in steps}
    for place, one in enumerate(report.evidence):
        step = known.get(one.step_number)
        if step is None or step.kind not in SOURCES or not step.answered:
            return f"evidence[{place}]: step {one.step_number} is no step of yours that anybody answered"
    for place, action in enumerate(report.actions):
        step = known.get(action.step_number)
        if step is None or step.kind not in DOINGS or step.state is not StepState.SUCCEEDED:
            return f"actions[{place}]: step {action.step_number} is no action of yours that was done"
    if not math.isfinite(report.confidence):
        return "confidence: must be a number from 0 to 1"
    if report.outcome == pb.RunReport.OUTCOME_REPAIRED and not (report.actions and did):
        return "outcome: nothing was done by you, so you repaired nothing"
    return ""


async def report(work: Work, step: Step, request: Message) -> bool:
    """Take a report, or send it back with the reason; it counts as a reply that was not understood."""
    told = pb.RunReport.FromString(request.SerializeToString())
    if problem := wrong(told, work.run.steps, did=work.run.did):
        await work.save(work.refused(step, INVALID, problem, dropped=True))
        return True
    step = replace(shown(step, "taken"), tool=REPORT, state=StepState.SUCCEEDED)
    await work.save(step, state=RunState.RUNNING, report=told.SerializeToString())
    return True


def to_prove(work: Work) -> list[str]:
    """Return the targets whose proof is still to be read."""
    run = work.run
    if not work.frame.template.HasField("proof") or run.report is None:
        return []
    nothing_wrong = pb.RunReport.FromString(run.report).outcome == pb.RunReport.OUTCOME_NOTHING_WRONG
    if not (run.did or nothing_wrong):
        return []
    proved = {one.target_id for one in run.steps if one.kind is Kind.PROOF}
    return [one for one in run.target_ids if one not in proved]


def proved(run: Run) -> bool:
    """Say whether there were proofs, and every one says healthy."""
    found = [one for one in run.steps if one.kind is Kind.PROOF]
    return bool(found) and all(one.state is StepState.SUCCEEDED for one in found)


async def begin_proof(work: Work, target_id: str) -> bool:
    """Begin the read that proves one target."""
    tool = find_tool(work.frame.template.proof.tool)
    request = tool.request_class()
    setattr(request, tool.spec.target_field, target_id)
    await work.save(with_request(Step(work.run.next_number, Kind.PROOF), tool, request), state=RunState.RUNNING)
    return True


async def prove(work: Work, step: Step) -> bool:
    """Read the proof, a few times while it says no: what was repaired may need a moment."""
    name = work.frame.template.proof.field
    try:
        answer = await fetch(work, step)
    except CallError as error:
        if error.reason == "KILLED":
            return await work.killed(error, step)
        return await _not_proved(work, replace(step, reason=error.reason[:64], detail=error.detail))
    seen = replace(work.answered(step, answer), state=StepState.RUNNING)
    if getattr(answer, name) is True:
        await work.save(replace(seen, state=StepState.SUCCEEDED))
        return True
    return await _not_proved(work, replace(seen, detail=f"{name} is false"))


async def _not_proved(work: Work, step: Step) -> bool:
    """Try again later, or leave it at that."""
    step = replace(step, tries=step.tries + 1)
    if step.tries < work.pace.proof_tries:
        return await work.park(work.pace.proof, step)
    await work.save(replace(step, state=StepState.FAILED))
    return True
