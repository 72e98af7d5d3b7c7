"""The kill switch, measured: from the acknowledgement of Engage to the last effect that started after it.

Real guardrails and gateway, real PostgreSQL. Clients with grants minted before the kill hammer one target each; in
every other round the cable between gateway and guardrails is cut right before Engage. When an effect starts is what
the process manager recorded; a round without one after the acknowledgement counts as the negative time since the last.
"""

import asyncio
import bisect
import math
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc.aio
import httpx
from prometheus_client.parser import text_string_to_metric_families

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc as rpc
from opsmesh.tools.workload.v1 import workload_tool_service_pb2_grpc as workload
from services.gateway.grants import METADATA_KEY
from services.mesh.client import refusal_of
from tests.bench.table import Row, percentile
from tests.gateway.guarded import ENVIRONMENT, RESTART, Guarded, guarded
from tests.stores import running_postgres

ROUNDS: Final = 200
CLIENTS: Final = 4
GRANTS: Final = 250
# A client that was refused so often in a row after the acknowledgement has nothing that could start any more.
REFUSED: Final = 10
ROUND_SECONDS: Final = 20
P99_MAX_MS: Final = 250.0
NEVER_ABOVE: Final = 2.0
EDGES_MS: Final = (0, 10, 25, 50, 100, 250, 500, 1000, 1500, 2000)
SCOPES: Final = (
    pb.KillScope(everything=True),
    pb.KillScope(environment=ENVIRONMENT),
    pb.KillScope(tool=RESTART),
)
WINDOW: Final = "opsmesh_gateway_act_window"


@dataclass
class Found:
    """Seconds: how late the last effect of each round started, and how long each Engage took."""

    late: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    engage: list[float] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    effects: int = 0


class Round:
    """One kill."""

    def __init__(self, house: Guarded, found: Found, epoch: int) -> None:
        self._house = house
        self._found = found
        self._epoch = epoch
        self._acknowledged = False
        self._busy = {target: asyncio.Event() for target in house.targets}

    async def hammer(self, stub: Any, target: str, grants: Sequence[tuple[Any, bytes]]) -> None:
        """Use one grant after the other, each until it is used, until everything is refused."""
        refused = 0
        for request, grant in grants:
            while True:
                try:
                    await stub.RestartWorkload(request, metadata=((METADATA_KEY, grant),), timeout=10)
                except grpc.aio.AioRpcError as error:
                    refusal = refusal_of(error)
                    if refusal is None:
                        raise
                    if self._acknowledged:
                        refused += 1
                        self._found.reasons[refusal.name] += 1
                    if refused >= REFUSED:
                        return
                else:
                    refused = 0
                    self._found.effects += 1
                    self._busy[target].set()
                    break
        raise RuntimeError(f"{len(grants)} grants were not enough for {target}")

    async def run(self, stubs: Sequence[Any], switch: Any, scope: pb.KillScope, *, cut: bool) -> pb.Kill:
        """Hammer, cut or not, engage, and wait until all is refused."""
        house = self._house
        house.recorder.stops.clear()
        grants = {one: [house.grant(one, epoch=self._epoch) for _ in range(GRANTS)] for one in house.targets}
        async with asyncio.timeout(ROUND_SECONDS), asyncio.TaskGroup() as group:
            for stub, target in zip(stubs, house.targets, strict=True):
                group.create_task(self.hammer(stub, target, grants[target]))
            for busy in self._busy.values():
                await busy.wait()
            if cut:
                house.cable.cut()
            asked = time.monotonic()
            order = pb.EngageRequest(request_id=str(uuid.uuid4()), scope=scope, reason="a measurement")
            kill: pb.Kill = (await switch.Engage(order)).kill
            acknowledged = time.monotonic()
            self._acknowledged = True
        house.cable.mend()
        last = max(max(times) for times in house.recorder.stops.values())
        self._found.engage.append(acknowledged - asked)
        self._found.late[cut].append(last - acknowledged)
        return kill


