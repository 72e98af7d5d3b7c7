"""Temporal: starts, cancels and describes workflows, and runs the worker; it may be away, and come back empty."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, Final

import structlog
from google.protobuf.duration_pb2 import Duration
from prometheus_client import Gauge
from temporalio.api.workflowservice.v1 import UpdateNamespaceRequest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.runtime import LogForwardingConfig, LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.service import RetryConfig, RPCError, RPCStatusCode
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from services.automation import contract
from services.automation.contract import Start
from services.automation.engines import EngineState, EngineUnavailableError, Ticket
from services.automation.workflow import PlaybookWorkflow
from services.mesh.loop import every

UP: Final = Gauge("opsmesh_engine_up", "Whether the workflow engine answers.", ["engine"])
RPC: Final = timedelta(seconds=5)
RETRYING: Final = RetryConfig(initial_interval_millis=50, max_interval_millis=500, max_elapsed_time_millis=2000)
PERIOD: Final = 1.0
GRACE: Final = timedelta(seconds=3)
LONGEST: Final = timedelta(days=7)
CONCURRENT: Final = 100
_STATES: Final = {
    WorkflowExecutionStatus.RUNNING: EngineState.RUNNING,
    WorkflowExecutionStatus.CONTINUED_AS_NEW: EngineState.RUNNING,
    WorkflowExecutionStatus.COMPLETED: EngineState.COMPLETED,
    WorkflowExecutionStatus.CANCELED: EngineState.CANCELLED,
}
# The SDK's own words go into our log lines instead of beside them.
FORWARDED: Final = LoggingConfig(
    filter=TelemetryFilter(core_level="WARN", other_level="ERROR"),
    forwarding=LogForwardingConfig(logger=logging.getLogger("temporalio")),
)
log = structlog.get_logger("opsmesh.automation.temporal")


class TemporalEngine:
    """The engine at `address`, namespace `default`; connects when it is first needed.

    `retention` is how long it keeps the history of an execution that has ended.
    """

    def __init__(self, address: str, activities: Sequence[Callable[..., Any]], retention: timedelta) -> None:
        self._retention = retention
        self._address = address
        self._activities = activities
        self._client: Client | None = None
        self._connecting = asyncio.Lock()
        self._runtime = Runtime(telemetry=TelemetryConfig(logging=FORWARDED))
        self._gauge = UP.labels("temporal")
        self._was_up: bool | None = None
        # Set once the worker polls: the engine was seen to work with us.
        self.working = asyncio.Event()

    async def _connected(self) -> Client:
        async with self._connecting:
            if self._client is None:
                try:
                    async with asyncio.timeout(RPC.total_seconds()):
                        self._client = await Client.connect(self._address, retry_config=RETRYING, runtime=self._runtime)
                except (RuntimeError, RPCError, TimeoutError) as error:
                    self._seen(up=False)
                    raise EngineUnavailableError(f"cannot connect: {error}") from None
        return self._client

    async def start(self, ticket: Ticket) -> None:
        """Start a workflow under the execution's id; one that runs, or has run, is left as it is unless `again`."""
        client = await self._connected()
        reuse = WorkflowIDReusePolicy.ALLOW_DUPLICATE if ticket.again else WorkflowIDReusePolicy.REJECT_DUPLICATE
        try:
            await client.start_workflow(
                contract.WORKFLOW,
                Start(ticket.execution_id, ticket.digest),
                id=ticket.execution_id,
                task_queue=contract.TASK_QUEUE,
                id_reuse_policy=reuse,
                execution_timeout=LONGEST,
                task_timeout=timedelta(seconds=5),
                rpc_timeout=RPC,
                request_eager_start=True,
            )
        except WorkflowAlreadyStartedError:
            return
        except RPCError as error:
            raise self._away(error) from None

    async def cancel(self, execution_id: str) -> None:
        """Ask a workflow to stop."""
        await self._tell(execution_id, lambda workflow: workflow.cancel(rpc_timeout=RPC))

    async def terminate(self, execution_id: str) -> None:
        """End a workflow without asking it; an activity of it that runs is told by its next heartbeat."""
        await self._tell(execution_id, lambda workflow: workflow.terminate(reason="killed", rpc_timeout=RPC))

    async def wake(self, execution_id: str) -> None:
        """Signal a workflow to look again."""
        await self._tell(execution_id, lambda workflow: workflow.signal(contract.WAKE, rpc_timeout=RPC))

    async def _tell(self, execution_id: str, tell: Callable[[WorkflowHandle[Any, Any]], Awaitable[None]]) -> None:
        """Tell a workflow something; one that is unknown or over is no error."""
        client = await self._connected()
        try:
            await tell(client.get_workflow_handle(execution_id))
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise self._away(error) from None

    async def describe(self, execution_id: str) -> EngineState:
        """Return where the newest run of a workflow stands."""
        client = await self._connected()
        try:
            described = await client.get_workflow_handle(execution_id).describe(rpc_timeout=RPC)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return EngineState.MISSING
            raise self._away(error) from None
        if described.status is None:
            return EngineState.DEAD
        return _STATES.get(described.status, EngineState.DEAD)

    async def ping(self) -> None:
        """Return when the front end answers."""
        client = await self._connected()
        try:
            await client.service_client.check_health(timeout=timedelta(seconds=2))
        except RPCError as error:
            raise self._away(error) from None
        self._seen(up=True)

    async def work(self, stop: asyncio.Event) -> None:
        """Run the worker until `stop`; it is started again whenever it ends, as long as the engine answers."""
        await every(stop, PERIOD, lambda: self._work_once(stop))

    async def watch(self, stop: asyncio.Event) -> None:
        """Keep the gauge of the engine's health true until `stop`."""
        await every(stop, 5 * PERIOD, self._look)

    async def _look(self) -> None:
        try:
            await self.ping()
        except EngineUnavailableError:
            return

    async def _work_once(self, stop: asyncio.Event) -> None:
        try:
            await self.ping()
        except EngineUnavailableError:
            return
        await self._retain()
        worker = Worker(
            await self._connected(),
            task_queue=contract.TASK_QUEUE,
            workflows=[PlaybookWorkflow],
            # The sandbox loads the workflow anew for each execution, some 10 ms; the replay tests run inside it.
            workflow_runner=UnsandboxedWorkflowRunner(),
            activities=self._activities,
            max_concurrent_activities=CONCURRENT,
            # A killed process must not keep its workflows waiting, and a cancel must be heard within a second.
            sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
            max_heartbeat_throttle_interval=timedelta(seconds=1),
            default_heartbeat_throttle_interval=timedelta(seconds=1),
            graceful_shutdown_timeout=GRACE,
        )
        running = asyncio.create_task(worker.run())
        stopping = asyncio.create_task(stop.wait())
        self.working.set()
        try:
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                await worker.shutdown()
            await running
        finally:
            stopping.cancel()
            running.cancel()

    async def _retain(self) -> None:
        """Have histories kept as long as the settings say; an engine that does not let us keeps its own setting."""
        client = await self._connected()
        wanted = UpdateNamespaceRequest(namespace=client.namespace)
        kept = Duration()
        kept.FromTimedelta(self._retention)
        wanted.config.workflow_execution_retention_ttl.CopyFrom(kept)
        try:
            await client.workflow_service.update_namespace(wanted, timeout=RPC)
        except RPCError as error:
            log.warning("retention of histories not set", wanted=str(self._retention), error=str(error))

    def _away(self, error: RPCError) -> EngineUnavailableError:
        self._seen(up=False)
        return EngineUnavailableError(f"{error.status.name}: {error.message}")

    def _seen(self, *, up: bool) -> None:
        """Keep the gauge, and log each change once."""
        if up is not self._was_up:
            self._was_up = up
            self._gauge.set(up)
            log.warning("engine", engine="temporal", address=self._address, up=up)
