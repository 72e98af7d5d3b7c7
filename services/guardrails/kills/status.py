"""What is told about kills, in PostgreSQL: who was asked to stop, who has, and who has said nothing yet."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from opsmesh.type.v1 import error_reason_pb2
from services.guardrails.kills.store import COLUMNS, KillRow, read, with_releasers
from services.mesh.errors import FieldViolation, Refusal
from services.mesh.postgres import Pool

# What one report or one answer shows.
STOPS_MAX: Final = 1000
# What one answer shows of all kills together: it must fit into a message, whatever the words of the reporters.
SHOWN_MAX: Final = 1200
# What one service may ever report of one kill; none of it is ever forgotten.
STORED_MAX: Final = 20_000
# What each service runs, and may speak for.
KINDS: Final = {
    "service/automation": pb.Stop.KIND_EXECUTION,
    "service/agents": pb.Stop.KIND_RUN,
    "service/gateway": pb.Stop.KIND_EFFECT,
}

PAGE: Final = f"""
SELECT {COLUMNS} FROM kills
WHERE epoch < $1 AND ($2 OR release_time IS NULL) AND ($3::uuid IS NULL OR kill_id = $3)
ORDER BY epoch DESC LIMIT $4
"""  # noqa: S608  constants only
REPORTED: Final = """
INSERT INTO kill_reports (kill_id, reporter, report_time) VALUES ($1, $2, clock_timestamp())
ON CONFLICT (kill_id, reporter) DO UPDATE SET report_time = excluded.report_time
"""
REPORT: Final = """
INSERT INTO kill_stops (kill_id, reporter, kind, subject, state, detail, deadline_time, report_time)
VALUES ($1, $2, $3, $4, $5, $6, $7, clock_timestamp())
ON CONFLICT (kill_id, reporter, kind, subject) DO UPDATE
SET state = excluded.state, detail = excluded.detail, deadline_time = excluded.deadline_time,
    report_time = excluded.report_time
"""
STORED: Final = "SELECT count(*) FROM kill_stops WHERE kill_id = $1 AND reporter = $2"
REPORTERS: Final = "SELECT kill_id, reporter FROM kill_reports WHERE kill_id = ANY($1)"
# What goes on comes first, and reporters take turns, so that it is shown where not everything has room.
STOPS: Final = """
SELECT kill_id, reporter, kind, subject, state, detail, deadline_time, report_time FROM (
    SELECT ranked.*, row_number() OVER (PARTITION BY kill_id ORDER BY turn, weight, reporter) AS place FROM (
        SELECT stops.*, row_number() OVER (PARTITION BY kill_id, reporter ORDER BY weight, subject) AS turn FROM (
            SELECT kill_stops.*, array_position(ARRAY[2, 4, 1]::smallint[], state) AS weight
            FROM kill_stops WHERE kill_id = ANY($1)
        ) AS stops
    ) AS ranked
) AS placed WHERE place <= $2 ORDER BY kill_id, weight, subject
"""


async def page(
    pool: Pool, before: int, kill_id: UUID | None, limit: int, *, released: bool
) -> tuple[Sequence[KillRow], dict[UUID, list[Any]], dict[UUID, set[str]]]:
    """Return kills below an epoch, newest first, with their stops and who has reported."""
    async with pool.acquire() as connection:
        rows = await connection.fetch(PAGE, before, released or kill_id is not None, kill_id, limit)
        found = await with_releasers(connection, [KillRow(**dict(row)) for row in rows])
        ids = [kill.kill_id for kill in found]
        stops: dict[UUID, list[Any]] = {one: [] for one in ids}
        reporters: dict[UUID, set[str]] = {one: set() for one in ids}
        for row in await connection.fetch(STOPS, ids, _room(len(ids))) if ids else ():
            stops[row["kill_id"]].append(row)
        for row in await connection.fetch(REPORTERS, ids) if ids else ():
            reporters[row["kill_id"]].add(row["reporter"])
    return found, stops, reporters


async def report(pool: Pool, kill_id: UUID, reporter: str, stops: Collection[pb.Stop]) -> None:
    """Keep what a service says about a kill; the last word about a subject counts."""
    rows = [
        (kill_id, reporter, one.kind, one.subject, one.state, one.detail, _deadline(one))
        for one in stops
        if one.subject
    ]
    if any(one.kind != KINDS.get(reporter) for one in stops if one.subject):
        # Who is reported is barred for ever, so nobody speaks for what another runs.
        violation = FieldViolation("stops.kind", f"{reporter} runs nothing of that kind")
        raise Refusal(error_reason_pb2.ERROR_REASON_INVALID_ARGUMENT, violations=[violation])
    async with pool.acquire() as connection, connection.transaction():
        await read(connection, kill_id)
        await connection.execute(REPORTED, kill_id, reporter)
        if rows and await connection.fetchval(STORED, kill_id, reporter) + len(rows) > STORED_MAX:
            raise Refusal(error_reason_pb2.ERROR_REASON_OVERLOADED, retry_after=60.0, limit=f"{STORED_MAX} stops")
        # In one order, so that two reports never wait for each other.
        await connection.executemany(REPORT, sorted(rows, key=lambda row: (row[2], row[3])))


def _room(kills: int) -> int:
    """Return how many stops of each of so many kills fit into an answer, beside who has said nothing."""
    return min(STOPS_MAX - len(KINDS), max(len(KINDS), SHOWN_MAX // max(1, kills)))


def _deadline(stop: pb.Stop) -> datetime | None:
    """Return until when an effect may go on."""
    if not stop.HasField("deadline_time"):
        return None
    return stop.deadline_time.ToDatetime(tzinfo=UTC)