async def measure(house: Guarded, rounds: int) -> Found:
    """Kill so often, every other time with the cable cut, and release after each."""
    found, epoch = Found(), 0
    async with AsyncExitStack() as stack:
        people = [
            rpc.KillSwitchServiceStub(await stack.enter_async_context(house.channel("guardrails", name)))
            for name in ("operator", "approver")
        ]
        stubs = [
            workload.WorkloadToolServiceStub(await stack.enter_async_context(house.channel("gateway", "automation")))
            for _ in house.targets
        ]
        for number in range(rounds):
            scope = SCOPES[number // 2 % len(SCOPES)]
            one = Round(house, found, epoch)
            kill = await one.run(stubs, people[0], scope, cut=number % 2 == 1)
            epoch = kill.epoch
            for person in people[: kill.releasers_needed]:
                order = pb.ReleaseRequest(request_id=str(uuid.uuid4()), kill_id=kill.kill_id, reason="measured")
                kill = (await person.Release(order)).kill
            if kill.state != pb.Kill.STATE_RELEASED:
                raise RuntimeError(f"not released: {kill}")
    return found


async def rows(folder: Path) -> list[Row]:
    """Measure the whole."""
    async with running_postgres(folder / "stores") as database, guarded(folder, database, CLIENTS) as house:
        found = await measure(house, ROUNDS)
        window = await read_window(house.metrics)
    return [
        late_row("kill acknowledged to last effect started, connected", found, cut=False),
        late_row("the same, gateway cut off from guardrails just before", found, cut=True),
        Row(
            "Engage, until it is on disk",
            f"p50 {percentile(found.engage, 50) * 1000:.1f} ms, p99 {percentile(found.engage, 99) * 1000:.1f} ms",
            f"{found.effects} effects done; refused after it: "
            + ", ".join(f"{name} {count}" for name, count in found.reasons.most_common()),
        ),
        window,
    ]


def late_row(what: str, found: Found, *, cut: bool) -> Row:
    """Return how late the last effects were, with their histogram."""
    late = [1000 * one for one in found.late[cut]]
    half, most, worst = percentile(late, 50), percentile(late, 99), max(late)
    met = worst <= 1000 * NEVER_ABOVE and (cut or most < P99_MAX_MS)
    return Row(
        what,
        f"p50 {half:.0f} ms, p99 {most:.0f} ms, max {worst:.0f} ms",
        f"{len(late)} rounds; {histogram(late)}",
        bar=f"never above {NEVER_ABOVE:g} s" + ("" if cut else f", p99 < {P99_MAX_MS:g} ms"),
        met=met,
    )


def histogram(late: Sequence[float]) -> str:
    """Return how many rounds fell between the edges, in milliseconds."""
    counts = Counter(bisect.bisect_left(EDGES_MS, one) for one in late)
    names = ["before", *(f"<={edge}" for edge in EDGES_MS[1:]), f">{EDGES_MS[-1]}"]
    return ", ".join(f"{names[at]}: {counts[at]}" for at in sorted(counts))


async def read_window(address: str) -> Row:
    """Read what the gateway says about the time that no kill can stop."""
    async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
        text = (await client.get(f"http://{address}/metrics")).text
    buckets: list[tuple[float, float]] = []
    worst = 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"{WINDOW}_seconds_bucket":
                buckets.append((float(sample.labels["le"]), sample.value))
            elif sample.name == f"{WINDOW}_max_seconds":
                worst = sample.value
    total = buckets[-1][1]

    def below(share: float) -> str:
        """Return the edge below which so large a share lies."""
        edge = next(edge for edge, count in buckets if count >= share * total)
        return "?" if math.isinf(edge) else f"{edge * 1000:g} ms"

    return Row(
        "residual window: last check until the first request of the tool is sent",
        f"p50 <= {below(0.5)}, p99 <= {below(0.99)}, max {worst * 1000:.2f} ms",
        f"{total:.0f} effects",
    )
