"""What ingest does with incidents: hands them to the router and follows its decisions."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

import grpc.aio
import structlog

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from opsmesh.router.v1 import decision_service_pb2 as router_pb
from services.ingest import decisions
from services.ingest.backlog import Oldest, none_waits
from services.ingest.domain import State
from services.ingest.mapping import decided_of
from services.ingest.rows import fit
from services.ingest.signal import CHAT, Status
from services.ingest.store import Due, PostgresIncidents
from services.ingest.worker import AWAY
from services.mesh import telemetry
from services.mesh.call import working
from services.mesh.loop import every, wait

IDENTITY: Final = "service/ingest"
DECIDE: Final = "opsmesh.router.v1.DecisionService/DecideIncident"
FOLLOW: Final = "opsmesh.router.v1.DecisionService/BatchGetDecisions"
DECIDE_SECONDS: Final = 10.0
READ_SECONDS: Final = 5.0
DECIDE_COUNT: Final = 64
FOLLOW_COUNT: Final = 64
PERIOD: Final = 1.0
log = structlog.get_logger("opsmesh.lanes")


class Router(Protocol):
    """What ingest needs of the router's stub."""

    @property
    def DecideIncident(self) -> Callable[..., Awaitable[router_pb.DecideIncidentResponse]]:  # noqa: N802  the IDL's name
        """Decide incidents, once per revision."""

    @property
    def BatchGetDecisions(self) -> Callable[..., Awaitable[router_pb.BatchGetDecisionsResponse]]:  # noqa: N802  the IDL's name
        """Read several decisions."""


class DecisionLanes:
    """Hands incidents to the router and follows its decisions; a router that is away delays, nothing is lost.

    Two lanes: however many decisions stay open, because a model or a person is waited for, a new incident is decided
    at once.
    """

    def __init__(
        self, store: PostgresIncidents, router: Router, wake: asyncio.Event, oldest: Oldest = none_waits
    ) -> None:
        self._store = store
        self._oldest = oldest
        self._router = router
        self._wake = wake
        self._decided = asyncio.Event()
        self._stop = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`: at once when woken, else when the next incident is due."""
        self._stop = stop
        deciding = partial(self._lane, self.decide, self._store.next_undecided, self._wake)
        following = partial(self._lane, self.follow, self._store.next_following, self._decided)
        async with asyncio.TaskGroup() as group:
            group.create_task(every(stop, PERIOD, deciding, self._wake))
            group.create_task(every(stop, PERIOD, self.calm_down))
            group.create_task(every(stop, PERIOD, following, self._decided))

    async def _lane(
        self, work: Callable[[], Awaitable[int]], next_due: Callable[[], Awaitable[float]], wake: asyncio.Event
    ) -> None:
        """Do what is due, and what becomes due within the next second."""
        try:
            while not self._stop.is_set():
                if await work():
                    continue
                pause = await next_due()
                if pause > PERIOD:
                    return
                await wait(self._stop, max(0.01, pause), wake)
        except AWAY as error:
            # Looked at again every second: nobody shall wait for a backoff once it is back.
            log.warning("PostgreSQL does not answer", error=repr(error))

    async def decide(self) -> int:
        """Hand due incidents to the router; return how many there were."""
        due = await self._store.claim_undecided(DECIDE_COUNT)
        by_id = {one.incident.incident_id: one for one in due}
        left = [one.incident for one in due]
        while left:
            batch = fit(left)
            left = left[len(batch) :]
            request = router_pb.DecideIncidentRequest(incidents=batch)
            trace = telemetry.parse(by_id[batch[0].incident_id].traceparent)
            try:
                with working(IDENTITY, DECIDE, DECIDE_SECONDS, trace=trace):
                    response = await self._router.DecideIncident(request)
            except grpc.aio.AioRpcError as error:
                log.warning("the router does not decide", code=error.code().name, incidents=len(batch))
                await self._postpone([by_id[one.incident_id] for one in batch])
                continue
            await self._apply([by_id[one.incident_id] for one in batch], response.decisions, first=True)
            self._decided.set()
        return len(due)

    async def follow(self) -> int:
        """Ask for the open decisions that are due; return how many there were."""
        due = await self._store.claim_following(FOLLOW_COUNT)
        if not due:
            return 0
        request = router_pb.BatchGetDecisionsRequest(decision_ids=[one.incident.decision_id for one in due])
        try:
            with working(IDENTITY, FOLLOW, READ_SECONDS):
                response = await self._router.BatchGetDecisions(request)
        except grpc.aio.AioRpcError as error:
            log.warning("the router does not tell its decisions", code=error.code().name, incidents=len(due))
            await self._postpone(due)
            return len(due)
        await self._apply(due, response.decisions, first=False)
        return len(due)

    async def calm_down(self) -> None:
        """Have what flapped and is calm now, and what nobody told again and has no resolve, decided as usual."""
        try:
            if expired := await self._store.expire(self._oldest):
                log.info("not told again", incidents=expired)
            calm = await self._store.calm_down()
            if calm:
                log.info("calm again", incidents=calm)
            if expired or calm:
                self._wake.set()
        except AWAY as error:
            log.warning("PostgreSQL does not answer", error=repr(error))

    async def _postpone(self, due: Sequence[Due]) -> None:
        for one in due:
            await self._store.postpone(one.incident, decisions.retry_delay(one.attempts))

    async def _apply(self, due: Sequence[Due], found: Sequence[router_pb.Decision], *, first: bool) -> None:
        """Move each incident as its decision says; `first` when it was decided just now."""
        by_incident: Mapping[str, router_pb.Decision] = {one.incident_id: one for one in found}
        for one in due:
            incident = one.incident
            decision = by_incident.get(incident.incident_id)
            if decision is None:
                log.warning("the router has no decision", incident_id=incident.incident_id, revision=incident.revision)
                await self._store.postpone(incident, decisions.retry_delay(one.attempts))
                continue
            before = State(incident.state)
            decided = decided_of(decision)
            asked = incident.source == CHAT
            readable = Status(incident.status) is not Status.UNSPECIFIED
            over = readable and not incident.firing and not incident.flapping
            step = decisions.follow(before, incident.revision, decided, firing=incident.firing, asked=asked, over=over)
            polls = 0 if first or step.state is not before else one.attempts
            seconds = decisions.poll_delay(step.state, polls)
            # A rule whose playbook was started, or whose question was answered, does not match again.
            had_its_turn = decided.outcome is decisions.Outcome.TRIGGER_AUTOMATION
            answered = decided.result is decisions.Result.ANSWERED
            started = decision.rule_id if had_its_turn or answered else ""
            ids = (decision.decision_id, decision.execution_id, started)
            if await self._store.advance(incident, step, ids, polls, seconds):
                _tell(incident, before, step, decision)
                if step.revise:
                    self._wake.set()
            else:
                # A signal or a person came in between: look again with what holds now.
                await self._store.postpone(incident, 0)


def _tell(incident: pb.Incident, before: State, step: decisions.Step, decision: router_pb.Decision) -> None:
    """Log a change of state."""
    if step.state is not before or step.revise:
        log.info(
            "incident",
            incident_id=incident.incident_id,
            state=step.state.name,
            before=before.name,
            decision_id=decision.decision_id,
            rule_id=decision.rule_id,
            detail=step.detail,
        )
