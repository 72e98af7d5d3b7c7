"""Retention: what is older than the stated days is deleted, in small steps."""

import asyncio
from datetime import timedelta
from typing import Final

import structlog

from services.mesh.loop import every
from services.mesh.postgres import Pool

PERIOD: Final = 3600.0
STEP: Final = 1000
GONE: Final = "SELECT FROM incidents i WHERE i.incident_id = alerts.incident_id"
# Table and condition of what is too old; an alert lives as long as its incident.
TOO_OLD: Final = (
    ("deliveries", "create_time < now() - $1::interval"),
    ("dead_letters", "create_time < now() - $1::interval"),
    ("signals", "record_time < now() - $1::interval"),
    ("incidents", "update_time < now() - $1::interval AND state IN ('RESOLVED', 'STALE')"),
    ("alerts", f"update_time < now() - $1::interval AND NOT EXISTS ({GONE})"),
)
log = structlog.get_logger("opsmesh.retention")


class RetentionLane:
    """Deletes signals, their bytes, dead letters and closed incidents after `days`; what is open stays."""

    def __init__(self, pool: Pool, days: int) -> None:
        self._pool = pool
        self._age = timedelta(days=days)

    async def run(self, stop: asyncio.Event) -> None:
        """Delete now and every hour until `stop`."""
        await every(stop, PERIOD, self.forget)

    async def forget(self) -> int:
        """Delete all that is too old; return how many rows."""
        total = 0
        for table, condition in TOO_OLD:
            some = f"SELECT ctid FROM {table} WHERE {condition} LIMIT $2"  # noqa: S608  constants only
            statement = f"DELETE FROM {table} WHERE ctid = ANY(ARRAY({some}))"  # noqa: S608  the same
            gone = STEP
            while gone == STEP:
                done = await self._pool.execute(statement, self._age, STEP)
                gone = int(done.rpartition(" ")[2])
                total += gone
        if total:
            log.info("forgotten", rows=total, days=self._age.days)
        return total
