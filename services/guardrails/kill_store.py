"""Kills in PostgreSQL, and why no grant or approval slips past one that is engaged at the same moment.

Engage raises state.kill_epoch and inserts the kill with that epoch in one transaction. A judgement first reads the
epoch its grant will carry (one statement, with everything else that holds), and *then* the kills that stand. Whatever
committed before the first read is seen by both; what committed between them is seen by the second, and refuses; what
commits after both has a higher epoch than the grant, so the gateway refuses it: its lease names every active kill, and
a released one for 60 s, longer than a grant lives. So neither waits for the other, and an Engage needs no lock that a
judgement holds. An approval carries the epoch of the judgement that asked for it and is measured against every later
kill, released or not, each time it is used; that Engage and the sweep turn it VOID only shows what is already so.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from opsmesh.type.v1 import error_reason_pb2
from services.guardrails.kill_file import Order
from services.mesh import kills
from services.mesh.errors import FieldViolation, Refusal
from services.mesh.postgres import Connection, Pool

# Active kills of a scope other than everything; beyond it one kill of everything says more.
SCOPED_MAX: Final = 256
# Leases name at most 1024 kills; what is released meanwhile must have room, too.
RELEASED_MAX: Final = 512
# How long a lease names a released kill, in seconds: longer than the 30 s of a grant and its 5 s of skew.
REMEMBERED_SECONDS: Final = 60
# What one report or one answer shows.
STOPS_MAX: Final = 1000
# What one service may ever report of one kill; none of it is ever forgotten.
STORED_MAX: Final = 20_000
# What each service runs, and may speak for.
KINDS: Final = {
    "service/automation": pb.Stop.KIND_EXECUTION,
    "service/agents": pb.Stop.KIND_RUN,
    "service/gateway": pb.Stop.KIND_EFFECT,
}
VOIDED_MAX: Final = 1000
EVERYTHING: Final = "everything"
NO_EPOCH: Final = 2**62

LEASE: Final = f"""
SELECT state.policy_set_version, state.kill_epoch, clock_timestamp() AS now,
       kills.kill_id, kills.kind, kills.value, kills.epoch, kills.release_time IS NOT NULL AS released
FROM state
LEFT JOIN kills ON kills.release_time IS NULL
    OR kills.release_time > clock_timestamp() - interval '{REMEMBERED_SECONDS} s'
