"""The lanes: what a decision still needs is done apart from deciding, each kind with its own bounded workers.

A lane claims due decisions of its stage, does one thing with each, and writes back what comes next. Whatever a lane
waits for (automation, agents), the others and DecideIncident go on. Every call carries a request_id derived from the
decision, so that doing it twice is doing it once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import grpc
import grpc.aio
import structlog

from opsmesh.automation.v1 import automation_service_pb2, automation_service_pb2_grpc
from services.mesh import telemetry
from services.mesh.call import working
from services.mesh.loop import wait
from services.router import work as steps
from services.router.answers import REFUSED, held_by, words
from services.router.domain import Decision, Outcome, Result, Stage, State, first_stage
from services.router.messages import execution_of, note_of
from services.router.store import DecisionStore
from services.router.work import Execution, Step, Work

IDENTITY: Final = "service/router"
NOTIFY_PLAYBOOK: Final = "notify-person"
PERIOD: Final = 1.0
CALL_SECONDS: Final = 5.0
# What a claim outlives the longest work by.
CLAIM_MARGIN: Final = 3.0
# Longer than a call, so that nobody follows while it may still be under way.
CLAIM_SECONDS: Final = CALL_SECONDS + CLAIM_MARGIN
log = structlog.get_logger("opsmesh.router")

Worker = Callable[[asyncio.Event], Coroutine[None, None, None]]
Handle = Callable[[Work], Awaitable[Step]]


class Hands:
    """What the router asks of automation, one method per stage. Raises grpc.aio.AioRpcError."""

    def __init__(self, automation: "automation_service_pb2_grpc.AutomationServiceAsyncStub") -> None:
        self._automation = automation

    async def start(self, work: Work) -> Step:
        """Start the playbook of a rule; what a kill stops is held."""
        decision = work.decision
        try:
            execution = await self._execute(
                work, decision.playbook_id, str(steps.start_request_id(decision.decision_id))
            )
        except grpc.aio.AioRpcError as error:
            if held := held_by(work, error):
                return held
            if error.code() in REFUSED:
                return steps.give_up(work, Result.FAILED, f"the playbook was not started: {words(error)}")
            raise
        return steps.follow(work, execution)

    async def follow(self, work: Work) -> Step:
        """Look how an execution stands."""
        request = automation_service_pb2.GetExecutionRequest(execution_id=work.decision.execution_id)
        try:
            answer = await self._automation.GetExecution(request)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return steps.give_up(work, Result.UNKNOWN, f"its execution is lost: {words(error)}")
            raise
        return steps.follow(work, execution_of(answer.execution))

    async def notify(self, work: Work) -> Step:
        """Tell a person, once: that nobody could decide, and once more when there is a question or an answer."""
        decision = work.decision
        again = decision.state is State.DECIDED and bool(decision.notice_execution_id)
        request_id = steps.notify_request_id(decision.decision_id, again=again)
        if work.stage is Stage.PARKED and decision.notice_execution_id:
            return Step(Stage.PARKED, decision.state, delay=steps.NEVER)
        try:
            execution = await self._execute(work, NOTIFY_PLAYBOOK, str(request_id))
        except grpc.aio.AioRpcError as error:
            if error.code() in REFUSED:
                return steps.not_notified(work, words(error))
            raise
        return Step(steps.told(work), decision.state, delay=steps.NEVER, notice_execution_id=execution.execution_id)

    async def _execute(self, work: Work, playbook_id: str, request_id: str) -> Execution:
        """Start an execution for a decision; the same request_id again gets the same one."""
        request = automation_service_pb2.StartExecutionRequest(
            request_id=request_id,
            playbook_id=playbook_id,
            incident_id=str(work.decision.incident_id),
            decision_id=str(work.decision.decision_id),
            rule_set_version=work.decision.rule_set_version,
            rule_id=work.decision.rule_id,
            identity_token=work.decision.order.token if playbook_id != NOTIFY_PLAYBOOK else b"",
            note=note_of(work.decision) if playbook_id == NOTIFY_PLAYBOOK else "",
        )
        return execution_of((await self._automation.StartExecution(request)).execution)


@dataclass(frozen=True, slots=True)
class Job:
    """What is done in a stage: on how many decisions at once, and how long one of them may take in seconds."""

    handle: Handle
    limit: int
    seconds: float = CALL_SECONDS


class Lane:
    """Works on the decisions of one stage."""

    def __init__(self, store: DecisionStore, stage: Stage, job: Job, later: Callable[[Step], None]) -> None:
        self.wake = asyncio.Event()
        self._later = later
        self._store = store
        self._stage = stage
        self._job = job
        self._running: set[asyncio.Task[None]] = set()
        # Whether there may be due work that there was no room for.
        self._more = False

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`; what is under way then is cancelled: its claim ends by itself."""
        try:
            while not await wait(stop, PERIOD, self.wake):
                try:
                    await self._claim()
                except Exception as error:  # noqa: BLE001  whatever it is, the lane outlives it
                    log.warning("lane cannot claim", lane=self._stage, error=repr(error))
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _claim(self) -> None:
        """Take as much as there is room for."""
        room = self._job.limit - len(self._running)
        if room <= 0:
            self._more = True
            return
        claimed = await self._store.claim(self._stage, room, self._job.seconds + CLAIM_MARGIN)
        self._more = len(claimed) == room
        for work in claimed:
            task = asyncio.create_task(self._work(work))
            self._running.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._more:
            self.wake.set()

    async def _work(self, work: Work) -> None:
        """Do one piece of work; what fails is looked at again, later each time."""
        trace = telemetry.parse(work.traceparent)
        try:
            with working(IDENTITY, f"router/{self._stage.lower()}", self._job.seconds, trace=trace):
                step = await self._step(work)
                await self._store.advance(work, step)
        except Exception:
            # The claim runs out and somebody looks again.
            log.exception("lane cannot go on", lane=self._stage, decision_id=str(work.decision.decision_id))
            return
        self._later(step)

    async def _step(self, work: Work) -> Step:
        """Ask whoever must be asked, within the time that the claim covers."""
        try:
            async with asyncio.timeout(self._job.seconds):
                return await self._job.handle(work)
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            log.warning(
                "lane tries again",
                lane=self._stage,
                decision_id=str(work.decision.decision_id),
                attempts=work.attempts,
                error=words(error) if isinstance(error, grpc.aio.AioRpcError) else "its time is over",
            )
            return steps.again(work)


