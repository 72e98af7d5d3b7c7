"""Claims in PostgreSQL: one agent reasons about a target at a time. A claim has no fence and blocks no lock."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal
from services.mesh.postgres import Connection, Pool

ACQUIRE: Final = """
INSERT INTO claims (target_id, run_id, expire_time) VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3))
ON CONFLICT (target_id) DO UPDATE
SET run_id = excluded.run_id,
    expire_time = CASE WHEN claims.run_id = excluded.run_id THEN greatest(claims.expire_time, excluded.expire_time)
                  ELSE excluded.expire_time END
WHERE claims.run_id = excluded.run_id OR claims.expire_time <= clock_timestamp()
RETURNING expire_time
"""
HOLDER: Final = """
SELECT run_id, extract(epoch FROM expire_time - clock_timestamp())::float8 AS remaining FROM claims WHERE target_id = $1
"""
RENEW: Final = """
UPDATE claims SET expire_time = greatest(expire_time, clock_timestamp() + make_interval(secs => $3))
WHERE target_id = $1 AND run_id = $2 AND expire_time > clock_timestamp()
RETURNING expire_time
"""
RELEASE: Final = "DELETE FROM claims WHERE target_id = $1 AND run_id = $2"
FORGET: Final = "DELETE FROM claims WHERE expire_time < clock_timestamp() - interval '1 minute'"
# Agents are in no hurry: whoever waits looks again within these bounds, in seconds.
RETRY_MIN: Final = 0.2
RETRY_MAX: Final = 5.0


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim in force."""

    target_id: str
    run_id: UUID
    expire_time: datetime


async def acquire(connection: Connection, target_id: str, run_id: UUID, seconds: float) -> Claim:
    """Claim a target, or keep one's own claim; refuse with CLAIM_HELD while another run has it."""
    expires = await connection.fetchval(ACQUIRE, target_id, run_id, seconds)
    if expires is None:
        other = await connection.fetchrow(HOLDER, target_id)
        raise Refusal(
            error_reason_pb2.ERROR_REASON_CLAIM_HELD,
            retry_after=min(RETRY_MAX, max(RETRY_MIN, other["remaining"] if other else 0.0)),
            target=target_id,
            holder=str(other["run_id"]) if other else "that just gave it back",
        )
    return Claim(target_id, run_id, expires)


async def renew(pool: Pool, target_id: str, run_id: UUID, seconds: float) -> Claim:
    """Keep a claim; refuse with CLAIM_REQUIRED when it was lost."""
    expires = await pool.fetchval(RENEW, target_id, run_id, seconds)
    if expires is None:
        raise Refusal(error_reason_pb2.ERROR_REASON_CLAIM_REQUIRED, target=target_id, holder=f"run {run_id}")
    return Claim(target_id, run_id, expires)


async def release(connection: Connection, target_id: str, run_id: UUID) -> None:
    """Give a claim back; one that is not held any more is left alone."""
    await connection.execute(RELEASE, target_id, run_id)


async def forget(pool: Pool) -> None:
    """Drop claims that are long over."""
    await pool.execute(FORGET)
