"""The chain and its verifier, in memory."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from opsmesh.audit.v1 import audit_service_pb2 as audit
from services.audit.chain import (
    ZERO_HASH,
    Checkpoints,
    Kind,
    check_checkpoints,
    is_signed,
    link_hash,
    read_checkpoints,
    sign,
    to_line,
    verify,
)
from tests.audit.events import event

KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key()
NOW = datetime(2026, 11, 21, tzinfo=UTC)
Rows = list[audit.ExportedEvent]


def chained(count: int) -> Rows:
    """Return an intact log."""
    rows: Rows = []
    previous = ZERO_HASH
    for sequence in range(1, count + 1):
        made = event(note=str(sequence))
        made.sequence = sequence
        made.append_time.FromDatetime(NOW)
        link = link_hash(previous, made)
        rows.append(audit.ExportedEvent(event=made, previous_hash=previous, hash=link))
        previous = link
    return rows


def relink(rows: Rows) -> None:
    """Give numbers and links to rows anew, as an attacker without the signing key would."""
    previous = ZERO_HASH
    for sequence, row in enumerate(rows, 1):
        row.event.sequence = sequence
        row.previous_hash = previous
        row.hash = link_hash(previous, row.event)
        previous = row.hash


def signed(rows: Rows, *sequences: int) -> Checkpoints:
    """Return checkpoints of some rows."""
    lines = [to_line(sign(KEY, number, rows[number - 1].hash, NOW)) for number in sequences]
    return check_checkpoints(lines, PUBLIC)


def test_an_intact_log_has_no_findings() -> None:
    """What was appended in order and signed verifies, and the report says how far and how old."""
    rows = chained(20)
    report = verify(rows, signed(rows, 5, 15), NOW + timedelta(seconds=4))
    assert report.intact
    assert (report.events, report.head, report.checkpoints, report.covered) == (20, 20, 2, 15)
    assert report.checkpoint_age == 4


def edit(rows: Rows) -> None:
    """Change a column."""
    rows[6].event.target = "svc:production/checkout"


def delete(rows: Rows) -> None:
    """Remove a row."""
    del rows[6]


def delete_first(rows: Rows) -> None:
    """Remove the beginning."""
    del rows[0]


def truncate(rows: Rows) -> None:
    """Cut the end off."""
    del rows[12:]


def reorder(rows: Rows) -> None:
    """Give two rows in the wrong order."""
    rows[6], rows[7] = rows[7], rows[6]


def swap(rows: Rows) -> None:
    """Let two rows change places."""
    rows[6].event.sequence, rows[7].event.sequence = rows[7].event.sequence, rows[6].event.sequence
    rows[6], rows[7] = rows[7], rows[6]


def insert(rows: Rows) -> None:
    """Put a row of our own into the place of another."""
    made = audit.ExportedEvent(event=event(), previous_hash=rows[6].hash)
    made.event.sequence = 8
    made.hash = link_hash(made.previous_hash, made.event)
    rows[7] = made


def rewrite(rows: Rows) -> None:
    """Change a column and link everything anew."""
    rows[6].event.outcome = audit.AuditEvent.OUTCOME_SUCCEEDED
    relink(rows)


def remove_and_rewrite(rows: Rows) -> None:
    """Remove a row and link everything anew."""
    del rows[6]
    relink(rows)


@pytest.mark.parametrize(
    ("attack", "kind"),
    [
        (edit, Kind.EDITED),
        (delete, Kind.DELETED),
        (delete_first, Kind.DELETED),
        (truncate, Kind.TRUNCATED),
        (reorder, Kind.REORDERED),
        (swap, Kind.EDITED),
        (insert, Kind.RELINKED),
        (rewrite, Kind.REWRITTEN),
        (remove_and_rewrite, Kind.TRUNCATED),
    ],
)
def test_every_attack_is_found(attack: Callable[[Rows], None], kind: Kind) -> None:
    """A verifier with checkpoints names each way of changing the past."""
    rows = chained(20)
    checkpoints = signed(rows, 20)
    attack(rows)
    assert kind in {finding.kind for finding in verify(rows, checkpoints, NOW).findings}


def test_every_field_is_covered() -> None:
    """No field of an event can change without its hash."""
    rows = chained(1)
    for field in audit.AuditEvent.DESCRIPTOR.fields:
        changed = audit.ExportedEvent()
        changed.CopyFrom(rows[0])
        if field.name == "details":
            changed.event.details["note"] = "another"
        elif field.message_type:
            getattr(changed.event, field.name).seconds += 1
        elif field.type == field.TYPE_STRING:
            setattr(changed.event, field.name, getattr(changed.event, field.name) + "x")
        else:
            setattr(changed.event, field.name, getattr(changed.event, field.name) + 1)
        assert not verify([changed], Checkpoints(), NOW).intact, field.name


def test_a_checkpoint_of_another_key_does_not_count() -> None:
    """Who rewrites the log cannot sign for it."""
    checkpoint = sign(Ed25519PrivateKey.generate(), 1, ZERO_HASH, NOW)
    assert not is_signed(PUBLIC, checkpoint)
    (finding,) = check_checkpoints([to_line(checkpoint)], PUBLIC).findings
    assert finding.kind is Kind.BAD_CHECKPOINT


@pytest.mark.parametrize("change", [{"sequence": 3}, {"hash": b"1" * 32}])
def test_every_signed_field_is_covered(change: dict[str, int | bytes]) -> None:
    """An edited checkpoint is not signed any more."""
    checkpoint = sign(KEY, 2, ZERO_HASH, NOW)
    for name, value in change.items():
        setattr(checkpoint, name, value)
    assert not is_signed(PUBLIC, checkpoint)


def test_contradicting_checkpoints_are_a_fork() -> None:
    """Two branches cannot both have been the log: another hash at a sequence, or a head that goes back."""
    other = to_line(sign(KEY, 5, b"2" * 32, NOW))
    same = check_checkpoints([to_line(sign(KEY, 5, ZERO_HASH, NOW)), other], PUBLIC)
    back = check_checkpoints([to_line(sign(KEY, 9, ZERO_HASH, NOW)), other], PUBLIC)
    assert [finding.kind for finding in (*same.findings, *back.findings)] == [Kind.FORKED, Kind.FORKED]


def test_an_unreadable_line_is_a_finding(tmp_path: Path) -> None:
    """A damaged checkpoint file is not silently a shorter one."""
    file = tmp_path / "checkpoints.jsonl"
    file.write_bytes(b'{"sequence": \n' + to_line(sign(KEY, 1, ZERO_HASH, NOW)))
    assert [finding.kind for finding in read_checkpoints(file, PUBLIC).findings] == [Kind.BAD_CHECKPOINT]


def test_a_log_without_checkpoints_soon_proves_nothing(tmp_path: Path) -> None:
    """A removed checkpoint file is found, unless the log has just begun."""
    rows = chained(3)
    nothing = read_checkpoints(tmp_path / "missing", PUBLIC)
    assert verify(rows, nothing, NOW + timedelta(seconds=5)).intact
    late = verify(rows, nothing, NOW + timedelta(hours=1))
    assert [finding.kind for finding in late.findings] == [Kind.NO_CHECKPOINT]


def test_findings_are_bounded() -> None:
    """A thousand broken rows are counted, a hundred are told."""
    rows = chained(1000)
    for row in rows:
        row.event.actor = "nobody"
    report = verify(rows, Checkpoints(), NOW)
    assert report.finding_count == 1000
    assert len(report.findings) == 100
