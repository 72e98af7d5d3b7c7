"""A storm: 100,000 alerts of twenty causes within a minute at a whole mesh, and what is left of it in the end.

Four senders: a pair of Alertmanagers that tell each alert twice, Grafana, and a relay that signs each of its single
alerts. Twelve causes are services whose alerts the default rules join; eight are clusters of hosts, joined by a rule.
"""

import asyncio
import json
import random
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from redis.asyncio import Redis

from services.local.demo import DEPLOY
from tests.bench.quiet import settle
from tests.bench.sending import Seen, lane, post, together
from tests.bench.table import Row
from tests.flows.world import World, connected, running_mesh, until

SEED: Final = 20261121
CAUSES: Final = 20
ALERTS: Final = 100_000
# Causes of the pair, of Grafana and of the relay, and how many alerts each of theirs has.
PAIR: Final = (range(10), 3_500)
GRAFANA: Final = (range(10, 16), 3_500)
RELAY: Final = (range(16, 20), 2_250)
BY_HOST: Final = frozenset({0, 1, 2, 3, 10, 11, 16, 17})
GROUPS: Final = (1, 5, 20, 50, 100, 200)
SECONDS: Final = 50.0
CALM_SECONDS: Final = 5.0
CALM_RATE: Final = 100.0
RECORD_SECONDS: Final = 240.0
MEBIBYTE: Final = 1 << 20
WATCHED: Final = ("bridge", "ingest", "router", "valkey")
RELAY_SOURCE: Final = {"source": "relay", "parser": "alertmanager", "hmac_github": {}}
RULE: Final = {"rule_id": "hosts", "equals": {"labels.scope": "cluster"}, "by": ["labels.cluster", "rule"]}


@dataclass
class Weights:
    """The most that each process weighed (Pss, in MiB), and the most that waited in the stream."""

    before: dict[str, float] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)
    waiting: int = 0


def lay_out(config: Path) -> None:
    """Write the configuration that ships, with a sender and a rule more."""
    shutil.copytree(DEPLOY, config, ignore=shutil.ignore_patterns("demo"))
    for name, key, value in (("sources.yaml", "sources", RELAY_SOURCE), ("correlation.yaml", "rules", RULE)):
        content = yaml.safe_load((config / name).read_text(encoding="utf-8"))
        content[key].append(value)
        (config / name).write_text(yaml.safe_dump(content), encoding="utf-8")


def alert(cause: int, number: int) -> dict[str, Any]:
    """Return one alert of a cause: a pod of a service, or a host of a cluster."""
    labels = {"alertname": f"Cause{cause}", "severity": "critical", "team": "shop", "prometheus": "monitoring/k8s"}
    if cause in BY_HOST:
        labels |= {"instance": f"host-{cause}-{number}:9100", "cluster": f"c{cause}", "scope": "cluster"}
    else:
        labels |= {"service": f"shop-{cause}", "env": "production", "replica": f"shop-{cause}-{number:05}"}
    return {
        "status": "firing",
        "labels": labels,
        "annotations": {
            "summary": f"{labels['alertname']} fires",
            "description": "It has not answered for more than five minutes; see the runbook.",
            "runbook_url": f"https://runbooks.example/cause/{cause}",
        },
        "startsAt": f"2026-03-01T10:{number // 60 % 60:02}:{number % 60:02}.123Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "https://prometheus.example/graph?g0.expr=up+%3D%3D+0&g0.tab=1",
        "fingerprint": f"{cause:04x}{number:012x}",
    }


def notification(alerts: Sequence[Mapping[str, Any]], **words: Any) -> bytes:
    """Return the body of a webhook of Alertmanager, version 4."""
    common = {"alertname": alerts[0]["labels"]["alertname"]}
    body = {
        "version": "4",
        "status": "firing",
        "receiver": "opsmesh",
        "groupKey": f'{{}}:{{alertname="{common["alertname"]}"}}',
        "groupLabels": common,
        "commonLabels": common,
        "commonAnnotations": {},
        "externalURL": "https://alertmanager.example",
        "truncatedAlerts": 0,
        "alerts": alerts,
    }
    return json.dumps(body | words).encode()


def groups(chance: random.Random, causes: Sequence[int], count: int, sizes: Sequence[int]) -> Iterator[list[Any]]:
    """Return the alerts of some causes in groups, each of one cause, in an order of their own."""
    made = []
    for cause in causes:
        numbers = list(range(count))
        chance.shuffle(numbers)
        while numbers:
            size = chance.choice(sizes)
            taken, numbers = numbers[:size], numbers[size:]
            made.append([alert(cause, number) for number in taken])
    chance.shuffle(made)
    yield from made


def senders(seed: int) -> dict[str, tuple[str, list[bytes]]]:
    """Return each sender's source and bodies."""
    chance = random.Random(seed)  # noqa: S311  a reproducible storm
    grafana = {"version": "1", "orgId": 1, "state": "alerting", "title": "[FIRING]", "message": "**Firing**"}
    pair = [[notification(one) for one in groups(chance, *PAIR, GROUPS)] for _ in range(2)]
    return {
        "alertmanager-0": ("alertmanager", pair[0]),
        "alertmanager-1": ("alertmanager", pair[1]),
        "grafana": ("grafana", [notification(one, **grafana) for one in groups(chance, *GRAFANA, GROUPS[1:4])]),
        "relay": ("relay", [notification(one) for one in groups(chance, *RELAY, (1,))]),
    }


