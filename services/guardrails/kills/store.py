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
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from opsmesh.policy.v1 import policy_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.guardrails.kills.file import Order
from services.mesh import kills
from services.mesh.errors import Refusal
from services.mesh.postgres import Connection, Pool
from services.mesh.tools import tools

# Active kills of a scope other than everything; beyond it one kill of everything says more.
SCOPED_MAX: Final = 256
# Leases name at most 1024 kills; what is released meanwhile must have room, too.
RELEASED_MAX: Final = 512
# How long a lease names a released kill, in seconds: longer than the 30 s of a grant and its 5 s of skew.
REMEMBERED_SECONDS: Final = 60
# How many open approvals an Engage looks at before it answers; the sweep looks at all.
LOOKED_AT_MAX: Final = 1000
SWEPT_MAX: Final = 100_000
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
LIMIT $2
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
POLICY_AT: Final = """
SELECT coalesce(max(version), 0) FROM policy_sets
WHERE publish_time <= (SELECT engage_time FROM kills WHERE kill_id = $1)
"""
COLUMNS: Final = "kill_id, epoch, kind, value, reason, engager, engage_time, releasers_needed, release_time"
READ: Final = f"SELECT {COLUMNS} FROM kills WHERE kill_id = $1"  # noqa: S608  constants only
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
    # No text of PostgreSQL holds a NUL: a kill that could never be stored would take all leases away for ever.
    reason = order.reason.replace("\0", " ")
    await connection.execute(INSERT, order.kill_id, epoch, kind, value, reason, order.caller, when)
    await void(connection, [pb.LeasedKill(kill_id=str(order.kill_id), scope=order.scope, epoch=epoch)])
    return await read(connection, order.kill_id)


async def remember(connection: Connection, method: str, order: Order, response: bytes) -> None:
    """Keep the answer of an Engage that was not served from here, so that its repetition gets the same one."""
    await connection.execute(REMEMBER, order.caller, method, order.request_id, order.digest, response)


async def known(connection: Connection, kill_id: UUID) -> bool:
    """Say whether a kill is stored."""
    return bool(await connection.fetchval(KNOWN, kill_id))


async def policy_at(connection: Connection, kill_id: UUID) -> int:
    """Return the version of the policy set that was active when a kill was engaged; 0 when none was."""
    return int(await connection.fetchval(POLICY_AT, kill_id))


async def read(connection: Connection, kill_id: UUID) -> KillRow:
    """Return a kill, or refuse."""
    row = await connection.fetchrow(READ, kill_id)
    if row is None:
        raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="kill", id=str(kill_id), list="kill status")
    return (await with_releasers(connection, [KillRow(**dict(row))]))[0]


async def void(connection: Connection, engaged: Collection[pb.LeasedKill], limit: int = LOOKED_AT_MAX) -> int:
    """Turn open approvals that a newer kill covers VOID and return how many; those being answered are left alone.

    What only tells people something is stopped by no kill, so its approval stays.
    """
    if not engaged:
        return 0
    rows = await connection.fetch(OPEN, max(kill.epoch for kill in engaged), limit)
    found: dict[str, tuple[pb.LeasedKill, list[UUID]]] = {}
    for row in rows:
        newer = (kill for kill in engaged if kill.epoch > row["kill_epoch"])
        if (kill := kills.stopping(newer, about(row), row["kill_epoch"])) and not _informs(row["method"]):
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
    return await void(connection, await since(connection, oldest), SWEPT_MAX)


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


def _informs(method: str) -> bool:
    """Say whether a tool only tells people something; one that is not served any more does not."""
    tool = tools().get(method)
    return tool is not None and tool.policy.access == policy_pb2.ACCESS_INFORM


async def with_releasers(connection: Connection, rows: Sequence[KillRow]) -> Sequence[KillRow]:
    """Return kills with those who agreed to their release."""
    people: dict[UUID, list[str]] = {row.kill_id: [] for row in rows}
    for one in await connection.fetch(AGREED, list(people)) if people else ():
        people[one["kill_id"]].append(one["releaser"])
    return [replace(row, releasers=tuple(people[row.kill_id])) for row in rows]
