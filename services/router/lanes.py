"""The lanes: what a decision still needs is done apart from deciding, each kind with its own bounded workers.

A lane claims due decisions of its stage, does one thing with each, and writes back what comes next. Whatever a lane
waits for (automation, agents), the others and DecideIncident go on. Every call carries a request_id derived from the
decision, so that doing it twice is doing it once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Final

import grpc
import grpc.aio
import structlog

from opsmesh.agents.v1 import model_service_pb2, model_service_pb2_grpc
from opsmesh.automation.v1 import automation_service_pb2, automation_service_pb2_grpc
from opsmesh.type.v1 import error_reason_pb2
from services.mesh import telemetry
from services.mesh.call import working
from services.mesh.errors import from_rpc_error
from services.mesh.loop import wait
from services.router import work as steps
from services.router.domain import Decision, Result, Stage, State, first_stage, shorten
from services.router.held import hold
from services.router.messages import execution_of
from services.router.store import DecisionStore
from services.router.work import Execution, Step, Work

IDENTITY: Final = "service/router"
NOTIFY_PLAYBOOK: Final = "notify-person"
PERIOD: Final = 1.0
CALL_SECONDS: Final = 5.0
# Longer than a call, so that nobody follows while it may still be under way.
CLAIM_SECONDS: Final = CALL_SECONDS + 3.0
# How often agents may fail to answer before a person is told all the same.
MODEL_TRIES: Final = 3
# Answers that another try cannot change.
REFUSED: Final = frozenset(
    {
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)
log = structlog.get_logger("opsmesh.router")

Worker = Callable[[asyncio.Event], Coroutine[None, None, None]]
Handle = Callable[[Work], Awaitable[Step]]


class Hands:
    """What the router asks of automation and agents, one method per stage. Raises grpc.aio.AioRpcError."""

    def __init__(
        self,
        automation: "automation_service_pb2_grpc.AutomationServiceAsyncStub",
        models: "model_service_pb2_grpc.ModelServiceAsyncStub",
    ) -> None:
        self._automation = automation
        self._models = models

    async def start(self, work: Work) -> Step:
        """Start the playbook of a rule; what a kill stops is held."""
        decision = work.decision
        try:
            execution = await self._execute(
                work, decision.playbook_id, str(steps.start_request_id(decision.decision_id))
            )
        except grpc.aio.AioRpcError as error:
            if held := _held(work, error):
                return held
            if error.code() in REFUSED:
                return steps.give_up(work, Result.FAILED, f"the playbook was not started: {_words(error)}")
            raise
        return steps.follow(work, execution)

    async def follow(self, work: Work) -> Step:
        """Look how an execution stands."""
        request = automation_service_pb2.GetExecutionRequest(execution_id=work.decision.execution_id)
        try:
            answer = await self._automation.GetExecution(request)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return steps.give_up(work, Result.UNKNOWN, f"its execution is lost: {_words(error)}")
            raise
        return steps.follow(work, execution_of(answer.execution))

    async def ask_model(self, work: Work) -> Step:
        """Find out whether a model could decide; none can yet, so a person is told."""
        try:
            answer = await self._models.ListModels(model_service_pb2.ListModelsRequest())
        except grpc.aio.AioRpcError:
            if work.attempts < MODEL_TRIES:
                raise
            why = "agents does not answer; a person is notified"
        else:
            why = "no model is configured; a person is notified"
            if not answer.automation_only:
                why = "models do not decide in this version; a person is notified"
        reason = shorten(f"{work.decision.reason}; {why}")
        return Step(Stage.NOTIFY, State.AWAITING_MODEL, reason=reason)

    async def notify(self, work: Work) -> Step:
        """Tell a person, once per decision."""
        decision = work.decision
        try:
            execution = await self._execute(work, NOTIFY_PLAYBOOK, str(steps.notify_request_id(decision.decision_id)))
        except grpc.aio.AioRpcError as error:
            if error.code() in REFUSED:
                return steps.not_notified(work, _words(error))
            raise
        return Step(Stage.NONE, decision.state, notice_execution_id=execution.execution_id)

    async def _execute(self, work: Work, playbook_id: str, request_id: str) -> Execution:
        """Start an execution for a decision; the same request_id again gets the same one."""
        request = automation_service_pb2.StartExecutionRequest(
            request_id=request_id,
            playbook_id=playbook_id,
            incident_id=str(work.decision.incident_id),
            decision_id=str(work.decision.decision_id),
            rule_set_version=work.decision.rule_set_version,
            rule_id=work.decision.rule_id,
        )
        return execution_of((await self._automation.StartExecution(request)).execution)


def _held(work: Work, error: grpc.aio.AioRpcError) -> Step | None:
    """Return the step that holds a decision, if a kill (or a missing lease) is why it was not started."""
    refusal = from_rpc_error(error)
    if refusal and refusal.reason == error_reason_pb2.ERROR_REASON_KILLED:
        kill_id, scope = refusal.metadata.get("kill_id", ""), refusal.metadata.get("scope", "")
        return hold(work, kill_id, f"held: kill {kill_id} ({scope}) stops it")
    if refusal and refusal.reason == error_reason_pb2.ERROR_REASON_LEASE_STALE:
        return hold(work, "", "held: automation has heard no lease from guardrails, so a kill could hold")
    return None


def _words(error: grpc.aio.AioRpcError) -> str:
    """Return why a call failed: the peer's refusal, or gRPC's own words."""
    refusal = from_rpc_error(error)
    return str(refusal) if refusal else f"{error.code().name}: {error.details() or 'no details'}"


class Lane:
    """Works on the decisions of one stage, at most `limit` at a time."""

    def __init__(
        self, store: DecisionStore, stage: Stage, handle: Handle, limit: int, later: Callable[[Step], None]
    ) -> None:
        self.wake = asyncio.Event()
        self._later = later
        self._store = store
        self._stage = stage
        self._handle = handle
        self._limit = limit
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
        room = self._limit - len(self._running)
        if room <= 0:
            self._more = True
            return
        claimed = await self._store.claim(self._stage, room, CLAIM_SECONDS)
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
        try:
            step = await self._step(work)
            await self._store.advance(work, step)
        except Exception:
            # The claim runs out and somebody looks again.
            log.exception("lane cannot go on", lane=self._stage, decision_id=str(work.decision.decision_id))
            return
        self._later(step)

    async def _step(self, work: Work) -> Step:
        """Ask whoever must be asked, within the trace of the decision."""
        trace = telemetry.parse(work.traceparent)
        try:
            with working(IDENTITY, f"router/{self._stage.lower()}", CALL_SECONDS, trace=trace):
                return await self._handle(work)
        except grpc.aio.AioRpcError as error:
            log.warning(
                "lane tries again",
                lane=self._stage,
                decision_id=str(work.decision.decision_id),
                attempts=work.attempts,
                error=_words(error),
            )
            return steps.again(work)


class Lanes:
    """All lanes of the router."""

    def __init__(self, store: DecisionStore, hands: Hands) -> None:
        handles: Mapping[Stage, tuple[Handle, int]] = {
            Stage.START: (hands.start, 16),
            Stage.FOLLOW: (hands.follow, 16),
            Stage.NOTIFY: (hands.notify, 4),
            Stage.MODEL: (hands.ask_model, 4),
        }
        self._lanes = {
            stage: Lane(store, stage, handle, limit, self.later) for stage, (handle, limit) in handles.items()
        }

    @property
    def workers(self) -> Sequence[Worker]:
        """Return the lanes as workers."""
        return [lane.run for lane in self._lanes.values()]

    def wake(self, decisions: Iterable[Decision]) -> None:
        """Look now for what these decisions need: they were committed."""
        for stage in {first_stage(decision) for decision in decisions} - {Stage.NONE}:
            self._lanes[stage].wake.set()

    def later(self, step: Step) -> None:
        """Wake the lane that has the next piece of work, when it is due."""
        if lane := self._lanes.get(step.stage):
            asyncio.get_running_loop().call_later(step.delay, lane.wake.set)
