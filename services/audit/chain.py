"""The hash chain and its verifier: pure functions, so that a verifier elsewhere needs this file and nothing of ours.

hash = SHA-256(hash of the row before || deterministic serialisation of the AuditEvent as the columns give it).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf import json_format

from opsmesh.audit.v1 import audit_service_pb2 as audit

ZERO_HASH: Final = bytes(32)
FINDINGS_MAX: Final = 100
# A log without any checkpoint proves nothing against a superuser; younger than this it has just begun.
FIRST_CHECKPOINT_SECONDS: Final = 60.0


class Kind(StrEnum):
    """What a verifier can find."""

    EDITED = "edited"  # the row's content is not what was hashed
    DELETED = "deleted"  # rows are missing before a row
    REORDERED = "reordered"  # a row stands before one with a lower sequence
    RELINKED = "relinked"  # a row does not follow the row before it: inserted, swapped or of another branch
    TRUNCATED = "truncated"  # a checkpoint is beyond the last row
    REWRITTEN = "rewritten"  # a checkpoint knows another hash at that sequence
    FORKED = "forked"  # two checkpoints contradict each other
    BAD_CHECKPOINT = "bad checkpoint"  # unreadable or not signed by the log's key
    NO_CHECKPOINT = "no checkpoint"  # nothing outside the database vouches for the log


@dataclass(frozen=True, slots=True)
class Finding:
    """One proof that the log is not what was acknowledged."""

    kind: Kind
    sequence: int
    description: str

    def __str__(self) -> str:
        """Return a line for people."""
        return f"{self.kind} at {self.sequence}: {self.description}"


@dataclass(frozen=True, slots=True)
class Report:
    """What a verification found; `covered` is the newest sequence a checkpoint vouches for, ages are in seconds."""

    events: int
    head: int
    checkpoints: int
    covered: int
    checkpoint_age: float | None
    findings: Sequence[Finding]
    finding_count: int

    @property
    def intact(self) -> bool:
        """Say whether nothing was found."""
        return self.finding_count == 0


def link_hash(previous: bytes, event: audit.AuditEvent) -> bytes:
    """Return the hash of `event` that follows a row with the hash `previous`."""
    return hashlib.sha256(previous + event.SerializeToString(deterministic=True)).digest()


def sign(key: Ed25519PrivateKey, sequence: int, head: bytes, now: datetime) -> audit.Checkpoint:
    """Return the signed head of the log."""
    checkpoint = audit.Checkpoint(sequence=sequence, hash=head)
    checkpoint.sign_time.FromDatetime(now)
    checkpoint.signature = key.sign(_signed_bytes(checkpoint))
    return checkpoint


def is_signed(key: Ed25519PublicKey, checkpoint: audit.Checkpoint) -> bool:
    """Say whether the log's key signed this checkpoint."""
    try:
        key.verify(checkpoint.signature, _signed_bytes(checkpoint))
    except InvalidSignature:
        return False
    return True


def _signed_bytes(checkpoint: audit.Checkpoint) -> bytes:
    """Return what the signature is over: all fields but itself."""
    bare = audit.Checkpoint()
    bare.CopyFrom(checkpoint)
    bare.ClearField("signature")
    return bare.SerializeToString(deterministic=True)


def to_line(checkpoint: audit.Checkpoint) -> bytes:
    """Return a checkpoint as one line of the checkpoint file."""
    return json_format.MessageToJson(checkpoint, preserving_proto_field_name=True, indent=None).encode() + b"\n"


def from_line(line: bytes) -> audit.Checkpoint:
    """Read one line; ValueError when it is none."""
    try:
        return json_format.Parse(line, audit.Checkpoint())
    except json_format.ParseError as error:
        raise ValueError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoint file as far as it holds: good checkpoints by sequence, and what is wrong with the others."""

    hashes: Mapping[int, bytes] = field(default_factory=dict)
    count: int = 0
    last_time: datetime | None = None
    findings: Sequence[Finding] = ()

    @property
    def covered(self) -> int:
        """Return the newest sequence they vouch for."""
        return max(self.hashes, default=0)


def read_checkpoints(path: Path, key: Ed25519PublicKey) -> Checkpoints:
    """Read and check the file; a missing one is empty."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        lines = []
    return check_checkpoints(lines, key)


