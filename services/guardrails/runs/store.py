"""Runs in PostgreSQL: a row each, written once; only its end is ever added. Judged by the database's clock."""

from collections.abc import Collection
from typing import Any, Final
from uuid import UUID

from services.guardrails.runs.domain import Run, Wish
from services.mesh.postgres import Connection
from services.mesh.retention import TooOld

COLUMNS: Final = """
run_id, ancestors, template_id, incident_id, decision_id, target_ids, registrar, person, proved, expire_time,
end_time IS NOT NULL AS ended, expire_time <= clock_timestamp() AS expired,
(SELECT kill_id FROM kills
 WHERE kind = 'run_id' AND lower(value) = ANY((ARRAY[runs.run_id] || runs.ancestors)::text[]) ORDER BY epoch LIMIT 1)
    AS kill_id
"""
READ: Final = f"SELECT {COLUMNS} FROM runs WHERE run_id = $1"  # noqa: S608  constants only
# Registrations of one incident wait for each other: a count that another is about to change is no limit.
ONE_AT_A_TIME: Final = "SELECT pg_advisory_xact_lock(hashtextextended($1, 43))"
COUNT: Final = "SELECT count(*) FROM runs WHERE incident_id = $1"
# Nobody outlives the run that started them.
INSERT: Final = f"""
INSERT INTO runs (run_id, ancestors, template_id, incident_id, decision_id, target_ids, registrar, person, proved,
                  expire_time)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9,
        least(clock_timestamp() + $10::interval, (SELECT min(expire_time) FROM runs WHERE run_id = ANY($2))))
ON CONFLICT (run_id) DO NOTHING RETURNING {COLUMNS}
"""  # noqa: S608  constants only
# Whoever is below an ended run has ended, too.
END: Final = """
UPDATE runs SET end_time = clock_timestamp()
WHERE end_time IS NULL AND (run_id = $1 OR ancestors @> ARRAY[$1]) RETURNING run_id
"""
CLAIMED: Final = """
SELECT true FROM claims WHERE target_id = $1 AND run_id = $2 AND expire_time > clock_timestamp()
"""
# A run's id must not come back while its incident could still be worked on.
OVER: Final = "expire_time < now() - $1::interval"


async def queue(connection: Connection, incident_id: str) -> int:
    """Wait for others that register runs of an incident, and return how many it has had."""
    await connection.execute(ONE_AT_A_TIME, incident_id)
    return int(await connection.fetchval(COUNT, incident_id))


async def read(connection: Connection, run_id: UUID) -> Run | None:
    """Return a run, or None when it was never registered."""
    row = await connection.fetchrow(READ, run_id)
    return None if row is None else _run(row)


async def insert(connection: Connection, wish: Wish, parent: Run | None) -> Run | None:
    """Bind a run, None when another call has bound it meanwhile; of a child the person is its parent's."""
    ancestors = (*parent.ancestors, parent.run_id) if parent else ()
    person, proved = (parent.person, parent.proved) if parent else (wish.person, wish.proved)
    row = await connection.fetchrow(
        INSERT,
        wish.run_id,
        list(ancestors),
        wish.template_id,
        wish.incident_id,
        wish.decision_id,
        list(wish.target_ids),
        wish.registrar,
        person,
        proved,
        wish.lifetime,
    )
    return None if row is None else _run(row)


async def end(connection: Connection, run_id: UUID) -> Collection[UUID]:
    """End a run and every run below it; return those that were open until now."""
    return [row["run_id"] for row in await connection.fetch(END, run_id)]


async def claimed(connection: Connection, target_id: str, run: Run) -> bool:
    """Say whether the claim of a run's root on a target is in force."""
    return bool(await connection.fetchval(CLAIMED, target_id, run.root))


def too_old(days: int) -> TooOld:
    """Return the rule by which runs that are long over are deleted."""
    return TooOld("runs", OVER, days)


def _run(row: Any) -> Run:
    """Return a record as a run."""
    values = dict(row) | {"ancestors": tuple(row["ancestors"]), "target_ids": tuple(row["target_ids"])}
    return Run(**values)