async def weigh(world: World, weights: Weights) -> None:
    """Weigh the processes and look how much waits, until cancelled."""
    async with Redis.from_url(world.endpoints["redis"]) as observer:
        while True:
            for name in WATCHED:
                process = await asyncio.to_thread(world.process, name)
                if process is not None:
                    found = process.memory_full_info().pss / MEBIBYTE
                    weights.before.setdefault(name, found)
                    weights.peak[name] = max(found, weights.peak.get(name, 0.0))
            waiting = 0
            async for key in observer.scan_iter("signals*"):
                waiting += await observer.xlen(key)
            weights.waiting = max(weights.waiting, waiting)
            await settle(1.0)


@asynccontextmanager
async def weighed(world: World) -> AsyncIterator[Weights]:
    """Weigh meanwhile."""
    weights = Weights()
    task = asyncio.create_task(weigh(world, weights))
    try:
        yield weights
    finally:
        task.cancel()


async def rows(folder: Path) -> list[Row]:
    """Raise the storm and look what it came to."""
    lay_out(folder / "config")
    told = senders(SEED)
    async with (
        running_mesh(folder / "mesh", folder / "config", folder / "up.log") as mesh,
        connected(mesh, {}) as world,
    ):
        hooks = world.endpoints["webhooks"]
        calm = [notification([alert(CAUSES, number)]) for number in range(int(CALM_SECONDS * CALM_RATE))]
        alone = lane(folder / "calm", hooks["relay"], calm, connections=16, rate=CALM_RATE)
        before = (await post(folder / "order", {"calm": alone}))["calm"]
        await recorded(world, len(calm))
        orders = {
            name: lane(folder / name, hooks[source], bodies, connections=16, rate=len(bodies) / SECONDS)
            for name, (source, bodies) in told.items()
        }
        async with weighed(world) as weights:
            began = time.monotonic()
            found = together(list((await post(folder / "order", orders)).values()))
            await recorded(world, len(calm) + ALERTS)
            took = time.monotonic() - began
            await decided(world)
        return [accept_row(found, before), await result_row(world), record_row(found, took), weight_row(weights)]


async def recorded(world: World, count: int) -> None:
    """Wait until so many signals have their rows."""

    async def all_there() -> bool:
        return bool(await world.value("SELECT count(*) FROM ingest.signals") >= count)

    await until(all_there, f"{count} rows", RECORD_SECONDS, 0.25)


async def decided(world: World) -> None:
    """Wait until no incident waits for its decision."""

    async def none_waits() -> bool:
        return not await world.value("SELECT count(*) FROM ingest.incidents WHERE needs_decision")

    await until(none_waits, "every decision")


def accept_row(found: Seen, before: Seen) -> Row:
    """Return how the storm was accepted."""
    posts = sum(found.statuses.values())
    return Row(
        f"storm: {ALERTS:,} alerts of {CAUSES} causes, POST",
        f"{posts:,} posts in {found.seconds:.0f} s, p50 {found.at(50):.1f} ms, p99 {found.at(99):.1f} ms; "
        f"{found.turned_away} not 202",
        f"{CALM_RATE:g} single alerts a second, before it: p50 {before.at(50):.1f} ms, p99 {before.at(99):.1f} ms",
        found.at(99) / before.at(99),
        "within 60 s, all 202",
        found.seconds <= 60 and not found.turned_away,
    )


async def result_row(world: World) -> Row:
    """Return what is left of the storm, the calm before it taken off."""
    where = "WHERE correlation_key NOT LIKE $1"
    (one,) = await world.rows(
        "SELECT count(*) AS incidents, sum(signal_count)::bigint AS signals, sum(duplicate_count)::bigint AS copies, "  # noqa: S608  constants only
        f"sum(alert_count)::bigint AS alerts, max(revision) AS revision FROM ingest.incidents {where}",
        f"%Cause{CAUSES}%",
    )
    routings = await world.value(
        "SELECT count(*) FROM router.decisions d JOIN ingest.incidents i USING (incident_id) "  # noqa: S608  constants only
        f"{where.replace('correlation_key', 'i.correlation_key')}",
        f"%Cause{CAUSES}%",
    )
    letters = await world.value("SELECT count(*) FROM ingest.dead_letters")
    return Row(
        "  what it came to",
        f"{one['incidents']} incidents, {routings} routings, {one['signals']:,} signals on them, "
        f"{ALERTS - one['signals']} lost, {letters} dead letters",
        f"{one['alerts']:,} different alerts, {one['copies']:,} copies of a pair",
        bar=f"{CAUSES} incidents, <= {CAUSES} routings, 0 lost",
        met=one["incidents"] == CAUSES and routings <= CAUSES and one["signals"] == ALERTS and not letters,
    )


def record_row(found: Seen, took: float) -> Row:
    """Return how long the rows took."""
    return Row(
        "  from the first POST until every alert has its row",
        f"{took:.0f} s, {ALERTS / took:,.0f} alerts a second",
        f"the posts: {found.seconds:.0f} s",
        took / found.seconds,
    )


def weight_row(weights: Weights) -> Row:
    """Return what the processes weighed."""
    parts = [f"{name} {weights.peak[name]:.0f} (before {weights.before[name]:.0f})" for name in WATCHED]
    return Row(
        "  memory at its peak (Pss, MB)", ", ".join(parts), f"most deliveries in the stream: {weights.waiting:,}"
    )
