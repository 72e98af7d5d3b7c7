"""One transaction per batch of deliveries: a row per signal with its disposition, and what it changes at incidents."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from opsmesh.ingest.v1 import signal_pb2
from services.ingest.changes import known_changes, write_changes
from services.ingest.domain import (
    REVISIONS_MAX,
    Alert,
    Book,
    Disposition,
    Inventory,
    Resolved,
    SignalFacts,
    State,
    Tally,
    Verdict,
)
from services.ingest.letters import malformed_letter, put_aside
from services.ingest.mapping import absorb, facts_of, targets_of
from services.ingest.signal import Severity, Status
from services.mesh.postgres import Connection

# Batches take turns, also those of other replicas: what one opens, the next joins.
LOCK: Final = 0x16E57
SEPARATOR: Final = "\x1f"
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class _Line:
    """One signal on its way into the store."""

    signal: signal_pb2.Signal
    targets: list[Resolved]
    facts: SignalFacts
    traceparent: str
    verdict: Verdict | None = None


async def record(
    connection: Connection,
    entries: Sequence[pb.StreamEntry],
    inventory: Inventory,
    window: timedelta,
    debounce: timedelta,
) -> bool:
    """Write a batch in the caller's transaction; say whether an incident waits for a decision now.

    What has its row already (a redelivery) is left as it is.
    """
    await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
    lines = await _new_lines(connection, entries, inventory)
    now: datetime = await connection.fetchval("SELECT now()")
    book = Book(now, window)
    snapshots = await _load(connection, book, [line.facts for line in lines if not line.facts.change])
    book.changes |= await known_changes(connection, [line.facts for line in lines if line.facts.change])
    for line in lines:
        line.verdict = verdict = book.judge(line.facts)
        if verdict.incident_id and (verdict.speaks or verdict.disposition is Disposition.OPENED):
            absorb(snapshots.setdefault(verdict.incident_id, pb.Incident()), line.signal, line.targets)
    await _write_deliveries(connection, entries)
    await _write_signals(connection, lines)
    changes = [
        (line.signal, line.targets) for line in lines if line.verdict and line.verdict.disposition is Disposition.CHANGE
    ]
    await write_changes(connection, changes)
    await _write_alerts(connection, book)
    waiting = await _write_incidents(connection, book, snapshots, lines, (debounce, inventory.version))
    malformed = [malformed_letter(entry) for entry in entries if entry.errors]
    await put_aside(connection, malformed)
    return waiting


async def _new_lines(connection: Connection, entries: Sequence[pb.StreamEntry], inventory: Inventory) -> list[_Line]:
    """Return the signals that have no row yet, each once."""
    signals = {signal.signal_id: (signal, entry) for entry in entries for signal in entry.signals}
    sql = "SELECT signal_id FROM signals WHERE signal_id = ANY($1::uuid[])"
    known = {str(row["signal_id"]) for row in await connection.fetch(sql, list(signals))}
    lines = []
    for signal_id, (signal, entry) in signals.items():
        if signal_id not in known:
            targets = targets_of(signal, inventory)
            lines.append(_Line(signal, targets, facts_of(signal, targets), entry.delivery.traceparent))
    return lines


async def _load(connection: Connection, book: Book, facts: Sequence[SignalFacts]) -> dict[str, pb.Incident]:
    """Load the alerts and incidents these signals may touch, the incidents locked; return their snapshots."""
    keys = {(one.source, one.dedup_key, "" if one.start_time is None else str(one.start_time)) for one in facts}
    columns = "x.source, x.dedup_key, x.start_time, x.incident_id, x.seen, x.over, x.event_time, x.first_seen"
    rows = await connection.fetch(
        "SELECT DISTINCT a.* FROM unnest($1::text[], $2::text[], $3::text[]) AS k (source, dedup_key, episode) "  # noqa: S608  constants only
        f"CROSS JOIN LATERAL ((SELECT {columns} FROM alerts x WHERE (x.source, x.dedup_key, x.episode) = "
        "(k.source, k.dedup_key, k.episode)) "
        f"UNION ALL (SELECT {columns} FROM alerts x WHERE (x.source, x.dedup_key) = (k.source, k.dedup_key) "
        "ORDER BY x.start_time DESC NULLS LAST LIMIT 1)) AS a",
        *_columns(keys, 3),
    )
    alerts = [_alert(row) for row in rows]
    ids = {alert.incident_id for alert in alerts if alert.incident_id}
    rows = await connection.fetch(
        "SELECT incident_id, correlation_key, state, revision, needs_decision, snapshot FROM incidents "
        "WHERE incident_id = ANY($1::uuid[]) OR (correlation_key = ANY($2::text[]) "
        "AND state NOT IN ('RESOLVED', 'STALE')) ORDER BY incident_id FOR UPDATE",
        list(ids),
        list({one.correlation_key for one in facts}),
    )
    active = await connection.fetch(
        "SELECT incident_id, count(*) AS active FROM alerts WHERE NOT over AND incident_id = ANY($1::uuid[]) "
        "GROUP BY incident_id",
        [row["incident_id"] for row in rows],
    )
    counts = {row["incident_id"]: row["active"] for row in active}
    book.load(alerts, [_tally(row, counts.get(row["incident_id"], 0)) for row in rows])
    return {str(row["incident_id"]): pb.Incident.FromString(row["snapshot"]) for row in rows}


def _alert(row: Any) -> Alert:
    return Alert(
        source=row["source"],
        dedup_key=row["dedup_key"],
        start_time=row["start_time"],
        incident_id=str(row["incident_id"]) if row["incident_id"] else None,
        seen=row["seen"],
        over=row["over"],
        event_time=row["event_time"],
        first_seen=row["first_seen"],
    )


def _tally(row: Any, active: int) -> Tally:
    return Tally(
        incident_id=str(row["incident_id"]),
        correlation_key=row["correlation_key"],
        state=State[row["state"]],
        active=active,
        revision=row["revision"],
        decided=not row["needs_decision"],
    )


def _columns(rows: Iterable[Sequence[Any]], width: int) -> list[list[Any]]:
    """Turn rows into the arrays that unnest wants."""
    found = list(zip(*rows, strict=True))
    return [list(column) for column in found] if found else [[] for _ in range(width)]


def moment(nanos: int) -> datetime:
    """Return nanoseconds since 1970 as PostgreSQL's microseconds."""
    return EPOCH + timedelta(microseconds=nanos // 1000)


async def _write_deliveries(connection: Connection, entries: Sequence[pb.StreamEntry]) -> None:
    """Keep the exact bytes of each delivery."""
    rows = [
        (
            UUID(one.delivery_id),
            one.source,
            one.body,
            hashlib.sha256(one.body).digest(),
            one.content_type,
            signal_pb2.Authenticity.Method.Name(one.authenticity.method).removeprefix("METHOD_"),
            one.authenticity.verified,
            one.traceparent,
            moment(one.receive_time.ToNanoseconds()),
        )
        for one in (entry.delivery for entry in entries)
    ]
    await connection.execute(
        "INSERT INTO deliveries (delivery_id, source, body, sha256, content_type, authenticity, verified, "
        "traceparent, receive_time) SELECT * FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::bytea[], "
        "$5::text[], $6::text[], $7::boolean[], $8::text[], $9::timestamptz[]) ON CONFLICT DO NOTHING",
        *_columns(rows, 9),
    )


async def _write_signals(connection: Connection, lines: Sequence[_Line]) -> None:
    """Give each signal its row."""
    rows = [
        (
            UUID(signal.signal_id),
            UUID(signal.delivery_id),
            signal.index,
            signal.source,
            signal.dedup_key,
            signal.event_key,
            Status(signal.status).name,
            Severity(signal.severity).name,
            line.verdict.disposition.name,
            UUID(line.verdict.incident_id) if line.verdict.incident_id else None,
            moment(line.facts.event_time),
            moment(signal.receive_time.ToNanoseconds()),
            signal.SerializeToString(),
        )
        for line in lines
        if (signal := line.signal) and line.verdict
    ]
    await connection.execute(
        "INSERT INTO signals (signal_id, delivery_id, index, source, dedup_key, event_key, status, severity, "
        "disposition, incident_id, event_time, receive_time, signal) SELECT * FROM unnest($1::uuid[], $2::uuid[], "
        "$3::integer[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::uuid[], "
        "$11::timestamptz[], $12::timestamptz[], $13::bytea[])",
        *_columns(rows, 13),
    )


async def _write_alerts(connection: Connection, book: Book) -> None:
    """Write the alerts this batch changed."""
    rows = [
        (
            alert.source,
            alert.dedup_key,
            key[2],
            alert.start_time,
            UUID(alert.incident_id) if alert.incident_id else None,
            alert.seen,
            alert.over,
            alert.event_time,
            alert.first_seen,
        )
        for key in book.changed
        for alert in (book.alerts[key],)
    ]
    await connection.execute(
        "INSERT INTO alerts (source, dedup_key, episode, start_time, incident_id, seen, over, event_time, first_seen) "
        "SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::uuid[], $6::integer[], "
        "$7::boolean[], $8::bigint[], $9::timestamptz[]) ON CONFLICT (source, dedup_key, episode) DO UPDATE SET "
        "incident_id = excluded.incident_id, seen = excluded.seen, over = excluded.over, "
        "event_time = excluded.event_time, first_seen = excluded.first_seen, update_time = now()",
        *_columns(rows, 9),
    )


async def _write_incidents(
    connection: Connection,
    book: Book,
    snapshots: dict[str, pb.Incident],
    lines: Sequence[_Line],
    birth: tuple[timedelta, int],
) -> bool:
    """Open the new incidents and bring the known ones up to date; say whether one waits for a decision.

    `birth` is the debounce of new incidents and the version of the inventory their targets were looked up in.
    """
    traces = {line.facts.incident_id: line.traceparent for line in lines}
    opened, known = [], []
    for tally in book.incidents.values():
        if not (tally.signals or tally.replaced):
            continue
        snapshot = snapshots[tally.incident_id]
        words = (
            UUID(tally.incident_id),
            snapshot.title,
            Severity(snapshot.severity).name,
            SEPARATOR.join(target.target_id for target in snapshot.targets),
            tally.active > 0,
            tally.signals,
            tally.duplicates,
            snapshot.SerializeToString(),
        )
        if tally.opened:
            trace = traces.get(tally.incident_id, "")
            opened.append((*words, snapshot.source, tally.correlation_key, State.OPEN.name, trace, *birth))
        else:
            revised = tally.revised and not tally.active and not tally.replaced
            again = revised and tally.revision < REVISIONS_MAX
            why = "it fired anew after it was observed" if tally.replaced else "the sender resolved every alert"
            known.append((*words, again, tally.replaced or (revised and not again), why))
    # What is replaced is closed first: of one correlation key there is one open incident.
    await connection.executemany(
        "UPDATE incidents SET title = $2, severity = $3, target_ids = string_to_array($4, chr(31)), firing = $5, "
        "signal_count = signal_count + $6, duplicate_count = duplicate_count + $7, snapshot = $8, update_time = now(), "
        "revision = revision + $9::boolean::integer, needs_decision = needs_decision OR $9, "
        "following = following AND NOT ($9 OR $10), due_time = CASE WHEN $9 THEN now() ELSE due_time END, "
        "attempts = CASE WHEN $9 THEN 0 ELSE attempts END, "
        "state = CASE WHEN $9 THEN 'OPEN' WHEN $10 THEN 'RESOLVED' ELSE state END, "
        "resolve_time = CASE WHEN $10 THEN now() ELSE resolve_time END, "
        "state_detail = CASE WHEN $9 OR $10 THEN $11 ELSE state_detail END "
        "WHERE incident_id = $1",
        known,
    )
    await connection.executemany(
        "INSERT INTO incidents (incident_id, title, severity, target_ids, firing, signal_count, duplicate_count, "
        "snapshot, source, correlation_key, state, traceparent, due_time, inventory_version) VALUES ($1, $2, $3, "
        "string_to_array($4, chr(31)), $5, $6, $7, $8, $9, $10, $11, $12, now() + $13::interval, $14)",
        opened,
    )
    return bool(opened) or any(row[8] for row in known)