ORDER BY kills.epoch
"""  # noqa: S608  constants only
# Engages wait for each other on the row of state, so the count is exact and epochs have no gaps.
CLAIM: Final = "UPDATE state SET kill_epoch = kill_epoch + 1 RETURNING kill_epoch"
ENGAGED: Final = """
SELECT kill_id, count(*) OVER () AS active FROM kills
WHERE release_time IS NULL AND (kind = 'everything') = $1 ORDER BY epoch DESC LIMIT 1
"""
INSERT: Final = """
INSERT INTO kills (kill_id, epoch, kind, value, reason, engager, engage_time)
VALUES ($1, $2, $3, $4, $5, $6, coalesce($7, clock_timestamp()))
"""
REMEMBER: Final = """
INSERT INTO requests (caller, method, request_id, digest, response) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (method, request_id) DO NOTHING
"""
KNOWN: Final = "SELECT true FROM kills WHERE kill_id = $1"
OPEN: Final = """
SELECT approval_id, kill_epoch, method, environment, target_id, playbook_id, execution_id, run_id FROM approvals
WHERE (state = 'PENDING' OR (state = 'APPROVED' AND execute_time IS NULL)) AND kill_epoch < $1
"""
# An approval that somebody answers right now is left to the sweep: nobody who stops something waits.
VOID: Final = """
UPDATE approvals SET state = 'VOID', close_reason = 'KILLED', close_detail = $2, update_time = clock_timestamp()
WHERE approval_id IN (
    SELECT approval_id FROM approvals
    WHERE approval_id = ANY($1) AND (state = 'PENDING' OR (state = 'APPROVED' AND execute_time IS NULL))
    FOR UPDATE SKIP LOCKED
)
"""
SINCE: Final = """
SELECT kill_id, kind, value, epoch, release_time IS NOT NULL AS released FROM kills
WHERE release_time IS NULL OR epoch > $1 ORDER BY epoch
"""
# What was ever told to stop stays stopped; kinds 1 and 2 are executions and runs.
STANDING: Final = """
SELECT kill_id, kind, value, epoch, release_time IS NOT NULL AS released, false AS told FROM kills
WHERE release_time IS NULL OR epoch > $1
UNION ALL
SELECT kills.kill_id, kills.kind, kills.value, kills.epoch, kills.release_time IS NOT NULL, true
FROM kill_stops JOIN kills USING (kill_id)
WHERE kill_stops.subject = ANY(ARRAY[$2, $3]) AND (kill_stops.kind, kill_stops.subject) IN ((1, $2), (2, $3))
ORDER BY epoch
"""
COLUMNS: Final = "kill_id, epoch, kind, value, reason, engager, engage_time, releasers_needed, release_time"
READ: Final = f"SELECT {COLUMNS} FROM kills WHERE kill_id = $1"  # noqa: S608  constants only
PAGE: Final = f"""
SELECT {COLUMNS} FROM kills
WHERE epoch < $1 AND ($2 OR release_time IS NULL) AND ($3::uuid IS NULL OR kill_id = $3)
ORDER BY epoch DESC LIMIT $4
"""  # noqa: S608  constants only
LATELY: Final = f"""
SELECT count(*) FROM kills WHERE release_time > clock_timestamp() - interval '{REMEMBERED_SECONDS} s'
"""  # noqa: S608  constants only
AGREE: Final = """
INSERT INTO kill_releases (kill_id, releaser, reason) VALUES ($1, $2, $3) ON CONFLICT (kill_id, releaser) DO NOTHING
"""
AGREED: Final = "SELECT kill_id, releaser FROM kill_releases WHERE kill_id = ANY($1) ORDER BY release_time, releaser"
LET_GO: Final = """
UPDATE kills SET releasers_needed = $2, release_time = CASE WHEN $3 THEN clock_timestamp() END WHERE kill_id = $1
"""
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
# What goes on comes first, so that it is shown where not everything has room.
STOPS: Final = """
SELECT kill_id, reporter, kind, subject, state, detail, deadline_time, report_time FROM (
    SELECT kill_stops.*, row_number() OVER (
        PARTITION BY kill_id ORDER BY array_position(ARRAY[2, 4, 1]::smallint[], state), subject
    ) AS place
    FROM kill_stops WHERE kill_id = ANY($1)
) AS ranked WHERE place <= $2 ORDER BY kill_id, place
"""


@dataclass(frozen=True, slots=True)
class Lease:
    """What holds now, by the database's clock; `withdrawn`: a kill could not be stored, so nothing may start."""

    policy_set_version: int
    kill_epoch: int
    now: datetime
    kills: tuple[pb.LeasedKill, ...] = ()
    withdrawn: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """What kills say about one action: one that stops it, and one that made its approval void."""

    stops: pb.LeasedKill | None = None
    voids: pb.LeasedKill | None = None


@dataclass(frozen=True, slots=True)
class KillRow:
    """A stored kill."""

    kill_id: UUID
    epoch: int
    kind: str
    value: str
    reason: str
    engager: str
    engage_time: datetime
    releasers_needed: int
    release_time: datetime | None
    releasers: tuple[str, ...] = ()

    @property
    def scope(self) -> pb.KillScope:
        """Return what it stops."""
        return scope_of(self.kind, self.value)


async def read_lease(pool: Pool) -> Lease:
    """Read what holds now, in one snapshot."""
    rows = await pool.fetch(LEASE)
    if not rows:
        raise LookupError("guardrails.state has lost its row")
    first = rows[0]
    named = tuple(leased(row) for row in rows if row["kill_id"] is not None)
    return Lease(first["policy_set_version"], first["kill_epoch"], first["now"], named)


