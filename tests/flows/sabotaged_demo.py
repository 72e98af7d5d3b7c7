"""The demo, betrayed in what it is about: `python -m tests.flows.sabotaged_demo denied|unasked|unstopped`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from services.local import demo, demo_acts, demo_story
from services.local.checkout import Workload

PATIENCE = 8.0
NOWHERE = ("--environment", "staging")

lay_out, wait_for, show = demo.write_config, demo.wait_for, demo.World.show


def denied(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Deny every write."""
    notices, writes, *_ = rules
    return [notices, writes | {"verdict": "VERDICT_DENY"}]


def unasked(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Let every write through without asking anybody."""
    return [rule for rule in rules if rule["verdict"] == "VERDICT_ALLOW"]


def betray(change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """Let the demo lay out its configuration with other policies."""

    def write_config(config: Path, workload: Workload, production: Workload | None = None) -> None:
        lay_out(config, workload, production)
        path = config / "policies" / "demo.yaml"
        policies = yaml.safe_load(path.read_text(encoding="utf-8"))
        policies["rules"] = change(policies["rules"])
        path.write_text(yaml.safe_dump(policies), encoding="utf-8")

    demo.write_config = write_config


def unstop() -> None:
    """Engage a kill where nothing is; the acts before that one are left out."""

    def show_less(self: demo.World, *words: str) -> None:
        show(self, *(other for word in words for other in (NOWHERE if word == "--all" else (word,))))

    def leave_out(world: demo.World, workload: Workload) -> None:
        world.say(f"left out, with {workload.port}")

    demo.World.show = show_less  # type: ignore[method-assign]  # that is the sabotage
    demo.first_act = leave_out
    wait_less_for("the end of the execution that was killed")
    demo_acts.approval = demo_acts.drift = leave_out  # type: ignore[assignment]  # the parameter's name differs


def wait_less_for(never: str) -> None:
    """Wait less for what never comes, and as long as ever for everything else."""

    def wait_less(fact: Callable[[], object], seconds: float, what: str) -> None:
        wait_for(fact, PATIENCE if what == never else seconds, what)

    for module in (demo, demo_acts):
        vars(module).update(wait_for=wait_less)


def deny() -> None:
    """Let the first repair never come."""
    betray(denied)
    wait_less_for("the repair of checkout")


def ask_nobody() -> None:
    """Let no approval be asked for."""
    betray(unasked)
    # The second act waits for one, and for nothing else before that.
    demo_acts.PATIENCE = PATIENCE  # type: ignore[misc]  # final for everybody but a saboteur


if __name__ == "__main__":
    {"denied": deny, "unasked": ask_nobody, "unstopped": unstop}[sys.argv[1]]()
    sys.exit(demo_story.run_demo())
