"""Which alerts are one incident: the key that joins them, by rules, and how they are gathered. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from services.ingest.flapping import USUAL, Flapping
from services.ingest.signal import CHAT, bounded_key, hashed

# So long after an occurrence was told last it is over, where nothing else is said.
OCCURRENCE: Final = timedelta(hours=1)
KEY_MAX: Final = 512
FOLDER_LABEL: Final = "grafana_folder"
NAME_LABEL: Final = "alertname"
PLACES: Final = ("cluster", "namespace", "environment", "env", "region", "job")
SEVERITIES: Final = ("critical", "error", "warning", "info", "unknown")
FIELDS: Final = ("source", "severity", "environment", "region", "target", "rule", "alert", "signature")
OPEN_FIELDS: Final = ("labels.", "resource.")
SIGNATURE_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Grouping:
    """How alerts of one key are gathered. Zero means no limit, and no opening again; `debounce` None: as for all.

    `occurrence` is how long after it was told last an occurrence is over; zero means never.
    """

    debounce: timedelta | None = None
    max_alerts: int = 0
    max_age: timedelta = timedelta()
    reopen: timedelta = timedelta()
    flapping: Flapping = USUAL
    occurrence: timedelta = OCCURRENCE


PLAIN: Final = Grouping()


@dataclass(frozen=True, slots=True)
class Rule:
    """Alerts with these values in `equals`, and the same values in all fields of `by`, are one incident."""

    rule_id: str
    by: tuple[str, ...]
    equals: Mapping[str, str] = field(default_factory=dict)
    grouping: Grouping = PLAIN


@dataclass(frozen=True, slots=True)
class Words:
    """What correlation looks at; `target` is the first of the signal's, as the inventory knows it or as it was told."""

    source: str
    dedup_key: str
    rule_name: str
    title: str = ""
    severity: str = "unknown"
    target: str = ""
    environment: str = ""
    region: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    resource: Mapping[str, str] = field(default_factory=dict)

    def of(self, name: str) -> str:
        """Return the value of a field; empty when the signal lacks it."""
        kind, _, rest = name.partition(".")
        if rest:
            return (self.labels if kind == "labels" else self.resource).get(rest, "")
        if name == "signature":
            return self.rule_name or signature(self.title)
        own = {"rule": self.rule_name, "alert": self.dedup_key, "source": self.source, "severity": self.severity}
        place = {"target": self.target, "environment": self.environment, "region": self.region}
        return (own | place).get(name, "")


@dataclass(frozen=True, slots=True)
class Correlated:
    """The key of a signal, and how the incident of that key gathers; `rule_id` is empty when no rule took it."""

    key: str
    grouping: Grouping = PLAIN
    rule_id: str = ""


@dataclass(frozen=True, slots=True)
class Correlation:
    """All rules, the first that applies decides; `otherwise` is for what none takes."""

    rules: Sequence[Rule] = ()
    otherwise: Grouping = PLAIN

    def of(self, words: Words) -> Correlated:
        """Return the key of a signal. What a person asked for joins nothing, and nothing joins it."""
        if words.source == CHAT:
            return Correlated(default_key(words))
        for rule in self.rules:
            if any(words.of(name) != value for name, value in rule.equals.items()):
                continue
            values = [words.of(name) for name in rule.by]
            if all(values):
                return Correlated(_key(rule.rule_id, values), rule.grouping, rule.rule_id)
        return Correlated(default_key(words), self.otherwise)

    @property
    def longest_reopen(self) -> timedelta:
        """Return how long after its resolve an incident may open again, at most."""
        return max(one.reopen for one in (self.otherwise, *(rule.grouping for rule in self.rules)))


@dataclass(frozen=True, slots=True)
class Calm:
    """How much of what senders say is one thing: the dedupe window, how long a new incident gathers, and the rules."""

    window: timedelta
    debounce: timedelta
    correlation: Correlation = field(default_factory=Correlation)


def default_key(words: Words) -> str:
    """Return what joins signals without a rule: the same rule on the same target, else the same alert.

    Grafana reports a missing data source as another alert, so without a target its rule and folder decide; of other
    alerts in Prometheus' shape the rule and where it looks, for their labels may differ in anything. The key of what a
    person asked for is one that no sender's words can make.
    """
    if words.source == CHAT:
        return hashed(words.source, words.dedup_key)
    places = [f"{name}={words.labels[name]}" for name in PLACES if words.labels.get(name)]
    if words.target and words.rule_name:
        # A service without an environment may be another one elsewhere.
        more = places if words.target.startswith("svc:") and "/" not in words.target else []
        return bounded_key(words.target, words.rule_name, *more, limit=KEY_MAX)
    if words.rule_name and (folder := words.labels.get(FOLDER_LABEL)):
        return bounded_key(words.source, folder, words.rule_name, limit=KEY_MAX)
    if words.rule_name and words.labels.get(NAME_LABEL):
        return bounded_key(words.source, words.rule_name, *places, limit=KEY_MAX)
    return bounded_key(words.source, words.dedup_key, limit=KEY_MAX)


def _key(rule_id: str, values: Sequence[str]) -> str:
    """Return the key that a rule makes: no target and no source begins with `=`, and no value can pass for two."""
    name = f"={rule_id}"
    if any("|" in value for value in values):
        return f"{name}|{hashed(*values)}"
    found = bounded_key(name, *values, limit=KEY_MAX)
    return found if found.startswith("=") else f"{name}|{hashed(*values)}"


def signature(title: str) -> str:
    """Return a title without what differs between two alerts of one cause: words with digits, case and spaces."""
    words = title[:SIGNATURE_MAX].casefold().split()
    return " ".join("#" if any(letter.isdigit() for letter in word) else word for word in words)


def problems(rules: Sequence[Rule]) -> list[tuple[str, str]]:
    """Return what is wrong with rules beyond their bounds: (path, description)."""
    found: list[tuple[str, str]] = []
    first: dict[str, int] = {}
    for number, rule in enumerate(rules):
        path = f"rules[{number}]"
        if (other := first.setdefault(rule.rule_id, number)) != number:
            found.append((f"{path}.rule_id", f"{rule.rule_id} is the id of rules[{other}], too"))
        found += [(f"{path}.by[{index}]", said) for index, name in enumerate(rule.by) if (said := _unknown(name))]
        for name, value in rule.equals.items():
            where = f'{path}.equals["{name}"]'
            if said := _unknown(name):
                found.append((where, said))
            elif name == "severity" and value not in SEVERITIES:
                found.append((where, f"{value} is no severity; these are: {', '.join(SEVERITIES)}"))
        if not set(rule.by) - {"source", "severity", "environment", "region"}:
            found.append((f"{path}.by", "this joins alerts of everything; add target, rule, signature or a label"))
    return found


def _unknown(name: str) -> str:
    """Return why a name is no field, or an empty text."""
    if name in FIELDS or any(name.startswith(prefix) and name != prefix for prefix in OPEN_FIELDS):
        return ""
    return f"{name} is no field of an alert; these are: {', '.join(FIELDS)}, labels.NAME, resource.NAME"
