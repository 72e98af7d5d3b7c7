"""The lease without which nothing happens: asked for every 500 ms, believed for 1.75 s from when it was asked.

Beside the polls guardrails tells of kills as they come (WatchLease): what it tells applies at once, but only a poll
makes a lease fresh, so that a stream which went silent prolongs nothing.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import grpc
import structlog

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc as rpc
from opsmesh.type.v1 import error_reason_pb2
from services.gateway import domain
from services.mesh import kills
from services.mesh.errors import Refusal
from services.mesh.kills import Facts
from services.mesh.loop import every, wait

PERIOD: Final = 0.5
# A poll that takes longer could only bring a lease that is stale on arrival.
POLL_SECONDS: Final = 1.5
# The stream says something every 10 s; one that is silent for longer is broken.
SILENT_SECONDS: Final = 15.0
# Between two tries to follow.
AGAIN_SECONDS: Final = 0.25
log = structlog.get_logger("opsmesh.gateway.lease")


def clock() -> float:
    """Return seconds of a clock that goes on while the machine sleeps, where there is one."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class LeaseKeeper:
    """Keeps the newest lease and the kills; `changed` is set whenever a kill came or went."""

    def __init__(self, channel: grpc.aio.Channel, instance: str, clock: Callable[[], float] = clock) -> None:
        stub = rpc.KillSwitchServiceStub(channel)
        self._poll: Callable[..., Awaitable[pb.PollLeaseResponse]] = stub.PollLease
        self._watch = stub.WatchLease
        self._instance = instance
        self._clock = clock
        self._kills: dict[str, tuple[pb.LeasedKill, float]] = {}
        self._told = 0.0
        self._withdrawn: float | None = None
        self.lease: domain.Lease | None = None
        self.changed = asyncio.Event()

    @property
    def kills(self) -> list[pb.LeasedKill]:
        """Return the kills known, those released within the last minute included."""
        return [kill for kill, _ in self._kills.values()]

    async def poll(self) -> None:
        """Ask once; a failure keeps what there is, which goes stale by itself."""
        sent = self._clock()
        try:
            answer = await self._poll(pb.PollLeaseRequest(instance=self._instance), timeout=POLL_SECONDS)
        except grpc.aio.AioRpcError as error:
            log.debug("no lease", code=error.code().name)
            return
        if self.lease is None or sent >= self.lease.sent:
            self._hear(answer.lease, sent)

    async def follow(self, stop: asyncio.Event) -> None:
        """Ask every 500 ms until `stop`, and listen; polls may overlap, so that a lost one does not delay the next."""
        tasks: set[asyncio.Task[None]] = {asyncio.create_task(every(stop, AGAIN_SECONDS, self.listen))}
        while True:
            task = asyncio.create_task(self.poll())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            if await wait(stop, PERIOD):
                break
        for task in tasks:
            task.cancel()

    async def listen(self) -> None:
        """Follow what guardrails tells, until it ends or falls silent."""
        call = self._watch(pb.WatchLeaseRequest(instance=self._instance))
        told = aiter(call)
        try:
            while True:
                async with asyncio.timeout(SILENT_SECONDS):
                    answer = await anext(told)
                self._hear(answer.lease, None)
        except (grpc.aio.AioRpcError, StopAsyncIteration, TimeoutError) as error:
            log.debug("not following", error=repr(error))
        finally:
            call.cancel()

    def _hear(self, told: pb.Lease, sent: float | None) -> None:
        """Take over what a poll sent at `sent`, or else the stream, has told: neither undoes what came after it."""
        now = self._clock()
        known = {
            one: (kill, heard)
            for one, (kill, heard) in self._kills.items()
            if (kill.epoch > told.kill_epoch if sent is None else heard >= sent)
        }
        before = {(one, kill.released) for one, (kill, _) in self._kills.items()}
        self._kills = known | {kill.kill_id: (kill, now) for kill in told.kills}
        if before != {(one, kill.released) for one, (kill, _) in self._kills.items()}:
            self.changed.set()
        version, epoch, lease = told.policy_set_version, told.kill_epoch, self.lease
        if lease and (sent is None or sent <= self._told):
            version, epoch = max(version, lease.policy_set_version), max(epoch, lease.kill_epoch)
        if sent is not None:
            self.lease = domain.Lease(version, epoch, sent)
        elif lease:
            self.lease = replace(lease, policy_set_version=version, kill_epoch=epoch)
        if sent is None:
            self._told = now
        if told.withdrawn:
            self._withdrawn = now
        elif sent is not None and self._withdrawn is not None and sent > self._withdrawn:
            self._withdrawn = None

    def fresh(self) -> domain.Lease:
        """Return the lease, or refuse when it may not be believed any more, or was taken back."""
        now = self._clock()
        if self.lease is None or self._withdrawn is not None or not domain.is_fresh(self.lease, now):
            age = domain.lease_age(self.lease, now) if self._withdrawn is None else now - self._withdrawn
            words = "its whole life" if age is None else f"{age:.1f} s"
            raise Refusal(error_reason_pb2.ERROR_REASON_LEASE_STALE, retry_after=PERIOD, age=words)
        return self.lease

    async def check(self, grant: domain.Minted, facts: Facts) -> None:
        """Refuse what `look` refuses; a grant that knows more than the lease is worth one more poll."""
        lease = self.lease
        held = kills.stopping(self.kills, facts, grant.kill_epoch)
        # Guardrails mints nothing under a kill in scope: it was released since, or it was published or engaged anew.
        if lease and (domain.is_ahead(grant, lease) or (held and held.epoch <= grant.kill_epoch)):
            await self.poll()
        self.look(grant, facts)

    def look(self, grant: domain.Minted, facts: Facts) -> None:
        """Refuse a grant that a kill made void, one of another policy set than the lease's, and all without lease."""
        newer = (kill for kill in self.kills if kill.epoch > grant.kill_epoch)
        # Void for ever, whatever the age of the lease: the caller need not come back.
        if kill := kills.stopping(newer, facts, grant.kill_epoch):
            raise killed(kill)
        lease = self.fresh()
        if kill := kills.stopping(self.kills, facts):
            raise killed(kill)
        if domain.is_stale(grant, lease):
            raise Refusal(
                error_reason_pb2.ERROR_REASON_GRANT_STALE,
                granted=f"{grant.policy_set_version} (kill epoch {grant.kill_epoch})",
                current=f"{lease.policy_set_version} (kill epoch {lease.kill_epoch})",
            )


def about(grant: domain.Grant) -> Facts:
    """Return what a kill may be about, as the grant says it."""
    return kills.facts(
        environment=grant.environment,
        target_id=grant.target_id,
        tool=grant.method,
        playbook_id=grant.playbook_id,
        execution_id=grant.execution_id,
        run_id=grant.run_id,
        ancestors=grant.ancestors,
    )


def about_read(grant: domain.ReadGrant, tool: str, target_id: str) -> Facts:
    """Return what a kill may be about in a read; what names no target reads for all of the grant's."""
    read = {target_id: grant.targets[target_id]} if target_id in grant.targets else grant.targets
    return Facts(
        environments=frozenset(read.values()) - {""},
        targets=frozenset(read),
        tools=frozenset({tool}),
        run_id=grant.run_id,
        ancestors=frozenset(grant.ancestors),
    )


def killed(kill: pb.LeasedKill) -> Refusal:
    """Return the refusal of what a kill stops."""
    return Refusal(error_reason_pb2.ERROR_REASON_KILLED, kill_id=kill.kill_id, scope=kills.words(kill.scope))
