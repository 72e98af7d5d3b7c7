"""Grafana's webhook, by its documentation: unified alerting, and the shape of version 8 and older."""

import json
from typing import Any

import pytest

from services.ingest.signal import DeliveryFacts, Rel, Severity, Status
from services.ingest.sources.grafana import parse
from tests.ingest.house import alert

FACTS = DeliveryFacts("grafana")


def one(group_key: str = "{}:{x}", labels: dict[str, str] | None = None, **changes: Any) -> Any:
    """Parse a unified notification with one alert, changed so."""
    labels = labels or {"alertname": "High memory", "grafana_folder": "Shop", "service": "checkout"}
    fields = alert() | {"labels": labels, "values": {"A": 22.5, "B": 1}, "orgId": 1} | changes
    body = {"version": "1", "orgId": 1, "state": "alerting", "groupKey": group_key, "alerts": [fields]}
    return parse(json.dumps(body).encode(), FACTS)[0]


def test_a_firing_alert_with_its_values() -> None:
    """Values come along as annotations, links with what they are for."""
    signal = one(silenceURL="https://g/silence", dashboardURL="", panelURL="https://g/p", imageURL="https://g/i.png")
    assert signal.status is Status.FIRING
    assert (signal.annotations["values.A"], signal.annotations["values.B"]) == ("22.5", "1")
    assert [link.rel for link in signal.links] == [Rel.SILENCE, Rel.PANEL, Rel.IMAGE]


@pytest.mark.parametrize("name", ["DatasourceNoData", "DatasourceError"])
def test_a_missing_data_source_is_no_data_of_the_real_rule(name: str) -> None:
    """It comes as another alert; the label rulename says whose."""
    labels = {"alertname": name, "rulename": "High memory", "grafana_folder": "Shop"}
    signal = one(labels=labels, values=None)
    assert (signal.status, signal.rule_name) == (Status.NO_DATA, "High memory")
    assert one(labels=labels, values=None, status="resolved").status is Status.RESOLVED


def test_test_messages_are_marked() -> None:
    """The button of a contact point never opens an incident; a rule of that name on another instance does."""
    button = {"alertname": "TestAlert", "instance": "Grafana"}
    assert one(labels=button).test
    assert one(group_key="test-3c5b-1777986297").test
    assert not one(labels=button | {"instance": "web-1"}).test
    assert not one().test


def test_only_links_that_can_be_followed_are_kept() -> None:
    """A relative URL, or one that would run something, is left out and noted; an empty one is absent."""
    for url in ("?orgId=1", "javascript:alert(1)"):
        signal = one(generatorURL=url)
        assert not signal.links
        assert f"left out a link that is no http(s) URL of at most 2048 characters: {url}" in signal.warnings
    empty = one(generatorURL="")
    assert not empty.links
    assert not any("link" in text for text in empty.warnings)


def test_no_value_is_absent() -> None:
    """Grafana's word for nothing never becomes a label or a summary."""
    signal = one(labels={"alertname": "x", "service": "<no value>"}, annotations={"summary": "<no value>"})
    assert "service" not in signal.labels
    assert signal.summary == "x"


def test_a_resolved_alert_without_values() -> None:
    """Resolved alerts may come without values."""
    assert one(status="resolved", values=None).status is Status.RESOLVED


def legacy(**changes: Any) -> Any:
    """Parse a notification of the old alerting."""
    body = {
        "title": "[Alerting] Disk full",
        "ruleId": 12,
        "ruleName": "Disk full",
        "ruleUrl": "http://grafana/d/1",
        "state": "alerting",
        "message": "look at it",
        "orgId": 1,
        "evalMatches": [{"value": 99, "metric": "disk", "tags": None}],
        "tags": {"host": "db-1"},
    }
    return parse(json.dumps(body | changes).encode(), FACTS)[0]


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("alerting", Status.FIRING),
        ("ok", Status.RESOLVED),
        ("no_data", Status.NO_DATA),
        ("paused", Status.SUPPRESSED),
        ("pending", Status.UNSPECIFIED),
        ("on fire", Status.UNSPECIFIED),
    ],
)
def test_the_old_shape_as_far_as_it_says(state: str, status: Status) -> None:
    """Rule and state are there; fingerprint, times and severity are not, and that is said."""
    signal = legacy(state=state)
    assert (signal.status, signal.rule_name, signal.start_time) == (status, "Disk full", None)
    assert [key.key for key in signal.targets] == ["host:db-1"]
    assert "old alerting" in signal.warnings[0]


