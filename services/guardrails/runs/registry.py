"""Registers runs once and for ever, and ends them; what is refused is on record, too."""

from datetime import timedelta
from typing import Final
from uuid import UUID

from opsmesh.audit.v1 import audit_service_pb2
from opsmesh.guardrails.v1 import guardrails_service_pb2 as pb
from opsmesh.type.v1 import error_reason_pb2
from services.guardrails import convert
from services.guardrails.checks import Finding, Incident
from services.guardrails.identity import Asker, ForgedError, TokenReader
from services.guardrails.policies.store import Policies
from services.guardrails.runs import domain as runs
from services.guardrails.runs import store
from services.guardrails.runs.domain import Run, Wish
from services.guardrails.store import JudgementStore
from services.guardrails.surroundings import PeerTrouble, Surroundings
from services.mesh import policy
from services.mesh.call import current
from services.mesh.errors import Refusal
from services.mesh.postgres import Connection
from services.mesh.writes import Event, Subject, Writes, event

CLOCK: Final = "SELECT clock_timestamp()"
NO_LIFETIME: Final = timedelta()


class Registry:
    """Binds runs to what they were started for."""

    def __init__(
        self,
        judgements: JudgementStore,
        writes: Writes,
        policies: Policies,
        surroundings: Surroundings,
        tokens: TokenReader,
    ) -> None:
        self._judgements = judgements
        self._writes = writes
        self._policies = policies
        self._surroundings = surroundings
        self._tokens = tokens

    async def register(self, request: pb.RegisterRunRequest) -> pb.RegisterRunResponse:
        """Bind a run, or answer what it is bound to; refuses whatever could make it another's."""
        detail = {"run_id": request.run_id, "template": request.template_id, "targets": " ".join(request.target_ids)}
        if request.parent_run_id:
            detail["parent_run_id"] = request.parent_run_id
        subject = Subject(
            incident_id=request.incident_id,
            decision_id=request.decision_id,
            execution_id=request.run_id,
            detail=detail,
        )

        async def change(connection: Connection) -> pb.RegisterRunResponse:
            run = await self._bind(connection, request, incident)
            # Told to audit with the rest, after the change.
            detail["requester"], detail["depth"] = run.requester, str(run.depth)
            return pb.RegisterRunResponse(run=to_message(run))

        try:
            incident = await incident_of(self._surroundings, request.incident_id)
            return await self._writes.once(request, pb.RegisterRunResponse, change, subject)
        except Refusal as refusal:
            await record_refusal(self._judgements, subject, refusal)
            raise

    async def end(self, request: pb.EndRunRequest) -> pb.EndRunResponse:
        """End a run and all below it; one that was never registered has nothing that could end."""
        detail: dict[str, str] = {}

        async def change(connection: Connection) -> pb.EndRunResponse:
            over = await store.end(connection, UUID(request.run_id))
            detail["ended"] = " ".join(str(one) for one in over) or "(it was over)"
            return pb.EndRunResponse()

        subject = Subject(execution_id=request.run_id, detail=detail)
        return await self._writes.once(request, pb.EndRunResponse, change, subject)

    async def _bind(self, connection: Connection, request: pb.RegisterRunRequest, incident: Incident | None) -> Run:
        """Insert the row of a run, or return the one that says the same already."""
        wish = await self._wish(connection, request, incident)
        siblings = await store.queue(connection, wish.incident_id)
        active = await self._policies.active(connection)
        if known := await store.read(connection, wish.run_id):
            return _again(known, wish)
        parent = await store.read(connection, wish.parent_run_id) if wish.parent_run_id else None
        if stands := runs.admit(wish, active, incident, parent, siblings):
            raise refusal_for(stands)
        made = await store.insert(connection, wish, parent)
        if made is None and (known := await store.read(connection, wish.run_id)):
            return _again(known, wish)
        if made is None:
            raise LookupError("a run has vanished")
        return made

    async def _wish(self, connection: Connection, request: pb.RegisterRunRequest, incident: Incident | None) -> Wish:
        """Return what a run shall be bound to; a token that is not for its incident is refused."""
        asker = Asker()
        # A child is its parent's person's; whatever token comes with it says nothing more.
        if request.identity_token and not request.parent_run_id:
            now = await connection.fetchval(CLOCK)
            try:
                asker = self._tokens.asker(request.identity_token, incident, now)
            except ForgedError as error:
                raise Refusal(error_reason_pb2.ERROR_REASON_IDENTITY_TOKEN_INVALID, what=str(error)) from None
        lifetime: timedelta = request.lifetime_duration.ToTimedelta()
        return Wish(
            run_id=UUID(request.run_id),
            parent_run_id=UUID(request.parent_run_id) if request.parent_run_id else None,
            template_id=request.template_id,
            # An id is the same id in capitals; it must not count as another incident.
            incident_id=request.incident_id.lower(),
            decision_id=request.decision_id.lower(),
            target_ids=tuple(request.target_ids),
            registrar=current().identity,
            lifetime=runs.LIFETIME if lifetime <= NO_LIFETIME else lifetime,
            person=asker.person,
            proved=asker.proved,
        )


def _again(known: Run, wish: Wish) -> Run:
    """Return a run that is registered again as what it is, or refuse."""
    if not known.fits(wish):
        state = "registered for another template, incident, decision, parent or person, or for other targets"
        raise Refusal(error_reason_pb2.ERROR_REASON_CONFLICT, resource="run", id=str(known.run_id), state=state)
    if known.over:
        raise Refusal(error_reason_pb2.ERROR_REASON_RUN_NOT_OPEN, run_id=str(known.run_id), why=known.over)
    return known


async def incident_of(surroundings: Surroundings, incident_id: str) -> Incident | None:
    """Return an incident, or refuse when ingest does not tell."""
    try:
        return await surroundings.incident(incident_id)
    except PeerTrouble as trouble:
        raise trouble.refusal from None


async def record_refusal(judgements: JudgementStore, subject: Subject, refusal: Refusal) -> None:
    """Put on record what was refused."""
    made: audit_service_pb2.AuditEvent = event(Event.PHASE_RECORD, Event.OUTCOME_DENIED, subject, reason=refusal.name)
    policy.validate(made)
    async with judgements.session() as session:
        await session.record(made)


def refusal_for(finding: Finding) -> Refusal:
    """Return a finding as the refusal of a call."""
    return Refusal(convert.reason_value(finding.reason), violations=(), retry_after=None, **dict(finding.facts))


def to_message(run: Run) -> pb.RegisteredRun:
    """Return a run as a message."""
    return pb.RegisteredRun(
        run_id=str(run.run_id),
        template_id=run.template_id,
        incident_id=run.incident_id,
        target_ids=run.target_ids,
        parent_run_id=str(run.parent or ""),
        depth=run.depth,
        requester=run.requester,
        expire_time=convert.timestamp(run.expire_time),
    )
