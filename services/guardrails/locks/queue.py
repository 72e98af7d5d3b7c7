"""Target locks in PostgreSQL: one row per target, taken by compare-and-set, with fences that only grow, and a queue.

Whoever is refused waits in the queue as long as it keeps asking; a free lock goes to the first of those (person, rule,
agent, then who came first). Nothing is handed out: a waiter that died is simply not seen any more.
"""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Any, Final, TypeVar

from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal
from services.mesh.postgres import Connection, Pool

R = TypeVar("R")
# A waiter that has not asked again for this long, in seconds, waits no more.
SEEN_SECONDS: Final = 3
NOBODY: Final = "nobody"
WAITING: Final = f"seen_time > clock_timestamp() - interval '{SEEN_SECONDS} s'"
# Taken first, so that the queue is read after whoever held the row has committed.
ROW: Final = "SELECT true FROM locks WHERE target_id = $1 FOR UPDATE"
# A lock that lapsed is a new lock; a free one is taken by nobody who has a better waiter before them.
ACQUIRE: Final = f"""
INSERT INTO locks (target_id, holder, fence, expire_time)
VALUES ($1, $2, 1, clock_timestamp() + make_interval(secs => $3))
ON CONFLICT (target_id) DO UPDATE
SET holder = excluded.holder,
    fence = locks.fence + (locks.holder <> excluded.holder OR locks.expire_time <= clock_timestamp())::int,
    expire_time = greatest(locks.expire_time, excluded.expire_time)
WHERE (locks.holder = excluded.holder AND locks.expire_time > clock_timestamp())
   OR (locks.expire_time <= clock_timestamp() AND NOT EXISTS (
        SELECT FROM lock_waiters AS other
        LEFT JOIN lock_waiters AS own ON own.target_id = $1 AND own.holder = $2 AND own.{WAITING}
        WHERE other.target_id = $1 AND other.holder <> $2 AND other.{WAITING}
          AND (other.rank, other.wait_time, other.holder)
            < ($4, coalesce(own.wait_time, clock_timestamp()), $2)
   ))
RETURNING fence, expire_time
"""  # noqa: S608  constants only
LEAVE: Final = "DELETE FROM lock_waiters WHERE target_id = $1 AND holder = $2"
# Who comes back in time keeps the place.
WAIT: Final = f"""
INSERT INTO lock_waiters (target_id, holder, rank, wait_time, seen_time)
VALUES ($1, $2, $3, clock_timestamp(), clock_timestamp())
ON CONFLICT (target_id, holder) DO UPDATE
SET rank = excluded.rank, seen_time = excluded.seen_time,
    wait_time = CASE WHEN lock_waiters.{WAITING} THEN lock_waiters.wait_time ELSE excluded.wait_time END
"""  # noqa: S608  constants only
STATE: Final = f"""
SELECT CASE WHEN expire_time > clock_timestamp() THEN locks.holder ELSE '' END AS holder,
       extract(epoch FROM expire_time - clock_timestamp())::float8 AS remaining, queue.first, queue.place
FROM locks, (
    SELECT coalesce((array_agg(holder ORDER BY rank, wait_time, holder))[1], '') AS first,
           coalesce(array_position(array_agg(holder ORDER BY rank, wait_time, holder), $2), 1) AS place
    FROM lock_waiters WHERE target_id = $1 AND {WAITING}
) AS queue
WHERE target_id = $1
"""  # noqa: S608  constants only
RENEW: Final = """
UPDATE locks SET expire_time = greatest(expire_time, clock_timestamp() + make_interval(secs => $4))
WHERE target_id = $1 AND holder = $2 AND fence = $3 AND expire_time > clock_timestamp()
RETURNING fence, expire_time
"""
RELEASE: Final = """
UPDATE locks SET holder = '', expire_time = clock_timestamp()
WHERE target_id = $1 AND holder = $2 AND fence = $3
"""
PAGE: Final = f"""
SELECT target_id, fence, expire_time,
       CASE WHEN expire_time > clock_timestamp() THEN holder ELSE '{NOBODY}' END AS holder
FROM locks
WHERE target_id > $1 AND (
    expire_time > clock_timestamp()
    OR EXISTS (SELECT FROM lock_waiters WHERE lock_waiters.target_id = locks.target_id AND {WAITING})
)
ORDER BY target_id LIMIT $2
"""  # noqa: S608  constants only
QUEUES: Final = f"""
SELECT target_id, holder, rank, wait_time FROM (
    SELECT target_id, holder, rank, wait_time,
           row_number() OVER (PARTITION BY target_id ORDER BY rank, wait_time, holder) AS place
    FROM lock_waiters WHERE target_id = ANY($1) AND {WAITING}
) AS queue WHERE place <= $2 ORDER BY target_id, place
"""  # noqa: S608  constants only
FORGET: Final = "DELETE FROM lock_waiters WHERE seen_time < clock_timestamp() - interval '1 minute'"
# Whoever waits looks again at least this often, in seconds: most locks are given back long before they lapse.
RETRY_MAX: Final = 1.0
RETRY_MIN: Final = 0.05
# How much later each place of the queue looks again: the first one soon, so that a free lock does not idle.
RETRY_STEP: Final = 0.2
SHOWN_MAX: Final = 100


