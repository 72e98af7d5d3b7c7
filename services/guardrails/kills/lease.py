"""Leases: what holds now, read from the database for every poll; followers hear of a change at once."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, Final

import structlog

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from opsmesh.type.v1 import error_reason_pb2
from services.guardrails.kills import store as kill_store
from services.guardrails.kills.file import KillFile
from services.guardrails.kills.store import Lease
from services.mesh import kills
from services.mesh.errors import Refusal, unavailable
from services.mesh.postgres import ABSENT, Pool

# Another replica may have published or engaged: look at least this often, in seconds.
LOOK_SECONDS: Final = 0.5
REPEAT_SECONDS: Final = 10.0
log = structlog.get_logger("opsmesh.guardrails.lease")


class LeaseBoard:
    """Reads leases through a pool that judgements do not use; `clock` is monotonic, in seconds."""

    def __init__(self, pool: Pool, file: KillFile, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._file = file
        self._clock = clock
        self._changed = asyncio.Event()
        self._known: Lease | None = None

    def changed(self) -> None:
        """Let the followers of this process look now."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def read(self) -> Lease:
        """Read what holds now; refuse while a kill waits in the file, because no scope of it is in force elsewhere."""
        for order in self._file.orders:
            scope = kills.words(order.scope)
            raise Refusal(error_reason_pb2.ERROR_REASON_KILLED, kill_id=str(order.kill_id), scope=scope)
        lease = await kill_store.read_lease(self._pool)
        # Read before it was engaged: what was true then is no lease now.
        if self._file.orders:
            return await self.read()
        self._known = lease
        return lease

    async def follow(self) -> AsyncIterator[Lease]:
        """Yield what holds at once, then at every change and at least every 10 s, until the caller leaves.

        A database that goes away later ends nothing: whoever follows must still hear of a kill.
        """
        known: object = None
        told = 0.0
        while True:
            changed = self._changed
            lease = await self._look(changed, must=known is None)
            if lease:
                state = (lease.policy_set_version, lease.kill_epoch, lease.withdrawn, _named(lease))
                if state != known or self._clock() - told >= REPEAT_SECONDS:
                    known, told = state, self._clock()
                    yield lease
            await _first(changed, None, LOOK_SECONDS)

    async def _look(self, changed: asyncio.Event, *, must: bool) -> Lease | None:
        """Return what holds; None when the database does not say, or something changed before it did."""
        if self._file.orders:
            return self._withdrawn()
        reading = asyncio.ensure_future(self.read())
        # Where nobody waits for it any more, nobody hears of its failure either.
        reading.add_done_callback(lambda done: done.cancelled() or done.exception())
        await _first(changed, reading, None)
        if not reading.done():
            # What it would say is from before the change; it ends by itself.
            return None
        error = reading.exception()
        if error is None:
            return reading.result()
        if must or not _is_absence(error):
            raise error
        log.debug("no lease to tell", error=repr(error))
        return None

    def _withdrawn(self) -> Lease:
        """Return the lease that stops everything, with the kills that cannot be stored yet."""
        known = self._known
        epoch = known.kill_epoch + 1 if known else 1
        waiting = [pb.LeasedKill(kill_id=str(one.kill_id), scope=one.scope, epoch=epoch) for one in self._file.orders]
        last = known or Lease(0, 0, self._file.orders[-1].engage_time)
        return replace(last, kills=(*last.kills, *waiting), withdrawn=True)


def _named(lease: Lease) -> tuple[tuple[str, bool], ...]:
    """Return the kills of a lease, as far as followers must hear of a change."""
    return tuple((kill.kill_id, kill.released) for kill in lease.kills)


def _is_absence(error: BaseException) -> bool:
    """Say whether an error only means that no lease can be told now."""
    return isinstance(error, Refusal | ABSENT) or (isinstance(error, Exception) and unavailable(error) is not None)


async def _first(changed: asyncio.Event, other: "asyncio.Future[Lease] | None", seconds: float | None) -> None:
    """Wait for a change, or for `other`, at most so long."""
    waiting = asyncio.ensure_future(changed.wait())
    both: set[asyncio.Future[Any]] = {waiting, other} if other else {waiting}
    try:
        await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
