"""One transaction per batch of deliveries: a row per signal with its disposition, and what it changes at incidents."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from opsmesh.ingest.v1 import signal_pb2
from services.ingest.book import Book, Verdict, moment
from services.ingest.changes import known_changes, write_changes
from services.ingest.correlation import Calm, Correlation
from services.ingest.domain import (
    REVISIONS_MAX,
    WAITING,
    Alert,
    Disposition,
    Inventory,
    Resolved,
    SignalFacts,
    State,
    Tally,
)
from services.ingest.flapping import Turns
from services.ingest.letters import LOCK, TURN, malformed_letter, no_longer, put_aside
from services.ingest.mapping import absorb, facts_of, targets_of
from services.ingest.signal import Severity, Status
from services.mesh.postgres import Connection

DEAD: Final = Disposition.DEAD_LETTER.name
SEPARATOR: Final = "\x1f"


@dataclass(slots=True)
class _Line:
    """One signal on its way into the store."""

    signal: signal_pb2.Signal
    targets: list[Resolved]
    facts: SignalFacts
    traceparent: str
    # It was a dead letter, and is understood now.
    revived: bool = False
    verdict: Verdict | None = None


async def record(
    connection: Connection,
    entries: Sequence[pb.StreamEntry],
    inventory: Inventory,
    calm: Calm,
) -> bool:
    """Write a batch in the caller's transaction; say whether an incident waits for a decision now.

    What has its row already (a redelivery, a replay) is left as it is. A row that says dead letter is no end: the same
    delivery again, by its sender or by a person, gets what it deserves, once, and its letter is gone.
    """
    await connection.execute(TURN, LOCK)
    lines = await _new_lines(connection, entries, inventory, calm.correlation)
    now: datetime = await connection.fetchval("SELECT now()")
    book = Book(now, calm.window, calm.debounce)
    told = [line.facts for line in lines if not line.facts.change]
    snapshots = await _load(connection, book, told, calm.correlation.longest_reopen)
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
    await _write_turns(connection, book)
    waiting = await _write_incidents(connection, book, snapshots, lines, inventory.version)
    malformed = [malformed_letter(entry) for entry in entries if entry.errors]
    await put_aside(connection, malformed)
    if revived := {line.signal.delivery_id for line in lines if line.revived}:
        await no_longer(connection, revived)
    return waiting


async def _new_lines(
    connection: Connection, entries: Sequence[pb.StreamEntry], inventory: Inventory, correlation: Correlation
) -> list[_Line]:
    """Return the signals that have no row yet, or one that says dead letter, each once."""
    signals = {signal.signal_id: (signal, entry) for entry in entries for signal in entry.signals}
    sql = "SELECT signal_id, disposition FROM signals WHERE signal_id = ANY($1::uuid[])"
    rows = await connection.fetch(sql, list(signals))
    known = {str(row["signal_id"]): row["disposition"] for row in rows}
    lines = []
    for signal_id, (signal, entry) in signals.items():
        if known.get(signal_id, DEAD) == DEAD:
            targets = targets_of(signal, inventory)
            facts = facts_of(signal, targets, correlation)
            lines.append(_Line(signal, targets, facts, entry.delivery.traceparent, signal_id in known))
    return lines


async def _load(
    connection: Connection, book: Book, facts: Sequence[SignalFacts], reopen: timedelta
) -> dict[str, pb.Incident]:
    """Load the alerts and incidents these signals may touch, the incidents locked; return their snapshots."""
    rows = await connection.fetch(
        "SELECT t.source, t.dedup_key, t.times FROM turns t JOIN unnest($1::text[], $2::text[]) "
        "AS k (source, dedup_key) ON (t.source, t.dedup_key) = (k.source, k.dedup_key)",
        *_columns({one.alert for one in facts}, 2),
    )
    book.turns |= {(row["source"], row["dedup_key"]): Turns(tuple(row["times"])) for row in rows}
    keys = {(one.source, one.dedup_key, "" if one.start_time is None else str(one.start_time)) for one in facts}
    columns = (
        "x.source, x.dedup_key, x.start_time, x.incident_id, x.seen, x.over, x.event_time, x.first_seen, x.end_time, "
        "x.told_time, x.expire_time"
    )
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
        "SELECT incident_id, correlation_key, state, revision, needs_decision, snapshot, alert_count, sealed, "
        "open_time, resolve_time, flapping, "
        "needs_decision AND revision = 1 AND attempts = 0 AND due_time > now() AS gathers "
        "FROM incidents WHERE incident_id = ANY($1::uuid[]) "
        "OR (correlation_key = ANY($2::text[]) AND state NOT IN ('RESOLVED', 'STALE') AND NOT sealed) "
        # Of those that may open again only the newest does: a key that flaps has left many.
        "OR ($3::interval > '0' AND incident_id IN (SELECT newest.incident_id FROM unnest($2::text[]) AS keys (key) "
        "CROSS JOIN LATERAL (SELECT incident_id FROM incidents WHERE correlation_key = keys.key "
        "AND state = 'RESOLVED' AND resolve_time >= now() - $3 ORDER BY resolve_time DESC LIMIT 1) AS newest)) "
        "ORDER BY incident_id FOR UPDATE",
        list(ids),
        list({one.correlation_key for one in facts}),
        reopen,
    )
    active = await connection.fetch(
        # No more than this batch can end: of an incident with 100,000 alerts it matters only whether it is over.
        "SELECT incident_id, (SELECT count(*) FROM (SELECT FROM alerts WHERE NOT over "
        "AND alerts.incident_id = ids.incident_id LIMIT $2) AS open_ones) AS active "
        "FROM unnest($1::uuid[]) AS ids (incident_id)",
        [row["incident_id"] for row in rows],
        2 * len(facts) + 1,
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
        end_time=row["end_time"],
        told_time=row["told_time"],
        expire_time=row["expire_time"],
    )


def _tally(row: Any, active: int) -> Tally:
    return Tally(
        incident_id=str(row["incident_id"]),
        correlation_key=row["correlation_key"],
        state=State[row["state"]],
        active=active,
        revision=row["revision"],
        decided=not row["needs_decision"],
        gathers=row["gathers"],
        alerts=row["alert_count"],
        open_time=row["open_time"],
        resolve_time=row["resolve_time"],
        sealed=row["sealed"],
        flapping=row["flapping"],
    )


def _columns(rows: Iterable[Sequence[Any]], width: int) -> list[list[Any]]:
    """Turn rows into the arrays that unnest wants."""
    found = list(zip(*rows, strict=True))
    return [list(column) for column in found] if found else [[] for _ in range(width)]


async def _write_deliveries(connection: Connection, entries: Sequence[pb.StreamEntry]) -> None:
    """Keep the exact bytes of each delivery, and the headers that say what they are."""
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
            pb.Delivery(headers=one.headers).SerializeToString() if one.headers else b"",
        )
        for one in (entry.delivery for entry in entries)
    ]
    await connection.execute(
        "INSERT INTO deliveries (delivery_id, source, body, sha256, content_type, authenticity, verified, "
        "traceparent, receive_time, headers) SELECT * FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::bytea[], "
        "$5::text[], $6::text[], $7::boolean[], $8::text[], $9::timestamptz[], $10::bytea[]) ON CONFLICT DO NOTHING",
        *_columns(rows, 10),
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
        "$11::timestamptz[], $12::timestamptz[], $13::bytea[]) ON CONFLICT (signal_id) DO UPDATE SET "
        "dedup_key = excluded.dedup_key, event_key = excluded.event_key, status = excluded.status, "
        "severity = excluded.severity, disposition = excluded.disposition, incident_id = excluded.incident_id, "
        "event_time = excluded.event_time, receive_time = excluded.receive_time, record_time = now(), "
        "signal = excluded.signal",
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
            alert.end_time,
            alert.told_time,
            alert.expire_time,
        )
        for key in book.changed
        for alert in (book.alerts[key],)
    ]
    await connection.execute(
        "INSERT INTO alerts (source, dedup_key, episode, start_time, incident_id, seen, over, event_time, first_seen, "
        "end_time, told_time, expire_time) SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], "
        "$5::uuid[], $6::integer[], $7::boolean[], $8::bigint[], $9::timestamptz[], $10::bigint[], "
        "$11::timestamptz[], $12::timestamptz[]) "
        "ON CONFLICT (source, dedup_key, episode) DO UPDATE SET "
        "incident_id = excluded.incident_id, seen = excluded.seen, over = excluded.over, "
        "event_time = excluded.event_time, first_seen = excluded.first_seen, end_time = excluded.end_time, "
        "told_time = excluded.told_time, expire_time = excluded.expire_time, update_time = now()",
        *_columns(rows, 12),
    )


async def _write_incidents(
    connection: Connection,
    book: Book,
    snapshots: dict[str, pb.Incident],
    lines: Sequence[_Line],
    version: int,
) -> bool:
    """Open the new incidents and bring the known ones up to date; say whether one waits for a decision.

    `version` is that of the inventory that was looked into.
    """
    traces = {line.facts.incident_id: line.traceparent for line in lines}
    opened, known = [], []
    # What takes nothing new gives its key free before another takes it.
    for tally in sorted(book.incidents.values(), key=lambda one: one.reopened):
        if not (tally.signals or tally.replaced or tally.sealed):
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
            tally.new_alerts,
            tally.sealed,
            tally.flapping,
        )
        if tally.opened:
            trace = traces.get(tally.incident_id, "")
            wait = book.debounce_of(tally.grouping)
            begun = (snapshot.source, tally.correlation_key, State.OPEN.name, trace, wait, version)
            opened.append((*words, *begun, tally.correlation_rule_id, tally.calm_time))
        else:
            revised = tally.revised and not tally.active and not tally.replaced
            flaps = tally.flaps_now and tally.state not in WAITING and tally.revision < REVISIONS_MAX
            again = tally.reopened or flaps or (revised and tally.revision < REVISIONS_MAX)
            known.append((*words, again, tally.replaced or (revised and not again), _why(tally), tally.calm_time))
    # What is replaced is closed first: of one correlation key there is one open incident.
    await connection.executemany(
        "UPDATE incidents SET title = $2, severity = $3, target_ids = string_to_array($4, chr(31)), firing = $5, "
        "signal_count = signal_count + $6, duplicate_count = duplicate_count + $7, snapshot = $8, update_time = now(), "
        "alert_count = alert_count + $9, sealed = sealed OR $10, flapping = flapping OR $11, "
        "revision = revision + $12::boolean::integer, needs_decision = needs_decision OR $12, "
        "following = following AND NOT ($12 OR $13), due_time = CASE WHEN $12 THEN now() ELSE due_time END, "
        "attempts = CASE WHEN $12 THEN 0 ELSE attempts END, "
        "state = CASE WHEN $12 THEN 'OPEN' WHEN $13 THEN 'RESOLVED' ELSE state END, "
        "resolve_time = CASE WHEN $12 THEN NULL WHEN $13 THEN now() ELSE resolve_time END, "
        "state_detail = CASE WHEN $12 OR $13 THEN $14 ELSE state_detail END, calm_time = coalesce($15, calm_time), "
        "expire_time = CASE WHEN $5 OR $9 > 0 THEN NULL ELSE expire_time END "
        "WHERE incident_id = $1",
        known,
    )
    await connection.executemany(
        "INSERT INTO incidents (incident_id, title, severity, target_ids, firing, signal_count, duplicate_count, "
        "snapshot, alert_count, sealed, flapping, source, correlation_key, state, traceparent, due_time, "
        "inventory_version, correlation_rule_id, calm_time) VALUES ($1, $2, $3, string_to_array($4, chr(31)), $5, "
        "$6, $7, $8, $9, $10, $11, $12, $13, $14, $15, now() + $16::interval, $17, $18, $19)",
        opened,
    )
    return bool(opened) or any(row[11] for row in known)


def _why(tally: Tally) -> str:
    """Return why a known incident is decided anew, or closed."""
    if tally.flaps_now:
        return "an alert of it flaps: what was decided is not begun"
    if tally.reopened:
        return "opened again: it fired anew soon after it was resolved"
    return "it fired anew after it was observed" if tally.replaced else "the sender resolved every alert"


async def _write_turns(connection: Connection, book: Book) -> None:
    """Write when alerts changed last. `since` is our clock's, for who deletes what is old."""
    await connection.executemany(
        "INSERT INTO turns (source, dedup_key, times, since) VALUES ($1, $2, $3, now()) "
        "ON CONFLICT (source, dedup_key) DO UPDATE SET times = excluded.times, since = excluded.since",
        [(*alert, list(book.turns[alert].times)) for alert in sorted(book.turned)],
    )
