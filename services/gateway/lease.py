"""The lease without which nothing happens: asked for every 500 ms, believed for 2 s from when it was asked."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import grpc
import structlog

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc as rpc
from opsmesh.type.v1 import error_reason_pb2
from services.gateway import domain
from services.mesh.errors import Refusal
from services.mesh.loop import wait

PERIOD: Final = 0.5
# A poll that takes longer could only bring a lease that is stale on arrival.
POLL_SECONDS: Final = 1.5
log = structlog.get_logger("opsmesh.gateway.lease")


class LeaseKeeper:
    """Keeps the newest lease; `clock` is monotonic, in seconds."""

    def __init__(self, channel: grpc.aio.Channel, instance: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._poll: Callable[..., Awaitable[pb.PollLeaseResponse]] = rpc.KillSwitchServiceStub(channel).PollLease
        self._request = pb.PollLeaseRequest(instance=instance)
        self._clock = clock
        self.lease: domain.Lease | None = None

    async def poll(self) -> None:
        """Ask once; a failure keeps what there is, which goes stale by itself."""
        sent = self._clock()
        try:
            answer = await self._poll(self._request, timeout=POLL_SECONDS)
        except grpc.aio.AioRpcError as error:
            log.debug("no lease", code=error.code().name)
            return
        if self.lease is None or sent >= self.lease.sent:
            self.lease = domain.Lease(answer.lease.policy_set_version, answer.lease.kill_epoch, sent)

    async def follow(self, stop: asyncio.Event) -> None:
        """Ask every 500 ms until `stop`; polls may overlap, so that a lost one does not delay the next."""
        polls: set[asyncio.Task[None]] = set()
        while True:
            task = asyncio.create_task(self.poll())
            polls.add(task)
            task.add_done_callback(polls.discard)
            if await wait(stop, PERIOD):
                break
        for task in polls:
            task.cancel()

    def fresh(self) -> domain.Lease:
        """Return the lease, or refuse when it may not be believed any more."""
        now = self._clock()
        if self.lease is None or not domain.is_fresh(self.lease, now):
            age = domain.lease_age(self.lease, now)
            words = "its whole life" if age is None else f"{age:.1f} s"
            raise Refusal(error_reason_pb2.ERROR_REASON_LEASE_STALE, retry_after=PERIOD, age=words)
        return self.lease

    async def check(self, grant: domain.Grant) -> None:
        """Refuse a grant minted under another policy set or kill state than the lease's; the lease must be fresh."""
        lease = self.fresh()
        if grant.policy_set_version > lease.policy_set_version or grant.kill_epoch > lease.kill_epoch:
            # Published since the last poll: one more poll spares the caller another authorisation.
            await self.poll()
            lease = self.fresh()
        if domain.is_stale(grant, lease):
            raise Refusal(
                error_reason_pb2.ERROR_REASON_GRANT_STALE,
                granted=f"{grant.policy_set_version} (kill epoch {grant.kill_epoch})",
                current=f"{lease.policy_set_version} (kill epoch {lease.kill_epoch})",
            )
