"""Senders beside each other at a whole mesh: single alerts, batches, signed and unsigned, mixed; and a noisy one.

The calm sender posts single alerts at a steady rate, each of another cause; how long each takes until it is an
incident is what somebody sees who looks at the store all the time.
"""

import asyncio
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import asyncpg
import yaml

from services.local.demo import DEPLOY
from tests.bench.quiet import settle
from tests.bench.sending import Seen, lane, post, together
from tests.bench.storm import alert, notification
from tests.bench.table import Row, percentile
from tests.flows.world import World, connected, running_mesh, until

SECONDS: Final = 3.0
CONNECTIONS: Final = 64
A_BATCH: Final = 50
SINGLES: Final = 4000
BATCHES: Final = 500
ROUNDS: Final = 3
CALM_RATE: Final = 50.0
NOISY_SECONDS: Final = 10.0
QUOTA: Final = 100
NOISE: Final = 10 * QUOTA
SLOWER_MAX: Final = 2.0
LOOK_SECONDS: Final = 0.005
SOURCES: Final = (
    {"source": "signed", "parser": "alertmanager", "hmac_github": {}},
    {"source": "calm", "parser": "alertmanager", "bearer": {}},
    {"source": "limited", "parser": "alertmanager", "bearer": {}, "quota": {"per_second": QUOTA, "burst": QUOTA}},
)


@dataclass(frozen=True, slots=True)
class Calm:
    """What the calm sender saw, and the milliseconds from each 202's delivery to its incident."""

    seen: Seen
    recorded: Sequence[float]


class Crowd:
    """The senders and the mesh they post to."""

    def __init__(self, world: World, folder: Path) -> None:
        self._world, self._folder = world, folder
        self._cause = 1000
        self.hooks: Mapping[str, Mapping[str, str]] = world.endpoints["webhooks"]

    def bodies(self, count: int, size: int, *, causes: int = 1) -> list[bytes]:
        """Return notifications of alerts that nobody has told yet."""
        self._cause += causes
        return [
            notification([alert(self._cause - at % causes, at * size + number) for number in range(size)])
            for at in range(count)
        ]

    def order(self, name: str, source: str, bodies: Sequence[bytes], **how: Any) -> dict[str, Any]:
        """Return the order for one lane."""
        return lane(self._folder / name, self.hooks[source], bodies, **how)

    async def send(self, name: str, **orders: Mapping[str, Any]) -> dict[str, Seen]:
        """Post, and wait until all has its rows."""
        return await post(self._folder / f"{name}.json", orders)

    async def recorded(self) -> None:
        """Wait until nothing new gets its row."""
        last = -1

        async def still() -> bool:
            nonlocal last
            count = await self._world.value("SELECT count(*) FROM ingest.signals")
            before, last = last, count
            return bool(count == before)

        await until(still, "the rows", 60, 1.0)

    async def calm(self, noise: Mapping[str, Any] | None = None) -> tuple[Calm, Seen | None]:
        """Let the calm sender post, with another one's noise or alone."""
        count = int(CALM_RATE * NOISY_SECONDS)
        bodies = self.bodies(count, 1, causes=count)
        order = self.order("calm", "calm", bodies, connections=8, rate=CALM_RATE)
        waits: dict[str, float] = {}
        looking = asyncio.create_task(self._look(count, waits))
        loud = asyncio.create_task(self.send("noise", noise=noise)) if noise else None
        if loud:
            # The noise has begun when the calm sender does.
            await settle(1.0)
        seen = (await self.send("calm", calm=order))["calm"]
        await asyncio.wait_for(looking, 60)
        heard = (await loud)["noise"] if loud else None
        await self.recorded()
        return Calm(seen, list(waits.values())), heard

    async def _look(self, count: int, waits: dict[str, float]) -> None:
        """See each incident of the calm sender as it appears; milliseconds since its delivery came in."""
        connection = await asyncpg.connect(self._world.endpoints["postgres"])
        try:
            known = {row[0] for row in await connection.fetch(FOUND, [])}
            while len(waits) < count:
                for row in await connection.fetch(FOUND, list(known)):
                    waits[row[0]] = 1000 * (time.time() - row[1])
                    known.add(row[0])
                await settle(LOOK_SECONDS)
        finally:
            await connection.close()


FOUND: Final = (
    "SELECT i.incident_id::text, extract(epoch FROM s.receive_time)::float8 FROM ingest.incidents i "
    "JOIN ingest.signals s USING (incident_id) WHERE i.source = 'calm' AND i.incident_id <> ALL ($1::uuid[])"
)


