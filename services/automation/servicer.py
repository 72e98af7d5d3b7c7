"""Proto in, proto out: playbooks are published and read; executions are started, read and cancelled."""

import hashlib
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from opsmesh.automation.v1 import automation_service_pb2 as pb
from opsmesh.automation.v1 import automation_service_pb2_grpc as rpc
from opsmesh.automation.v1 import playbook_service_pb2 as books
from opsmesh.automation.v1 import playbook_service_pb2_grpc as books_rpc
from opsmesh.config.v1 import playbooks_pb2
from opsmesh.ingest.v1 import ingest_service_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.automation.calls import Calls
from services.automation.checking import check
from services.automation.domain import StepState
from services.automation.lanes import Lanes
from services.automation.messages import execution_message, observed_message, playbook_message
from services.automation.observed import Observed
from services.automation.scopes import facts_of, has_effects
from services.automation.store import Filter, NewExecution, StepRow, Store
from services.mesh.call import current
from services.mesh.errors import FieldViolation, Refusal
from services.mesh.leases import Leases
from services.mesh.paging import page_size, read_token, write_token
from services.mesh.postgres import Connection
from services.mesh.tools import find_tool
from services.mesh.writes import Subject, Writes

OBSERVED_SINCE: Final = timedelta(days=7)
# Counts what policy only observed since then.
Observing = Callable[[timedelta], Awaitable[Sequence[Observed]]]


class PlaybookServicer(books_rpc.PlaybookServiceServicer):
    """PlaybookService."""

    def __init__(self, store: Store, writes: Writes) -> None:
        self._store = store
        self._writes = writes

    async def PublishPlaybook(  # noqa: N802  the IDL's name
        self, request: books.PublishPlaybookRequest, _context: Any
    ) -> books.PublishPlaybookResponse:
        """Check a playbook against the IDL; unless only asked to, make it the active version."""
        wrong = [FieldViolation(f"playbook.{one.field}", one.description) for one in check(request.playbook)]
        if wrong:
            raise Refusal(error_reason_pb2.ERROR_REASON_PLAYBOOK_INVALID, violations=wrong)
        content = request.playbook.SerializeToString(deterministic=True)
        digest = hashlib.sha256(content).hexdigest()
        playbook_id = request.playbook.playbook_id
        if request.validate_only:
            return await self._would_be(request.playbook, digest)

        async def change(connection: Connection) -> books.PublishPlaybookResponse:
            row = await self._store.publish(connection, playbook_id, digest, content, current().identity)
            return books.PublishPlaybookResponse(playbook=playbook_message(row))

        subject = Subject(detail={"playbook_id": playbook_id, "digest": digest})
        return await self._writes.once(request, books.PublishPlaybookResponse, change, subject)

    async def _would_be(self, playbook: playbooks_pb2.Playbook, digest: str) -> books.PublishPlaybookResponse:
        """Return the version that publishing would make, or the active one of the same content."""
        row = await self._store.playbook(playbook.playbook_id)
        if row is not None and row.digest == digest:
            return books.PublishPlaybookResponse(playbook=playbook_message(row))
        version = books.PlaybookVersion(playbook_id=playbook.playbook_id, digest=digest, playbook=playbook)
        version.version = row.version + 1 if row is not None else 1
        return books.PublishPlaybookResponse(playbook=version)

    async def GetPlaybook(  # noqa: N802  the IDL's name
        self, request: books.GetPlaybookRequest, _context: Any
    ) -> books.GetPlaybookResponse:
        """Return a version."""
        row = await self._store.playbook(request.playbook_id, request.version)
        if row is None:
            raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="playbook", id=request.playbook_id)
        return books.GetPlaybookResponse(playbook=playbook_message(row))

    async def ListPlaybooks(  # noqa: N802  the IDL's name
        self, request: books.ListPlaybooksRequest, _context: Any
    ) -> books.ListPlaybooksResponse:
        """Return the active versions."""
        size = page_size(request.page_size)
        (after,) = read_token(request, str) or ("",)
        rows = await self._store.playbooks(after, size + 1)
        token = write_token(request, rows[size - 1].playbook_id) if len(rows) > size else ""
        return books.ListPlaybooksResponse(
            playbooks=[playbook_message(row) for row in rows[:size]], next_page_token=token
        )