class Lanes:
    """All lanes of the router; `jobs` are those of runs and models, beside those that automation does."""

    def __init__(self, store: DecisionStore, hands: Hands, jobs: Mapping[Stage, Job]) -> None:
        known = {
            Stage.START: Job(hands.start, 16),
            Stage.FOLLOW: Job(hands.follow, 16),
            Stage.NOTIFY: Job(hands.notify, 4),
            Stage.PARKED: Job(hands.notify, 4),
        }
        self._lanes = {stage: Lane(store, stage, job, self.later) for stage, job in (known | dict(jobs)).items()}

    @property
    def workers(self) -> Sequence[Worker]:
        """Return the lanes as workers."""
        return [lane.run for lane in self._lanes.values()]

    def wake(self, decisions: Iterable[Decision]) -> None:
        """Look now for what these decisions need: they were committed."""
        for stage in {stage for decision in decisions for stage in _wanted(decision)}:
            self._lanes[stage].wake.set()

    def later(self, step: Step) -> None:
        """Wake the lane that has the next piece of work, when it is due."""
        stage = first_stage(step.made.verdict) if step.made else step.stage
        if lane := self._lanes.get(stage):
            asyncio.get_running_loop().call_later(step.delay, lane.wake.set)


def _wanted(decision: Decision) -> tuple[Stage, ...]:
    """Return the lanes that may have work on a decision, just made."""
    if decision.state is State.AWAITING_MODEL:
        return (Stage.MODEL, Stage.NOTIFY)
    if decision.state is State.CLOSED:
        return ()
    starts = {Outcome.TRIGGER_AUTOMATION: Stage.START, Outcome.DELEGATE_AGENT: Stage.START_RUN}
    return (starts.get(decision.outcome, Stage.NOTIFY),)