async def engage(
    connection: Connection, order: Order, *, when: datetime | None = None, limited: bool = True
) -> KillRow:
    """Store a kill under the next epoch and void the approvals in its scope, in the caller's transaction.

    Too many at once are refused with OVERLOADED, where it is `limited`; everything is always possible.
    """
    kind, value = parts(order.scope)
    epoch: int = await connection.fetchval(CLAIM)
    newest = await connection.fetchrow(ENGAGED, kind == EVERYTHING)
    if limited and newest and newest["active"] >= SCOPED_MAX:
        if kind == EVERYTHING:
            # Nothing was granted since the newest of them: it says all that another could.
            return await read(connection, newest["kill_id"])
        limit = f"{SCOPED_MAX} kills; engage everything"
        raise Refusal(error_reason_pb2.ERROR_REASON_OVERLOADED, retry_after=1.0, limit=limit)
    await connection.execute(INSERT, order.kill_id, epoch, kind, value, order.reason, order.caller, when)
    await void(connection, [pb.LeasedKill(kill_id=str(order.kill_id), scope=order.scope, epoch=epoch)])
    return await read(connection, order.kill_id)


async def remember(connection: Connection, method: str, order: Order, response: bytes) -> None:
    """Keep the answer of an Engage that was not served from here, so that its repetition gets the same one."""
    await connection.execute(REMEMBER, order.caller, method, order.request_id, order.digest, response)


async def known(connection: Connection, kill_id: UUID) -> bool:
    """Say whether a kill is stored."""
    return bool(await connection.fetchval(KNOWN, kill_id))


async def read(connection: Connection, kill_id: UUID) -> KillRow:
    """Return a kill, or refuse."""
    row = await connection.fetchrow(READ, kill_id)
    if row is None:
        raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="kill", id=str(kill_id), list="kill status")
    return (await _with_releasers(connection, [KillRow(**dict(row))]))[0]


async def void(connection: Connection, engaged: Collection[pb.LeasedKill]) -> int:
    """Turn open approvals that a newer kill covers VOID and return how many; those being answered are left alone."""
    if not engaged:
        return 0
    rows = await connection.fetch(OPEN, max(kill.epoch for kill in engaged))
    found: dict[str, tuple[pb.LeasedKill, list[UUID]]] = {}
    for row in rows[:VOIDED_MAX]:
        if kill := kills.stopping(engaged, about(row), row["kill_epoch"]):
            found.setdefault(kill.kill_id, (kill, []))[1].append(row["approval_id"])
    for kill, approval_ids in found.values():
        words = f"kill {kill.kill_id} ({kills.words(kill.scope)}) was engaged after it was asked for"
        await connection.execute(VOID, approval_ids, words)
    return sum(len(approval_ids) for _, approval_ids in found.values())


async def sweep(connection: Connection) -> int:
    """Void what an Engage had to leave alone: an approval that was being answered or made at that moment."""
    oldest = await connection.fetchval(
        "SELECT min(kill_epoch) FROM approvals WHERE state = 'PENDING' OR (state = 'APPROVED' AND execute_time IS NULL)"
    )
    if oldest is None:
        return 0
    return await void(connection, await since(connection, oldest))


async def since(connection: Connection, epoch: int) -> Sequence[pb.LeasedKill]:
    """Return the active kills and those engaged after an epoch, also when they are released."""
    return [leased(row) for row in await connection.fetch(SINCE, epoch)]


async def standing(connection: Connection, facts: kills.Facts, epoch: int | None) -> Standing:
    """Return which kill stops something now, and which made void what was asked for under `epoch`."""
    rows = await connection.fetch(STANDING, NO_EPOCH if epoch is None else epoch, facts.execution_id, facts.run_id)
    named = [leased(row) for row in rows if not row["told"]]
    told = next((leased(row) for row in rows if row["told"]), None)
    active = kills.stopping([kill for kill in named if not kill.released], facts)
    return Standing(active or told, kills.stopping(named, facts, epoch) if epoch is not None else None)


