"""Deployments and configuration changes: kept beside the signals they came as, for who looks for a cause."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from opsmesh.ingest.v1 import signal_pb2
from services.ingest.domain import Resolved, SignalFacts
from services.mesh.postgres import Connection, Pool

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


async def known_changes(connection: Connection, facts: Sequence[SignalFacts]) -> set[tuple[str, str]]:
    """Return which of these changes were told before."""
    if not facts:
        return set()
    rows = await connection.fetch(
        "SELECT source, dedup_key FROM changes WHERE (source, dedup_key) IN "
        "(SELECT * FROM unnest($1::text[], $2::text[]))",
        [one.source for one in facts],
        [one.dedup_key for one in facts],
    )
    return {(row["source"], row["dedup_key"]) for row in rows}


async def write_changes(
    connection: Connection, changes: Sequence[tuple[signal_pb2.Signal, Sequence[Resolved]]]
) -> None:
    """Keep changes that were not told before."""
    await connection.executemany(
        "INSERT INTO changes (source, dedup_key, signal_id, target_ids, change_time, signal) "
        "VALUES ($1, $2, $3, $4, $5, $6)",
        [
            (
                signal.source,
                signal.dedup_key,
                UUID(signal.signal_id),
                [one.target_id for one in targets],
                EPOCH + timedelta(microseconds=signal.event_time.ToMicroseconds()),
                signal.SerializeToString(),
            )
            for signal, targets in changes
        ],
    )


async def read_changes(
    pool: Pool, request: pb.ListChangesRequest, size: int, after: tuple[datetime, UUID] | None
) -> list[pb.Change]:
    """Return the changes of a target after a position, newest first, one more than `size` if there are more."""
    rows = await pool.fetch(
        "SELECT signal, target_ids, record_time FROM changes WHERE target_ids @> ARRAY[$1::text] "
        "AND ($2::timestamptz IS NULL OR change_time >= $2) AND ($3::timestamptz IS NULL OR change_time < $3) "
        "AND ($4::timestamptz IS NULL OR (change_time, signal_id) < ($4, $5::uuid)) "
        "ORDER BY change_time DESC, signal_id DESC LIMIT $6",
        request.target_id,
        _moment(request, "start_time"),
        _moment(request, "end_time"),
        *(after or (None, None)),
        size + 1,
    )
    found = []
    for row in rows:
        change = pb.Change(signal=signal_pb2.Signal.FromString(row["signal"]), target_ids=row["target_ids"])
        change.record_time.FromDatetime(row["record_time"])
        found.append(change)
    return found


def _moment(request: pb.ListChangesRequest, name: str) -> datetime | None:
    """Return a bound of a request, None when it has none."""
    bound: Timestamp = getattr(request, name)
    return bound.ToDatetime(UTC) if request.HasField(name) else None  # type: ignore[arg-type]  # a field's name