def lay_out(config: Path) -> None:
    """Write the configuration that ships, with more senders."""
    shutil.copytree(DEPLOY, config, ignore=shutil.ignore_patterns("demo"))
    content = yaml.safe_load((config / "sources.yaml").read_text(encoding="utf-8"))
    content["sources"] += SOURCES
    (config / "sources.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


async def rows(folder: Path) -> list[Row]:
    """Measure the kinds of senders side by side, then a calm one alone and beside a noisy one."""
    lay_out(folder / "config")
    async with (
        running_mesh(folder / "mesh", folder / "config", folder / "up.log") as mesh,
        connected(mesh, {}) as world,
    ):
        crowd = Crowd(world, folder)
        return [*await kinds(crowd), *await fairness(crowd)]


async def kinds(crowd: Crowd) -> list[Row]:
    """Measure single alerts, signed ones, batches, and all of them mixed, in rounds."""
    found: dict[str, list[Seen]] = {"single": [], "signed": [], "batch": [], "mixed": []}
    await crowd.send("warm", warm=crowd.order("warm", "alertmanager", crowd.bodies(SINGLES, 1), **whole(CONNECTIONS)))
    await crowd.recorded()
    for _ in range(ROUNDS):
        for name, source, count, size in (
            ("single", "alertmanager", SINGLES, 1),
            ("signed", "signed", SINGLES, 1),
            ("batch", "alertmanager", BATCHES, A_BATCH),
        ):
            order = crowd.order(name, source, crowd.bodies(count, size), **whole(CONNECTIONS))
            found[name].append((await crowd.send(name, one=order))["one"])
            await crowd.recorded()
        mixed = {
            "unsigned": crowd.order("unsigned", "alertmanager", crowd.bodies(SINGLES, 1), **whole(16)),
            "basic": crowd.order("basic", "grafana", crowd.bodies(SINGLES, 1), **whole(16)),
            "signed": crowd.order("signed", "signed", crowd.bodies(SINGLES, 1), **whole(16)),
            "batches": crowd.order("batches", "calm", crowd.bodies(BATCHES, A_BATCH), **whole(16)),
        }
        lanes = await crowd.send("mixed", **mixed)
        found["mixed"].append(together(list(lanes.values())))
        await crowd.recorded()
    single, names = (
        found["single"],
        {"signed": "signed", "batch": f"of {A_BATCH} alerts", "mixed": "four senders mixed"},
    )
    made = [kind_row("POST of single alerts, bearer", single, single, 1)]
    for name, words in names.items():
        made.append(kind_row(f"  {words}", found[name], single, A_BATCH if name == "batch" else 1))
    return made


def whole(connections: int) -> dict[str, Any]:
    """Return how a lane posts as quickly as it can for some seconds."""
    return {"connections": connections, "seconds": SECONDS}


def kind_row(what: str, found: Sequence[Seen], single: Sequence[Seen], size: int) -> Row:
    """Return the rate of a kind of senders, beside that of single alerts in the same rounds."""
    ratio = median(size * ours.rate / theirs.rate for ours, theirs in zip(found, single, strict=True))
    ours, theirs = (sorted(side, key=lambda one: one.rate)[len(side) // 2] for side in (found, single))
    turned = sum(one.turned_away for one in found)
    alerts = "" if size == 1 else f" ({size * ours.rate:,.0f} alerts/s)"
    compared = "" if found is single else f"single alerts: {theirs.told}"
    return Row(what, f"{ours.told}{alerts}; {turned} not 202", compared, None if found is single else ratio)


async def fairness(crowd: Crowd) -> list[Row]:
    """Let a calm sender post alone, beside one at ten times its quota, and beside one as quick as it can."""
    seconds = NOISY_SECONDS + 3
    alone, _ = await crowd.calm()
    limited = crowd.bodies(int(NOISE * seconds), 1)
    order = crowd.order("noise", "limited", limited, connections=32, rate=NOISE, seconds=seconds, insists=False)
    above = await crowd.calm(order)
    order = crowd.order("noise", "alertmanager", crowd.bodies(40_000, 1), connections=32, seconds=seconds)
    below = await crowd.calm(order)
    return [
        *calm_rows(f"one at {NOISE}/s, ten times its quota", alone, *above),
        *calm_rows("one without a quota, 32 connections at full speed", alone, *below),
    ]


def calm_rows(what: str, alone: Calm, beside: Calm, heard: Seen | None) -> list[Row]:
    """Return what a calm sender noticed of a noisy one."""
    noise = f"; the noise: {heard.rate:,.0f}/s accepted, {heard.turned_away:,} refused" if heard else ""
    made = []
    for name, ours, theirs, more in (
        ("POST", beside.seen.times, alone.seen.times, noise),
        ("until it is an incident", beside.recorded, alone.recorded, ""),
    ):
        ratio = percentile(ours, 99) / percentile(theirs, 99)
        made.append(
            Row(
                f"calm sender beside {what}: {name}",
                f"p50 {percentile(ours, 50):.1f} ms, p99 {percentile(ours, 99):.1f} ms{more}",
                f"alone: p50 {percentile(theirs, 50):.1f} ms, p99 {percentile(theirs, 99):.1f} ms",
                ratio,
                f"<= {SLOWER_MAX:g} (p99)",
                ratio <= SLOWER_MAX,
            )
        )
    return made
