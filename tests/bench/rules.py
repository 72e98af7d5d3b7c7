"""Time of one rule decision in process, with 10 to 100,000 rules: `python -m tests.bench.rules`.

The bars: p99 under 5 ms at 10,000 rules; p50 at 100,000 at most 1.5 times that at 10. Rules are of six shapes, a third
with a pattern or another condition; half of the incidents match a rule, half match none.
"""

import random
import sys
import time
from collections.abc import Iterator
from statistics import quantiles
from typing import Final

from services.router.domain import Condition, Kind, Outcome, Rule
from services.router.rules import Facts, Index

SIZES: Final = (10, 100, 1_000, 10_000, 100_000)
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


def measure(count: int) -> tuple[float, float, float]:
    """Return p50 and p99 of a decision in microseconds, and the seconds it takes to build the index."""
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
    cuts = quantiles(taken, n=100)
    return cuts[49], cuts[98], built


def main() -> int:
    """Print the table and whether the bars are met."""
    found = {}
    sys.stdout.write(f"{'rules':>8} {'p50 us':>8} {'p99 us':>8} {'build s':>8}\n")
    for count in SIZES:
        found[count] = measure(count)
        p50, p99, built = found[count]
        sys.stdout.write(f"{count:>8} {p50:>8.2f} {p99:>8.2f} {built:>8.2f}\n")
    growth = found[SIZES[-1]][0] / found[SIZES[0]][0]
    p99_ms = found[10_000][1] / 1000
    met = p99_ms < P99_MAX_MS and growth <= GROWTH_MAX
    sys.stdout.write(f"p99 at 10,000 rules: {p99_ms:.3f} ms (bar {P99_MAX_MS:g} ms)\n")
    sys.stdout.write(f"p50 growth from 10 to 100,000 rules: {growth:.2f} (bar {GROWTH_MAX:g})\n")
    sys.stdout.write("met\n" if met else "NOT met\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
