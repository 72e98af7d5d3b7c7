"""Tells guardrails what a kill found under way here, and how it ended: the gateway stops nothing that has begun."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import grpc
import structlog

from opsmesh.guardrails.v1 import grant_pb2
from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc as rpc
from services.gateway import grants
from services.gateway.domain import Effect, State
from services.gateway.lease import LeaseKeeper, about
from services.gateway.stop_store import Noted, PostgresStops
from services.gateway.tools.toolbox import Toolbox
from services.mesh import kills, policy
from services.mesh.loop import every

PERIOD: Final = 1.0
REPORT_SECONDS: Final = 2.0
# What one report may name; the gateway never has that many effects under way.
STOPS_MAX: Final = 1000
log = structlog.get_logger("opsmesh.gateway.stops")


class StopReporter:
    """Fed by the lease: reports at each change, and again every second until guardrails has taken it."""

    def __init__(self, store: PostgresStops, lease: LeaseKeeper, channel: grpc.aio.Channel, toolbox: Toolbox) -> None:
        self._store = store
        self._lease = lease
        self._send: Callable[..., Awaitable[pb.ReportStopsResponse]] = rpc.KillSwitchServiceStub(channel).ReportStops
        self._toolbox = toolbox
        # What guardrails knows; after a start there may be rows of the process before.
        self._told: dict[str, frozenset[tuple[str, int]]] = {}
        self._open = True

    async def run(self, stop: asyncio.Event) -> None:
        """Worker."""
        await every(stop, PERIOD, self.report, wake=self._lease.changed)

    async def report(self) -> None:
        """Look for what each kill found under way, and tell what guardrails does not know yet."""
        # Released ones, too: one that came and went while we heard nothing is still waiting for our answer.
        heard = self._lease.kills
        if heard and (effects := await self._store.started(STOPS_MAX)):
            for kill in heard:
                await self._store.note(kill.kill_id, [one.key for one in effects if self._found(kill, one)])
        if not heard and not self._open:
            return
        noted: dict[str, list[Noted]] = defaultdict(list)
        for one in await self._store.noted(STOPS_MAX):
            noted[one.kill_id].append(one)
        known = dict.fromkeys([*(kill.kill_id for kill in heard), *noted])
        self._told = {one: told for one, told in self._told.items() if one in known}
        self._open = bool(noted)
        for kill_id in known:
            if not await self._tell(kill_id, noted[kill_id]):
                self._open = True
                return

    def _found(self, kill: pb.LeasedKill, effect: Effect) -> bool:
        """Say whether an effect had started when a kill of its scope came; notices are not stopped."""
        served = self._toolbox.get(effect.key.method)
        if served and served.tool.policy.access not in policy.EFFECTS:
            return False
        grant = grants.to_domain(grant_pb2.Grant.FromString(effect.authority))
        return grant.kill_epoch < kill.epoch and kills.covers(kill.scope, about(grant))

    async def _tell(self, kill_id: str, noted: Sequence[Noted]) -> bool:
        """Report one kill unless guardrails knows all of it; False when it did not answer."""
        stops = [stop_of(one) for one in noted]
        state = frozenset((stop.subject, int(stop.state)) for stop in stops)
        # Nothing under way is a report, too: until then we count as one who has not answered.
        if self._told.get(kill_id) != state:
            try:
                await self._send(pb.ReportStopsRequest(kill_id=kill_id, stops=stops), timeout=REPORT_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    log.warning("guardrails did not take what a kill found under way", code=error.code().name)
                    return False
                # Of another life of that database: nobody waits for it.
                await self._store.forget(kill_id, [one.key for one in noted])
            self._told[kill_id] = state
        ended = [one.key for one, stop in zip(noted, stops, strict=True) if stop.state == pb.Stop.STATE_STOPPED]
        await self._store.forget(kill_id, ended)
        return True


def stop_of(noted: Noted) -> pb.Stop:
    """Return how an effect stands, for people who wait for the quiet."""
    stop = pb.Stop(kind=pb.Stop.KIND_EFFECT, subject=str(noted.key.request_id))
    tool = noted.key.method
    if noted.state is State.STARTED and noted.deadline_time:
        stop.state, stop.detail = pb.Stop.STATE_IN_FLIGHT, f"{tool} had begun and ends by its deadline"
        stop.deadline_time.FromDatetime(noted.deadline_time)
    elif noted.state is State.UNKNOWN:
        stop.state = pb.Stop.STATE_UNSTOPPED
        stop.detail = f"nobody knows how {tool} ended; look, and say so: opsmesh effects settle"
    else:
        words = noted.state.value if noted.state else "and its row was deleted"
        stop.state, stop.detail = pb.Stop.STATE_STOPPED, f"{tool} ended {words}"
    return stop
