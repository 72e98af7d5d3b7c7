"""Rules as a hash index per shape: what matches first is found without looking at all of them.

A shape is the set of fields that a rule compares for equality. Per shape there is one dictionary from the values of
these fields to the rules that want them, in total order; each shape is probed once. What is left of a rule (patterns,
prefixes and the like) is tested only on the rules so found. Patterns run in RE2: linear time, whatever a user writes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import re2

from services.router.domain import Condition, Kind, Outcome, Rule

Facts = Mapping[str, str]
Predicate = Callable[[Facts], bool]

PATTERN_MEMORY: Final = 1 << 20
# Up to this many shapes are probed one after the other; beyond it only those with a label the incident has.
SHAPES_PROBED: Final = 64
NOT_MATCHED_MAX: Final = 100
VALUE_SHOWN: Final = 200
FIELDS: Final = ("source", "severity", "environment", "region", "target", "title", "rule")
OPEN_FIELDS: Final = ("labels.", "resource.")
SEVERITIES: Final = ("critical", "error", "warning", "info", "unknown")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a rule set, and where: `rules[3].match.conditions[0].matches`."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a rule matches, in words, and why the others before and after it do not."""

    rule: Rule | None
    matched: tuple[str, ...]
    not_matched: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A rule beside what is still to be tested once its equalities are known to hold."""

    rule: Rule
    order: tuple[int, str]
    residuals: tuple[Predicate, ...]


class _Shape:
    """All rules that compare the same fields for equality."""

    __slots__ = ("buckets", "fields", "lowest")

    def __init__(self, fields: tuple[str, ...]) -> None:
        self.fields = fields
        self.buckets: dict[tuple[str, ...], list[_Compiled]] = {}
        self.lowest: tuple[int, str] = (0, "")


class Index:
    """The rules of one version, ready to match. Raises ValueError for a pattern that RE2 refuses: validate first."""

    def __init__(self, rules: Iterable[Rule] = (), version: int = 0) -> None:
        self.version = version
        self.ordered = tuple(sorted(rules, key=lambda rule: rule.order))
        shapes: dict[tuple[str, ...], _Shape] = {}
        for rule in self.ordered:
            # "equals nothing" holds for an absent field, too: tested, not hashed, so that a shape's fields are present.
            keys = sorted(name for name, value in rule.equals.items() if value)
            empty = [_absent(name) for name, value in rule.equals.items() if not value]
            shape = shapes.setdefault(tuple(keys), _Shape(tuple(keys)))
            if not shape.buckets:
                shape.lowest = rule.order
            compiled = _Compiled(rule, rule.order, (*empty, *map(_predicate, rule.conditions)))
            shape.buckets.setdefault(tuple(rule.equals[name] for name in keys), []).append(compiled)
        # The shape with the earliest rule first: once something matched, most others cannot come before it.
        self._shapes = sorted(shapes.values(), key=lambda shape: shape.lowest)
        self._anchored: dict[str, list[_Shape]] = {}
        if len(self._shapes) > SHAPES_PROBED:
            self._anchor()

    def first(self, facts: Facts, skipped: frozenset[str] = frozenset()) -> Rule | None:
        """Return the first rule in (priority, rule_id) order that matches and is not skipped."""
        best: _Compiled | None = None
        get = facts.get
        for shape in self._candidates(facts):
            if best and shape.lowest > best.order:
                continue
            for one in shape.buckets.get(tuple([get(name, "") for name in shape.fields]), ()):
                if best and one.order > best.order:
                    break
                if one.rule.rule_id not in skipped and all(test(facts) for test in one.residuals):
                    best = one
                    break
        return best.rule if best else None

    def explain(self, facts: Facts, skipped: frozenset[str] = frozenset()) -> Explanation:
        """Say what matches first and why the first 100 others do not."""
        rule = self.first(facts, skipped)
        others: list[tuple[str, str]] = []
        for other in self.ordered:
            if len(others) == NOT_MATCHED_MAX:
                break
            if other is rule:
                continue
            why = why_not(other, facts)
            if not why and other.rule_id in skipped:
                why = "it started a playbook on this incident before"
            others.append((other.rule_id, why or f"it matches, too, but {rule.rule_id if rule else ''} comes first"))
        return Explanation(rule, _in_words(rule) if rule else (), tuple(others))

    def _candidates(self, facts: Facts) -> Sequence[_Shape]:
        """Return the shapes that can match."""
        if not self._anchored:
            return self._shapes
        found = list(self._anchored.get("", ()))
        for name in facts:
            found += self._anchored.get(name, ())
        return found

    def _anchor(self) -> None:
        """File each shape under its rarest field, so that many shapes cost no more than the incident has fields."""
        counts: dict[str, int] = {}
        for shape in self._shapes:
            for name in shape.fields:
                counts[name] = counts.get(name, 0) + 1
        for shape in self._shapes:
            anchor = min(shape.fields, key=lambda name: (counts[name], name), default="")
            self._anchored.setdefault(anchor, []).append(shape)


def validate(rules: Sequence[Rule], playbooks: frozenset[str]) -> list[Problem]:
    """Return everything that is wrong with these rules; `playbooks` are the published ones."""
    problems: list[Problem] = []
    ids: dict[str, int] = {}
    matchers: dict[Any, int] = {}
    for number, rule in enumerate(rules):
        path = f"rules[{number}]"
        if (first := ids.setdefault(rule.rule_id, number)) != number:
            problems.append(Problem(f"{path}.rule_id", f"{rule.rule_id} is the id of rules[{first}], too"))
        problems += _wrong_match(rule, f"{path}.match")
        if rule.outcome is Outcome.TRIGGER_AUTOMATION and rule.playbook_id not in playbooks:
            where = f"{path}.trigger_automation.playbook_id"
            problems.append(Problem(where, f"no playbook {rule.playbook_id} is published: opsmesh playbooks list"))
        matcher = (rule.priority, frozenset(rule.equals.items()), frozenset(rule.conditions))
        twin = rules[matchers.setdefault(matcher, number)]
        if (twin.outcome, twin.playbook_id, twin.text) != (rule.outcome, rule.playbook_id, rule.text):
            same = f"rules[{matchers[matcher]}] ({twin.rule_id})"
            words = f"priority {rule.priority} and the same matcher as {same}, but another outcome: one would never run"
            problems.append(Problem(f"{path}.match", words))
    return problems


def _wrong_match(rule: Rule, path: str) -> list[Problem]:
    """Return what is wrong with the equalities and conditions of one rule."""
    problems: list[Problem] = []
    for name, value in rule.equals.items():
        where = f'{path}.equals["{name}"]'
        if unknown := unknown_field(name):
            problems.append(Problem(where, unknown))
        elif name == "severity" and value not in SEVERITIES:
            problems.append(Problem(where, f"{value} is no severity; these are: {', '.join(SEVERITIES)}"))
    for number, condition in enumerate(rule.conditions):
        where = f"{path}.conditions[{number}]"
        if unknown := unknown_field(condition.field):
            problems.append(Problem(f"{where}.field", unknown))
        if condition.test is Kind.ONE_OF and not condition.values:
            problems.append(Problem(f"{where}.one_of.values", "an empty list never matches"))
        if condition.test is Kind.MATCHES:
            try:
                pattern(condition.values[0])
            except ValueError as error:
                problems.append(Problem(f"{where}.matches", str(error)))
    return problems


def unknown_field(name: str) -> str:
    """Return why a field name is none, or an empty text."""
    if name in FIELDS or any(name.startswith(prefix) and name != prefix for prefix in OPEN_FIELDS):
        return ""
    return f"{name} is no field of an incident; these are: {', '.join(FIELDS)}, labels.NAME, resource.NAME"


@cache
def _options() -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = PATTERN_MEMORY
    return options


def pattern(text: str) -> Any:
    """Return a compiled pattern that searches bytes (several times faster than text); ValueError says what is wrong."""
    try:
        return re2.compile(text.encode(), _options())
    except re2.error as error:
        detail = error.args[0]
        words = detail.decode(errors="replace") if isinstance(detail, bytes) else str(detail)
        raise ValueError(f"RE2 refuses this pattern: {words}") from None


def _absent(name: str) -> Predicate:
    return lambda facts: not facts.get(name)


def _predicate(condition: Condition) -> Predicate:
    """Return a condition as a function of the facts. An absent field passes only NOT_EQUALS and `exists: false`."""
    name, values = condition.field, condition.values
    if condition.test is Kind.EXISTS:
        return lambda facts, wanted=condition.wanted: (name in facts) is wanted  # type: ignore[misc]
    if condition.test is Kind.NOT_EQUALS:
        return lambda facts: facts.get(name) != values[0]
    if condition.test is Kind.ONE_OF:
        return lambda facts, wanted=frozenset(values): facts.get(name) in wanted  # type: ignore[misc]
    if condition.test is Kind.HAS_PREFIX:
        return lambda facts: name in facts and facts[name].startswith(values[0])
    search = pattern(values[0]).search
    return lambda facts: name in facts and search(facts[name].encode()) is not None


def why_not(rule: Rule, facts: Facts) -> str:
    """Return the first condition of a rule that fails, in words; an empty text when it matches."""
    for name, value in sorted(rule.equals.items()):
        if facts.get(name, "") != value:
            return f"{name} {_is(facts, name)}, not {_quote(value)}"
    for condition in rule.conditions:
        if not _predicate(condition)(facts):
            return f"{condition.field} {_is(facts, condition.field)}; wanted: {_wanted(condition)}"
    return ""


def _in_words(rule: Rule) -> tuple[str, ...]:
    """Return what a rule asks for, one line per equality and condition."""
    equalities = [f"{name} is {_quote(value)}" for name, value in sorted(rule.equals.items())]
    conditions = [f"{one.field} {_wanted(one)}" for one in rule.conditions]
    return (*equalities, *conditions) or ("it asks for nothing: it matches every incident",)


def _wanted(condition: Condition) -> str:
    """Return what a condition asks of its field."""
    if condition.test is Kind.EXISTS:
        return "is there" if condition.wanted else "is not there"
    words = {
        Kind.MATCHES: "matches",
        Kind.HAS_PREFIX: "begins with",
        Kind.NOT_EQUALS: "is anything but",
        Kind.ONE_OF: "is one of",
    }
    return f"{words[condition.test]} {', '.join(map(_quote, condition.values))}"[: 2 * VALUE_SHOWN]


def _is(facts: Facts, name: str) -> str:
    return f"is {_quote(facts[name])}" if name in facts else "is not there"


def _quote(value: str) -> str:
    return f'"{value}"' if len(value) <= VALUE_SHOWN else f'"{value[:VALUE_SHOWN]}..."'
