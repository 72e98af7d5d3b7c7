"""The kill switch as executions feel it: who is in scope is barred, told to stop, looked after, and reported.

It needs guardrails, the database and, to see that something has stopped, the engine; nothing else.
"""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc as rpc
from opsmesh.ingest.v1 import ingest_service_pb2
from services.automation.book import Library
from services.automation.domain import OPEN_EXECUTION
from services.automation.scopes import facts_of, has_effects
from services.automation.store import OPEN, Store
from services.mesh.errors import Refusal
from services.mesh.kills import covers, words
from services.mesh.leases import Leases
from services.mesh.loop import every
from services.mesh.postgres import Pool

PERIOD: Final = 1.0
# What has not stopped yet is looked at this soon again, in seconds.
SOON: Final = 0.3
REPORT_SECONDS: Final = 5.0
# What goes on is reported again this often, in seconds.
REPEAT_SECONDS: Final = 5.0
BATCH: Final = 500
log = structlog.get_logger("opsmesh.automation.stops")


class Watcher(Protocol):
    """Who tells the engine to stop, and sees whether it has."""

    def wake(self) -> None:
        """Look now."""


@dataclass(frozen=True, slots=True)
class Stopping:
    """An execution that a kill stops, as it stands and as it was last reported."""

    kill_id: str
    execution_id: str
    state: str
    unstopped: bool
    reported: str

    @property
    def stop(self) -> pb.Stop:
        """Return it as guardrails is told."""
        ended = self.state not in OPEN_EXECUTION
        detail = f"ended as {self.state}" if ended else "told to stop, has not yet"
        if self.unstopped:
            detail = "told to stop and terminated, and its engine goes on: nothing it calls is let through"
        return pb.Stop(
            kind=pb.Stop.KIND_EXECUTION,
            subject=self.execution_id,
            state=pb.Stop.STATE_STOPPED if ended else pb.Stop.STATE_UNSTOPPED,
            detail=detail,
        )

    @property
    def word(self) -> str:
        """Return what is reported, so that the same need not be said again."""
        return "STOPPED" if self.state not in OPEN_EXECUTION else "UNSTOPPED" if self.unstopped else "TOLD"


