"""Incidents in PostgreSQL: read, claimed with SKIP LOCKED, and changed one row at a time by compare-and-set."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol
from uuid import UUID

from opsmesh.config.v1 import inventory_pb2
from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from opsmesh.ingest.v1 import signal_pb2, signals_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.ingest.backlog import Oldest, none_waits
from services.ingest.changes import read_changes
from services.ingest.correlation import Calm
from services.ingest.decisions import Step
from services.ingest.domain import REVISIONS_MAX, Inventory, State
from services.ingest.letters import DeadLetter, put_aside
from services.ingest.lookup import list_signals, read_signal
from services.ingest.mapping import inventory_of, relocate
from services.ingest.occurrences import expire
from services.ingest.record import record
from services.ingest.rows import ANSWER_BYTES, SIGNAL_COLUMNS, fit, incident_of, letter_of, record_of
from services.mesh.errors import Refusal
from services.mesh.postgres import Connection, Pool, answers

COLUMNS: Final = (
    "incident_id, state, state_detail, source, severity, correlation_key, firing, signal_count, duplicate_count, "
    "revision, decision_id, execution_id, started_rule_ids, open_time, update_time, resolve_time, snapshot, "
    "attempts, traceparent, alert_count, flapping, calm_time, correlation_rule_id, sealed, "
    # While it fires: when the last of its alerts is over; null when one of them waits for a resolve.
    "CASE WHEN firing THEN (SELECT a.expire_time FROM alerts a WHERE a.incident_id = incidents.incident_id "
    "AND NOT a.over ORDER BY a.expire_time DESC LIMIT 1) ELSE expire_time END AS expire_time, "
    "extract(epoch FROM now() - open_time)::bigint AS age"
)
SIGNALS_SHOWN: Final = 50
LETTER_BYTES: Final = 65536
RULES_KEPT: Final = 16
# Long enough for a router that is slow; after it another replica may take over.
LEASE: Final = timedelta(seconds=20)
RELOCATED_MAX: Final = 1000
CALMED_MAX: Final = 100
CALM_DOWN: Final = """
WITH calm AS (
    SELECT incident_id, state IN ('RESOLVED', 'STALE', 'RUNNING', 'AWAITING_APPROVAL') AS busy,
        revision < $1 AS left_over
    FROM incidents WHERE flapping AND calm_time <= now() ORDER BY calm_time LIMIT $2 FOR UPDATE SKIP LOCKED
), next AS (
    SELECT incident_id, NOT busy AND left_over AS again, NOT busy AND NOT left_over AS last FROM calm
)
UPDATE incidents SET flapping = false, calm_time = NULL, update_time = now(),
    revision = revision + again::integer, needs_decision = needs_decision OR again,
    following = following AND NOT (again OR (last AND NOT firing)),
    due_time = CASE WHEN again THEN now() ELSE due_time END, attempts = CASE WHEN again THEN 0 ELSE attempts END,
    state = CASE WHEN again THEN 'OPEN' WHEN last AND NOT firing THEN 'RESOLVED' ELSE state END,
    resolve_time = CASE WHEN last AND NOT firing THEN now() ELSE resolve_time END,
    state_detail = CASE WHEN again THEN 'calm again: it is decided anew'
            || CASE WHEN expire_time IS NULL THEN '' ELSE '; its occurrences were not told again' END
        WHEN last AND NOT firing THEN 'calm again, and the sender resolved every alert' ELSE state_detail END
