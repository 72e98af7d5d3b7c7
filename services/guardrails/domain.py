"""How an action is judged: pure functions over typed rules, the inventory and what was read. Times are aware, UTC.

Verdicts are ordered by strength, so the verdict of a policy set is the strongest of its matching rules, whatever their
order; nothing matched is DENY.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum
from functools import cached_property
from typing import Final

from services.guardrails.policies.caps import EffectCap
from services.guardrails.policies.windows import ChangeWindow, Window

APPROVAL_TTL: Final = timedelta(minutes=5)
NOTICES_PER_HOUR: Final = 60


class Access(IntEnum):
    """What a tool does; the numbers are those of the IDL."""

    READ = 1
    INFORM = 2
    WRITE = 3
    DESTRUCTIVE = 4
    EXTERNAL = 5


class Risk(IntEnum):
    """How much harm a wrong call can do; the numbers are those of the IDL."""

    UNSPECIFIED = 0
    LOW = 1
    MEDIUM = 2
    HIGH = 3
    CRITICAL = 4


class Verdict(IntEnum):
    """What is said about an action; a higher number is stronger."""

    ALLOW = 1
    REQUIRE_APPROVAL = 2
    OBSERVE = 3
    DENY = 4


@dataclass(frozen=True, slots=True)
class Case:
    """What policy may look at, all of it derived from the bytes of the action, the inventory and the certificate."""

    method: str
    access: Access
    risk: Risk
    caller: str
    target_id: str = ""
    environment: str = ""
    region: str = ""
    channel: str = ""
    # Of the execution, as automation says: the one thing here that is claimed.
    playbook_id: str = ""
    # The target and what depends on it, directly or not.
    affected: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Match:
    """When a rule applies; empty sets match everything, given ones must all match."""

    methods: frozenset[str] = frozenset()
    access: frozenset[Access] = frozenset()
    min_risk: Risk = Risk.UNSPECIFIED
    environments: frozenset[str] = frozenset()
    regions: frozenset[str] = frozenset()
    targets: frozenset[str] = frozenset()
    callers: frozenset[str] = frozenset()
    channels: frozenset[str] = frozenset()
    playbooks: frozenset[str] = frozenset()
    except_playbooks: frozenset[str] = frozenset()
    windows: tuple[Window, ...] = ()
    during: tuple[ChangeWindow, ...] = ()
    outside: tuple[ChangeWindow, ...] = ()
    min_affected: int = 0

    def applies(self, case: Case, now: datetime) -> bool:
        """Say whether all of it matches."""
        return (
            (not self.methods or case.method in self.methods)
            and (not self.access or case.access in self.access)
            and case.risk >= self.min_risk
            and (not self.environments or case.environment in self.environments)
            and (not self.regions or case.region in self.regions)
            and (not self.targets or case.target_id in self.targets)
            and (not self.callers or case.caller in self.callers)
            and (not self.channels or case.channel in self.channels)
            and (not self.playbooks or case.playbook_id in self.playbooks)
            and case.playbook_id not in self.except_playbooks
            and len(case.affected) >= self.min_affected
            and (not self.windows or any(window.contains(now) for window in self.windows))
            and (not self.during or any(window.contains(now) for window in self.during))
            and not any(window.contains(now) for window in self.outside)
        )

    def covers(self, other: "Match") -> bool:
        """Say whether everything that `other` matches is matched here, too (when both have hours: only if the same)."""
        mine, theirs = self.sets, other.sets
        return (
            self.min_risk <= max(other.min_risk, Risk.LOW)
            and all(not ours or (bool(its) and its <= ours) for ours, its in zip(mine, theirs, strict=True))
            and (not self.windows or self.windows == other.windows)
            and self.min_affected <= other.min_affected
            and (not self.during or (bool(other.during) and set(other.during) <= set(self.during)))
            and set(self.outside) <= set(other.outside)
            and self.except_playbooks <= other.except_playbooks
        )

    @property
    def sets(self) -> "tuple[frozenset[str] | frozenset[Access], ...]":
        """Return the matchers that are sets, in a fixed order."""
        places = (self.environments, self.regions, self.targets)
        return (self.methods, self.access, *places, self.callers, self.channels, self.playbooks)


@dataclass(frozen=True, slots=True)
class Need:
    """Who must approve (0: by risk), how long an answer may take, and how long after it one may act."""

    approvers: int = 1
    groups: frozenset[str] = frozenset()
    ttl: timedelta = APPROVAL_TTL
    execute_ttl: timedelta = APPROVAL_TTL


@dataclass(frozen=True, slots=True)
class Rule:
    """One typed rule."""

    rule_id: str
    verdict: Verdict
    match: Match
    description: str = ""
    need: Need | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing of the inventory."""

    target_id: str
    kind: str = "service"
    environment: str = ""
    region: str = ""
    min_risk: Risk = Risk.UNSPECIFIED
    keys: tuple[str, ...] = ()
    depends_on: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Allowance:
    """What runs of a template may call at all, by full names, and of which templates they may start child runs."""

    tools: frozenset[str] = frozenset()
    children: frozenset[str] = frozenset()


