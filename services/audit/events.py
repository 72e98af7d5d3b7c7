"""AuditEvent to columns and back. What is hashed is exactly what the columns give back, so it is made so before."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
from google.protobuf.timestamp_pb2 import Timestamp

from opsmesh.audit.v1 import audit_service_pb2 as audit
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import FieldViolation, Refusal

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# The second before the last of year 9999: asyncpg takes that one's last microsecond for "infinity".
LAST_SECOND: Final = 253_402_300_798
NANOS: Final = 1_000_000_000
NUL: Final = "\0"
TEXTS: Final = (
    "actor",
    "on_behalf_of",
    "action",
    "target",
    "environment",
    "region",
    "incident_id",
    "decision_id",
    "execution_id",
    "step_id",
    "reason",
    "request_id",
    "request_digest",
    "trace_id",
    "writer",
)
COLUMNS: Final = (
    "sequence",
    "event_id",
    "phase",
    "actor",
    "on_behalf_of",
    "action",
    "target",
    "environment",
    "region",
    "incident_id",
    "decision_id",
    "execution_id",
    "step_id",
    "rule_set_version",
    "policy_set_version",
    "outcome",
    "reason",
    "details",
    "request_id",
    "request_digest",
    "trace_id",
    "event_time",
    "append_time",
    "writer",
    "previous_hash",
    "hash",
)


def check_time(stamp: Timestamp, field: str) -> None:
    """Refuse a time that no column can hold."""
    if not 0 <= stamp.seconds <= LAST_SECOND or not 0 <= stamp.nanos < NANOS:
        wrong = FieldViolation(field, "must lie between 1970 and 9999")
        raise Refusal(error_reason_pb2.ERROR_REASON_INVALID_ARGUMENT, violations=[wrong])


def without_nul(text: str) -> str:
    """Return the text as a column can hold it."""
    return text.replace(NUL, "\ufffd")


def from_micros(stamp: Timestamp) -> datetime:
    """Return a timestamp as the database keeps it: microseconds."""
    return EPOCH + timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1000)


def to_stamp(moment: datetime, stamp: Timestamp) -> None:
    """Write `moment` into `stamp` without going through a float.

    What the database calls infinite comes without a zone: it must be read like any other, for the verifier to judge.
    """
    passed = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH
    stamp.seconds = passed.days * 86_400 + passed.seconds
    stamp.nanos = passed.microseconds * 1000


def make_storable(event: audit.AuditEvent, writer: str) -> None:
    """Bring an event of `writer` into the form the columns give back; refuse a time that no column can hold.

    PostgreSQL keeps microseconds and lower-case UUIDs, and no NUL in a text: that becomes U+FFFD.
    """
    check_time(event.event_time, "events[].event_time")
    event.event_time.nanos -= event.event_time.nanos % 1000
    event.event_id = event.event_id.lower()
    event.writer = writer
    event.sequence = 0
    event.ClearField("append_time")
    if b"\0" in event.SerializeToString():
        _replace_nul(event)


def _replace_nul(event: audit.AuditEvent) -> None:
    """Replace NUL in every text of the event."""
    for name in TEXTS:
        setattr(event, name, without_nul(getattr(event, name)))
    details = {without_nul(key): without_nul(text) for key, text in event.details.items()}
    event.details.clear()
    event.details.update(details)


def to_row(event: audit.AuditEvent, append_time: datetime, previous_hash: bytes, link: bytes) -> tuple[Any, ...]:
    """Return the columns of a storable event, in the order of COLUMNS."""
    return (
        event.sequence,
        event.event_id,
        event.phase,
        event.actor,
        event.on_behalf_of,
        event.action,
        event.target,
        event.environment,
        event.region,
        event.incident_id,
        event.decision_id,
        event.execution_id,
        event.step_id,
        event.rule_set_version,
        event.policy_set_version,
        event.outcome,
        event.reason,
        json.dumps(dict(event.details)) if event.details else "{}",
        event.request_id,
        event.request_digest,
        event.trace_id,
        from_micros(event.event_time),
        append_time,
        event.writer,
        previous_hash,
        link,
    )


def from_row(row: asyncpg.Record) -> audit.AuditEvent:
    """Rebuild the event from its columns."""
    event = audit.AuditEvent(
        sequence=row["sequence"],
        event_id=str(row["event_id"]),
        phase=row["phase"],
        actor=row["actor"],
        on_behalf_of=row["on_behalf_of"],
        action=row["action"],
        target=row["target"],
        environment=row["environment"],
        region=row["region"],
        incident_id=row["incident_id"],
        decision_id=row["decision_id"],
        execution_id=row["execution_id"],
        step_id=row["step_id"],
        rule_set_version=row["rule_set_version"],
        policy_set_version=row["policy_set_version"],
        outcome=row["outcome"],
        reason=row["reason"],
        details=_details(row["details"]),
        request_id=row["request_id"],
        request_digest=row["request_digest"],
        trace_id=row["trace_id"],
        writer=row["writer"],
    )
    to_stamp(row["event_time"], event.event_time)
    to_stamp(row["append_time"], event.append_time)
    return event


def _details(column: str) -> dict[str, str]:
    """Read the details; a column that somebody turned into another shape is shown as it is, for the hash to refuse."""
    value = json.loads(column)
    if not isinstance(value, dict):
        return {"": column}
    return {key: text if isinstance(text, str) else json.dumps(text) for key, text in value.items()}
