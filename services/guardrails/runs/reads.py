"""Mints read grants: for a run the reads of its template on its targets, for a decision a fixed list on its incident's.

Both reach what the targets depend on, one step further and no more. A kill of the run, or of everything, refuses them;
targets in the scope of another kill are left out. A grant lives no longer than its run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Final
from uuid import UUID

from opsmesh.guardrails.v1 import guardrails_service_pb2 as pb
from opsmesh.guardrails.v1 import kill_switch_service_pb2 as kill_pb
from opsmesh.policy.v1 import policy_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.guardrails.checks import Finding, failed
from services.guardrails.domain import Entry, PolicySet
from services.guardrails.grants import Minter
from services.guardrails.kills import store as kill_store
from services.guardrails.policies.store import Policies
from services.guardrails.runs import domain as runs
from services.guardrails.runs import store
from services.guardrails.runs.domain import Run
from services.guardrails.runs.registry import incident_of, record_refusal, refusal_for
from services.guardrails.store import JudgementStore, Session
from services.guardrails.surroundings import Surroundings
from services.mesh import kills
from services.mesh.call import current
from services.mesh.errors import FieldViolation, Refusal
from services.mesh.postgres import Connection
from services.mesh.tools import tools
from services.mesh.writes import Event, Subject, event

MOMENT: Final = "SELECT policy_set_version, kill_epoch, clock_timestamp() AS now FROM state"
# What the router may read to decide, whatever it decides about.
FAMILIES: Final = frozenset({"inventory", "runbook", "metrics", "logs", "change", "autoscaling", "workload"})
TARGETS_MAX: Final = 32
CALLERS: Final[Mapping[str, str]] = {"run_id": runs.AGENTS, "decision_id": runs.ROUTER}


@dataclass(frozen=True, slots=True)
class Wanted:
    """For what a read grant is wanted; `own` are targets that it is about, not those that they depend on."""

    methods: Sequence[str]
    own: Sequence[str]
    incident_id: str
    decision_id: str = ""
    run: Run | None = None

    @property
    def run_id(self) -> str:
        """Return the run, if it is one."""
        return str(self.run.run_id) if self.run else ""

    @property
    def ancestors(self) -> tuple[str, ...]:
        """Return the runs above the run."""
        return tuple(str(one) for one in self.run.ancestors) if self.run else ()

    @property
    def latest(self) -> datetime | None:
        """Return when the run's own time is over."""
        return self.run.expire_time if self.run else None


class Reads:
    """Judges who may read what, anew at each call."""

    def __init__(
        self, judgements: JudgementStore, policies: Policies, surroundings: Surroundings, minter: Minter
    ) -> None:
        self._judgements = judgements
        self._policies = policies
        self._surroundings = surroundings
        self._minter = minter

    async def authorize(self, request: pb.AuthorizeReadsRequest) -> pb.AuthorizeReadsResponse:
        """Mint a read grant for the caller's run or decision, or refuse; both are on record."""
        subject = Subject(incident_id=request.incident_id, decision_id=request.decision_id, execution_id=request.run_id)
        try:
            return await self._authorize(request)
        except Refusal as refusal:
            await record_refusal(self._judgements, subject, refusal)
            raise

    async def _authorize(self, request: pb.AuthorizeReadsRequest) -> pb.AuthorizeReadsResponse:
        """Ask ingest about the incident, then judge by what holds after its answer."""
        kind = request.WhichOneof("subject") or ""
        if current().identity != CALLERS.get(kind):
            words = f"only {CALLERS.get(kind, 'nobody')} reads for it"
            violation = FieldViolation(kind, words)
            raise Refusal(error_reason_pb2.ERROR_REASON_INVALID_ARGUMENT, violations=[violation])
        incident_id = request.incident_id
        if request.run_id:
            async with self._judgements.session() as session:
                incident_id = (await _open(session.connection, request.run_id)).incident_id
            if request.incident_id not in {"", incident_id}:
                why = f"not for incident {request.incident_id}: it belongs to another one"
                raise Refusal(error_reason_pb2.ERROR_REASON_RUN_NOT_OPEN, run_id=request.run_id, why=why)
        incident = await incident_of(self._surroundings, incident_id) if incident_id else None
        if incident is None or not incident.is_open:
            raise Refusal(error_reason_pb2.ERROR_REASON_INCIDENT_NOT_OPEN, incident_id=incident_id or "(none)")
        async with self._judgements.session() as session:
            moment = await session.connection.fetchrow(MOMENT)
            if moment is None:
                raise LookupError("guardrails.state has lost its row")
            policy = await self._policies.active(session.connection)
            if request.run_id:
                wanted = _of_run(await _open(session.connection, request.run_id), policy)
            else:
                own = sorted(incident.targets & policy.inventory.keys())
                wanted = Wanted(deciding(), own, incident_id, decision_id=request.decision_id)
            targets = await _spared(session.connection, wanted, policy)
            return await self._mint(session, wanted, targets, moment, policy.version)

    async def _mint(
        self, session: Session, wanted: Wanted, targets: Sequence[Entry], moment: Any, version: int
    ) -> pb.AuthorizeReadsResponse:
        """Sign a grant; what the targets depend on is left out, last first, where it would not fit."""
        for count in range(len(targets), -1, -1):
            try:
                raw, grant = self._minter.mint_read(
                    current().identity,
                    wanted.methods,
                    targets[:count],
                    now=moment["now"],
                    latest=wanted.latest,
                    policy_set_version=version,
                    kill_epoch=moment["kill_epoch"],
                    incident_id=wanted.incident_id,
                    decision_id=wanted.decision_id,
                    run_id=wanted.run_id,
                    ancestors=wanted.ancestors,
                )
                break
            except ValueError as error:
                if count == 0 or targets[count - 1].target_id in wanted.own:
                    violation = FieldViolation("subject", f"{error}: fewer targets, or fewer tools in the template")
                    raise Refusal(error_reason_pb2.ERROR_REASON_INVALID_ARGUMENT, violations=[violation]) from None
        subject = Subject(
            incident_id=wanted.incident_id,
            decision_id=wanted.decision_id,
            execution_id=wanted.run_id,
            policy_set_version=version,
            detail={
                "grant_id": grant.grant_id,
                "tools": " ".join(name.rpartition("/")[2] for name in grant.methods),
                "targets": " ".join(one.target_id for one in grant.targets),
            },
        )
        await session.record(event(Event.PHASE_RECORD, Event.OUTCOME_SUCCEEDED, subject))
        return pb.AuthorizeReadsResponse(
            grant=raw,
            methods=grant.methods,
            target_ids=[one.target_id for one in grant.targets],
            expire_time=grant.expire_time,
        )


