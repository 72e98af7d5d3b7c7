"""What was answered already: a request that comes again is answered as the first one was, and has no second effect.

The memory that counts is PostgreSQL's, which ingest keeps for 30 days: the id of a delivery is a digest of what was
signed, so its signals have the ids of the first ones, and a signal with a row is not recorded again. It outlasts a
restart and holds for all replicas of the bridge, which have no store of their own. What is here is a bounded shortcut,
for a minute: somebody who replays fills no disk, and what ingest has put aside since can be handed in again.
"""

import hashlib
import uuid
from collections import OrderedDict
from dataclasses import dataclass

from services.bridge.senders.proof import Proof

BYTES_MAX = 16 << 20
# Ingest takes longer to put a delivery aside that it cannot record; later it must hear of the same one again.
SECONDS_MAX = 60.0
# What an entry costs beside its answer.
ENTRY_BYTES = 256


def delivery_id_of(source: str, proof: Proof) -> str:
    """Return the id of a delivery: the same again for the same signed content, else a fresh one."""
    if not proof.once or proof.seconds:
        return str(uuid.uuid4())
    return str(uuid.UUID(bytes=key_of(source, proof)[:16], version=5))


def key_of(source: str, proof: Proof) -> bytes:
    """Return what the request is remembered by. A source's name has no NUL, so no two sources share a key."""
    return hashlib.sha256(source.encode() + b"\0" + proof.once).digest()


@dataclass(frozen=True, slots=True)
class _Entry:
    answer: bytes
    until: float


class Answers:
    """The bodies of accepted answers, the oldest forgotten first beyond BYTES_MAX bytes."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()

    def find(self, source: str, proof: Proof, now: float) -> bytes | None:
        """Return the answer to the same request before; NOW is monotonic, in seconds."""
        if not proof.once:
            return None
        key = key_of(source, proof)
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.until < now:
            self._forget(key)
            return None
        return entry.answer

    def keep(self, source: str, proof: Proof, answer: bytes, now: float) -> None:
        """Remember an answer, if the request is one that can be told again."""
        if not proof.once:
            return
        key = key_of(source, proof)
        if key in self._entries:
            self._forget(key)
        self._entries[key] = _Entry(answer, now + (proof.seconds or SECONDS_MAX))
        self._bytes += len(answer) + ENTRY_BYTES
        while self._bytes > self._bytes_max:
            self._forget(next(iter(self._entries)))

    def _forget(self, key: bytes) -> None:
        self._bytes -= len(self._entries.pop(key).answer) + ENTRY_BYTES
