"""What is kept for a stated time is deleted after it: hourly, in steps so small that no writer waits for one."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import structlog

from services.mesh.loop import every
from services.mesh.postgres import Pool

PERIOD: Final = 3600.0
STEP: Final = 1000
# Bounds one round; what is left then goes in the next hour's.
STEPS_MAX: Final = 1000
log = structlog.get_logger("opsmesh.retention")


@dataclass(frozen=True, slots=True)
class TooOld:
    """Rows of `table` that `condition` (SQL, `$1` is the age as an interval) calls too old after `days`."""

    table: str
    condition: str
    days: int


def request_ids(days: int) -> TooOld:
    """Return the stored answers to request ids: a retry comes within minutes, not after `days`."""
    return TooOld("requests", "create_time < now() - $1::interval", days)


class Retention:
    """Deletes what each of its rules calls too old, one table after the other."""

    def __init__(self, pool: Pool, *rules: TooOld) -> None:
        self._pool = pool
        self._rules = rules

    async def run(self, stop: asyncio.Event) -> None:
        """Delete now and every hour until `stop`."""
        await every(stop, PERIOD, self.forget)

    async def forget(self) -> int:
        """Delete all that is too old; return how many rows."""
        total = 0
        for rule in self._rules:
            gone = await self._forget(rule)
            if gone:
                log.info("forgotten", table=rule.table, rows=gone, days=rule.days)
            total += gone
        return total

    async def _forget(self, rule: TooOld) -> int:
        """Delete the rows of one rule, step by step, each a transaction of its own."""
        some = f"SELECT ctid FROM {rule.table} WHERE {rule.condition} LIMIT $2"  # noqa: S608  constants only
        # The condition again: a row that was changed meanwhile, or another row in its place, stays.
        statement = f"DELETE FROM {rule.table} WHERE ctid = ANY(ARRAY({some})) AND {rule.condition}"  # noqa: S608  the same
        total = 0
        for _ in range(STEPS_MAX):
            done = await self._pool.execute(statement, timedelta(days=rule.days), STEP)
            gone = int(done.rpartition(" ")[2])
            total += gone
            if gone < STEP:
                break
        return total
