"""Time of one rule decision in process, with 10, 10,000 and 100,000 rules.

Rules are of six shapes, a third with a pattern or another condition; half of the incidents match a rule, half none.
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.router.domain import Condition, Kind, Outcome, Rule
from services.router.rules import Facts, Index
from tests.bench.table import Row, percentile

SIZES: Final = (10, 10_000, 100_000)
DECISIONS: Final = 20_000
SHAPES: Final = (
    ("labels.alertname",),
    ("labels.alertname", "environment"),
    ("labels.alertname", "labels.service"),
    ("labels.alertname", "labels.service", "environment"),
    ("source", "labels.alertname"),
    ("target",),
)
P99_MAX_MS: Final = 5.0
GROWTH_MAX: Final = 1.5


def make_rules(count: int, chance: random.Random) -> Iterator[Rule]:
    """Yield rules of the six shapes in turn."""
    for number in range(count):
        names = SHAPES[number % len(SHAPES)]
        conditions: tuple[Condition, ...] = ()
        if number % 3 == 0:
            conditions = (
                Condition("title", Kind.MATCHES, (f"(?i)(down|slow|full).*{number % 7}",)),
                Condition("severity", Kind.ONE_OF, ("critical", "error")),
            )
        yield Rule(
            rule_id=f"rule-{number:06d}",
            priority=chance.randrange(1000),
            outcome=Outcome.RESPOND,
            equals={name: value(name, number) for name in names},
            conditions=conditions,
            text="known",
        )


def value(name: str, number: int) -> str:
    """Return what rule and incident number `number` have in a field."""
    return {
        "labels.alertname": f"Alert{number}",
        "labels.service": f"service-{number % 100}",
        "environment": ("production", "demo", "staging")[number % 3],
        "source": "alertmanager",
        "target": f"svc:production/service-{number}",
    }[name]


def make_facts(number: int, chance: random.Random) -> Facts:
    """Return an incident as an Alertmanager sends it, about rule `number`."""
    names = ("labels.alertname", "labels.service", "environment", "source", "target")
    facts = {name: value(name, number) for name in names}
    facts |= {f"labels.label{index}": f"value {index}" for index in range(12)}
    facts |= {f"resource.attribute{index}": f"value {index}" for index in range(8)}
    return facts | {"title": f"Service is down {chance.randrange(7)}", "severity": "critical", "rule": facts["source"]}


@dataclass(frozen=True, slots=True)
class Found:
    """p50 and p99 of a decision in microseconds, and the seconds it takes to build the index."""

    p50: float
    p99: float
    built: float


def measure(count: int) -> Found:
    """Decide about many incidents under `count` rules."""
    chance = random.Random(count)  # noqa: S311  the same rules every time, not a secret
    rules = list(make_rules(count, chance))
    started = time.perf_counter()
    index = Index(rules, version=1)
    built = time.perf_counter() - started
    incidents = [make_facts(chance.randrange(2 * count), chance) for _ in range(2_000)]
    taken = []
    for number in range(DECISIONS):
        facts = incidents[number % len(incidents)]
        began = time.perf_counter_ns()
        index.first(facts)
        taken.append((time.perf_counter_ns() - began) / 1000)
    return Found(percentile(taken, 50), percentile(taken, 99), built)


async def rows(_: Path) -> list[Row]:
    """Measure."""
    found = {count: measure(count) for count in SIZES}
    smallest, middle, largest = (found[count] for count in SIZES)
    growth = largest.p50 / smallest.p50
    return [
        Row(
            f"rule decision, {SIZES[1]:,} rules",
            f"p99 {middle.p99 / 1000:.3f} ms, p50 {middle.p50:.1f} us",
            f"{SIZES[0]} rules: p99 {smallest.p99 / 1000:.3f} ms",
            middle.p99 / smallest.p99,
            f"p99 < {P99_MAX_MS:g} ms",
            middle.p99 / 1000 < P99_MAX_MS,
        ),
        Row(
            f"rule decision, {SIZES[2]:,} rules",
            f"p50 {largest.p50:.2f} us, built in {largest.built:.1f} s",
            f"{SIZES[0]} rules: p50 {smallest.p50:.2f} us",
            growth,
            f"<= {GROWTH_MAX:g} (p50)",
            growth <= GROWTH_MAX,
        ),
    ]