class KillStore:
    """Executions in the scope of kills, in schema `automation`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def open(self) -> list[str]:
        """Return the ids of all open executions."""
        rows = await self._pool.fetch(
            "SELECT execution_id::text FROM automation.executions WHERE state = ANY($1)", OPEN
        )
        return [row["execution_id"] for row in rows]

    async def mark(self, kill_id: str, execution_id: str, reason: str) -> None:
        """Bar an execution for ever: from this commit on no step of it is sent. One that has ended stays as it is."""
        async with self._pool.acquire() as connection, connection.transaction():
            state = await connection.fetchval(
                "UPDATE automation.executions SET cancel_requested = true, check_time = now(), "
                "kill_id = CASE WHEN kill_id = '' THEN $2 ELSE kill_id END, kill_time = coalesce(kill_time, now()), "
                "cancel_reason = CASE WHEN cancel_requested THEN cancel_reason ELSE $3 END, "
                "state = CASE WHEN state = 'PENDING' THEN 'CANCELLED' ELSE state END, "
                "detail = CASE WHEN state = 'PENDING' THEN 'killed before it began: ' || $3 ELSE detail END, "
                "end_time = CASE WHEN state = 'PENDING' THEN now() END "
                "WHERE execution_id = $1 AND state = ANY($4) RETURNING state",
                execution_id,
                kill_id,
                reason,
                OPEN,
            )
            if state is None:
                return
            if state == "CANCELLED":
                await connection.execute(
                    "UPDATE automation.steps SET state = 'CANCELLED' WHERE execution_id = $1", execution_id
                )
            await connection.execute(
                "INSERT INTO automation.kill_stops (kill_id, execution_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                kill_id,
                execution_id,
            )

    async def unsettled(self) -> list[Stopping]:
        """Return what guardrails has not been told to have stopped, and what has changed since it was told."""
        rows = await self._pool.fetch(
            "SELECT kill_stops.kill_id::text, execution_id::text, state, unstopped, reported "
            "FROM automation.kill_stops JOIN automation.executions USING (execution_id) "
            "WHERE reported <> 'STOPPED' ORDER BY kill_stops.kill_id LIMIT $1",
            BATCH,
        )
        return [Stopping(**row) for row in rows]

    async def told(self, kill_id: str, told: Iterable[Stopping]) -> None:
        """Note what guardrails was told."""
        await self._pool.executemany(
            "UPDATE automation.kill_stops SET reported = $3 WHERE kill_id = $1 AND execution_id = $2",
            [(kill_id, one.execution_id, one.word) for one in told],
        )


class Stops:
    """One worker: it compares kills with executions whenever either may have changed."""

    def __init__(
        self,
        leases: Leases,
        store: Store,
        kills: KillStore,
        library: Library,
        *,
        watcher: Watcher,
        switch: "rpc.KillSwitchServiceAsyncStub",
    ) -> None:
        self._leases = leases
        self._store = store
        self._kills = kills
        self._library = library
        self._watcher = watcher
        self._switch = switch
        # Executions that were looked at, by kill. One that comes into scope later, because people amend the target of
        # a step, is refused by guardrails, and stopped by that refusal.
        self._seen: dict[str, set[str]] = {}
        self._reported: dict[str, float] = {}

    async def work(self, stop: asyncio.Event) -> None:
        """Stop and report until `stop`."""
        await every(stop, PERIOD, self._look, self._leases.changed)

    async def _look(self) -> None:
        """Look again in a second, whatever goes wrong now: a kill must not wait for a backoff."""
        try:
            await self.look()
        except Exception:
            log.exception("stops not looked after")

    async def look(self) -> None:
        """Bar and stop what is in scope, then tell guardrails how everything in scope stands."""
        active = [kill for kill in self._leases.kills if not kill.released]
        self._seen = {kill.kill_id: self._seen.get(kill.kill_id, set()) for kill in active}
        if active:
            await self._bar(active)
        stopping = await self._kills.unsettled()
        going_on = {one.kill_id for one in stopping}
        known = going_on | {kill.kill_id for kill in self._leases.kills}
        self._reported = {kill_id: when for kill_id, when in self._reported.items() if kill_id in known}
        for kill_id in going_on | {kill.kill_id for kill in active if kill.kill_id not in self._reported}:
            mine = [one for one in stopping if one.kill_id == kill_id]
            due = time.monotonic() - self._reported.get(kill_id, 0.0) > REPEAT_SECONDS
            if due or any(one.word != one.reported for one in mine):
                await self._report(kill_id, mine)
        if any(not one.unstopped for one in stopping):
            asyncio.get_running_loop().call_later(SOON, self._leases.changed.set)

    async def _bar(self, active: list[pb.LeasedKill]) -> None:
        """Bar every open execution in the scope of a kill."""
        found = await self._kills.open()
        hit = False
        for kill in active:
            seen = self._seen[kill.kill_id]
            seen &= set(found)
            for execution_id in [one for one in found if one not in seen]:
                if await self._in_scope(kill.scope, execution_id):
                    reason = f"kill {kill.kill_id} ({words(kill.scope)})"
                    await self._kills.mark(kill.kill_id, execution_id, reason)
                    log.warning("stopping", execution_id=execution_id, kill_id=kill.kill_id)
                    hit = True
                seen.add(execution_id)
        if hit:
            self._watcher.wake()

    async def _in_scope(self, scope: pb.KillScope, execution_id: str) -> bool:
        execution = await self._store.execution(execution_id)
        if execution is None:
            return False
        try:
            playbook = (await self._library.book(execution)).playbook
            incident = ingest_service_pb2.Incident.FromString(execution.incident)
            about = facts_of(incident, playbook, execution_id, execution.steps)
            return has_effects(playbook) and covers(scope, about)
        except (LookupError, DecodeError, Refusal):
            # A playbook that this version cannot read, such as one with a tool that is gone: it may do anything.
            log.exception("in scope, because it cannot be read", execution_id=execution_id)
            return True

    async def _report(self, kill_id: str, stopping: list[Stopping]) -> None:
        """Tell guardrails; what it did not take is told again by the next look."""
        request = pb.ReportStopsRequest(kill_id=kill_id, stops=[one.stop for one in stopping])
        try:
            await self._switch.ReportStops(request, timeout=REPORT_SECONDS)
        except grpc.aio.AioRpcError as error:
            log.warning("stops not reported", kill_id=kill_id, error=str(error.details()))
            return
        self._reported[kill_id] = time.monotonic()
        await self._kills.told(kill_id, stopping)
