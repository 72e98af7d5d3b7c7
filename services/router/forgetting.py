"""Decisions are forgotten long after they were closed, and never while their incident is open."""

import asyncio
import uuid
from datetime import timedelta
from typing import Final, Protocol

import grpc.aio
import structlog

from services.mesh.call import working
from services.mesh.loop import every
from services.mesh.postgres import Pool
from services.router.held import Seen
from services.router.lanes import CALL_SECONDS, IDENTITY

PERIOD: Final = 3600.0
STEP: Final = 100
# Bounds one round; the next one begins where it ended.
STEPS_MAX: Final = 100
NOBODY: Final = uuid.UUID(int=0)
OLD: Final = """
SELECT incident_id FROM decisions WHERE incident_id > $1 GROUP BY incident_id
HAVING bool_and(state = 'CLOSED') AND max(close_time) < clock_timestamp() - $2::interval
ORDER BY incident_id LIMIT $3
"""
DELETE: Final = "SELECT forget_decisions($1, $2::interval)"
log = structlog.get_logger("opsmesh.retention")


class Incidents(Protocol):
    """Who knows whether an incident is open."""

    async def incident(self, incident_id: str) -> Seen | None:
        """Return an incident as it is now; None when it is not kept any more. Raises grpc.aio.AioRpcError."""


class OldDecisions(Protocol):
    """Decisions that may be forgotten."""

    async def incidents(self, after: uuid.UUID, age: timedelta, limit: int) -> list[uuid.UUID]:
        """Return incidents beyond `after`, in order, whose decisions were all closed longer ago than `age`."""

    async def delete(self, incident: uuid.UUID, age: timedelta) -> int:
        """Delete the decisions of one of these, if that still holds; return how many."""


class PostgresOldDecisions:
    """OldDecisions on the router's schema."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def incidents(self, after: uuid.UUID, age: timedelta, limit: int) -> list[uuid.UUID]:
        """See OldDecisions."""
        return [row["incident_id"] for row in await self._pool.fetch(OLD, after, age, limit)]

    async def delete(self, incident: uuid.UUID, age: timedelta) -> int:
        """See OldDecisions."""
        return int(await self._pool.fetchval(DELETE, incident, age))


class Forgetting:
    """Deletes decisions `days` after the last of their incident was closed, unless the incident is open."""

    def __init__(self, decisions: OldDecisions, incidents: Incidents, days: int) -> None:
        self._decisions = decisions
        self._incidents = incidents
        self._age = timedelta(days=days)
        self._after = NOBODY

    async def run(self, stop: asyncio.Event) -> None:
        """Delete now and every hour until `stop`."""
        await every(stop, PERIOD, self.forget)

    async def forget(self) -> int:
        """Delete what may be deleted; return how many decisions."""
        total = 0
        for _ in range(STEPS_MAX):
            found = await self._decisions.incidents(self._after, self._age, STEP)
            for incident in found:
                if await self._is_over(incident):
                    total += await self._decisions.delete(incident, self._age)
            self._after = found[-1] if len(found) == STEP else NOBODY
            if len(found) < STEP:
                break
        if total:
            log.info("forgotten", table="decisions", rows=total, days=self._age.days)
        return total

    async def _is_over(self, incident: uuid.UUID) -> bool:
        """Ask ingest; whoever is not asked for sure is not forgotten."""
        try:
            with working(IDENTITY, "router/retention", CALL_SECONDS):
                seen = await self._incidents.incident(str(incident))
        except grpc.aio.AioRpcError as error:
            log.warning("not known whether an incident is open: its decisions stay", code=error.code().name)
            return False
        return seen is None or seen.over