def test_the_old_shape_keeps_its_key_over_states() -> None:
    """Firing and ok of one rule are the same alert; tags may be null."""
    assert legacy().dedup_key == legacy(state="ok", tags=None, title="[OK] Disk full").dedup_key
    assert legacy().dedup_key != legacy(ruleId=13).dedup_key


def test_the_old_shape_says_why_and_how_bad() -> None:
    """The series that fired are annotations; a tag may be the severity."""
    signal = legacy(tags={"severity": "critical"}, evalMatches=[{"metric": "disk", "value": 99.5}, 7, {"value": None}])
    assert signal.annotations == {"values.disk": "99.5"}
    assert signal.severity is Severity.CRITICAL
    assert legacy(tags={}).severity is Severity.UNSPECIFIED


@pytest.mark.parametrize(("rule", "org"), [(0, 1), (0, None), (5577006791947779410, 0)])
def test_the_test_button_of_the_old_shape(rule: int, org: int | None) -> None:
    """Early versions send rule 0, later ones a random rule of no organisation."""
    assert legacy(ruleId=rule, orgId=org, ruleName="Test notification").test
    assert not legacy(ruleName="Test notification").test


def parsed(body: Any) -> Any:
    """Parse a body with one alert."""
    (signal,) = parse(json.dumps(body).encode(), DeliveryFacts("grafana"))
    return signal


def test_the_old_alerting_names_its_series() -> None:
    """What all series have in common is meant; of several hosts none is the one."""
    tags = [{"host": "db-1", "env": "prod", "Severity": "critical"}, {"host": "db-2", "env": "prod"}]
    series = [{"metric": str(at), "value": 1, "tags": one} for at, one in enumerate(tags)]
    signal = parsed({"ruleId": 3, "ruleName": "Disk", "state": "alerting", "evalMatches": series, "tags": None})
    assert signal.resource == {"deployment.environment.name": "prod"}
    assert (signal.labels["host"], signal.severity) == ("db-1,db-2", Severity.CRITICAL)


def test_a_severity_in_any_case_or_as_an_annotation() -> None:
    """People call it as they like in the page of a rule."""
    alert = {"status": "firing", "labels": {"alertname": "x", "Severity": "Critical"}}
    assert parsed({"alerts": [alert]}).severity is Severity.CRITICAL
    alert = {"status": "firing", "labels": {"alertname": "x"}, "annotations": {"priority": "P2"}}
    assert parsed({"alerts": [alert]}).severity is Severity.ERROR


def test_a_story_survives_a_place_that_was_not_filled_in() -> None:
    """An annotation is for people: it is kept and noted; one that is nothing else is absent."""
    annotations = {"summary": "CPU of {{ $labels.host }} is <no value> %", "description": "{{ $labels.x }}"}
    signal = parsed({"alerts": [{"status": "firing", "labels": {"alertname": "x"}, "annotations": annotations}]})
    assert signal.summary == annotations["summary"]
    assert not signal.description
    assert "annotations.summary holds an unrendered placeholder" in signal.warnings


def test_the_group_of_a_test_says_so_without_labels() -> None:
    """Versions 8 and 9 name the alert of the button in the key of its group."""
    alert = {"status": "resolved", "labels": {}, "fingerprint": "57c6d9296de2ad39"}
    assert parsed({"alerts": [alert], "groupKey": '{alertname="TestAlert", instance="Grafana"}2026'}).test


def test_the_labels_of_the_group_tell_its_alert() -> None:
    """An alert without labels of its own has those."""
    assert parsed({"alerts": [{"status": "firing"}], "commonLabels": {"alertname": "x"}}).rule_name == "x"
