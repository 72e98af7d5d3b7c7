"""Holds the real certificates of router, agents and automation, and tries to change what policy did not grant.

Forging needs good grants: they are asked for honestly, as automation, and (but for the few that are used, and counted)
never used as they are. What happened is counted outside: in the process managers' records, in the inbox, in the
gateway's table of effects.
"""

import asyncio
import random
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import grpc.aio

from opsmesh.guardrails.v1 import (
    guardrails_service_pb2,
    guardrails_service_pb2_grpc,
    kill_switch_service_pb2,
    kill_switch_service_pb2_grpc,
    target_lock_service_pb2,
    target_lock_service_pb2_grpc,
)
from services.gateway.grants import METADATA_KEY
from services.mesh.client import refusal_of
from services.mesh.loop import wait
from services.mesh.tools import Tool, find_tool
from tests.faults.forgeries import (
    Attempt,
    Honest,
    changing,
    flipped,
    misused,
    renewed,
    sample,
    tampered,
    without_grant,
)
from tests.faults.forgeries import attempt as attempt_of
from tests.faults.history import WINDOW
from tests.faults.reading import Outside
from tests.faults.world import channel
from tests.flows.payloads import alertmanager, now
from tests.flows.world import RESTART, TILLS, World

THIEVES: Final = ("automation", "router", "agents")
AT_ONCE: Final = 16
ANSWERED: Final = "ANSWERED"
STORED: Final = "used grant, the same call again"
# A grant is believed for 30 s and 5 s of skew.
GRANT_SECONDS: Final = 36
PLAYBOOK: Final = "restart-workload"
HOME: Final = "svc:demo/checkout"
Scope = kill_switch_service_pb2.KillScope
Context = guardrails_service_pb2.ActionContext


