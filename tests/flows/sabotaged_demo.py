"""The demo on a configuration that betrays what it is about: `python -m tests.flows.sabotaged_demo denied|unasked`."""

import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from services.local import demo, demo_acts, demo_story
from services.local.checkout import Workload

PATIENCE = 8.0

lay_out, wait_for = demo.write_config, demo.wait_for


def betray(config: Path, workload: Workload, production: Workload | None = None) -> None:
    """Lay out the demo's configuration; deny every write, or let every write through without asking anybody."""
    lay_out(config, workload, production)
    path = config / "policies" / "demo.yaml"
    policies = yaml.safe_load(path.read_text(encoding="utf-8"))
    if sys.argv[1] == "denied":
        for rule in policies["rules"][1:]:
            rule["verdict"] = "VERDICT_DENY"
            rule.pop("approval", None)
        policies["rules"] = policies["rules"][:2]
    else:
        policies["rules"] = [rule for rule in policies["rules"] if rule["verdict"] == "VERDICT_ALLOW"]
    path.write_text(yaml.safe_dump(policies), encoding="utf-8")


def wait_less(fact: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for a repair that never comes no longer than it takes to come."""
    wait_for(fact, PATIENCE if what == "the repair of checkout" else seconds, what)


if __name__ == "__main__":
    demo.write_config, demo.wait_for = betray, wait_less
    demo_acts.PATIENCE = PATIENCE  # type: ignore[misc]  # final for everybody but a saboteur
    sys.exit(demo_story.run_demo())
