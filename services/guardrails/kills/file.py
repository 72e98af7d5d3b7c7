"""Kills that PostgreSQL could not take: a file of this process, on disk before anybody is told that it is.

While it holds anything no lease is given, so a kill in it stops everything, whatever its scope. What cannot be read in
it counts as a kill of everything: it may be one.
"""

import asyncio
import base64
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import NAMESPACE_OID, UUID, uuid5

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal

NAME: Final = "kills.jsonl"
MODE: Final = 0o600
# More than anybody engages while a database is away, of one scope each and of everything; above it engage everything.
ORDERS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Order:
    """What one person told to stop; `event` is the audit record, serialised, `engage_time` our own clock's."""

    kill_id: UUID
    caller: str
    request_id: UUID
    digest: bytes
    scope: pb.KillScope
    reason: str
    engage_time: datetime
    event: bytes

    @property
    def line(self) -> bytes:
        """Return it as a line of the file."""
        told = {
            "kill_id": str(self.kill_id),
            "caller": self.caller,
            "request_id": str(self.request_id),
            "digest": self.digest.hex(),
            "scope": _text(self.scope.SerializeToString()),
            "reason": self.reason,
            "engage_time": self.engage_time.isoformat(),
            "event": _text(self.event),
        }
        # A line that a crash left torn must not spoil this one.
        return b"\n" + json.dumps(told).encode() + b"\n"

    def kill(self) -> pb.Kill:
        """Return it as a kill that is only in the file."""
        made = pb.Kill(
            kill_id=str(self.kill_id),
            scope=self.scope,
            state=pb.Kill.STATE_ENGAGED,
            reason=self.reason,
            engager=self.caller,
        )
        made.engage_time.FromDatetime(self.engage_time)
        return made


class KillFile:
    """The file and, in memory, what is in it; one process writes it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._writing = asyncio.Lock()
        self._orders: tuple[Order, ...] = _read(self._path)
        self._written = {order.kill_id for order in self._orders}

    @property
    def orders(self) -> tuple[Order, ...]:
        """Return what holds, oldest first; empty almost always."""
        return self._orders

    def place_for(self, order: Order) -> Order:
        """Return what to hold for an order: itself, or, at the limit, the newest of everything, which says the same.

        One scope too many is refused with OVERLOADED; everything is always possible.
        """
        alike = [one for one in self._orders if one.scope.everything == order.scope.everything]
        if len(alike) < ORDERS_MAX or any(one.kill_id == order.kill_id for one in alike):
            return order
        if order.scope.everything:
            return alike[-1]
        limit = f"{ORDERS_MAX} kills; engage everything"
        raise Refusal(error_reason_pb2.ERROR_REASON_OVERLOADED, retry_after=1.0, limit=limit)

    async def append(self, order: Order) -> None:
        """Hold an order from now on, and return once it is on disk; an OSError when it never will be."""
        if all(one.kill_id != order.kill_id for one in self._orders):
            # Held even where the disk refuses it: somebody wants this stopped.
            self._orders = (*self._orders, order)
        async with self._writing:
            if order.kill_id not in self._written:
                await asyncio.to_thread(_append, self._path, order.line)
                self._written.add(order.kill_id)

    async def remove(self, kill_ids: Collection[UUID]) -> None:
        """Forget what PostgreSQL has; a crash before the end only means that it is imported again."""
        async with self._writing:
            left = tuple(one for one in self._orders if one.kill_id not in kill_ids)
            await asyncio.to_thread(_replace, self._path, left)
            self._written = {one.kill_id for one in left}
            self._orders = tuple(one for one in self._orders if one.kill_id not in kill_ids)


def kill_id_of(caller: str, request_id: str, digest: bytes) -> UUID:
    """Return the id of a kill: the same request means the same kill, wherever it is kept."""
    return uuid5(NAMESPACE_OID, f"opsmesh kill {caller} {request_id} {digest.hex()}")


def _append(path: Path, line: bytes) -> None:
    """Write a line and wait for the disk, the folder's included."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, MODE)
    try:
        os.fchmod(descriptor, MODE)
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    _sync(path.parent)


def _replace(path: Path, orders: Collection[Order]) -> None:
    """Leave only these orders; none: no file."""
    if not orders:
        path.unlink(missing_ok=True)
        _sync(path.parent)
        return
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    for order in orders:
        _append(fresh, order.line)
    fresh.replace(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Wait until the disk knows the folder's names."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> tuple[Order, ...]:
    """Return the orders of a file; none when there is no file."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return ()
    return tuple(_order(line) for line in lines if line.strip())


def _order(line: bytes) -> Order:
    """Return the order of a line, or everything where it says nothing that can be read."""
    try:
        told = json.loads(line)
        return Order(
            kill_id=UUID(told["kill_id"]),
            caller=told["caller"],
            request_id=UUID(told["request_id"]),
            digest=bytes.fromhex(told["digest"]),
            scope=pb.KillScope.FromString(base64.b64decode(told["scope"])),
            reason=told["reason"],
            engage_time=datetime.fromisoformat(told["engage_time"]),
            event=base64.b64decode(told["event"]),
        )
    except Exception:  # noqa: BLE001  whatever it was meant to be, somebody may have wanted something stopped
        torn = uuid5(NAMESPACE_OID, f"opsmesh kill {line.hex()}")
        scope, reason = pb.KillScope(everything=True), f"a line of {NAME} could not be read"
        return Order(torn, "service/guardrails", torn, b"", scope, reason, datetime.now(UTC), b"")


def _text(raw: bytes) -> str:
    """Return bytes as they stand in the file."""
    return base64.b64encode(raw).decode()