FROM next WHERE incidents.incident_id = next.incident_id RETURNING incidents.incident_id
"""


@dataclass(frozen=True, slots=True)
class Due:
    """An incident that waits for the router, as it was when it was claimed."""

    incident: pb.Incident
    attempts: int
    traceparent: str


class Incidents(Protocol):
    """What the servicer needs of the store."""

    async def get(self, incident_id: str) -> tuple[pb.Incident, list[signal_pb2.SignalRecord]]:
        """Return an incident with its newest signals; a Refusal when there is none."""

    async def list_incidents(
        self, request: pb.ListIncidentsRequest, size: int, after: tuple[datetime, UUID] | None
    ) -> list[pb.Incident]:
        """Return incidents after a position, newest first, one more than `size` if there are more."""

    async def list_dead_letters(
        self, source: str, size: int, after: tuple[datetime, UUID] | None
    ) -> list[pb.DeadLetter]:
        """Return dead letters after a position, newest first, one more than `size` if there are more."""

    async def list_changes(
        self, request: pb.ListChangesRequest, size: int, after: tuple[datetime, UUID] | None
    ) -> list[pb.Change]:
        """Return changes after a position, newest first, one more than `size` if there are more."""

    async def get_signal(self, signal_id: str) -> pb.GetSignalResponse:
        """Return a signal with what it came as; a Refusal when there is none."""

    async def list_signals(
        self, request: signals_pb2.ListSignalsRequest, size: int, after: tuple[datetime, UUID] | None
    ) -> list[signal_pb2.SignalRecord]:
        """Return signals after a position, newest first, one more than `size` if there are more."""

    async def resolve(self, connection: Connection, incident_id: str, reason: str) -> pb.Incident:
        """Close an incident in the caller's transaction; a Refusal when there is none or it is closed."""


