"""Dead letters that people hand in again or throw away."""

from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

import asyncpg
from google.protobuf.message import DecodeError

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from opsmesh.ingest.v1 import letters_pb2, signal_pb2
from services.ingest.letters import DELETE
from services.ingest.mapping import safe_entry_of
from services.ingest.signal import CHAT
from services.ingest.sources import Parser
from services.ingest.stream import Inbox
from services.mesh.postgres import Connection

Result = letters_pb2.DeadLetterResult
READ: Final = (
    "SELECT l.delivery_id, l.source, l.body, l.delivery, l.create_time, d.content_type, d.receive_time "
    "FROM dead_letters l LEFT JOIN deliveries d USING (delivery_id) WHERE l.delivery_id = ANY($1::uuid[]) "
    "ORDER BY l.delivery_id FOR UPDATE OF l"
)
LINE_MAX: Final = 1024
# As many ids as one value of an audit event holds.
IDS_A_VALUE: Final = 27


async def redrive(
    connection: Connection, request: letters_pb2.RedriveDeadLettersRequest, parsers: Mapping[str, Parser], inbox: Inbox
) -> list[Result]:
    """Read dead letters anew; what can be understood now is on the stream before its letter is gone.

    It is handed in as the delivery that it was: whoever hands it in how often, people or its sender, its signals have
    one row each and one effect. Who dies in between leaves both, and the worker that records it drops the letter. What
    cannot be understood stays.
    """
    rows = {str(row["delivery_id"]): row for row in await connection.fetch(READ, _ids(request.delivery_ids))}
    results, contents, gone = [], [], []
    for delivery_id in request.delivery_ids:
        result, content = _again(rows.get(delivery_id.lower()), delivery_id, parsers)
        results.append(result)
        if content:
            contents.append(content)
            gone.append(delivery_id)
    if contents:
        # In this order: what is poison again is put aside after this commit, and not dropped with the old letter.
        await connection.execute(DELETE, _ids(gone))
        await inbox.append(contents)
    return results


async def discard(connection: Connection, delivery_ids: Sequence[str]) -> list[Result]:
    """Throw dead letters away; the rows of their signals stay."""
    gone = {str(row["delivery_id"]) for row in await connection.fetch(DELETE, _ids(delivery_ids))}
    return [
        Result(delivery_id=one, state=Result.STATE_DISCARDED if one.lower() in gone else Result.STATE_NOT_FOUND)
        for one in delivery_ids
    ]


def details(delivery_ids: Sequence[str], reason: str) -> dict[str, str]:
    """Return what the audit keeps of a change to dead letters: why, and every id."""
    parts = range(0, len(delivery_ids), IDS_A_VALUE)
    ids = {f"delivery_ids_{start}": ",".join(delivery_ids[start : start + IDS_A_VALUE]) for start in parts}
    return {"reason": reason} | ids


def _ids(delivery_ids: Sequence[str]) -> list[UUID]:
    return [UUID(one) for one in delivery_ids]


def _again(row: asyncpg.Record | None, delivery_id: str, parsers: Mapping[str, Parser]) -> tuple[Result, bytes]:
    """Return what becomes of one dead letter, and what the stream must hold for it."""
    if row is None:
        return Result(delivery_id=delivery_id, state=Result.STATE_NOT_FOUND), b""
    # What people said in chats is the router's to hand in.
    parse = None if row["source"] == CHAT else parsers.get(row["source"])
    if parse is None:
        return Result(delivery_id=delivery_id, state=Result.STATE_UNKNOWN_SOURCE), b""
    delivery = _delivery(row)
    delivery.delivery_id = str(row["delivery_id"])
    entry = safe_entry_of(delivery, parse)
    if entry.errors:
        errors = [f"{one.field or 'body'}: {one.description}"[:LINE_MAX] for one in entry.errors]
        return Result(delivery_id=delivery_id, state=Result.STATE_MALFORMED, errors=errors), b""
    redriven = Result(delivery_id=delivery_id, state=Result.STATE_REDRIVEN, new_delivery_id=delivery.delivery_id)
    return redriven, entry.SerializeToString()


def _delivery(row: asyncpg.Record) -> pb.Delivery:
    """Return the delivery of a letter as it came; of an old or broken letter what is known of it."""
    try:
        delivery = pb.Delivery.FromString(row["delivery"])
    except DecodeError:
        delivery = pb.Delivery()
    delivery.source, delivery.body = row["source"], row["body"]
    if not delivery.HasField("receive_time"):
        delivery.content_type = row["content_type"] or ""
        delivery.receive_time.FromDatetime(row["receive_time"] or row["create_time"])
        delivery.authenticity.CopyFrom(signal_pb2.Authenticity(method=signal_pb2.Authenticity.METHOD_NONE))
    return delivery
