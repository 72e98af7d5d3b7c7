"""The index finds what a scan of all rules would find; a rule set that cannot be right is refused with its path."""

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router import rules
from services.router.domain import Condition, Kind, Outcome, Rule
from services.router.rules import Index, validate, why_not

NAMES = ("source", "severity", "labels.a", "labels.b", "labels.c", "resource.r")
VALUES = ("", "x", "xy", "critical", "y")

field_names = st.sampled_from(NAMES)
values = st.sampled_from(VALUES)
conditions = st.one_of(
    st.builds(lambda f, v: Condition(f, Kind.MATCHES, (v,)), field_names, st.sampled_from(["x", "^x$", "y$", "[a-c]"])),
    st.builds(lambda f, v: Condition(f, Kind.HAS_PREFIX, (v,)), field_names, st.sampled_from(["x", "cr"])),
    st.builds(lambda f, w: Condition(f, Kind.EXISTS, wanted=w), field_names, st.booleans()),
    st.builds(lambda f, v: Condition(f, Kind.NOT_EQUALS, (v,)), field_names, values),
    st.builds(lambda f, v: Condition(f, Kind.ONE_OF, tuple(v)), field_names, st.lists(values, min_size=1, max_size=3)),
)
bodies = st.tuples(
    st.integers(0, 3), st.dictionaries(field_names, values, max_size=3), st.lists(conditions, max_size=2)
)
facts_strategy = st.dictionaries(field_names, values, max_size=6)


def make(number: int, priority: int, equals: Mapping[str, str], tests: list[Condition]) -> Rule:
    """Return a rule with an id of its own."""
    return Rule(f"r{number:03d}", priority, Outcome.RESPOND, equals, tuple(tests), text="done")


def respond(rule_id: str, priority: int = 1, text: str = "done", *tests: Condition, **equals: str) -> Rule:
    """Return a rule that responds."""
    return Rule(rule_id, priority, Outcome.RESPOND, equals, tests, text=text)


@settings(max_examples=400, deadline=None)
@given(
    bodies=st.lists(bodies, max_size=30),
    facts=facts_strategy,
    skipped=st.sets(st.integers(0, 10)),
    probed=st.sampled_from([0, 64]),
)
def test_the_index_finds_what_a_scan_finds(
    bodies: list[tuple[int, dict[str, str], list[Condition]]], facts: dict[str, str], skipped: set[int], probed: int
) -> None:
    """The lowest (priority, rule_id) among all matching rules wins, with few shapes as with many."""
    made = [make(number, *body) for number, body in enumerate(bodies)]
    without = frozenset(f"r{number:03d}" for number in skipped)
    before = rules.SHAPES_PROBED
    rules.SHAPES_PROBED = probed  # type: ignore[misc]
    try:
        found = Index(made).first(facts, without)
    finally:
        rules.SHAPES_PROBED = before  # type: ignore[misc]
    matching = [rule for rule in made if not why_not(rule, facts) and rule.rule_id not in without]
    assert found == min(matching, key=lambda rule: rule.order, default=None)


def test_priority_goes_before_the_id() -> None:
    """Lower priority first, then the id."""
    index = Index([respond("a", 2), respond("c", 1), respond("b", 1)])
    found = index.first({})
    assert found is not None
    assert found.rule_id == "b"


