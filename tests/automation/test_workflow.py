"""The workflow alone, on the real engine with activities that follow a script: what needs more time than a test has."""

import asyncio
import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from services.automation import contract, workflow
from services.automation.contract import ApprovalTask, End, Kind, Outcome, Plan, Start, StepPlan, StepTask
from services.local.temporal import Temporal


@dataclass
class Script:
    """Activities that answer from lists and keep what they were asked."""

    plans: list[Plan]
    outcomes: list[Outcome]
    approvals: list[Outcome] = field(default_factory=list)
    tasks: list[StepTask] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    kept: int = 0

    @activity.defn(name=contract.LOAD)
    async def load(self, _: Start) -> Plan:
        """Return the next plan."""
        return self.plans.pop(0)

    @activity.defn(name=contract.RUN_STEP)
    async def run_step(self, task: StepTask) -> Outcome:
        """Return the next outcome; the last one for ever."""
        self.tasks.append(task)
        if task.last:
            return Outcome(Kind.UNKNOWN)
        return self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]

    @activity.defn(name=contract.CHECK_APPROVAL)
    async def check(self, _: ApprovalTask) -> Outcome:
        """Return the next answer."""
        return self.approvals.pop(0)

    @activity.defn(name=contract.KEEP_LOCKS)
    async def keep(self, _: str) -> bool:
        """Count."""
        self.kept += 1
        return True

    @activity.defn(name=contract.FINISH)
    async def finish(self, end: End) -> bool:
        """Keep the end."""
        self.ends.append(end.state)
        return True


async def run(script: Script, temporal: Temporal) -> str:
    """Run the workflow over a script, outside the sandbox, so that its waits can be made short."""
    client, queue = await Client.connect(temporal.address), str(uuid.uuid4())
    activities: list[Any] = [script.load, script.run_step, script.check, script.keep, script.finish]
    async with Worker(
        client,
        task_queue=queue,
        workflows=[workflow.PlaybookWorkflow],
        activities=activities,
        workflow_runner=UnsandboxedWorkflowRunner(),
    ):
        start = Start(str(uuid.uuid4()), "")
        work = client.execute_workflow(
            contract.WORKFLOW, start, id=start.execution_id, task_queue=queue, result_type=str
        )
        return await asyncio.wait_for(work, 60)


STEP = StepPlan("a", 1, 0.01, 10)
WAITING = StepPlan("a", 1, 0.01, 10, "AWAITING_APPROVAL", 1, "the approval")


async def test_patience_ends(temporal: Temporal, monkeypatch: pytest.MonkeyPatch) -> None:
    """An obstacle that does not pass is tried as the same try until patience ends, then once more as the last."""
    monkeypatch.setattr(workflow, "PATIENCE", timedelta(seconds=0.3))
    script = Script([Plan([STEP])], [*[Outcome(Kind.AGAIN, 0.2)] * 3, Outcome(Kind.UNKNOWN)])
    assert await run(script, temporal) == "UNKNOWN"
    assert {task.attempt for task in script.tasks} == {1}
    assert [task.last for task in script.tasks][-1] is True
    assert script.ends == ["UNKNOWN"]


async def test_patience_is_one(temporal: Temporal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience counts on when the workflow begins anew because of its history; for the queue there is more of it."""
    monkeypatch.setattr(workflow, "PATIENCE", timedelta(seconds=5))
    monkeypatch.setattr(workflow, "HISTORY_MAX", 15)
    script = Script([Plan([STEP])] * 200, [Outcome(Kind.AGAIN, 0.05)])
    assert await run(script, temporal) == "UNKNOWN"
    assert len(script.plans) < 199
    assert [task.last for task in script.tasks].count(True) == 1
    monkeypatch.setattr(workflow, "PATIENCE", timedelta(seconds=0.1))
    queue = [Outcome(Kind.AGAIN, 0.1, queued=True)] * 5
    assert await run(Script([Plan([STEP])] * 9, [*queue, Outcome(Kind.SUCCEEDED)]), temporal) == "SUCCEEDED"


async def test_long_wait_begins_anew(temporal: Temporal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait for a person that fills the engine's history goes on in a new run, from what is recorded."""
    monkeypatch.setattr(workflow, "HISTORY_MAX", 40)
    monkeypatch.setattr(workflow, "APPROVAL_POLL", 0.01)
    waiting = Outcome(Kind.AWAITING_APPROVAL, approval_id="the approval")
    script = Script(
        [Plan([STEP]), Plan([WAITING]), Plan([WAITING])],
        [waiting, Outcome(Kind.SUCCEEDED)],
        [*[waiting] * 8, Outcome(Kind.AGAIN)],
    )
    assert await run(script, temporal) == "SUCCEEDED"
    assert len(script.plans) < 2
    assert len(script.tasks) == 2


async def test_locks_are_kept_in_pauses(temporal: Temporal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause longer than a lock's renewal keeps the locks that are held."""
    monkeypatch.setattr(workflow, "PAUSE_MAX", 0.1)
    script = Script([Plan([STEP])], [Outcome(Kind.AGAIN, 0.35, locked=True), Outcome(Kind.SUCCEEDED)])
    assert await run(script, temporal) == "SUCCEEDED"
    assert script.kept == 3


async def test_recorded_steps_do_not_run_again(temporal: Temporal) -> None:
    """A workflow that is started again runs only what has no end yet, at the try that is recorded."""
    done = [StepPlan("a", 1, 0.01, 10, "SUCCEEDED", 1), StepPlan("b", 1, 0.01, 10, "SKIPPED")]
    script = Script([Plan([*done, StepPlan("c", 5, 0.01, 10, "RUNNING", 3)])], [Outcome(Kind.SUCCEEDED)])
    assert await run(script, temporal) == "SUCCEEDED"
    assert [(task.step_id, task.attempt) for task in script.tasks] == [("c", 3)]


async def test_failure_goes_on_undoing(temporal: Temporal) -> None:
    """A workflow started again in the middle of undoing goes on there."""
    steps = [StepPlan("a", 1, 0.01, 10, "COMPENSATED", 1), StepPlan("b", 1, 0.01, 10, "SUCCEEDED", 1)]
    steps.append(StepPlan("c", 1, 0.01, 10, "FAILED", 1))
    undos = {"a": StepPlan("a.undo", 1, 0.01, 10, "SUCCEEDED", 1), "b": StepPlan("b.undo", 1, 0.01, 10)}
    script = Script([Plan(steps, undos, StepPlan("sorry", 1, 0.01, 10))], [Outcome(Kind.SUCCEEDED)])
    assert await run(script, temporal) == "FAILED"
    assert [task.step_id for task in script.tasks] == ["b.undo", "sorry"]
