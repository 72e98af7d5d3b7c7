"""Tools for workloads under a supervisord: look, ask for health, restart."""

import time
from collections.abc import Mapping
from typing import Final

from opsmesh.tools.workload.v1 import workload_tool_service_pb2 as pb
from opsmesh.tools.workload.v1 import workload_tool_service_pb2_grpc as rpc
from services.gateway import domain
from services.gateway.backends import Workload
from services.gateway.domain import Ending, plain
from services.gateway.tools import supervisord as manager
from services.gateway.tools.asking import missing, unavailable
from services.gateway.tools.http import Http, NoAnswerError, NotDeliveredError
from services.gateway.tools.supervisord import FaultError, Supervisord
from services.gateway.tools.toolbox import EffectFailedError
from services.mesh.call import current

HEALTH_BYTES_MAX: Final = 64 * 1024
DETAIL_MAX: Final = 512
# A health check says "not healthy" itself, this long before its caller's deadline, in seconds.
MARGIN: Final = 0.2
LINES: Final = (
    "workloads: [{{target_id: {target!r}, health_url: 'http://HOST:PORT/healthz', "
    "supervisord: {{server_url: 'unix:///run/supervisor.sock', program: NAME}}}}]"
)
STATES: Final = {
    manager.STOPPED: pb.Workload.STATE_STOPPED,
    manager.STARTING: pb.Workload.STATE_STARTING,
    manager.RUNNING: pb.Workload.STATE_RUNNING,
    manager.BACKOFF: pb.Workload.STATE_STARTING,
    manager.STOPPING: pb.Workload.STATE_STOPPING,
    manager.EXITED: pb.Workload.STATE_STOPPED,
    manager.FATAL: pb.Workload.STATE_FAILED,
    manager.UNKNOWN: pb.Workload.STATE_FAILED,
}
DOWN: Final = frozenset({pb.Workload.STATE_STOPPED, pb.Workload.STATE_FAILED})


class WorkloadTools:
    """WorkloadToolService on the configured workloads; a client of its own for each, so none waits for another."""

    service = pb.DESCRIPTOR.services_by_name["WorkloadToolService"]
    add = staticmethod(rpc.add_WorkloadToolServiceServicer_to_server)

    def __init__(self, workloads: Mapping[str, Workload]) -> None:
        self._workloads = workloads
        self._managers = {name: Supervisord(one.manager) for name, one in workloads.items()}
        self._http = {name: Http() for name in workloads}

    async def close(self) -> None:
        """Close all connections."""
        for manager_client in self._managers.values():
            await manager_client.close()
        for client in self._http.values():
            await client.close()

    async def get_workload(
        self, request: pb.GetWorkloadRequest, _precondition: Mapping[str, str]
    ) -> pb.GetWorkloadResponse:
        """Say what the process manager says."""
        target = request.target_id
        workload = self._find(target)
        try:
            info = await self._managers[target].info(workload.program, current().remaining)
        except (FaultError, NotDeliveredError, NoAnswerError) as error:
            raise unavailable(target, str(error)) from error
        state = STATES.get(info.state, pb.Workload.STATE_FAILED)
        found = pb.Workload(target_id=target, state=state, process_id=info.pid, program=workload.program)
        if info.start:
            found.start_time.FromSeconds(info.start)
        return pb.GetWorkloadResponse(state=state, process_id=info.pid, workload=found)

    async def check_health(
        self, request: pb.CheckHealthRequest, _precondition: Mapping[str, str]
    ) -> pb.CheckHealthResponse:
        """Ask the workload itself; not to be reached is an answer, too."""
        workload = self._find(request.target_id)
        started = time.monotonic()
        seconds = max(MARGIN, current().remaining - MARGIN)
        try:
            reply = await self._http[request.target_id].request(
                "GET", workload.health_url, seconds=seconds, limit=HEALTH_BYTES_MAX
            )
        except (NotDeliveredError, NoAnswerError) as error:
            return pb.CheckHealthResponse(latency_ms=_since(started), detail=str(error))
        return pb.CheckHealthResponse(
            healthy=200 <= reply.status <= 299,  # noqa: PLR2004  what HTTP calls success
            status_code=reply.status,
            latency_ms=_since(started),
            detail=plain(reply.body[: 4 * DETAIL_MAX].decode(errors="replace"), DETAIL_MAX),
        )

    async def restart_workload(
        self, request: pb.RestartWorkloadRequest, precondition: Mapping[str, str]
    ) -> pb.RestartWorkloadResponse:
        """Stop and start; the process that runs now is the one the precondition named."""
        program, supervisord = self._find(request.target_id).program, self._managers[request.target_id]
        try:
            await supervisord.stop(program, current().remaining)
        except NotDeliveredError as error:
            raise unavailable(request.target_id, str(error)) from error
        except FaultError as fault:
            if fault.code == manager.SHUTDOWN_STATE:
                raise unavailable(request.target_id, fault.text) from fault
            if fault.code != manager.NOT_RUNNING:
                raise EffectFailedError(f"{program} could not be stopped: {fault}") from fault
        try:
            await supervisord.start(program, current().remaining)
        except FaultError as fault:
            # Somebody else was quicker: it is up, and what follows says with which process.
            if fault.code != manager.ALREADY_STARTED:
                raise EffectFailedError(f"{program} did not come up again: {fault}") from fault
        info = await supervisord.info(program, current().remaining)
        if info.state != manager.RUNNING:
            raise EffectFailedError(f"{program} did not stay up: {plain(info.error, DETAIL_MAX) or 'it ended'}")
        return pb.RestartWorkloadResponse(
            previous_process_id=int(precondition.get("process_id", "0")),
            process_id=info.pid,
            state=pb.Workload.STATE_RUNNING,
        )

    async def resolve_restart_workload(
        self, request: pb.RestartWorkloadRequest, precondition: Mapping[str, str]
    ) -> Ending:
        """Compare the process that runs now with the one before."""
        found = await self.get_workload(pb.GetWorkloadRequest(target_id=request.target_id), precondition)
        return restart_ending(request.target_id, precondition, found)

    def _find(self, target: str) -> Workload:
        """Return a configured workload, or refuse."""
        if target not in self._workloads:
            raise missing(target, LINES.format(target=target))
        return self._workloads[target]


def restart_ending(target: str, precondition: Mapping[str, str], found: pb.GetWorkloadResponse) -> Ending:
    """Say from the process before and the one now how a restart ended; refuse while it is on its way."""
    before = int(precondition.get("process_id", "0"))
    if found.state in DOWN:
        return domain.failed("it does not run")
    if found.state != pb.Workload.STATE_RUNNING:
        raise unavailable(target, f"it is {pb.Workload.State.Name(found.state)}")
    if found.process_id == before:
        return domain.failed(f"process {before} still runs: it was not restarted")
    response = pb.RestartWorkloadResponse(
        previous_process_id=before, process_id=found.process_id, state=pb.Workload.STATE_RUNNING
    )
    return domain.succeeded(
        response.SerializeToString(deterministic=True), f"process {found.process_id} runs in place of {before}"
    )


def _since(started: float) -> int:
    """Return milliseconds since a monotonic second."""
    return int((time.monotonic() - started) * 1000)