async def _open(connection: Connection, run_id: str) -> Run:
    """Return a run that is open, or refuse."""
    run = await store.read(connection, UUID(run_id))
    if run and run.kill_id:
        scope = f"run {run_id}"
        raise Refusal(error_reason_pb2.ERROR_REASON_KILLED, kill_id=str(run.kill_id), scope=scope)
    why = run.over if run else "it was never registered"
    if run is None or why:
        raise Refusal(error_reason_pb2.ERROR_REASON_RUN_NOT_OPEN, run_id=run_id, why=why)
    return run


def _of_run(run: Run, policy: PolicySet) -> Wanted:
    """Return what a run may read, or refuse when its template may read nothing."""
    allowance = policy.agents.get(run.template_id)
    methods = sorted(allowance.tools & reading()) if allowance else []
    if not methods:
        method = "any tool that reads"
        raise Refusal(error_reason_pb2.ERROR_REASON_TOOL_NOT_OF_RUN, template=run.template_id, method=method)
    return Wanted(methods, run.target_ids, run.incident_id, run.decision_id, run)


async def _spared(connection: Connection, wanted: Wanted, policy: PolicySet) -> Sequence[Entry]:
    """Return the targets that no kill stops, or refuse when one stops the run, or all that it is about."""
    for run_id in (*wanted.run.ancestors, wanted.run.run_id) if wanted.run else ():
        standing = await kill_store.standing(connection, kills.facts(run_id=str(run_id)), None)
        if standing.stops:
            raise refusal_for(killed(standing.stops))
    active = await kill_store.since(connection, kill_store.NO_EPOCH)
    entries = [policy.inventory[one] for one in runs.readable(policy, wanted.own)][:TARGETS_MAX]
    stopped = {one.target_id: kills.stopping(active, _about(one, wanted)) for one in entries}
    over = kills.stopping(active, kills.facts(run_id=wanted.run_id))
    if not over and wanted.own and all(stopped.get(one) for one in wanted.own if one in stopped):
        over = next((kill for kill in stopped.values() if kill), None)
    if over:
        raise refusal_for(killed(over))
    return [one for one in entries if not stopped[one.target_id]]


def _about(entry: Entry, wanted: Wanted) -> kills.Facts:
    """Return what a kill may know about reading a target."""
    return kills.facts(environment=entry.environment, target_id=entry.target_id, run_id=wanted.run_id)


def killed(kill: kill_pb.LeasedKill) -> Finding:
    """Return the finding that a kill stops a run."""
    return failed("safety", "KILLED", kill_id=kill.kill_id, scope=kills.words(kill.scope))


@cache
def reading() -> frozenset[str]:
    """Return the tools that only read."""
    return frozenset(name for name, tool in tools().items() if tool.policy.access == policy_pb2.ACCESS_READ)


@cache
def deciding() -> tuple[str, ...]:
    """Return what may be read for a decision."""
    return tuple(sorted(name for name in reading() if name.split(".")[2] in FAMILIES))
