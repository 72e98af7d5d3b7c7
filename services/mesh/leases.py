"""What guardrails says holds at this moment: the active kills, pushed and polled; without news nothing new starts."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

import grpc.aio
import structlog

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc as rpc
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal
from services.mesh.kills import Facts, stopping, words
from services.mesh.loop import every
from services.mesh.streams import Follower

PERIOD: Final = 1.0
POLL_SECONDS: Final = 2.0
# Older than this, what was heard says nothing about now.
FRESH_SECONDS: Final = 5.0
HELD_SECONDS: Final = 2.0
# An answer that was overtaken by a push is at most this much older.
OVERTAKEN_SECONDS: Final = 2.5
log = structlog.get_logger("opsmesh.leases")


class Leases:
    """Keeps the newest lease; `changed` is set whenever it names other kills. `clock` is monotonic, in seconds."""

    def __init__(
        self, stub: "rpc.KillSwitchServiceAsyncStub", instance: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stub = stub
        self._instance = instance
        self._clock = clock
        self._lease = pb.Lease()
        self._heard: float | None = None
        self._withdrawn: float | None = None
        self._kept = 0.0
        self.changed = asyncio.Event()
        self.watch = Follower("leases", self._follow, self._pushed).work

    @property
    def kills(self) -> Sequence[pb.LeasedKill]:
        """Return the active kills, and those released within the last minute."""
        return self._lease.kills

    def admit(self, about: Facts) -> None:
        """Let something begin; raises Refusal LEASE_STALE or KILLED, each to be tried again."""
        age = None if self._heard is None else self._clock() - self._heard
        if self._withdrawn is not None or age is None or age > FRESH_SECONDS:
            told = "a kill that is not stored yet" if self._withdrawn is not None else f"{age or 0.0:.0f} s"
            raise Refusal(error_reason_pb2.ERROR_REASON_LEASE_STALE, retry_after=1.0, age=told)
        if kill := stopping(self.kills, about):
            reason, scope = error_reason_pb2.ERROR_REASON_KILLED, words(kill.scope)
            raise Refusal(reason, retry_after=HELD_SECONDS, kill_id=kill.kill_id, scope=scope)

    async def poll(self, stop: asyncio.Event) -> None:
        """Ask every second until `stop`: the stream's signs of life are too far apart."""
        await every(stop, PERIOD, self._ask)

    async def _ask(self) -> None:
        sent = self._clock()
        try:
            answer = await self._stub.PollLease(pb.PollLeaseRequest(instance=self._instance), timeout=POLL_SECONDS)
        except grpc.aio.AioRpcError as error:
            log.debug("no lease", code=error.code().name)
            return
        if self._withdrawn is not None and sent > self._withdrawn:
            self._withdrawn = None
        self._take(answer.lease, sent)

    def _follow(self) -> object:
        return self._stub.WatchLease(pb.WatchLeaseRequest(instance=self._instance))

    def _pushed(self, message: pb.WatchLeaseResponse) -> None:
        """Believe a pushed lease at once; one that is withdrawn stops every start until a newer poll is answered."""
        if message.lease.withdrawn:
            log.error("lease withdrawn: guardrails holds a kill that it could not store")
            self._withdrawn = self._clock()
            return
        self._take(message.lease, self._clock())

    def _take(self, lease: pb.Lease, heard: float) -> None:
        """Keep the newer of two leases, by the clock of guardrails' database; a clock that was set back counts anew."""
        self._heard = max(heard, self._heard or heard)
        older = lease.lease_time.ToNanoseconds() < self._lease.lease_time.ToNanoseconds()
        if older and heard - self._kept < OVERTAKEN_SECONDS:
            return
        before, self._lease, self._kept = self._lease, lease, heard
        if list(before.kills) != list(lease.kills):
            self.changed.set()
