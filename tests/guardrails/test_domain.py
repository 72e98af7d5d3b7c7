"""Policy, risk and the checks as pure functions."""

from dataclasses import replace
from datetime import UTC, datetime, time, timedelta

import pytest
import yaml
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from opsmesh.config.v1 import inventory_pb2
from services.guardrails import checks, domain
from services.guardrails.domain import Access, Blast, Case, Entry, Match, Need, PolicySet, Risk, Rule, Verdict
from services.guardrails.policies.windows import ChangeWindow, Window
from services.mesh import policy

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)  # a Monday
CASE = Case("t.v1.T/Do", Access.WRITE, Risk.MEDIUM, "service/automation", "svc:a/b", "a", "north", "ops")
ENTRY = Entry("svc:a/b", environment="a", depends_on=("svc:a/c",))
POLICY = PolicySet(1, (), (ENTRY, Entry("svc:a/c", environment="a")))


def rule(rule_id: str, verdict: Verdict, match: Match | None = None, need: Need | None = None) -> Rule:
    """Return a rule; without a match it matches everything."""
    return Rule(rule_id, verdict, match or Match(), need=need)


MATCHES = [
    (Match(), True),
    (Match(methods=frozenset({"t.v1.T/Do"})), True),
    (Match(methods=frozenset({"t.v1.T/Undo"})), False),
    (Match(access=frozenset({Access.INFORM, Access.WRITE})), True),
    (Match(access=frozenset({Access.DESTRUCTIVE})), False),
    (Match(min_risk=Risk.MEDIUM), True),
    (Match(min_risk=Risk.HIGH), False),
    (Match(environments=frozenset({"a", "b"})), True),
    (Match(environments=frozenset({"b"})), False),
    (Match(regions=frozenset({"north"})), True),
    (Match(regions=frozenset({"south"})), False),
    (Match(targets=frozenset({"svc:a/b"})), True),
    (Match(targets=frozenset({"svc:a/c"})), False),
    (Match(callers=frozenset({"service/automation"})), True),
    (Match(callers=frozenset({"human/operator"})), False),
    (Match(channels=frozenset({"ops"})), True),
    (Match(channels=frozenset({"dev"})), False),
    (Match(environments=frozenset({"a"}), regions=frozenset({"south"})), False),
]


@pytest.mark.parametrize(("match", "applies"), MATCHES)
def test_all_given_matchers_must_match(match: Match, applies: bool) -> None:  # noqa: FBT001  a table
    """Empty matchers match everything, given ones must all match."""
    assert match.applies(CASE, NOW) is applies


def test_what_is_not_known_matches_no_list() -> None:
    """An action without target matches no rule that names environments, regions or targets."""
    nowhere = replace(CASE, target_id="", environment="", region="")
    for match in (Match(environments=frozenset({"a"})), Match(targets=frozenset({"svc:a/b"}))):
        assert not match.applies(nowhere, NOW)


def at(day: int, hour: int, minute: int = 0) -> datetime:
    """Return an instant of the week of NOW; day 1 is Monday."""
    return datetime(2026, 11, 22 + day, hour, minute, tzinfo=UTC)


BERLIN_NIGHT = Window(frozenset({1}), time(22), time(6), "Europe/Berlin")
OFFICE = Window(frozenset({1, 2, 3, 4, 5}), time(9), time(17), "UTC")
ALWAYS = Window(frozenset(), time(8), time(8), "UTC")


@pytest.mark.parametrize(
    ("window", "now", "inside"),
    [
        (OFFICE, at(1, 9), True),
        (OFFICE, at(1, 8, 59), False),
        (OFFICE, at(5, 16, 59), True),
        (OFFICE, at(5, 17), False),
        (OFFICE, at(6, 12), False),
        (BERLIN_NIGHT, at(1, 21), True),
        (BERLIN_NIGHT, at(1, 20, 59), False),
        (BERLIN_NIGHT, at(2, 4, 59), True),
        (BERLIN_NIGHT, at(2, 5), False),
        (BERLIN_NIGHT, at(2, 21), False),
        (BERLIN_NIGHT, at(1, 4), False),
        (ALWAYS, at(3, 7, 59), True),
        (ALWAYS, at(3, 8), True),
    ],
)
def test_hours_are_those_of_the_zone(window: Window, now: datetime, inside: bool) -> None:  # noqa: FBT001  a table
    """A window begins on its days by its zone's clock; an end not after the start lies on the next day."""
    assert window.contains(now) is inside


