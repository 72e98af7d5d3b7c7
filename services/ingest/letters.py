"""Dead letters: what was not understood or cannot be processed, kept with its bytes and a row per signal."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from services.ingest.domain import Disposition
from services.ingest.mapping import signal_id_of
from services.mesh.postgres import Connection

REASON_MAX: Final = 1024
# Batches take turns, also those of other replicas: what one opens, the next joins; and who puts aside sees their rows.
LOCK: Final = 0x16E57
DELETE: Final = (
    "DELETE FROM dead_letters WHERE delivery_id IN (SELECT delivery_id FROM dead_letters "
    "WHERE delivery_id = ANY($1::uuid[]) ORDER BY delivery_id FOR UPDATE) RETURNING delivery_id"
)
TURN: Final = "SELECT pg_advisory_xact_lock($1)"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A delivery put aside; `signal_ids` get a row that says so."""

    delivery_id: str
    source: str
    reason: str
    delivery_count: int
    body: bytes
    signal_ids: Sequence[str] = ()
    # A serialised Delivery without its body; empty where it could not be read.
    delivery: bytes = b""


def malformed_letter(entry: pb.StreamEntry) -> DeadLetter:
    """Return the dead letter of a delivery that could not be understood."""
    delivery = entry.delivery
    reason = "; ".join(f"{error.field or 'body'}: {error.description}" for error in entry.errors)
    ids = [signal_id_of(delivery.delivery_id, 0)]
    return DeadLetter(delivery.delivery_id, delivery.source, reason, 1, delivery.body, ids, without_body(delivery))


def without_body(delivery: pb.Delivery) -> bytes:
    """Return a delivery as it came, but for its body, which is kept apart."""
    kept = pb.Delivery()
    kept.CopyFrom(delivery)
    kept.ClearField("body")
    return kept.SerializeToString()


async def no_longer(connection: Connection, delivery_ids: Iterable[str]) -> None:
    """Drop the letters of deliveries that have their rows now; in order, for people may discard the same ones."""
    await connection.execute(DELETE, [UUID(one) for one in delivery_ids])


async def put_aside(connection: Connection, letters: Sequence[DeadLetter]) -> None:
    """Keep dead letters, and give their signals a row that says so where they have none yet.

    What has all its rows is no dead letter, however often it was handed out since: only its acknowledgement was lost.
    """
    if not letters:
        return
    await connection.execute(TURN, LOCK)
    sql = "SELECT signal_id FROM signals WHERE signal_id = ANY($1::uuid[]) AND disposition <> $2"
    ids = [UUID(signal_id) for one in letters for signal_id in one.signal_ids]
    rows = await connection.fetch(sql, ids, Disposition.DEAD_LETTER.name)
    known = {str(row["signal_id"]) for row in rows}
    letters = [one for one in letters if not one.signal_ids or not known.issuperset(one.signal_ids)]
    await connection.executemany(
        "INSERT INTO dead_letters (delivery_id, source, reason, delivery_count, body, delivery) "
        "VALUES ($1, $2, $3, $4, $5, $6) "
        "ON CONFLICT DO NOTHING",
        [
            (UUID(one.delivery_id), one.source, one.reason[:REASON_MAX], one.delivery_count, one.body, one.delivery)
            for one in letters
        ],
    )
    await connection.executemany(
        "INSERT INTO signals (signal_id, delivery_id, index, source, dedup_key, event_key, status, severity, "
        "disposition, signal) VALUES ($1, $2, $3, $4, '', '', 'UNSPECIFIED', 'UNSPECIFIED', $5, '') "
        "ON CONFLICT DO NOTHING",
        [
            (UUID(signal_id), UUID(one.delivery_id), index, one.source, Disposition.DEAD_LETTER.name)
            for one in letters
            for index, signal_id in enumerate(one.signal_ids)
        ],
    )
