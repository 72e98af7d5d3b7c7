"""Signed heads of the log, appended to a file outside the database: what a rewritten chain cannot match."""

import asyncio
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from opsmesh.audit.v1 import audit_service_pb2 as audit
from services.audit import chain
from services.audit.domain import Head
from services.mesh.errors import BootError
from services.mesh.keys import private_key

# How many lines at the end of the file are looked at for one that is ours.
LOOK_BACK: Final = 1000
log = structlog.get_logger("opsmesh.audit.checkpoints")


def load_key(path: Path) -> Ed25519PrivateKey:
    """Read the log's signing key, or say how to get one."""
    return private_key("OPSMESH_LOG_KEY_FILE", path)


class CheckpointFile:
    """Signs heads and appends them, one JSON document a line, on disk before it returns. Only grows."""

    def __init__(
        self, key: Ed25519PrivateKey, path: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._key = key
        self._path = path
        self._now = now
        self._lock = asyncio.Lock()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _cut_torn_line(path)
            lines = path.read_bytes().splitlines() if path.exists() else []
        except OSError as error:
            raise BootError(f"OPSMESH_CHECKPOINT_FILE={path} cannot be used: {error}. NEXT: make it writable") from None
        self.last_kept = _newest(lines, key.public_key())
        self._last = self.last_kept

    async def write(self, head: Head) -> audit.Checkpoint:
        """Sign `head` and append it; durable when this returns."""
        async with self._lock:
            checkpoint = chain.sign(self._key, head.sequence, head.hash, self._now())
            await asyncio.to_thread(_append, self._path, chain.to_line(checkpoint))
            self._last = head
            return checkpoint

    async def write_if_changed(self, head: Head) -> None:
        """Write a checkpoint unless the newest one is of this head."""
        if head != self._last:
            await self.write(head)


def _newest(lines: Sequence[bytes], key: Ed25519PublicKey) -> Head | None:
    """Return the newest head this log's key signed; a forged line behind it is told, and does not hide it."""
    for line in reversed(lines[-LOOK_BACK:]):
        good = chain.check_checkpoints([line], key)
        if good.hashes:
            return Head(good.covered, good.hashes[good.covered])
        log.error("a checkpoint is not ours: run opsmesh audit verify", finding=str(good.findings[0]))
    return None


def _append(path: Path, line: bytes) -> None:
    """Append one line in one write and sync it; a new file's name is synced, too."""
    is_new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if os.write(descriptor, line) != len(line):
            os.ftruncate(descriptor, size)
            raise OSError(f"no room for a checkpoint in {path}")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if is_new:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _cut_torn_line(path: Path) -> None:
    """Remove the beginning of a line that a crash cut off: nobody was ever told of that checkpoint."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