@dataclass(slots=True)
class Containment:
    """The thieves, what they have and what became of what they tried."""

    world: World
    outside: Outside
    seed: int
    chance: random.Random = field(init=False)
    incidents: dict[str, str] = field(default_factory=dict)
    locks: dict[str, tuple[str, int]] = field(default_factory=dict)
    answers: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    tried: set[str] = field(default_factory=set)
    used: list[Honest] = field(default_factory=list)
    answered: list[Attempt] = field(default_factory=list)
    inventory: Sequence[str] = ()
    gateways: Mapping[str, Any] = field(default_factory=dict)
    guardrails: Any = None
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    def __post_init__(self) -> None:
        """Make chance reproducible."""
        self.chance = random.Random(self.seed)  # noqa: S311  a reproducible order

    @property
    def calls(self) -> int:
        """Return how many calls were made."""
        return sum(counter.total() for counter in self.answers.values())

    async def attack(self, calls: int) -> None:
        """Try everything until there were at least so many CALLS."""
        async with self._connected():
            targets = [HOME, *(f"svc:demo/{name}" for name in TILLS)]
            self.inventory = [*targets, "svc:production/checkout", "svc:observed/checkout", "svc:demo/unheard-of"]
            for target in targets:
                await self._incident(target)
            expiring = [await self._ask(tool, HOME) for tool in changing() for _ in range(5)]
            granted = time.monotonic()
            await self._low_fence_and_used()
            for scope, target in self._scopes(targets):
                await self._killed(scope, target)
            rounds = 0
            while self.calls < calls:
                await self._round(targets, rounds)
                rounds += 1
            await wait(asyncio.Event(), granted + GRANT_SECONDS - time.monotonic())
            await self._all(attempt_of("expired", one, one.grant) for one in expiring)
            await self._let_go()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        """Open one channel for each certificate."""
        mesh = self.world.mesh
        self.gateways = {name: channel(mesh, "gateway", name) for name in THIEVES}
        self.guardrails = channel(mesh, "guardrails", "automation")
        try:
            yield
        finally:
            for one in (*self.gateways.values(), self.guardrails):
                await one.close()

    async def _incident(self, target: str) -> None:
        """Have an incident about a target that no rule knows: what an honest asker would act for."""
        name = target.rpartition("/")[2]
        signal_id = await self.world.accepted("alertmanager", alertmanager(now(), name="Containment", service=name))
        self.outside.accepted.append(signal_id)
        _, self.incidents[target] = await self.world.recorded(signal_id)

    async def _lock(self, target: str) -> str:
        """Take, or keep, the lock of a target; return the execution in whose name."""
        execution_id = self.locks[target][0] if target in self.locks else str(uuid.uuid4())
        request = target_lock_service_pb2.AcquireLockRequest(
            request_id=str(uuid.uuid4()), target_id=target, execution_id=execution_id
        )
        lock = (await target_lock_service_pb2_grpc.TargetLockServiceStub(self.guardrails).AcquireLock(request)).lock
        self.locks[target] = (execution_id, lock.fence)
        return execution_id

    async def _unlock(self, target: str) -> None:
        """Give a lock back."""
        execution_id, fence = self.locks.pop(target)
        request = target_lock_service_pb2.ReleaseLockRequest(
            request_id=str(uuid.uuid4()), target_id=target, execution_id=execution_id, fence=fence
        )
        await target_lock_service_pb2_grpc.TargetLockServiceStub(self.guardrails).ReleaseLock(request)

    async def _let_go(self) -> None:
        """Give all locks back."""
        for target in list(self.locks):
            await self._unlock(target)

    async def _ask(self, tool: Tool, target: str) -> Honest:
        """Ask honestly for a grant, as automation does, in a lock and for an open incident."""
        request = sample(tool, target)
        context = Context(incident_id=self.incidents[target], step_id="restart", playbook_id=PLAYBOOK)
        context.execution_id = await self._lock(target)
        asked = guardrails_service_pb2.AuthorizeActionRequest(
            method=tool.name, request=request.SerializeToString(), context=context
        )
        stub = guardrails_service_pb2_grpc.GuardrailsServiceStub(self.guardrails)
        answer = await stub.AuthorizeAction(asked)
        assert answer.grant, answer.judgement
        return Honest(tool, tool.request_class.FromString(answer.request), answer.grant)

    async def _use(self, honest: Honest) -> None:
        """Use a grant as it is meant: the only effects there may be."""
        call = self.gateways["automation"].unary_unary(f"/{honest.tool.name}")
        await call(honest.body, metadata=((METADATA_KEY, honest.grant),))
        self.used.append(honest)

    async def _low_fence_and_used(self) -> None:
        """Lose a lock to somebody who acts: what was granted before has a low fence, what they used is used."""
        guarded = [tool for tool in changing() if tool.spec.target_field]
        low = [await self._ask(tool, HOME) for tool in guarded for _ in range(10)]
        await self._unlock(HOME)
        for tool in changing():
            await self._use(await self._ask(tool, HOME))
        await self._all(attempt_of("low fence", one, one.grant) for one in low)
        for one in self.used:
            again = [attempt_of(STORED, one, one.grant) for _ in range(5)]
            await asyncio.gather(*(self._try("automation", attempt) for attempt in again))
            others = [attempt_of("used grant, another request", one, one.grant, renewed(one))] * 10
            await self._all(others)

    def _scopes(self, targets: Sequence[str]) -> list[tuple[Scope, str]]:
        """Return every kind of scope, each with a target that is in it."""
        return [
            (Scope(target_id=targets[1]), targets[1]),
            (Scope(environment="demo"), targets[2]),
            (Scope(tool=RESTART), targets[3]),
            (Scope(playbook_id=PLAYBOOK), targets[4]),
        ]

    async def _killed(self, scope: Scope, target: str) -> None:
        """Use good grants after a kill in whose scope they are, and again after its release."""
        tool = find_tool(RESTART)
        granted = [await self._ask(tool, target) for _ in range(10)]
        mesh = self.world.mesh
        async with channel(mesh, "guardrails", "operator") as guardrails:
            switch = kill_switch_service_pb2_grpc.KillSwitchServiceStub(guardrails)
            engage = kill_switch_service_pb2.EngageRequest(
                request_id=str(uuid.uuid4()), scope=scope, reason="containment"
            )
            kill = (await switch.Engage(engage)).kill
            # what starts within the window is the storm's and the kill switch's own test's to judge
            await wait(asyncio.Event(), WINDOW.total_seconds())
            await self._all(attempt_of(f"killed ({scope.WhichOneof('scope')})", one, one.grant) for one in granted)
            release = kill_switch_service_pb2.ReleaseRequest(
                request_id=str(uuid.uuid4()), kill_id=kill.kill_id, reason="all clear"
            )
            await switch.Release(release)
        await self._all(attempt_of("killed, after the release", one, one.grant) for one in granted)

    async def _round(self, targets: Sequence[str], number: int) -> None:
        """Get new grants, and try everything that can be done to them."""
        target = self.chance.choice(targets)
        good = [await self._ask(tool, target) for tool in changing()]
        for one in good:
            others = [other for other in good if other is not one]
            made = [
                *without_grant(one, self.inventory, self.chance),
                *misused(one, self.inventory, others),
                *tampered(one, self.inventory, others),
            ]
            await self._all(made)
            await self._all(flipped(one, number, self.chance), THIEVES[:1])
            stolen = attempt_of("grant of another caller", one, one.grant)
            await asyncio.gather(*(self._try(thief, stolen) for thief in THIEVES[1:]))

    async def _all(self, attempts: Iterable[Attempt], thieves: Sequence[str] = THIEVES) -> None:
        """Try everything as everybody."""
        await asyncio.gather(*(self._try(thief, one) for one in attempts for thief in thieves))

    async def _try(self, thief: str, attempt: Attempt) -> None:
        """Make one call and count what it was answered."""
        call = self.gateways[thief].unary_unary(f"/{attempt.tool.name}")
        metadata = ((METADATA_KEY, attempt.grant),) if attempt.grant is not None else ()
        async with self._slots:
            try:
                await call(attempt.body, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                refusal = refusal_of(error)
                self.answers[attempt.kind][refusal.name if refusal else error.code().name] += 1
            else:
                self.answers[attempt.kind][ANSWERED] += 1
                if attempt.kind != STORED:
                    self.answered.append(attempt)
        self.tried.add(attempt.request_id)

    @property
    def forged(self) -> set[str]:
        """Return the request ids under which nothing may have happened: all but those used as they were meant."""
        return self.tried - {str(getattr(one.request, "request_id", "")) for one in self.used}

    def table(self) -> list[str]:
        """Return how each kind of attempt was answered, as lines of a Markdown table."""
        lines = ["| attempt | calls | refused with (or answered) |", "|---|---|---|"]
        for kind in sorted(self.answers):
            reasons = ", ".join(f"{name} {count}" for name, count in self.answers[kind].most_common())
            lines.append(f"| {kind} | {self.answers[kind].total()} | {reasons} |")
        return lines