@pytest.mark.parametrize(
    ("condition", "facts", "why"),
    [
        (
            Condition("title", Kind.MATCHES, ("^down",)),
            {"title": "all up"},
            'title is "all up"; wanted: matches "^down"',
        ),
        (Condition("labels.x", Kind.EXISTS), {}, "labels.x is not there; wanted: is there"),
        (Condition("labels.x", Kind.EXISTS, wanted=False), {"labels.x": ""}, 'labels.x is ""; wanted: is not there'),
        (Condition("rule", Kind.HAS_PREFIX, ("A",)), {}, 'rule is not there; wanted: begins with "A"'),
        (Condition("rule", Kind.ONE_OF, ("A", "B")), {"rule": "C"}, 'rule is "C"; wanted: is one of "A", "B"'),
        (Condition("rule", Kind.NOT_EQUALS, ("A",)), {"rule": "A"}, 'rule is "A"; wanted: is anything but "A"'),
        (Condition("rule", Kind.NOT_EQUALS, ("A",)), {}, ""),
    ],
)
def test_a_failed_condition_is_told_in_words(condition: Condition, facts: dict[str, str], why: str) -> None:
    """Each kind of condition says what is there and what was wanted."""
    assert why_not(respond("r", 1, "done", condition), facts) == why


def test_explain_says_why_the_others_do_not_match() -> None:
    """The first 100 other rules are listed in order, each with its first failed condition."""
    made = [respond(f"r{number:03d}", 5, severity="error") for number in range(150)]
    explanation = Index([*made, respond("hit", 1, source="am"), respond("late", 3)]).explain(
        {"source": "am", "severity": "info"}, frozenset({"late"})
    )
    assert explanation.rule is not None
    assert explanation.rule.rule_id == "hit"
    assert explanation.matched == ('source is "am"',)
    assert len(explanation.not_matched) == 100
    assert explanation.not_matched[0] == ("late", "it started a playbook on this incident before")
    assert explanation.not_matched[1] == ("r000", 'severity is "info", not "error"')
    both = Index([respond("a", 1), respond("b", 2)]).explain({})
    assert both.not_matched == (("b", "it matches, too, but a comes first"),)


def trigger(rule_id: str, playbook_id: str) -> Rule:
    """Return a rule that starts a playbook."""
    return Rule(rule_id, 1, Outcome.TRIGGER_AUTOMATION, {"labels.id": rule_id}, playbook_id=playbook_id)


@pytest.mark.parametrize(
    ("wrong", "path", "words"),
    [
        (
            respond("a", 1, "done", Condition("title", Kind.MATCHES, ("(",))),
            "rules[1].match.conditions[0].matches",
            "RE2",
        ),
        (
            respond("a", 1, "done", Condition("title", Kind.MATCHES, (r"(?=x)",))),
            "rules[1].match.conditions[0].matches",
            "RE2 refuses",
        ),
        (respond("first", 9), "rules[1].rule_id", "rules[0]"),
        (respond("a", 7, "another", severity="info"), "rules[1].match", "rules[0] (first)"),
        (trigger("a", "nowhere"), "rules[1].trigger_automation.playbook_id", "no playbook nowhere"),
        (respond("a", 1, "done", **{"label.x": "y"}), 'rules[1].match.equals["label.x"]', "no field"),
        (respond("a", 1, "done", **{"labels.": "y"}), 'rules[1].match.equals["labels."]', "no field"),
        (respond("a", 1, "done", severity="Critical"), 'rules[1].match.equals["severity"]', "critical, error"),
        (respond("a", 1, "done", Condition("host", Kind.EXISTS)), "rules[1].match.conditions[0].field", "no field"),
        (
            respond("a", 1, "done", Condition("rule", Kind.ONE_OF)),
            "rules[1].match.conditions[0].one_of.values",
            "empty",
        ),
    ],
)
def test_what_is_wrong_is_refused_with_its_path(wrong: Rule, path: str, words: str) -> None:
    """Each mistake is named with the path of its field."""
    problems = validate([respond("first", 7, severity="info"), wrong], frozenset({"restart"}))
    assert [problem.field for problem in problems] == [path]
    assert words in problems[0].description


def test_what_is_right_passes() -> None:
    """A published playbook, equal matchers at other priorities and equal outcomes of equal matchers are fine."""
    made = [
        trigger("a", "restart"),
        respond("b", 1, severity="info"),
        respond("c", 2, "another", severity="info"),
        respond("d", 1, "done", severity="info"),
    ]
    assert validate(made, frozenset({"restart"})) == []