def test_hours_follow_summer_time() -> None:
    """Nine in Berlin is seven o'clock UTC in July and eight in November."""
    morning = Window(frozenset(), time(9), time(10), "Europe/Berlin")
    assert morning.contains(datetime(2026, 7, 1, 7, 30, tzinfo=UTC))
    assert not morning.contains(datetime(2026, 11, 1, 7, 30, tzinfo=UTC))
    assert morning.contains(datetime(2026, 11, 1, 8, 30, tzinfo=UTC))


@given(st.permutations([verdict for verdict in Verdict for _ in range(2)]), st.randoms())
def test_the_order_of_rules_does_not_matter(verdicts: list[Verdict], random: object) -> None:
    """DENY > OBSERVE > REQUIRE_APPROVAL > ALLOW, whatever order the rules stand in; the first id of them is named."""
    rules = [rule(f"{verdict.name}-{index}".lower(), verdict) for index, verdict in enumerate(sorted(verdicts))]
    while rules:
        shuffled = list(rules)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        ruling = domain.rule_on(replace(POLICY, rules=tuple(shuffled)), CASE, NOW)
        assert ruling == domain.rule_on(replace(POLICY, rules=tuple(rules)), CASE, NOW)
        assert ruling.verdict is max(one.verdict for one in rules)
        assert ruling.rule_id == min(one.rule_id for one in rules if one.verdict is ruling.verdict)
        rules.pop()


@given(st.lists(st.sampled_from(Verdict), max_size=8))
def test_a_rule_more_never_loosens_unless_nothing_matched(verdicts: list[Verdict]) -> None:
    """Another matching rule makes the verdict as strong or stronger; without any it is DENY."""
    rules = tuple(rule(f"r{index}", verdict) for index, verdict in enumerate(verdicts))
    ruling = domain.rule_on(replace(POLICY, rules=rules), CASE, NOW)
    assert ruling.verdict is max(verdicts, default=Verdict.DENY)
    for more in Verdict:
        stronger = domain.rule_on(replace(POLICY, rules=(*rules, rule("more", more))), CASE, NOW)
        assert stronger.verdict >= ruling.verdict or not rules


def test_several_needs_are_met_together() -> None:
    """Two rules that ask for approval ask for the most people, all groups and the shortest time."""
    one = rule("a", Verdict.REQUIRE_APPROVAL, need=Need(2, frozenset({"dba"}), timedelta(minutes=9)))
    two = rule("b", Verdict.REQUIRE_APPROVAL, need=Need(1, frozenset({"ops"}), timedelta(minutes=2)))
    ruling = domain.rule_on(replace(POLICY, rules=(two, one)), CASE, NOW)
    assert ruling.need == Need(2, frozenset({"dba", "ops"}), timedelta(minutes=2))


SETS = st.frozensets(st.sampled_from(["a", "b"]))
NAMED = [ChangeWindow("always", (ALWAYS,)), ChangeWindow("nights", (BERLIN_NIGHT,))]
WINDOWS = st.lists(st.sampled_from(NAMED), unique=True).map(tuple)
MATCHERS = st.builds(
    Match,
    access=st.frozensets(st.sampled_from([Access.WRITE, Access.INFORM])),
    min_risk=st.sampled_from(Risk),
    environments=SETS,
    regions=SETS,
    callers=SETS,
    during=WINDOWS,
    outside=WINDOWS,
    min_affected=st.integers(0, 3),
)
CASES = st.builds(
    Case,
    method=st.just("m"),
    access=st.sampled_from([Access.WRITE, Access.INFORM, Access.EXTERNAL]),
    risk=st.sampled_from([Risk.LOW, Risk.MEDIUM, Risk.CRITICAL]),
    caller=st.sampled_from(["a", "b", "c"]),
    environment=st.sampled_from(["a", "b", ""]),
    region=st.sampled_from(["a", "b", ""]),
    affected=st.lists(st.just("t"), max_size=3).map(tuple),
)