def check_checkpoints(lines: Iterable[bytes], key: Ed25519PublicKey) -> Checkpoints:
    """Check signatures, and that no checkpoint contradicts an earlier one."""
    hashes: dict[int, bytes] = {}
    findings: list[Finding] = []
    count, newest, last_time = 0, 0, None
    for number, line in enumerate(lines, 1):
        count += 1
        try:
            checkpoint = from_line(line)
        except ValueError as error:
            findings.append(Finding(Kind.BAD_CHECKPOINT, newest, f"line {number} cannot be read: {error}"))
            continue
        sequence = checkpoint.sequence
        if not is_signed(key, checkpoint):
            findings.append(Finding(Kind.BAD_CHECKPOINT, sequence, f"line {number} is not signed by the log's key"))
            continue
        if sequence < newest:
            findings.append(Finding(Kind.FORKED, sequence, f"line {number} goes back from {newest}"))
        elif hashes.get(sequence, checkpoint.hash) != checkpoint.hash:
            findings.append(Finding(Kind.FORKED, sequence, f"line {number} signs another hash than an earlier line"))
        hashes.setdefault(sequence, checkpoint.hash)
        newest = max(newest, sequence)
        last_time = checkpoint.sign_time.ToDatetime(UTC)
    return Checkpoints(hashes, count, last_time, findings)


class Verifier:
    """Checks an export row by row, in the order it comes; `checkpoints` are those kept outside the database."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._findings = list(checkpoints.findings[:FINDINGS_MAX])
        self._count = len(checkpoints.findings)
        self._sequence = 0
        self._hash = ZERO_HASH
        self._events = 0
        self._first_time: datetime | None = None

    def feed(self, events: Iterable[audit.ExportedEvent]) -> None:
        """Check the next rows."""
        known = self._checkpoints.hashes
        for one in events:
            event = one.event
            sequence = event.sequence
            if self._events == 0:
                self._first_time = event.append_time.ToDatetime(UTC)
            if sequence != self._sequence + 1:
                self._misplaced(sequence)
            elif one.previous_hash != self._hash:
                self._add(Kind.RELINKED, sequence, "it does not follow the row before it")
            if link_hash(one.previous_hash, event) != one.hash:
                self._add(Kind.EDITED, sequence, f"its columns are not what was hashed ({event.action})")
            if sequence in known and known[sequence] != one.hash:
                self._add(Kind.REWRITTEN, sequence, "a checkpoint signed another hash here")
            self._events += 1
            self._sequence, self._hash = max(sequence, self._sequence), one.hash

    def finish(self, now: datetime) -> Report:
        """Return the report, once every row was fed."""
        checkpoints = self._checkpoints
        if checkpoints.covered > self._sequence:
            self._add(
                Kind.TRUNCATED,
                self._sequence,
                f"a checkpoint signed sequence {checkpoints.covered}, the log ends at {self._sequence}",
            )
        if not checkpoints.count and self._first_time:
            age = (now - self._first_time).total_seconds()
            if age > FIRST_CHECKPOINT_SECONDS:
                self._add(Kind.NO_CHECKPOINT, self._sequence, f"the log is {age:.0f} s old and nobody vouches for it")
        age_of_last = (now - checkpoints.last_time).total_seconds() if checkpoints.last_time else None
        return Report(
            events=self._events,
            head=self._sequence,
            checkpoints=checkpoints.count,
            covered=checkpoints.covered,
            checkpoint_age=age_of_last,
            findings=tuple(self._findings),
            finding_count=self._count,
        )

    def _misplaced(self, sequence: int) -> None:
        """Say how a row does not come next."""
        if sequence <= self._sequence:
            self._add(Kind.REORDERED, sequence, f"it stands after {self._sequence}")
        else:
            missing = sequence - self._sequence - 1
            self._add(Kind.DELETED, sequence, f"{missing} rows are missing, from {self._sequence + 1}")

    def _add(self, kind: Kind, sequence: int, description: str) -> None:
        """Note a finding; all are counted, the first hundred are kept."""
        self._count += 1
        if len(self._findings) < FINDINGS_MAX:
            self._findings.append(Finding(kind, sequence, description))


def verify(events: Iterable[audit.ExportedEvent], checkpoints: Checkpoints, now: datetime) -> Report:
    """Check a whole export at once."""
    verifier = Verifier(checkpoints)
    verifier.feed(events)
    return verifier.finish(now)