class PostgresIncidents:
    """Incidents on ingest's schema."""

    def __init__(self, pool: Pool, calm: Calm) -> None:
        self._pool = pool
        self._calm = calm

    async def record(self, entries: Sequence[pb.StreamEntry], inventory: Inventory) -> bool:
        """Write a batch of deliveries in one transaction; say whether an incident waits for a decision now."""
        async with self._pool.acquire() as connection, connection.transaction():
            return await record(connection, entries, inventory, self._calm)

    async def answers(self) -> bool:
        """Say whether PostgreSQL answers."""
        return await answers(self._pool)

    async def put_aside(self, letter: DeadLetter) -> None:
        """Keep what cannot be processed."""
        async with self._pool.acquire() as connection, connection.transaction():
            await put_aside(connection, [letter])

    async def get(self, incident_id: str) -> tuple[pb.Incident, list[signal_pb2.SignalRecord]]:
        """Return an incident with its newest signals; a Refusal when there is none."""
        async with self._pool.acquire() as connection:
            sql = f"SELECT {COLUMNS} FROM incidents WHERE incident_id = $1"  # noqa: S608  constants only
            row = await connection.fetchrow(sql, UUID(incident_id))
            if row is None:
                raise _unknown(incident_id)
            signals = await connection.fetch(
                f"SELECT {SIGNAL_COLUMNS} FROM signals WHERE incident_id = $1 "  # noqa: S608  constants only
                "ORDER BY record_time DESC, delivery_id, index LIMIT $2",
                UUID(incident_id),
                SIGNALS_SHOWN,
            )
        incident = incident_of(row)
        return incident, fit([record_of(one) for one in signals], ANSWER_BYTES - incident.ByteSize())

    async def list_incidents(
        self, request: pb.ListIncidentsRequest, size: int, after: tuple[datetime, UUID] | None
    ) -> list[pb.Incident]:
        """Return incidents after a position, newest first, one more than `size` if there are more."""
        rows = await self._pool.fetch(
            f"SELECT {COLUMNS} FROM incidents WHERE ($1::text[] = '{{}}' OR state = ANY($1)) "  # noqa: S608  constants only
            "AND ($2 = '' OR $2 = ANY(target_ids)) AND ($3 = '' OR source = $3) "
            "AND ($4::timestamptz IS NULL OR (open_time, incident_id) < ($4, $5::uuid)) "
            "ORDER BY open_time DESC, incident_id DESC LIMIT $6",
            [State(one).name for one in request.states],
            request.target_id,
            request.source,
            *(after or (None, None)),
            size + 1,
        )
        return [incident_of(row) for row in rows]

    async def list_dead_letters(
        self, source: str, size: int, after: tuple[datetime, UUID] | None
    ) -> list[pb.DeadLetter]:
        """Return dead letters after a position, newest first, one more than `size` if there are more."""
        rows = await self._pool.fetch(
            "SELECT delivery_id, source, reason, delivery_count, substring(body FOR $5) AS body, "
            "length(body) AS body_size, create_time FROM dead_letters WHERE ($1 = '' OR source = $1) "
            "AND ($2::timestamptz IS NULL OR (create_time, delivery_id) < ($2, $3::uuid)) "
            "ORDER BY create_time DESC, delivery_id DESC LIMIT $4",
            source,
            *(after or (None, None)),
            size + 1,
            LETTER_BYTES,
        )
        return [letter_of(row) for row in rows]

    async def list_changes(
        self, request: pb.ListChangesRequest, size: int, after: tuple[datetime, UUID] | None
    ) -> list[pb.Change]:
        """Return changes after a position, newest first, one more than `size` if there are more."""
        return await read_changes(self._pool, request, size, after)

    async def get_signal(self, signal_id: str) -> pb.GetSignalResponse:
        """Return a signal with what it came as; a Refusal when there is none."""
        return await read_signal(self._pool, signal_id)

    async def list_signals(
        self, request: signals_pb2.ListSignalsRequest, size: int, after: tuple[datetime, UUID] | None
    ) -> list[signal_pb2.SignalRecord]:
        """Return signals after a position, newest first, one more than `size` if there are more."""
        return await list_signals(self._pool, request, size, after)

    async def resolve(self, connection: Connection, incident_id: str, reason: str) -> pb.Incident:
        """Close an incident in the caller's transaction; the router hears of it by a new revision."""
        row = await connection.fetchrow(
            "UPDATE incidents SET state = 'RESOLVED', state_detail = $2, resolve_time = now(), update_time = now(), "  # noqa: S608  constants only
            "revision = revision + 1, needs_decision = true, following = false, due_time = now(), attempts = 0 "
            f"WHERE incident_id = $1 AND state NOT IN ('RESOLVED', 'STALE') RETURNING {COLUMNS}",
            UUID(incident_id),
            reason[:512],
        )
        if row is not None:
            return incident_of(row)
        state = await connection.fetchval("SELECT state FROM incidents WHERE incident_id = $1", UUID(incident_id))
        if state is None:
            raise _unknown(incident_id)
        conflict = error_reason_pb2.ERROR_REASON_CONFLICT
        raise Refusal(conflict, resource="incident", id=incident_id, state=state)

    async def claim_undecided(self, count: int) -> list[Due]:
        """Take incidents whose revision the router must decide now."""
        return await self._claim("needs_decision", count)

    async def claim_following(self, count: int) -> list[Due]:
        """Take incidents whose decision is open and due to be asked for."""
        return await self._claim("following AND NOT needs_decision", count)

    async def _claim(self, condition: str, count: int) -> list[Due]:
        rows = await self._pool.fetch(
            "UPDATE incidents SET due_time = now() + $2, attempts = attempts + 1 WHERE incident_id IN "  # noqa: S608  constants only
            f"(SELECT incident_id FROM incidents WHERE {condition} AND due_time <= now() ORDER BY due_time "
            f"LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING {COLUMNS}",
            count,
            LEASE,
        )
        return [Due(incident_of(row), row["attempts"], row["traceparent"]) for row in rows]

    async def next_undecided(self) -> float:
        """Return the seconds until the router must decide something; infinite when nothing waits."""
        return await self._next_due("needs_decision")

    async def next_following(self) -> float:
        """Return the seconds until the router must be asked for a decision; infinite when none is open."""
        return await self._next_due("following AND NOT needs_decision")

    async def _next_due(self, condition: str) -> float:
        sql = f"SELECT extract(epoch FROM min(due_time) - now())::float FROM incidents WHERE {condition}"  # noqa: S608  constants only
        found = await self._pool.fetchval(sql)
        return float("inf") if found is None else float(found)

    async def postpone(self, incident: pb.Incident, seconds: float) -> None:
        """Let an incident wait: the router did not answer."""
        await self._pool.execute(
            "UPDATE incidents SET due_time = now() + $3 WHERE incident_id = $1 AND revision = $2",
            UUID(incident.incident_id),
            incident.revision,
            timedelta(seconds=seconds),
        )

    async def advance(
        self, incident: pb.Incident, step: Step, decision: tuple[str, str, str], attempts: int, seconds: float
    ) -> bool:
        """Move an incident as its decision says; False when it has changed since it was claimed.

        `decision` is (decision_id, execution_id, rule_id); `seconds` until the router is asked again.
        """
        decision_id, execution_id, rule_id = decision
        done = await self._pool.execute(
            "UPDATE incidents SET state = $5, state_detail = CASE WHEN $6 = '' THEN state_detail ELSE $6 END, "
            "following = $7, needs_decision = $8::boolean, revision = revision + $8::boolean::integer, "
            "decision_id = $9, execution_id = CASE WHEN $10 = '' THEN execution_id ELSE $10 END, "
            "started_rule_ids = CASE WHEN $11 = '' OR $11 = ANY(started_rule_ids) "
            "OR cardinality(started_rule_ids) >= $14 THEN started_rule_ids ELSE started_rule_ids || $11::text END, "
            "attempts = $12, due_time = CASE WHEN $8 THEN now() ELSE now() + $13 END, "
            "update_time = CASE WHEN state = $5 THEN update_time ELSE now() END, "
            "resolve_time = CASE WHEN $5 = 'RESOLVED' THEN coalesce(resolve_time, now()) END "
            "WHERE incident_id = $1 AND revision = $2 AND state = $3 AND firing = $4",
            UUID(incident.incident_id),
            incident.revision,
            State(incident.state).name,
            incident.firing,
            step.state.name,
            step.detail[:512],
            step.following,
            step.revise,
            decision_id,
            execution_id,
            rule_id,
            attempts,
            timedelta(seconds=seconds),
            RULES_KEPT,
        )
        return bool(done.endswith(" 1"))

    async def calm_down(self) -> int:
        """Let what has been calm for long enough be decided as usual; return how many there were.

        What is over by then ends; what works on an incident goes on, and its end is decided without flapping.
        """
        rows = await self._pool.fetch(CALM_DOWN, REVISIONS_MAX, CALMED_MAX)
        return len(rows)

    async def expire(self, oldest: Oldest = none_waits) -> int:
        """End occurrences not told again before the `oldest` that waits; return how many incidents have none left."""
        async with self._pool.acquire() as connection, connection.transaction():
            return await expire(connection, oldest)

    async def read_inventory(self) -> Inventory:
        """Return the last inventory that was seen."""
        row = await self._pool.fetchrow("SELECT version, inventory FROM inventory")
        if row is None:
            return Inventory()
        return inventory_of(inventory_pb2.Inventory.FromString(row["inventory"]), row["version"])

    async def write_inventory(self, version: int, inventory: inventory_pb2.Inventory) -> None:
        """Keep an inventory for the next start."""
        await self._pool.execute(
            "INSERT INTO inventory (version, inventory) VALUES ($1, $2) ON CONFLICT (single_row) DO UPDATE SET "
            "version = excluded.version, inventory = excluded.inventory, update_time = now()",
            version,
            inventory.SerializeToString(),
        )

    async def relocate(self, inventory: Inventory) -> int:
        """Look up anew the targets of waiting incidents that an older inventory did not know; return how many moved.

        Whoever was decided without a target is decided anew; whoever still waits for its decision keeps its revision.
        """
        rows = await self._pool.fetch(
            "SELECT incident_id, snapshot FROM incidents WHERE inventory_version < $1 "
            "AND state IN ('OPEN', 'AWAITING_MODEL', 'AWAITING_PERSON') ORDER BY inventory_version LIMIT $2",
            inventory.version,
            RELOCATED_MAX,
        )
        moved = 0
        for row in rows:
            snapshot = pb.Incident.FromString(row["snapshot"])
            moves = not any(one.in_inventory for one in snapshot.targets) and relocate(snapshot, inventory)
            done = await self._pool.execute(
                "UPDATE incidents SET inventory_version = $3, snapshot = $4, target_ids = $5, "
                "revision = revision + ($6 AND NOT needs_decision)::int, needs_decision = needs_decision OR $6, "
                "following = following AND NOT $6, due_time = CASE WHEN $6 THEN now() ELSE due_time END, "
                "attempts = CASE WHEN $6 THEN 0 ELSE attempts END, state = CASE WHEN $6 THEN 'OPEN' ELSE state END, "
                "update_time = CASE WHEN $6 THEN now() ELSE update_time END WHERE incident_id = $1 AND snapshot = $2 "
                "AND state IN ('OPEN', 'AWAITING_MODEL', 'AWAITING_PERSON')",
                row["incident_id"],
                row["snapshot"],
                inventory.version,
                snapshot.SerializeToString() if moves else row["snapshot"],
                [one.target_id for one in snapshot.targets],
                moves,
            )
            moved += moves and done.endswith(" 1")
        return moved


def _unknown(incident_id: str) -> Refusal:
    return Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="incident", id=incident_id)
