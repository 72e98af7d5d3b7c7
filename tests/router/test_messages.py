"""Incidents as facts, rule files as rules, and the examples that ship with them."""

from datetime import timedelta

import pytest

from opsmesh.config.v1 import rules_pb2
from opsmesh.ingest.v1 import signal_pb2
from services.mesh.config import load_all
from services.router.domain import Kind
from services.router.messages import facts_of, failing_tests, rules_of
from tests.mesh.world import ROOT
from tests.router.house import checkout_rules, incident


def test_facts_are_those_of_the_first_known_target() -> None:
    """Target, environment and region come from the first target in the inventory, never from a raw key."""
    made = incident(labels={"alertname": "X", "empty": ""})
    made.resource["service.name"] = "checkout"
    assert facts_of(made) == {
        "source": "alertmanager",
        "severity": "critical",
        "environment": "demo",
        "region": "local",
        "target": "svc:demo/checkout",
        "title": "checkout is down",
        "labels.alertname": "X",
        "labels.empty": "",
        "resource.service.name": "checkout",
    }
    del made.targets[1]
    assert not facts_of(made).keys() & {"target", "environment", "region"}


@pytest.mark.parametrize(
    ("severity", "word"),
    [
        (signal_pb2.Signal.SEVERITY_UNSPECIFIED, "unknown"),
        (signal_pb2.Signal.SEVERITY_INFO, "info"),
        (signal_pb2.Signal.SEVERITY_WARNING, "warning"),
        (signal_pb2.Signal.SEVERITY_ERROR, "error"),
        (signal_pb2.Signal.SEVERITY_CRITICAL, "critical"),
    ],
)
def test_severity_is_a_word(severity: int, word: str) -> None:
    """What could not be read is unknown, never info."""
    assert facts_of(incident(severity=severity))["severity"] == word


def test_a_rule_keeps_what_its_message_says() -> None:
    """Conditions, outcome and max_age arrive; without max_age it is an hour."""
    message = checkout_rules()
    message.rules[0].match.conditions.add(field="target", exists=False)
    message.rules[0].match.conditions.add(field="rule", one_of=rules_pb2.Values(values=["a", "b"]))
    (made,) = rules_of(message)
    assert [one.test for one in made.conditions] == [Kind.MATCHES, Kind.EXISTS, Kind.ONE_OF]
    assert not made.conditions[1].wanted
    assert made.conditions[2].values == ("a", "b")
    assert (made.playbook_id, made.max_age) == ("restart-workload", timedelta(hours=1))
    message.rules[0].max_age_duration.seconds = 90
    assert rules_of(message)[0].max_age == timedelta(seconds=90)


def test_the_rules_that_ship_pass_their_examples() -> None:
    """Every example in deploy/rules holds; there are some."""
    files = load_all(ROOT / "deploy" / "rules", rules_pb2.RuleFile)
    assert sum(len(file.tests) for file in files.values()) >= 3
    assert [failing_tests(file) for file in files.values()] == [[] for _ in files]


def test_an_example_that_fails_says_why() -> None:
    """A failing example names what matched instead, and why the wanted rule did not."""
    test = rules_pb2.RuleTest(name="up", incident={"labels.alertname": "Up"}, rule_id="checkout-down")
    (line,) = failing_tests(rules_pb2.RuleFile(rules=checkout_rules().rules, tests=[test]))
    assert line == 'up: no rule matches; wanted checkout-down, but environment is not there, not "demo"'
