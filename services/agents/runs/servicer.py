"""AgentService: a run is kept as it was asked for, shown as it is, and asked to stop; the runner does the rest."""
# ruff: noqa: N802  the names are those of the IDL

import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from opsmesh.agents.v1 import agent_service_pb2 as pb
from opsmesh.agents.v1 import agent_service_pb2_grpc as rpc
from opsmesh.ingest.v1 import ingest_service_pb2
from opsmesh.type.v1 import error_reason_pb2, type_pb2
from services.agents.runs.contract import Filter, NewRun, Runs
from services.agents.templates.servicer import require_enabled
from services.agents.templates.store import TemplateStore
from services.mesh.call import current
from services.mesh.errors import Refusal
from services.mesh.kills import Facts
from services.mesh.paging import page_size, read_token, write_token
from services.mesh.postgres import Connection
from services.mesh.writes import Subject, Writes

ROUTER: Final = "service/router"
PEOPLE: Final = "human/"
TARGETS_MAX: Final = 8
ENTRY: Final = "entries: [{{target_id: {target}, kind: service, environment: ...}}]"
OVER: Final = frozenset({ingest_service_pb2.Incident.STATE_RESOLVED, ingest_service_pb2.Incident.STATE_STALE})
ReadIncident = Callable[[str], Awaitable[ingest_service_pb2.Incident]]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the servicer asks beside its store: incidents of ingest, templates; `wake` tells the runner.

    `admit` refuses what a kill stops now (KILLED), and everything while nobody knows (LEASE_STALE).
    """

    incident: ReadIncident
    templates: TemplateStore
    wake: Callable[[], None]
    admit: Callable[[Facts], None]


class AgentServicer(rpc.AgentServiceServicer):
    """AgentService."""

    def __init__(self, runs: Runs, writes: Writes, around: Surroundings) -> None:
        self._runs = runs
        self._writes = writes
        self._around = around

    async def StartRun(self, request: pb.StartRunRequest, _context: Any) -> pb.StartRunResponse:
        """Keep what a run starts with: the template's version, the incident and its targets as they are now."""
        call = current()
        _require_starter(call.identity, call.method, call.policy.permission)
        incident = await self._around.incident(request.incident_id)
        template = await self._around.templates.template(request.template_id)

        async def change(connection: Connection) -> pb.StartRunResponse:
            # In here, so that the same request gets its stored answer whatever has become of all this since.
            if template is None:
                raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="template", id=request.template_id)
            require_enabled(template)
            if incident.state in OVER:
                reason = error_reason_pb2.ERROR_REASON_INCIDENT_NOT_OPEN
                raise Refusal(reason, incident_id=request.incident_id)
            targets = targets_of(incident, request.target_ids)
            self._around.admit(_facts(incident, targets))
            new = NewRun(
                run_id=str(uuid.uuid4()),
                template=template,
                incident=incident,
                decision_id=request.decision_id,
                target_ids=targets,
                goal=request.goal,
                requester=call.identity,
                execution_id=request.execution_id,
                execution_trace=request.execution_trace,
                identity_token=request.identity_token,
                traceparent=call.trace.header,
            )
            return pb.StartRunResponse(run=await self._runs.create(connection, new))

        subject = _subject(request, incident, template.version if template else 0)
        answer = await self._writes.once(request, pb.StartRunResponse, change, subject)
        self._around.wake()
        return answer

    async def GetRun(self, request: pb.GetRunRequest, _context: Any) -> pb.GetRunResponse:
        """Return a run with its steps."""
        run = await self._runs.run(request.run_id)
        if run is None:
            raise _unknown(request.run_id)
        return pb.GetRunResponse(run=run)

    async def ListRuns(self, request: pb.ListRunsRequest, _context: Any) -> pb.ListRunsResponse:
        """Return runs, newest first."""
        size = page_size(request.page_size)
        before = read_token(request, datetime, uuid.UUID)
        state = pb.Run.State.Name(request.state).removeprefix("STATE_") if request.state else ""
        after = (before[0], str(before[1])) if before else None
        found = await self._runs.runs(Filter(request.incident_id, request.template_id, state, after), size + 1)
        last = found[size - 1] if len(found) > size else None
        token = write_token(request, last.create_time.ToDatetime(tzinfo=UTC), last.run_id) if last else ""
        return pb.ListRunsResponse(runs=found[:size], next_page_token=token)

    async def CancelRun(self, request: pb.CancelRunRequest, _context: Any) -> pb.CancelRunResponse:
        """Note the wish; CANCELLED is recorded once what was begun has ended."""

        async def change(connection: Connection) -> pb.CancelRunResponse:
            accepted = await self._runs.request_cancel(connection, request.run_id, request.reason)
            run = await self._runs.run(request.run_id, connection)
            if run is None:
                raise _unknown(request.run_id)
            if not accepted:
                state = pb.Run.State.Name(run.state).removeprefix("STATE_")
                reason = error_reason_pb2.ERROR_REASON_CONFLICT
                raise Refusal(reason, resource="run", id=run.run_id, state=state)
            return pb.CancelRunResponse(run=run)

        subject = Subject(detail={"run_id": request.run_id, "reason": request.reason})
        answer = await self._writes.once(request, pb.CancelRunResponse, change, subject)
        self._around.wake()
        return answer


def targets_of(incident: ingest_service_pb2.Incident, asked: Sequence[str]) -> tuple[str, ...]:
    """Return the targets of a run: those asked for, which must be the incident's and in the inventory, or all such."""
    known = {one.target_id: one for one in incident.targets}
    for target_id in asked:
        if target_id not in known:
            reason = error_reason_pb2.ERROR_REASON_TARGET_NOT_OF_INCIDENT
            raise Refusal(reason, target=target_id, incident_id=incident.incident_id)
        if not known[target_id].in_inventory:
            reason = error_reason_pb2.ERROR_REASON_TARGET_UNKNOWN
            raise Refusal(reason, target=target_id, lines=ENTRY.format(target=target_id))
    chosen = tuple(asked) or tuple(one.target_id for one in incident.targets if one.in_inventory)
    return chosen[:TARGETS_MAX]


def _facts(incident: ingest_service_pb2.Incident, targets: Sequence[str]) -> Facts:
    """Return what a kill may be about; which tools it will use nobody knows yet."""
    environments = {one.environment for one in incident.targets if one.target_id in targets}
    return Facts(environments=frozenset(environments), targets=frozenset(targets))


def _require_starter(identity: str, method: str, permission: str) -> None:
    """Refuse whoever is neither the router nor a person: playbooks and agents never start runs."""
    if identity != ROUTER and not identity.startswith(PEOPLE):
        reason = error_reason_pb2.ERROR_REASON_PERMISSION_DENIED
        raise Refusal(reason, identity=identity, method=method, permission=permission)


def _unknown(run_id: str) -> Refusal:
    return Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="run", id=run_id, list="agents list")


def _subject(request: pb.StartRunRequest, incident: ingest_service_pb2.Incident, version: int) -> Subject:
    """Return what a start is about; only a target of the inventory is named."""
    wanted = set(request.target_ids)
    nothing = type_pb2.Target()
    known = [one for one in incident.targets if one.in_inventory and (not wanted or one.target_id in wanted)]
    target = known[0] if known else nothing
    return Subject(
        target=target.target_id,
        environment=target.environment,
        region=target.region,
        incident_id=request.incident_id,
        decision_id=request.decision_id,
        execution_id=request.execution_id,
        detail={"template_id": request.template_id, "template_version": str(version)},
    )
