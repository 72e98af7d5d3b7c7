"""A run in the hands of a worker: what it knows, and how it writes; every write is a checkpoint under its lease."""

import asyncio
import hashlib
import time
from dataclasses import dataclass, field, replace
from typing import Any, Final

from google.protobuf.message import Message
from prometheus_client import Counter, Histogram

from opsmesh.policy.v1 import policy_pb2
from services.agents.boundary import Boundary
from services.agents.runs.domain import OPEN_STEP, Kind, Run, RunState, Step, StepState, sentence
from services.agents.runs.peers import Outside, ReadPass
from services.agents.runs.store import Held, Notes, Park, RunStore
from services.agents.runs.thinking import Frame
from services.agents.templates.store import TemplateStore
from services.mesh.failures import CallError, kill_named
from services.mesh.masking import masked_json
from services.mesh.models.showing import Limits, show
from services.mesh.models.untrusted import sanitise
from services.mesh.policy import EFFECTS
from services.mesh.tools import Tool, find_tool

IDENTITY: Final = "service/agents"
ARGUMENTS_MAX: Final = 8192
RESULT_MAX: Final = 32_000
SAID_MAX: Final = 1000
SHOWN: Final = Limits(text=2000, total=12_000, items=50)
# For an answer that is too large even so: its beginning.
SHORT: Final = Limits(text=300, total=3000, items=10)
STEPS: Final = Histogram("opsmesh_run_step_seconds", "How long the steps of runs took.", ["kind", "state"])
ENDED: Final = Counter("opsmesh_runs_ended_total", "Runs that ended.", ["state"])


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a run waits before it is looked at again, in seconds, and how often a proof is read."""

    approval: float = 1.5
    child: float = 2.0
    claim: float = 1.0
    model: float = 5.0
    again: float = 1.0
    closing: float = 5.0
    lock: float = 20.0
    proof: float = 1.0
    proof_tries: int = 10


@dataclass(frozen=True, slots=True)
class Means:
    """What every worker works with."""

    store: RunStore
    templates: TemplateStore
    outside: Outside
    boundary: Boundary
    pace: Pace = field(default_factory=Pace)


@dataclass(slots=True)
class Work:
    """One run while a worker has it. `stop` is set when somebody asked the run to stop."""

    means: Means
    held: Held
    run: Run
    frame: Frame
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    read_pass: ReadPass | None = None
    read_at: float = field(default_factory=time.monotonic)
    began: dict[int, float] = field(default_factory=dict)

    @property
    def outside(self) -> Outside:
        """Return the other services."""
        return self.means.outside

    @property
    def pace(self) -> Pace:
        """Return how long to wait for what."""
        return self.means.pace

    @property
    def lock(self) -> Step | None:
        """Return the step whose lock the run holds, as far as it knows."""
        return next((one for one in reversed(self.run.steps) if one.fence), None)

    def tick(self) -> None:
        """Count the time that was worked since the run was read."""
        now = time.monotonic()
        self.run = replace(self.run, worked=self.run.worked + now - self.read_at)
        self.read_at = now

    async def save(self, *steps: Step, notes: Notes | None = None, **changes: Any) -> None:
        """Write the run with `changes` and these steps in one transaction; raises LostError and writes nothing."""
        run = replace(self.run, **changes)
        if await self.means.store.checkpoint(self.held, run, *steps, notes=notes):
            self.stop.set()
        for step in steps:
            began = self.began.setdefault(step.number, time.monotonic())
            if not step.open:
                STEPS.labels(step.kind, step.state).observe(time.monotonic() - began)
            run = replace(run, steps=run.with_step(step))
        if self.run.open and not run.open:
            ENDED.labels(run.state).inc()
        self.run = run

    async def park(self, seconds: float, *steps: Step, notes: Notes | None = None, **changes: Any) -> bool:
        """Write, and give the run out of hand: it is looked at again after `seconds`. Return False: no more work."""
        await self.save(*steps, notes=replace(notes or Notes(), park=Park(seconds)), **changes)
        return False

    async def end(self, state: RunState, reason: str = "", detail: str = "", *steps: Step, **changes: Any) -> bool:
        """End the run; steps that are open end with it. What is owed to guardrails comes after."""
        known = {one.number for one in steps}
        left = StepState.CANCELLED if state is RunState.CANCELLED else StepState.FAILED
        rest = [
            replace(one, state=left, reason=reason)
            for one in self.run.steps
            if one.state in OPEN_STEP and one.number not in known
        ]
        told = {"reason": reason, "detail": sentence(detail), "approval_id": ""}
        await self.save(*steps, *rest, state=state, **(told | changes))
        return True

    async def killed(self, error: CallError, step: Step | None = None) -> bool:
        """End a run that a kill stops, as guardrails or the gateway say."""
        steps = [replace(step, state=StepState.CANCELLED, reason=error.reason, detail=error.detail)] if step else []
        kill_id = kill_named(error.detail)
        return await self.end(RunState.CANCELLED, error.reason, error.detail, *steps, kill_id=kill_id)

    def refused(self, step: Step, reason: str, detail: str, *, dropped: bool = False, answered: bool = False) -> Step:
        """Return a step that did not work out; the model is told why, what others said of it marked as theirs."""
        said = self.frame.marks.span("refusal", detail, SAID_MAX) if answered else sentence(detail, SAID_MAX)
        text = f"{reason}: {said}" if reason else said
        step = replace(step, state=StepState.FAILED, reason=reason[:64], detail=sentence(detail))
        return replace(shown(step, text), dropped=dropped, answered=answered)

    def answered(self, step: Step, answer: Message) -> Step:
        """Return a step that a tool answered, with what the model is shown of it."""
        text = show(answer, self.frame.marks, SHOWN).text
        if len(text) > RESULT_MAX:
            text = show(answer, self.frame.marks, SHORT).text
        if len(text) > RESULT_MAX:
            text = '"(too large to be shown)"'
        return replace(shown(step, text), state=StepState.SUCCEEDED, answered=True, reason="", detail="")


def shown(step: Step, text: str) -> Step:
    """Return a step with its result and the digest of it: exactly what the model is shown."""
    return replace(step, result=text, result_digest=hashlib.sha256(text.encode()).hexdigest())


def tool_of(step: Step) -> Tool:
    """Return the tool of a step."""
    return find_tool(step.tool)


def request_of(step: Step) -> Message:
    """Return the request of a step that calls a tool."""
    return tool_of(step).request_class.FromString(step.request or b"")


def with_request(step: Step, tool: Tool, request: Message) -> Step:
    """Return a step that is to send this request."""
    field_name = tool.spec.target_field
    return replace(
        step,
        tool=tool.name,
        request=request.SerializeToString(deterministic=True),
        arguments_json=sanitise(masked_json(request, ARGUMENTS_MAX), ARGUMENTS_MAX).text,
        target_id=str(getattr(request, field_name)) if field_name else "",
    )


def kind_of(tool: Tool) -> Kind:
    """Return what a step with this tool is: whatever does not only read needs to be judged."""
    return Kind.READ if tool.policy.access == policy_pb2.ACCESS_READ else Kind.ACTION


def changes(tool: Tool) -> bool:
    """Say whether a tool has effects; telling people is none."""
    return tool.policy.access in EFFECTS
