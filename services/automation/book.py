"""A published playbook as the steps that can run: main steps, their compensations, the failure step."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from opsmesh.config.v1 import playbooks_pb2
from opsmesh.policy.v1 import policy_pb2
from services.automation.contract import Plan, StepPlan
from services.automation.domain import OPEN_EXECUTION, UNDO, Order
from services.automation.store import ExecutionRow, StepRow, Store
from services.mesh import policy
from services.mesh.policy import EFFECTS
from services.mesh.tools import Tool, find_tool

# Taking a lock and being judged, both more than once, come on top of the call itself.
MARGIN_SECONDS: Final = 60.0
DELAY_SECONDS: Final = 1.0
KEPT: Final = 64


@dataclass(frozen=True, slots=True)
class Spec:
    """One step that can run; `position` is its place in the record, `seconds` how long its call may take."""

    step_id: str
    position: int
    tool: Tool
    step: playbooks_pb2.Step

    @property
    def attempts(self) -> int:
        """Return the tries in all."""
        return max(1, self.step.attempts.max_attempts)

    @property
    def delay(self) -> float:
        """Return the pause between tries in seconds."""
        return policy.seconds(self.step.attempts.delay_duration) or DELAY_SECONDS

    @property
    def seconds(self) -> float:
        """Return how long the call of one try may take; an effect needs time to say how it ended."""
        own = policy.seconds(self.step.timeout_duration)
        return own or policy.seconds(self.tool.policy.max_duration)

    @property
    def reads(self) -> bool:
        """Say whether it changes nothing and tells nobody."""
        return self.tool.policy.access == policy_pb2.ACCESS_READ

    @property
    def changes(self) -> bool:
        """Say whether it is an effect, which needs the lock of its target."""
        return self.tool.policy.access in EFFECTS

    @property
    def longest(self) -> float:
        """Return how long one try may take in all."""
        return self.seconds + MARGIN_SECONDS

    def plan(self, row: StepRow | None, *, tolerated: bool = False) -> StepPlan:
        """Return what the workflow must know."""
        plan = StepPlan(self.step_id, self.attempts, self.delay, self.longest, tolerated=tolerated)
        if row is None:
            return plan
        return replace(plan, state=str(row.state), attempt=row.attempt, approval_id=row.approval_id)


class Book:
    """A playbook version, its tools looked up."""

    def __init__(self, playbook: playbooks_pb2.Playbook) -> None:
        self.playbook = playbook
        self._last = playbook.failure_step.step_id if playbook.HasField("failure_step") else ""
        self.specs: Mapping[str, Spec] = {spec.step_id: spec for spec in self._specs()}
        self.order = Order([step.step_id for step in playbook.steps], self._last, self._tolerated())

    def _tolerated(self) -> frozenset[str]:
        """Return the notices after the proof: that one of them does not go out does not make the healthy unhealthy."""
        steps = [step.step_id for step in self.playbook.steps]
        proof = self.playbook.proof_step_id
        after = steps[steps.index(proof) + 1 :] if proof in steps else []
        return frozenset(one for one in after if self.specs[one].tool.policy.access == policy_pb2.ACCESS_INFORM)

    def _specs(self) -> list[Spec]:
        steps = list(self.playbook.steps)
        found = [Spec(step.step_id, place, find_tool(step.tool), step) for place, step in enumerate(steps, 1)]
        for place, step in enumerate(steps, 1):
            if step.HasField("compensation"):
                undo = playbooks_pb2.Step(step_id=step.step_id + UNDO, tool=step.compensation.tool)
                for name, argument in step.compensation.arguments.items():
                    undo.arguments[name].CopyFrom(argument)
                found.append(Spec(undo.step_id, 2 * len(steps) + 1 - place, find_tool(undo.tool), undo))
        if self._last:
            last = self.playbook.failure_step
            found.append(Spec(last.step_id, 2 * len(steps) + 1, find_tool(last.tool), last))
        return found

    def plan(self, execution: ExecutionRow) -> Plan:
        """Return an execution as the workflow goes on from it."""
        rows = {row.step_id: row for row in execution.steps}
        order = self.order.steps
        steps = [self.specs[one].plan(rows.get(one), tolerated=one in self.order.tolerated) for one in order]
        undos = {
            step_id: self.specs[step_id + UNDO].plan(rows.get(step_id + UNDO))
            for step_id in order
            if step_id + UNDO in self.specs
        }
        last = self.specs[self._last].plan(rows.get(self._last)) if self._last else None
        over = "" if execution.state in OPEN_EXECUTION else str(execution.state)
        return Plan(steps, undos, last, execution.cancel_requested, over)


class Library:
    """The playbook versions in use; a version never changes, so what was read once is kept."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._books: dict[tuple[str, int], Book] = {}

    async def book(self, execution: ExecutionRow) -> Book:
        """Return the playbook version of an execution."""
        key = (execution.playbook_id, execution.playbook_version)
        if key not in self._books:
            row = await self._store.playbook(*key)
            if row is None:
                raise LookupError(f"playbook {key[0]} version {key[1]} is not stored")
            while len(self._books) >= KEPT:
                self._books.pop(next(iter(self._books)))
            self._books[key] = Book(playbooks_pb2.Playbook.FromString(row.content))
        return self._books[key]
