"""Rows of the store as messages of the IDL, and as many of them as an answer can carry."""

from collections.abc import Sequence
from typing import Final, TypeVar

import asyncpg
from google.protobuf.message import Message

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from opsmesh.ingest.v1 import signal_pb2
from services.ingest.domain import State

ANSWER_BYTES: Final = 3 * 1024 * 1024
SIGNAL_COLUMNS: Final = "signal_id, delivery_id, index, source, disposition, record_time, signal"
RECORD_COLUMNS: Final = f"{SIGNAL_COLUMNS}, incident_id"
M = TypeVar("M", bound=Message)


def fit(messages: Sequence[M], room: int = ANSWER_BYTES) -> list[M]:
    """Return as many messages, at least one, as fit into an answer."""
    kept: list[M] = []
    for one in messages:
        room -= one.ByteSize() + 8
        if room < 0 and kept:
            break
        kept.append(one)
    return kept


def incident_of(row: asyncpg.Record) -> pb.Incident:
    """Return a row as the IDL's incident."""
    incident = pb.Incident.FromString(row["snapshot"])
    incident.incident_id = str(row["incident_id"])
    incident.state = pb.Incident.State.ValueType(State[row["state"]])
    for name in ("state_detail", "source", "correlation_key", "firing", "signal_count", "duplicate_count"):
        setattr(incident, name, row[name])
    for name in ("alert_count", "flapping", "correlation_rule_id", "sealed"):
        setattr(incident, name, row[name])
    for name in ("revision", "decision_id", "execution_id"):
        setattr(incident, name, row[name])
    incident.started_rule_ids.extend(row["started_rule_ids"])
    incident.age_seconds = max(0, row["age"])
    incident.open_time.FromDatetime(row["open_time"])
    incident.update_time.FromDatetime(row["update_time"])
    if row["flapping"] and row["calm_time"]:
        incident.calm_time.FromDatetime(row["calm_time"])
    if row["expire_time"]:
        incident.expire_time.FromDatetime(row["expire_time"])
    if row["resolve_time"]:
        incident.resolve_time.FromDatetime(row["resolve_time"])
    return incident


def record_of(row: asyncpg.Record) -> signal_pb2.SignalRecord:
    """Return a row as the IDL's record of a signal: without its incident; what was not understood has its ids.

    The row has SIGNAL_COLUMNS.
    """
    disposition = signal_pb2.SignalRecord.Disposition.Value(f"DISPOSITION_{row['disposition']}")
    signal = signal_pb2.Signal.FromString(row["signal"])
    signal.signal_id, signal.delivery_id = str(row["signal_id"]), str(row["delivery_id"])
    signal.index, signal.source = row["index"], row["source"]
    found = signal_pb2.SignalRecord(signal=signal, disposition=disposition)
    found.record_time.FromDatetime(row["record_time"])
    return found


def letter_of(row: asyncpg.Record) -> pb.DeadLetter:
    """Return a row as the IDL's dead letter."""
    found = pb.DeadLetter(
        delivery_id=str(row["delivery_id"]),
        source=row["source"],
        reason=row["reason"],
        delivery_count=row["delivery_count"],
        body=row["body"],
        body_size=row["body_size"],
    )
    found.create_time.FromDatetime(row["create_time"])
    return found
