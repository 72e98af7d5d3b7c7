"""The lane of held decisions: after a release they are looked at one by one, and started at a pace."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Final

import grpc
import grpc.aio
import structlog

from opsmesh.guardrails.v1 import kill_switch_service_pb2, kill_switch_service_pb2_grpc
from opsmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from services.mesh import telemetry
from services.mesh.call import working
from services.mesh.loop import every, wait
from services.router import work as steps
from services.router.domain import Stage
from services.router.held import Seen, outlived
from services.router.lanes import CALL_SECONDS, CLAIM_SECONDS, IDENTITY
from services.router.messages import seen_of
from services.router.pace import Pace
from services.router.store import DecisionStore
from services.router.work import Step, Work

PERIOD: Final = 1.0
LEASE_SECONDS: Final = 2.0
log = structlog.get_logger("opsmesh.router.resume")


class Eyes:
    """What the router looks at before it starts what was held. Raises grpc.aio.AioRpcError."""

    def __init__(
        self,
        kills: "kill_switch_service_pb2_grpc.KillSwitchServiceAsyncStub",
        incidents: "ingest_service_pb2_grpc.IngestServiceAsyncStub",
    ) -> None:
        self._kills = kills
        self._incidents = incidents
        self._instance = f"router@{socket.gethostname()}/{os.getpid()}"[:128]

    async def kills(self) -> list[str]:
        """Return the kills that hold now."""
        request = kill_switch_service_pb2.PollLeaseRequest(instance=self._instance)
        with working(IDENTITY, "router/lease", LEASE_SECONDS):
            lease = (await self._kills.PollLease(request)).lease
        return [kill.kill_id for kill in lease.kills if not kill.released]

    async def incident(self, incident_id: str) -> Seen | None:
        """Return an incident as it is now; None when ingest does not keep it any more."""
        try:
            answer = await self._incidents.GetIncident(ingest_service_pb2.GetIncidentRequest(incident_id=incident_id))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return seen_of(answer)


class Resumer:
    """Starts held decisions, oldest first, once their kill holds no more; one at a time, each with a turn of `pace`."""

    def __init__(
        self,
        store: DecisionStore,
        pace: Pace,
        eyes: Eyes,
        start: Callable[[Work], Awaitable[Step]],
        later: Callable[[Step], None],
    ) -> None:
        self._store = store
        self._pace = pace
        self._eyes = eyes
        self._start = start
        self._later = later
        self._stop = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`."""
        self._stop = stop
        await every(stop, PERIOD, self._resume)

    async def _resume(self) -> None:
        """Go on as long as something can be started now."""
        while not self._stop.is_set():
            pause = await self.once()
            if pause >= PERIOD or await wait(self._stop, pause):
                return

    async def once(self) -> float:
        """Look at one held decision; return the seconds until the next look is worth it."""
        if not await self._store.has(Stage.HELD):
            return PERIOD
        try:
            kills = await self._eyes.kills()
        except grpc.aio.AioRpcError as error:
            log.warning("nobody says which kills hold: what is held stays held", code=error.code().name)
            return PERIOD
        pause = await self._pace.take()
        if pause > 0:
            return min(pause, PERIOD)
        work = await self._store.claim_held(kills, CLAIM_SECONDS)
        if work is None:
            await self._pace.give_back()
            return PERIOD
        step = await self._step(work)
        await self._store.advance(work, step)
        self._later(step)
        return 0.0

    async def _step(self, work: Work) -> Step:
        """Start it or close it; what fails is looked at again, after the others."""
        decision = work.decision
        try:
            with working(IDENTITY, "router/held", CALL_SECONDS, trace=telemetry.parse(work.traceparent)):
                step = outlived(decision, await self._eyes.incident(str(decision.incident_id)))
                if step is None and await self._store.trying(decision):
                    step = await self._start(work)
                else:
                    # Nothing was tried, so the turn is another's. Without a step a newer revision has ended it.
                    await self._pace.give_back()
                    step = step or steps.again(work)
        except grpc.aio.AioRpcError as error:
            log.warning("held decision not started", decision_id=str(decision.decision_id), code=error.code().name)
            return steps.again(work)
        if step.stage is not Stage.HELD:
            log.info("held decision", decision_id=str(decision.decision_id), stage=step.stage, result=step.result)
        return step