@dataclass(frozen=True)
class PolicySet:
    """The rules and the inventory of one version; 0 is the version of nothing published."""

    version: int = 0
    rules: tuple[Rule, ...] = ()
    entries: tuple[Entry, ...] = ()
    caps: Mapping[str, int] = field(default_factory=dict)
    effect_caps: tuple[EffectCap, ...] = ()
    # How many different people must release a kill of everything, and any other.
    kill_release: tuple[int, int] = (2, 1)
    # By template; a template that is not here may call nothing.
    agents: Mapping[str, Allowance] = field(default_factory=dict)

    @cached_property
    def inventory(self) -> Mapping[str, Entry]:
        """Return the entries by target id."""
        return {entry.target_id: entry for entry in self.entries}

    @cached_property
    def dependents(self) -> Mapping[str, frozenset[str]]:
        """Return, by target id, what depends on it directly."""
        found: dict[str, set[str]] = {}
        for entry in self.entries:
            for needed in entry.depends_on:
                found.setdefault(needed, set()).add(entry.target_id)
        return {needed: frozenset(dependents) for needed, dependents in found.items()}

    def affected(self, target_id: str) -> tuple[str, ...]:
        """Return a target and what depends on it, nearest first; nothing for a tool without a target."""
        found = dict.fromkeys([target_id] if target_id else [])
        ring = list(found)
        while ring:
            nearest = sorted(set().union(*(self.dependents.get(one, frozenset()) for one in ring)) - found.keys())
            found.update(dict.fromkeys(nearest))
            ring = nearest
        return tuple(found)

    def cap(self, channel: str) -> int:
        """Return how many notices an hour a channel may carry."""
        return self.caps.get(channel, NOTICES_PER_HOUR)


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a policy set says: the strongest verdict and, of the rules that say it, the first by id and in words."""

    verdict: Verdict
    rule_id: str = ""
    description: str = ""
    need: Need | None = None
    # Nobody is proved to have asked: one person more must approve than the rule says.
    unproved: bool = False


def rule_on(policy: PolicySet, case: Case, now: datetime) -> Ruling:
    """Return DENY > OBSERVE > REQUIRE_APPROVAL > ALLOW of the matching rules; nothing matched is DENY."""
    matching = [rule for rule in policy.rules if rule.match.applies(case, now)]
    if not matching:
        return Ruling(Verdict.DENY)
    verdict = max(rule.verdict for rule in matching)
    strongest = sorted((rule for rule in matching if rule.verdict is verdict), key=lambda rule: rule.rule_id)
    need = joined(rule.need or Need() for rule in strongest) if verdict is Verdict.REQUIRE_APPROVAL else None
    return Ruling(verdict, strongest[0].rule_id, in_words(strongest[0]), need)


def in_words(rule: Rule) -> str:
    """Return what a rule is for, and the change windows it goes by: whoever is refused must know how long."""
    during = [f"in change window {window.name}" for window in rule.match.during]
    outside = [f"outside change window {window.name}" for window in rule.match.outside]
    return "; ".join(filter(None, [rule.description, *during, *outside]))


def joined(needs: Iterable[Need]) -> Need:
    """Return the need that satisfies several at once: most people, all groups, the shortest time."""
    found = list(needs)
    groups = frozenset[str]().union(*(need.groups for need in found))
    ttl, execute_ttl = min(need.ttl for need in found), min(need.execute_ttl for need in found)
    return Need(max(need.approvers for need in found), groups, ttl, execute_ttl)


@dataclass(frozen=True, slots=True)
class Blast:
    """A numeric request field beside the threshold above which the risk is at least `risk`."""

    field: str
    value: int
    above: int
    risk: Risk


def derive_risk(method: str, method_risk: Risk, entry: Entry | None, blasts: Sequence[Blast]) -> tuple[Risk, str]:
    """Return the highest of the method's option, the inventory's min_risk and the exceeded thresholds, and why."""
    grounds = [(method_risk, f"{method} is {method_risk.name}")]
    if entry is not None and entry.min_risk:
        grounds.append((entry.min_risk, f"the inventory says that {entry.target_id} is at least {entry.min_risk.name}"))
    grounds += [
        (blast.risk, f"{blast.field} is {blast.value}, above {blast.above}: at least {blast.risk.name}")
        for blast in blasts
        if blast.value > blast.above
    ]
    risk = max(ground for ground, _ in grounds)
    return risk, "; ".join(words for ground, words in grounds if ground is risk)[:512]
