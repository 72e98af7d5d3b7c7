"""How many effects an hour may see; pure. Counted are requests that were granted, not what came of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Scope(IntEnum):
    """What is counted together; the numbers are those of the IDL."""

    TARGET = 1
    ENVIRONMENT = 2
    ALL = 3


@dataclass(frozen=True, slots=True)
class EffectCap:
    """At most so many effects, and different targets, in any 60 minutes; empty sets match all, 0 is no limit."""

    cap_id: str
    scope: Scope
    effects: int = 0
    distinct: int = 0
    environments: frozenset[str] = frozenset()
    targets: frozenset[str] = frozenset()
    methods: frozenset[str] = frozenset()

    def applies(self, method: str, target_id: str, environment: str) -> bool:
        """Say whether an effect is counted; one without a target has none to count by."""
        return (
            (not self.methods or method in self.methods)
            and (not self.targets or target_id in self.targets)
            and (not self.environments or environment in self.environments)
            and (self.scope is not Scope.TARGET or bool(target_id))
        )

    def bucket(self, target_id: str, environment: str) -> str:
        """Return the name of what is counted together for one effect: who counts it waits for the others."""
        return {
            Scope.TARGET: f"target {target_id}",
            Scope.ENVIRONMENT: f"environment {environment}",
            Scope.ALL: "all effects",
        }[self.scope]


DEFAULTS: Final = (
    EffectCap("default-target", Scope.TARGET, effects=60),
    EffectCap("default-environment", Scope.ENVIRONMENT, effects=600),
)


def matching(caps: Iterable[EffectCap], method: str, target_id: str, environment: str) -> tuple[EffectCap, ...]:
    """Return every cap that holds for an effect; where none counts by target or environment, the default does."""
    found = [cap for cap in caps if cap.applies(method, target_id, environment)]
    scopes = {cap.scope for cap in found}
    found += [cap for cap in DEFAULTS if cap.scope not in scopes and cap.applies(method, target_id, environment)]
    return tuple(found)
