"""Target locks in PostgreSQL: one row per target, taken by compare-and-set, with fences that only grow."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal
from services.mesh.postgres import Connection, Pool

# The row's newest state decides, after whoever holds the row has committed; a lock that lapsed is a new lock.
ACQUIRE: Final = """
INSERT INTO locks (target_id, holder, fence, expire_time)
VALUES ($1, $2, 1, clock_timestamp() + make_interval(secs => $3))
ON CONFLICT (target_id) DO UPDATE
SET holder = excluded.holder,
    fence = locks.fence + (locks.holder <> excluded.holder OR locks.expire_time <= clock_timestamp())::int,
    expire_time = greatest(locks.expire_time, excluded.expire_time)
WHERE locks.holder = excluded.holder OR locks.expire_time <= clock_timestamp()
RETURNING fence, expire_time
"""
HOLDER: Final = """
SELECT holder, extract(epoch FROM expire_time - clock_timestamp())::float8 AS remaining FROM locks WHERE target_id = $1
"""
RENEW: Final = """
UPDATE locks SET expire_time = greatest(expire_time, clock_timestamp() + make_interval(secs => $4))
WHERE target_id = $1 AND holder = $2 AND fence = $3 AND expire_time > clock_timestamp()
RETURNING fence, expire_time
"""
RELEASE: Final = """
UPDATE locks SET holder = '', expire_time = clock_timestamp()
WHERE target_id = $1 AND holder = $2 AND fence = $3
"""
# Whoever waits looks again at least this often, in seconds: most locks are given back long before they lapse.
RETRY_MAX: Final = 1.0
RETRY_MIN: Final = 0.05


@dataclass(frozen=True, slots=True)
class Held:
    """A lock in force."""

    target_id: str
    holder: str
    fence: int
    expire_time: datetime


async def acquire(connection: Connection, target_id: str, holder: str, seconds: float) -> Held:
    """Take a lock, or keep one's own; refuse with LOCK_HELD while another holds it."""
    row = await connection.fetchrow(ACQUIRE, target_id, holder, seconds)
    if row is None:
        other = await connection.fetchrow(HOLDER, target_id)
        remaining = other["remaining"] if other else 0.0
        raise Refusal(
            error_reason_pb2.ERROR_REASON_LOCK_HELD,
            retry_after=min(RETRY_MAX, max(RETRY_MIN, remaining)),
            target=target_id,
            holder=(other["holder"] if other else "") or "somebody who just gave it back",
        )
    return Held(target_id, holder, row["fence"], row["expire_time"])


async def renew(pool: Pool, target_id: str, holder: str, fence: int, seconds: float) -> Held:
    """Keep a lock; refuse with LOCK_REQUIRED when it was lost."""
    row = await pool.fetchrow(RENEW, target_id, holder, fence, seconds)
    if row is None:
        raise Refusal(error_reason_pb2.ERROR_REASON_LOCK_REQUIRED, target=target_id, holder=holder)
    return Held(target_id, holder, row["fence"], row["expire_time"])


async def release(connection: Connection, target_id: str, holder: str, fence: int) -> None:
    """Give a lock back; one that is not held any more is left alone."""
    await connection.execute(RELEASE, target_id, holder, fence)
