"""The ledger of effects in PostgreSQL: a place is taken when a grant is minted, in the same transaction.

Whoever takes a place first takes the advisory locks of everything it is counted by, in one order, and counts in a
statement after that: what it counts cannot change before its own row is in. Two judgements under different policy sets
may count by different locks, but of their grants only those of the newer set are believed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from services.guardrails.policies.caps import EffectCap, Scope
from services.mesh.postgres import Connection, Pool

RECENT: Final = "reserve_time > statement_timestamp() - interval '1 hour'"
KNOWN: Final = f"SELECT target_id FROM effects_ledger WHERE method = $1 AND request_id = $2 AND {RECENT}"  # noqa: S608  constants only
LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended(bucket, 41)) FROM unnest($1::text[]) AS bucket"
COUNT: Final = f"""
SELECT count(*) AS effects, count(DISTINCT target_id) AS targets, coalesce(bool_or(target_id = $1), false) AS among
FROM effects_ledger
WHERE {RECENT} AND ($2 = '' OR target_id = $2) AND ($3::text IS NULL OR environment = $3)
  AND ($4::text[] = '{{}}' OR environment = ANY($4)) AND ($5::text[] = '{{}}' OR target_id = ANY($5))
  AND ($6::text[] = '{{}}' OR method = ANY($6))
"""  # noqa: S608  constants only
RESERVE: Final = """
INSERT INTO effects_ledger (method, request_id, target_id, environment) VALUES ($1, $2, $3, $4)
ON CONFLICT (method, request_id) DO UPDATE
SET target_id = excluded.target_id, environment = excluded.environment, reserve_time = excluded.reserve_time
"""
FORGET: Final = "DELETE FROM effects_ledger WHERE reserve_time < clock_timestamp() - interval '1 day'"


class ReusedError(Exception):
    """A request id that has taken its place for another target: it would act on this one without being counted."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What takes a place."""

    method: str
    request_id: UUID
    target_id: str
    environment: str


async def reserve(connection: Connection, effect: Effect, caps: Iterable[EffectCap]) -> tuple[int, str] | None:
    """Take a place in the caller's transaction; return None, or the cap that is used up: how many, and of what.

    The same request takes one place an hour, however often it is authorised. Raises ReusedError.
    """
    held = [cap for cap in caps if cap.effects or cap.distinct]
    if await _known(connection, effect):
        return None
    buckets = {cap.bucket(effect.target_id, effect.environment) for cap in held}
    await connection.execute(LOCK, sorted(buckets | {f"request {effect.method} {effect.request_id}"}))
    if await _known(connection, effect):
        return None
    for cap in held:
        if over := await _over(connection, effect, cap):
            return over
    await connection.execute(RESERVE, effect.method, effect.request_id, effect.target_id, effect.environment)
    return None


async def _known(connection: Connection, effect: Effect) -> bool:
    """Say whether an effect has its place already. Raises ReusedError."""
    target_id = await connection.fetchval(KNOWN, effect.method, effect.request_id)
    if target_id not in {None, effect.target_id}:
        raise ReusedError
    return target_id is not None


async def _over(connection: Connection, effect: Effect, cap: EffectCap) -> tuple[int, str] | None:
    """Return what a cap says against one more effect, or None."""
    row = await connection.fetchrow(
        COUNT,
        effect.target_id,
        effect.target_id if cap.scope is Scope.TARGET else "",
        effect.environment if cap.scope is Scope.ENVIRONMENT else None,
        sorted(cap.environments),
        sorted(cap.targets),
        sorted(cap.methods),
    )
    where = cap.bucket(effect.target_id, effect.environment)
    if row is None:
        raise LookupError("a count has no row")
    if cap.effects and row["effects"] >= cap.effects:
        return cap.effects, f"{where} (cap {cap.cap_id})"
    if cap.distinct and effect.target_id and not row["among"] and row["targets"] >= cap.distinct:
        return cap.distinct, f"different targets in {where} (cap {cap.cap_id})"
    return None


async def forget(pool: Pool) -> None:
    """Drop what the hourly caps do not look at any more."""
    await pool.execute(FORGET)