async def release(
    connection: Connection, kill_id: UUID, releaser: str, reason: str, needed: tuple[int, int]
) -> KillRow:
    """Let one more person agree, and let go once enough different ones have: so many for everything, for others."""
    row = await connection.fetchrow(f"{READ} FOR UPDATE", kill_id)
    if row is None:
        raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="kill", id=str(kill_id), list="kill status")
    if row["release_time"] is None:
        await connection.execute(AGREE, kill_id, releaser, reason)
        agreed = await connection.fetch(AGREED, [kill_id])
        people = needed[0] if row["kind"] == EVERYTHING else needed[1]
        over = len(agreed) >= people
        if over and await connection.fetchval(LATELY) >= RELEASED_MAX:
            limit = f"{RELEASED_MAX} releases within {REMEMBERED_SECONDS} s"
            raise Refusal(error_reason_pb2.ERROR_REASON_OVERLOADED, retry_after=5.0, limit=limit)
        await connection.execute(LET_GO, kill_id, people, over)
    return await read(connection, kill_id)


async def page(
    pool: Pool, before: int, kill_id: UUID | None, limit: int, *, released: bool
) -> tuple[Sequence[KillRow], dict[UUID, list[Any]], dict[UUID, set[str]]]:
    """Return kills below an epoch, newest first, with their stops and who has reported."""
    async with pool.acquire() as connection:
        rows = await connection.fetch(PAGE, before, released or kill_id is not None, kill_id, limit)
        found = await _with_releasers(connection, [KillRow(**dict(row)) for row in rows])
        ids = [kill.kill_id for kill in found]
        stops: dict[UUID, list[Any]] = {one: [] for one in ids}
        reporters: dict[UUID, set[str]] = {one: set() for one in ids}
        for row in await connection.fetch(STOPS, ids, STOPS_MAX) if ids else ():
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


def parts(scope: pb.KillScope) -> tuple[str, str]:
    """Return a scope's kind and value, as they are stored."""
    kind = scope.WhichOneof("scope") or EVERYTHING
    return kind, "" if kind == EVERYTHING else str(getattr(scope, kind))


def scope_of(kind: str, value: str) -> pb.KillScope:
    """Return a stored scope."""
    if kind == EVERYTHING:
        return pb.KillScope(everything=True)
    made = pb.KillScope()
    setattr(made, kind, value)
    return made


def about(row: Any) -> kills.Facts:
    """Return what a kill may know about a stored approval."""
    return kills.facts(
        environment=row["environment"],
        target_id=row["target_id"],
        tool=row["method"],
        playbook_id=row["playbook_id"],
        execution_id=row["execution_id"],
        run_id=row["run_id"],
    )


def leased(row: Any) -> pb.LeasedKill:
    """Return a record as leases name it."""
    scope = scope_of(row["kind"], row["value"])
    return pb.LeasedKill(kill_id=str(row["kill_id"]), scope=scope, epoch=row["epoch"], released=row["released"])


async def _with_releasers(connection: Connection, rows: Sequence[KillRow]) -> Sequence[KillRow]:
    """Return kills with those who agreed to their release."""
    people: dict[UUID, list[str]] = {row.kill_id: [] for row in rows}
    for one in await connection.fetch(AGREED, list(people)) if people else ():
        people[one["kill_id"]].append(one["releaser"])
    return [replace(row, releasers=tuple(people[row.kill_id])) for row in rows]


def _deadline(stop: pb.Stop) -> datetime | None:
    """Return until when an effect may go on."""
    if not stop.HasField("deadline_time"):
        return None
    return stop.deadline_time.ToDatetime(tzinfo=UTC)