class Taken(Exception):  # noqa: N818  it is where the queue begins, not an error
    """A lock that another holds, or that another goes first for."""


class Rank(IntEnum):
    """Who goes first; the numbers are those of the IDL."""

    PERSON = 1
    RULE = 2
    AGENT = 3


@dataclass(frozen=True, slots=True)
class Held:
    """A lock in force, or one held by NOBODY that is only waited for."""

    target_id: str
    holder: str
    fence: int
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class Waiter:
    """Who waits, and since when."""

    holder: str
    rank: Rank
    wait_time: datetime


def rank_of(caller: str) -> Rank:
    """Return how soon a caller's turn comes: a person before a playbook before an agent."""
    if caller.startswith("human/"):
        return Rank.PERSON
    return Rank.AGENT if caller == "service/agents" else Rank.RULE


async def acquire(connection: Connection, target_id: str, holder: str, seconds: float, rank: Rank) -> Held:
    """Take a lock, or keep one's own; Taken while another holds it or goes first."""
    await connection.execute(ROW, target_id)
    row = await connection.fetchrow(ACQUIRE, target_id, holder, seconds, rank)
    if row is None:
        raise Taken
    await connection.execute(LEAVE, target_id, holder)
    return Held(target_id, holder, row["fence"], row["expire_time"])


async def or_wait(pool: Pool, attempt: Awaitable[R], target_id: str, holder: str, rank: Rank) -> R:
    """Await an attempt; a lock that was Taken becomes LOCK_HELD, with a place in the queue."""
    try:
        return await attempt
    except Taken:
        pass
    raise await enqueue(pool, target_id, holder, rank)


async def enqueue(pool: Pool, target_id: str, holder: str, rank: Rank) -> Refusal:
    """Take or keep a place in the queue, and return the refusal that says who is before and when to ask again.

    After the transaction that found the lock taken: that one is rolled back, and its connection is free again.
    """
    async with pool.acquire() as connection:
        await connection.execute(WAIT, target_id, holder, rank)
        state = await connection.fetchrow(STATE, target_id, holder)
    before = "" if state is None else state["holder"]
    if not before and state and state["first"] != holder:
        before = f"nobody, but {state['first']} waits first"
    remaining = max(RETRY_MIN, state["remaining"]) if state and state["holder"] else RETRY_MIN
    place = state["place"] if state else 1
    return Refusal(
        error_reason_pb2.ERROR_REASON_LOCK_HELD,
        retry_after=min(RETRY_MAX, remaining, RETRY_STEP * place),
        target=target_id,
        holder=before or "somebody who just gave it back",
    )


async def renew(pool: Pool, target_id: str, holder: str, fence: int, seconds: float) -> Held:
    """Keep a lock; refuse with LOCK_REQUIRED when it was lost."""
    row = await pool.fetchrow(RENEW, target_id, holder, fence, seconds)
    if row is None:
        raise Refusal(error_reason_pb2.ERROR_REASON_LOCK_REQUIRED, target=target_id, holder=holder)
    return Held(target_id, holder, row["fence"], row["expire_time"])


async def release(connection: Connection, target_id: str, holder: str, fence: int) -> None:
    """Give a lock back; one that is not held any more is left alone."""
    await connection.execute(RELEASE, target_id, holder, fence)


async def page(pool: Pool, after: str, limit: int) -> Sequence[tuple[Held, Sequence[Waiter]]]:
    """Return the locks in force or waited for, by target, each with the first of its queue."""
    async with pool.acquire() as connection:
        held = [Held(**dict(row)) for row in await connection.fetch(PAGE, after, limit)]
        queues: dict[str, list[Waiter]] = {one.target_id: [] for one in held}
        for row in await connection.fetch(QUEUES, list(queues), SHOWN_MAX):
            queues[row["target_id"]].append(_waiter(row))
    return [(one, queues[one.target_id]) for one in held]


async def forget(pool: Pool) -> None:
    """Drop waiters that are long gone."""
    await pool.execute(FORGET)


def _waiter(row: Any) -> Waiter:
    """Return a record as a waiter."""
    return Waiter(row["holder"], Rank(row["rank"]), row["wait_time"])
