"""The pace at which held decisions are started after a release: one clock in PostgreSQL for all replicas.

What a kill held back must not come out as one wave: the targets, the engine and the people take it in turns.
"""

from typing import Final

from services.mesh.postgres import Pool

# Turns that were not used add up to at most those of one second.
BURST_SECONDS: Final = 1.0
# A turn further away than one pause is of a clock that was set back since.
TAKE: Final = """
UPDATE pace
SET next_time = make_interval(secs => $1)
    + greatest(least(next_time, clock_timestamp()), clock_timestamp() - make_interval(secs => $2))
WHERE next_time <= clock_timestamp() OR next_time > clock_timestamp() + make_interval(secs => $1)
"""
GIVE_BACK: Final = "UPDATE pace SET next_time = next_time - make_interval(secs => $1)"
PAUSE: Final = "SELECT extract(epoch FROM next_time - clock_timestamp())::float FROM pace"


class Pace:
    """Gives out turns, `per_second` of them; a restart changes nothing about it."""

    def __init__(self, pool: Pool, per_second: float) -> None:
        self._pool = pool
        self._seconds = 1.0 / per_second

    async def take(self) -> float:
        """Take a turn and return 0, or return the seconds until the next one."""
        burst = max(0.0, BURST_SECONDS - self._seconds)
        if (await self._pool.execute(TAKE, self._seconds, burst)).endswith(" 1"):
            return 0.0
        return max(0.01, float(await self._pool.fetchval(PAUSE)))

    async def give_back(self) -> None:
        """Return a turn that was not needed."""
        await self._pool.execute(GIVE_BACK, self._seconds)
