"""The demo on a configuration that denies what it is about: `python -m tests.flows.sabotaged_demo`."""

import sys
from collections.abc import Callable
from pathlib import Path

from services.local import demo
from services.local.checkout import Workload

PATIENCE = 8

lay_out, wait_for = demo.write_config, demo.wait_for


def deny(config: Path, workload: Workload) -> None:
    """Lay out the demo's configuration, with every ALLOW of a write turned into DENY."""
    lay_out(config, workload)
    policies = config / "policies" / "demo.yaml"
    notices, writes, rest = policies.read_text(encoding="utf-8").partition("rule_id: demo-writes")
    policies.write_text(notices + writes + rest.replace("VERDICT_ALLOW", "VERDICT_DENY"), encoding="utf-8")


def wait_less(fact: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for a repair that never comes no longer than it takes to come."""
    wait_for(fact, PATIENCE if what == "the repair of checkout" else seconds, what)


if __name__ == "__main__":
    demo.write_config, demo.wait_for = deny, wait_less
    sys.exit(demo.run_demo())