@given(MATCHERS, MATCHERS, CASES)
def test_a_rule_that_covers_another_matches_whatever_that_matches(wide: Match, narrow: Match, case: Case) -> None:
    """`covers` never says so wrongly: publish may refuse a rule because of it."""
    if wide.covers(narrow) and narrow.applies(case, NOW):
        assert wide.applies(case, NOW)


@pytest.mark.parametrize(
    ("method_risk", "entry", "blasts", "risk", "words"),
    [
        (Risk.LOW, None, (), Risk.LOW, "Do is LOW"),
        (
            Risk.LOW,
            replace(ENTRY, min_risk=Risk.HIGH),
            (),
            Risk.HIGH,
            "the inventory says that svc:a/b is at least HIGH",
        ),
        (Risk.CRITICAL, replace(ENTRY, min_risk=Risk.HIGH), (), Risk.CRITICAL, "Do is CRITICAL"),
        (Risk.LOW, ENTRY, (Blast("count", 11, 10, Risk.MEDIUM),), Risk.MEDIUM, "count is 11, above 10"),
        (Risk.LOW, ENTRY, (Blast("count", 10, 10, Risk.MEDIUM),), Risk.LOW, "Do is LOW"),
    ],
)
def test_risk_is_the_highest_ground(
    method_risk: Risk, entry: Entry | None, blasts: tuple[Blast, ...], risk: Risk, words: str
) -> None:
    """Risk is the highest of method, inventory and exceeded thresholds, and the sentence names the ground."""
    found, detail = domain.derive_risk("Do", method_risk, entry, blasts)
    assert found is risk
    assert words in detail


def test_one_failed_check_is_deny() -> None:
    """Whatever policy allows, a failed check denies, with the reason of the first one."""
    allowed = domain.Ruling(Verdict.ALLOW, "r")
    fine = checks.Finding("syntax", passed=True)
    wrong = [checks.failed("safety", "LOCK_REQUIRED"), checks.failed("sanity", "INCIDENT_NOT_OPEN")]
    assert checks.conclude([fine], allowed) == (Verdict.ALLOW, "")
    assert checks.conclude([fine, *wrong], allowed) == (Verdict.DENY, "LOCK_REQUIRED")


@pytest.mark.parametrize(
    ("lock", "passed"),
    [
        (None, False),
        (checks.Lock("me", 3, held=True, expire_time=NOW), True),
        (checks.Lock("me", 3, held=False, expire_time=NOW), False),
        (checks.Lock("another", 3, held=True, expire_time=NOW), False),
        (checks.Lock("", 3, held=True, expire_time=NOW), False),
    ],
)
def test_a_binding_write_needs_a_lock_in_force(lock: checks.Lock | None, passed: bool) -> None:  # noqa: FBT001  a table
    """Only one's own lock that has not lapsed passes the safety check; a preview needs none."""
    assert checks.check_safety(CASE, POLICY, lock, "me", {}, binding=True).passed is passed
    assert checks.check_safety(CASE, POLICY, lock, "me", {}, binding=False).passed


def test_nobody_holds_no_lock() -> None:
    """A service without an execution does not match the empty holder of a free lock."""
    free = checks.Lock("", 3, held=False, expire_time=NOW)
    assert not checks.check_safety(CASE, POLICY, free, "", {}, binding=True).passed


@pytest.mark.parametrize("target_id", ["svc:staging/x", "svc:x", "host:db1", "k8s:c/n/deployment/x", "12", "a:"])
def test_suggested_inventory_lines_are_yaml(target_id: str) -> None:
    """The lines that a refusal suggests can be pasted below `entries:` as they are."""
    pasted = yaml.safe_load("entries:" + checks.inventory_lines(target_id))
    inventory = json_format.ParseDict(pasted, inventory_pb2.Inventory())
    assert inventory.entries[0].target_id == target_id
    policy.validate(inventory)
