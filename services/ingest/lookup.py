"""What became of signals: one with the bytes that it came as, or a page of them; never more rows than are shown."""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
from google.protobuf.message import DecodeError

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from opsmesh.ingest.v1 import signal_pb2, signals_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.ingest.domain import Disposition
from services.ingest.rows import ANSWER_BYTES, RECORD_COLUMNS, record_of
from services.mesh.errors import Refusal
from services.mesh.postgres import Pool

BODY_BYTES: Final = 1024 * 1024
DISPOSITIONS: Final = tuple(one.name for one in Disposition)
ONE: Final = """
SELECT s.signal_id, s.delivery_id, s.index, s.source, s.disposition, s.incident_id, s.record_time, s.signal,
    d.delivery_id IS NOT NULL AS kept, d.content_type, d.authenticity, d.verified, d.traceparent, d.receive_time,
    d.headers, l.delivery_id IS NOT NULL AS aside, l.reason, l.delivery_count, l.create_time, l.delivery,
    coalesce(length(d.body), length(l.body)) AS body_size, substring(coalesce(d.body, l.body) FOR $2) AS body
FROM signals s LEFT JOIN deliveries d ON d.delivery_id = s.delivery_id
    LEFT JOIN dead_letters l ON l.delivery_id = s.delivery_id AND s.disposition = 'DEAD_LETTER'
WHERE s.signal_id = $1
"""
# All sources there are, one look into the index for each: there are dozens of them, and millions of signals.
SOURCES: Final = """
WITH RECURSIVE sources AS (
    (SELECT source FROM signals ORDER BY source LIMIT 1)
    UNION ALL
    SELECT (SELECT s.source FROM signals s WHERE s.source > sources.source ORDER BY s.source LIMIT 1)
    FROM sources WHERE sources.source IS NOT NULL
)
"""
NEWEST: Final = "ORDER BY record_time DESC, signal_id DESC"


async def read_signal(pool: Pool, signal_id: str) -> pb.GetSignalResponse:
    """Return a signal with its delivery, and with its dead letter if it is one; a Refusal when there is no row."""
    row = await pool.fetchrow(ONE, UUID(signal_id), BODY_BYTES)
    if row is None:
        raise Refusal(error_reason_pb2.ERROR_REASON_SIGNAL_NOT_FOUND, signal_id=signal_id)
    found = pb.GetSignalResponse(record=_placed(row), body_size=row["body_size"] or 0)
    if row["kept"] or row["aside"]:
        delivery = _recorded(row) if row["kept"] else _put_aside(row)
        delivery.delivery_id, delivery.source = str(row["delivery_id"]), row["source"]
        delivery.body = row["body"][: max(0, ANSWER_BYTES - found.ByteSize())]
        found.delivery.CopyFrom(delivery)
    if row["aside"]:
        letter = found.dead_letter
        letter.delivery_id, letter.source, letter.reason = str(row["delivery_id"]), row["source"], row["reason"]
        letter.delivery_count, letter.body_size = row["delivery_count"], row["body_size"]
        letter.create_time.FromDatetime(row["create_time"])
    return found


def _placed(row: asyncpg.Record) -> signal_pb2.SignalRecord:
    """Return the record of a signal with its incident."""
    found = record_of(row)
    found.incident_id = str(row["incident_id"] or "")
    return found


def _recorded(row: asyncpg.Record) -> pb.Delivery:
    """Return what is known of a delivery that was recorded."""
    delivery = pb.Delivery.FromString(row["headers"])
    delivery.content_type, delivery.traceparent = row["content_type"], row["traceparent"]
    delivery.authenticity.method = signal_pb2.Authenticity.Method.Value(f"METHOD_{row['authenticity']}")
    delivery.authenticity.verified = row["verified"]
    delivery.receive_time.FromDatetime(row["receive_time"])
    return delivery


def _put_aside(row: asyncpg.Record) -> pb.Delivery:
    """Return what is known of a delivery that could not be recorded; nothing where it could not be read."""
    try:
        return pb.Delivery.FromString(row["delivery"])
    except DecodeError:
        return pb.Delivery()


async def list_signals(
    pool: Pool, request: signals_pb2.ListSignalsRequest, size: int, after: tuple[datetime, UUID] | None
) -> list[signal_pb2.SignalRecord]:
    """Return signals after a position, newest first, one more than `size` if there are more."""
    sql, arguments = query(request, size, after)
    return [_placed(row) for row in await pool.fetch(sql, *arguments)]


def query(
    request: signals_pb2.ListSignalsRequest, size: int, after: tuple[datetime, UUID] | None
) -> tuple[str, list[Any]]:
    """Return the statement, and its arguments, that finds a page by an index that is in its order.

    What is asked for a source or a disposition only is looked for in each part of the index that may have it, and the
    newest of these are the page. An incident or a key has not so many signals that the rest could not be left out.
    """
    arguments: list[Any] = []

    def given(value: Any) -> str:
        arguments.append(value)
        return f"${len(arguments)}"

    named = signal_pb2.SignalRecord.Disposition.Name(request.disposition).removeprefix("DISPOSITION_")
    conditions = []
    if request.incident_id:
        conditions.append(f"incident_id = {given(UUID(request.incident_id))}")
    if request.dedup_key:
        conditions.append(f"dedup_key = {given(request.dedup_key)} AND dedup_key <> ''")
    if after:
        conditions.append(f"(record_time, signal_id) < ({given(after[0])}, {given(after[1])})")
    by_part = (request.source or request.disposition) and not (request.incident_id or request.dedup_key)
    if by_part:
        conditions.append("source = part.source AND disposition = part.disposition")
    else:
        if request.source:
            conditions.append(f"source = {given(request.source)}")
        if request.disposition:
            conditions.append(f"disposition = {given(named)}")
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    page = f"SELECT {RECORD_COLUMNS} FROM signals {where}{NEWEST} LIMIT {given(size + 1)}"  # noqa: S608  constants only
    if not by_part:
        return page, arguments
    words = given([named] if request.disposition else list(DISPOSITIONS))
    sources = f"(SELECT {given(request.source)}::text AS source)" if request.source else "sources"
    parts = f"(SELECT source, disposition FROM {sources} AS named, unnest({words}::text[]) AS words (disposition))"  # noqa: S608  the same
    found = f"SELECT found.* FROM {parts} AS part CROSS JOIN LATERAL ({page}) AS found {NEWEST} "  # noqa: S608  the same
    return f"{'' if request.source else SOURCES}{found}LIMIT {given(size + 1)}", arguments