class AutomationServicer(rpc.AutomationServiceServicer):
    """AutomationService; `lanes` are told of what was just committed."""

    def __init__(
        self, store: Store, writes: Writes, calls: Calls, lanes: Lanes, *, leases: Leases, observed: Observing
    ) -> None:
        self._store = store
        self._writes = writes
        self._calls = calls
        self._leases = leases
        self._lanes = lanes
        self._observed = observed

    async def StartExecution(  # noqa: N802  the IDL's name
        self, request: pb.StartExecutionRequest, _context: Any
    ) -> pb.StartExecutionResponse:
        """Keep the playbook's version and the incident as they are now; the starter lane does the rest."""
        playbook = await self._store.playbook(request.playbook_id)
        if playbook is None:
            raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="playbook", id=request.playbook_id)
        incident = await self._calls.incident(request.incident_id)
        call = current()
        book = playbooks_pb2.Playbook.FromString(playbook.content)
        new = NewExecution(
            execution_id=str(uuid.uuid4()),
            playbook=playbook,
            incident_id=request.incident_id,
            incident=incident.SerializeToString(),
            decision_id=request.decision_id,
            rule_set_version=request.rule_set_version,
            requester=call.identity,
            on_behalf_of=call.on_behalf_of,
            traceparent=call.trace.header,
            rule_id=request.rule_id,
            identity_token=request.identity_token,
            # One line, and without NUL, which no database keeps; the gateway makes it plain before people read it.
            note=" ".join(request.note.replace("\0", " ").split()),
            steps=[(step.step_id, find_tool(step.tool).name) for step in book.steps],
        )

        async def change(connection: Connection) -> pb.StartExecutionResponse:
            if has_effects(book):
                coming = [StepRow(step_id, StepState.PENDING, tool) for step_id, tool in new.steps]
                self._leases.admit(facts_of(incident, book, new.execution_id, coming))
            row = await self._store.create(connection, new)
            return pb.StartExecutionResponse(execution=execution_message(row))

        subject = _subject(new, incident)
        answer = await self._writes.once(request, pb.StartExecutionResponse, change, subject)
        if answer.execution.execution_id == new.execution_id:
            self._lanes.fresh(new.execution_id, playbook.digest)
        return answer

    async def GetExecution(  # noqa: N802  the IDL's name
        self, request: pb.GetExecutionRequest, _context: Any
    ) -> pb.GetExecutionResponse:
        """Return an execution with its steps."""
        row = await self._store.execution(request.execution_id)
        if row is None:
            raise _unknown(request.execution_id)
        return pb.GetExecutionResponse(execution=execution_message(row))

    async def ListExecutions(  # noqa: N802  the IDL's name
        self, request: pb.ListExecutionsRequest, _context: Any
    ) -> pb.ListExecutionsResponse:
        """Return executions, newest first."""
        size = page_size(request.page_size)
        states = [pb.Execution.State.Name(state).removeprefix("STATE_") for state in request.states]
        before = read_token(request, datetime, uuid.UUID)
        after = (before[0], str(before[1])) if before else None
        wanted = Filter(request.incident_id, request.playbook_id, states, after)
        rows = await self._store.executions(wanted, size + 1)
        last = rows[size - 1] if len(rows) > size else None
        token = write_token(request, last.create_time, last.execution_id) if last else ""
        return pb.ListExecutionsResponse(
            executions=[execution_message(row) for row in rows[:size]], next_page_token=token
        )

    async def ReportObserved(  # noqa: N802  the IDL's name
        self, request: pb.ReportObservedRequest, _context: Any
    ) -> pb.ReportObservedResponse:
        """Return what would have happened."""
        since = request.since_duration.ToTimedelta() or OBSERVED_SINCE
        return pb.ReportObservedResponse(rows=[observed_message(row) for row in await self._observed(since)])

    async def CancelExecution(  # noqa: N802  the IDL's name
        self, request: pb.CancelExecutionRequest, _context: Any
    ) -> pb.CancelExecutionResponse:
        """Note the wish; CANCELLED is recorded once the engine was seen to have stopped."""

        async def change(connection: Connection) -> pb.CancelExecutionResponse:
            accepted = await self._store.request_cancel(connection, request.execution_id, request.reason)
            row = await self._store.execution(request.execution_id, connection)
            if row is None:
                raise _unknown(request.execution_id)
            if not accepted:
                raise Refusal(
                    error_reason_pb2.ERROR_REASON_CONFLICT, resource="execution", id=row.execution_id, state=row.state
                )
            return pb.CancelExecutionResponse(execution=execution_message(row))

        subject = Subject(execution_id=request.execution_id, detail={"reason": request.reason})
        answer = await self._writes.once(request, pb.CancelExecutionResponse, change, subject)
        self._lanes.wake()
        return answer


def _unknown(execution_id: str) -> Refusal:
    return Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="execution", id=execution_id)


def _subject(new: NewExecution, incident: ingest_service_pb2.Incident) -> Subject:
    """Return what a start is about; only a target of the inventory is named."""
    known = next((target for target in incident.targets if target.in_inventory), None)
    return Subject(
        target=known.target_id if known else "",
        environment=known.environment if known else "",
        region=known.region if known else "",
        incident_id=new.incident_id,
        decision_id=new.decision_id,
        execution_id=new.execution_id,
        rule_set_version=new.rule_set_version,
        detail={"playbook_id": new.playbook.playbook_id, "playbook_version": str(new.playbook.version)},
    )
