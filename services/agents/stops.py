"""The kill switch as runs feel it: who is in scope is barred with all runs below it, looked after, and reported.

It needs guardrails and the database, nothing else. A kill that stops nothing here is reported, too: silence would look
like a fault.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import grpc.aio
import structlog

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc as rpc
from opsmesh.ingest.v1 import ingest_service_pb2
from services.agents.runs.domain import DEPTH_MAX
from services.agents.runs.store import BELOW, OPEN
from services.mesh.kills import Facts, covers, words
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
log = structlog.get_logger("opsmesh.agents.stops")


@dataclass(frozen=True, slots=True)
class OpenRun:
    """An open run, as far as kills may be about it; `tools` are those of its open steps."""

    run_id: str
    target_ids: tuple[str, ...]
    incident: bytes
    tools: tuple[str, ...]
    parent_run_id: str = ""
    killed: bool = False
    ancestors: frozenset[str] = frozenset()

    @property
    def facts(self) -> Facts:
        """Return what a kill may be about."""
        known = ingest_service_pb2.Incident.FromString(self.incident).targets
        return Facts(
            environments=frozenset(one.environment for one in known if one.target_id in self.target_ids),
            targets=frozenset(self.target_ids),
            tools=frozenset(self.tools),
            run_id=self.run_id,
            ancestors=self.ancestors,
        )


@dataclass(frozen=True, slots=True)
class Stopping:
    """A run that a kill stops, as it stands and as it was last reported."""

    kill_id: str
    run_id: str
    state: str
    reported: str

    @property
    def word(self) -> str:
        """Return what is reported, so that the same need not be said again."""
        return "TOLD" if self.state in OPEN else "STOPPED"

    @property
    def stop(self) -> pb.Stop:
        """Return it as guardrails is told."""
        ended = self.state not in OPEN
        return pb.Stop(
            kind=pb.Stop.KIND_RUN,
            subject=self.run_id,
            state=pb.Stop.STATE_STOPPED if ended else pb.Stop.STATE_UNSTOPPED,
            detail=f"ended as {self.state}" if ended else "told to stop, has not yet",
        )


class KillStore:
    """Runs in the scope of kills, in schema `agents`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def open(self) -> list[OpenRun]:
        """Return all open runs that no kill stops yet, with the runs above them: these are open as long as they are."""
        rows = await self._pool.fetch(
            "SELECT run_id::text, target_ids, incident, ARRAY(SELECT tool FROM run_steps WHERE "
            "run_steps.run_id = runs.run_id AND run_steps.state IN ('RUNNING', 'AWAITING_APPROVAL')), "
            "coalesce(parent_run_id::text, ''), kill_id <> '' FROM runs WHERE state = ANY($1)",
            OPEN,
        )
        found = {row[0]: OpenRun(row[0], tuple(row[1]), row[2], tuple(row[3]), row[4], row[5]) for row in rows}
        return [replace(one, ancestors=_above(one, found)) for one in found.values() if not one.killed]

    async def mark(self, kill_id: str, run_id: str, reason: str) -> list[str]:
        """Bar a run and every open run below it for ever; return which. One that has ended stays as it is."""
        async with self._pool.acquire() as connection, connection.transaction():
            rows = await connection.fetch(
                f"{BELOW} UPDATE runs SET cancel_requested = true, due_time = least(due_time, clock_timestamp()), "  # noqa: S608
                "kill_id = CASE WHEN kill_id = '' THEN $2 ELSE kill_id END, "
                "cancel_reason = CASE WHEN cancel_requested THEN cancel_reason ELSE $3 END "
                "FROM below WHERE runs.run_id = below.run_id AND state = ANY($4) RETURNING runs.run_id::text",
                run_id,
                kill_id,
                reason,
                OPEN,
            )
            marked = [row["run_id"] for row in rows]
            await connection.executemany(
                "INSERT INTO run_stops (kill_id, run_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                [(kill_id, one) for one in marked],
            )
        return marked

    async def unsettled(self) -> list[Stopping]:
        """Return what guardrails has not been told to have stopped."""
        rows = await self._pool.fetch(
            "SELECT run_stops.kill_id::text, run_id::text, state, reported FROM run_stops JOIN runs USING (run_id) "
            "WHERE reported <> 'STOPPED' ORDER BY run_stops.kill_id LIMIT $1",
            BATCH,
        )
        return [Stopping(**row) for row in rows]

    async def told(self, kill_id: str, told: Iterable[Stopping]) -> None:
        """Note what guardrails was told."""
        await self._pool.executemany(
            "UPDATE run_stops SET reported = $3 WHERE kill_id = $1 AND run_id = $2",
            [(kill_id, one.run_id, one.word) for one in told],
        )


def _above(run: OpenRun, known: Mapping[str, OpenRun]) -> frozenset[str]:
    """Return the runs above a run."""
    above: list[str] = []
    while run.parent_run_id and len(above) < DEPTH_MAX:
        above.append(run.parent_run_id)
        if run.parent_run_id not in known:
            break
        run = known[run.parent_run_id]
    return frozenset(above)


class Stops:
    """One worker: it compares kills with runs whenever either may have changed. `halt` tells the runner at once."""

    def __init__(
        self,
        leases: Leases,
        kills: KillStore,
        halt: Callable[[Iterable[str]], None],
        switch: "rpc.KillSwitchServiceAsyncStub",
    ) -> None:
        self._leases = leases
        self._kills = kills
        self._halt = halt
        self._switch = switch
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
        """Bar what is in scope, then tell guardrails how everything in scope stands."""
        active = [kill for kill in self._leases.kills if not kill.released]
        for one in await self._kills.open() if active else ():
            for kill in active:
                if covers(kill.scope, one.facts):
                    reason = f"kill {kill.kill_id} ({words(kill.scope)})"
                    marked = await self._kills.mark(kill.kill_id, one.run_id, reason)
                    log.warning("stopping", runs=marked, kill_id=kill.kill_id)
                    self._halt(marked)
                    break
        stopping = await self._kills.unsettled()
        going_on = {one.kill_id for one in stopping}
        known = going_on | {kill.kill_id for kill in self._leases.kills}
        self._reported = {kill_id: when for kill_id, when in self._reported.items() if kill_id in known}
        for kill_id in going_on | {kill.kill_id for kill in active if kill.kill_id not in self._reported}:
            mine = [one for one in stopping if one.kill_id == kill_id]
            due = time.monotonic() - self._reported.get(kill_id, 0.0) > REPEAT_SECONDS
            if due or any(one.word != one.reported for one in mine):
                await self._report(kill_id, mine)
        if stopping:
            asyncio.get_running_loop().call_later(SOON, self._leases.changed.set)

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
