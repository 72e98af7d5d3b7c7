"""New Relic's webhooks, by its documentation: workflows, and the older alert channels."""

import json
from typing import Any

import pytest
from hypothesis import given, settings

from services.ingest.signal import DeliveryFacts, Rel, Severity, Status, Unreadable
from services.ingest.sources.newrelic import parse
from tests.ingest.sources.mutants import check, mutants

FACTS = DeliveryFacts("newrelic")
ID = "0ea2df1c-adab-45d2-aae0-042b609d2322"
ISSUE = {
    "id": ID,
    "issueUrl": f"https://radar-api.service.newrelic.com/accounts/1/issues/{ID}?notifier=WEBHOOK",
    "title": "Memory Used % > 90 for at least 2 minutes on 'checkout'",
    "priority": "CRITICAL",
    "impactedEntities": ["checkout", "checkout"],
    "totalIncidents": 2,
    "state": "ACTIVATED",
    "trigger": "STATE_CHANGE",
    "isCorrelated": "false",
    "createdAt": 1772359200000,
    "updatedAt": 1772359260500,
    "sources": ["newrelic"],
    "alertPolicyNames": ["Shop"],
    "alertConditionNames": ["Memory is high"],
    "workflowName": "to us",
}
INCIDENT = {
    "account_id": 11,
    "account_name": "Shop",
    "condition_id": 5,
    "condition_name": "Server down",
    "current_state": "open",
    "details": "web-1 does not answer",
    "event_type": "INCIDENT",
    "incident_id": 4711,
    "incident_url": "https://alerts.newrelic.com/accounts/11/incidents/4711",
    "policy_name": "Servers",
    "policy_url": "https://alerts.newrelic.com/accounts/11/policies/1",
    "runbook_url": "https://wiki.example/web",
    "severity": "WARNING",
    "targets": [{"id": "1", "name": "web-1", "type": "Host", "labels": {"env": "prod"}}],
    "timestamp": 1772359200000,
    "version": "1.0",
}


def one(body: dict[str, Any], **changes: Any) -> Any:
    """Parse a body, changed so."""
    return parse(json.dumps(body | changes).encode(), FACTS)[0]


def test_an_issue() -> None:
    """Its id is the key, the one entity is the service, its condition the rule."""
    signal = one(ISSUE)
    assert (signal.dedup_key, signal.status, signal.status_raw) == (ID, Status.FIRING, "ACTIVATED")
    assert (signal.severity, signal.severity_raw) == (Severity.CRITICAL, "CRITICAL")
    assert (signal.start_time, signal.event_time) == (1772359200000000000, 1772359260500000000)
    assert (signal.resource, signal.rule_name) == ({"service.name": "checkout"}, "Memory is high")
    assert (signal.labels["policy"], signal.labels["isCorrelated"]) == ("Shop", "false")
    assert [link.rel for link in signal.links] == [Rel.SOURCE]


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("CREATED", Status.FIRING),
        ("activated", Status.FIRING),
        ("ACKNOWLEDGED", Status.ACKNOWLEDGED),
        ("CLOSED", Status.RESOLVED),
        ("closed", Status.RESOLVED),
        ("BURNT", Status.UNSPECIFIED),
        (None, Status.UNSPECIFIED),
    ],
)
def test_every_state(word: str | None, status: Status) -> None:
    """In any case of letters; key and beginning stay."""
    signal = one(ISSUE, state=word)
    assert (signal.status, signal.dedup_key, signal.start_time) == (status, ID, 1772359200000000000)
    assert (signal.end_time == 1772359260500000000) is (status is Status.RESOLVED)


@pytest.mark.parametrize(
    ("word", "severity"),
    [("HIGH", Severity.ERROR), ("MEDIUM", Severity.WARNING), ("LOW", Severity.INFO), ("", Severity.UNSPECIFIED)],
)
def test_priorities(word: str, severity: Severity) -> None:
    """What is not said is not assumed."""
    assert one(ISSUE, priority=word).severity is severity


def test_the_id_in_the_link_is_the_issues() -> None:
    """Some templates put a notification's id where the issue's belongs."""
    signal = one(ISSUE, id="d1b1f3fd-995a-4066-88ab-8ce4f6960654")
    assert signal.dedup_key == ID
    assert any("differs" in text for text in signal.warnings)
    for link in ("https://one.newrelic.com/launcher?pane=1", "https://x/accounts/1/incidents/12", "", None):
        assert one(ISSUE, issueUrl=link).dedup_key == ID


def test_an_issue_without_an_id() -> None:
    """Its title and conditions tell it; without them nothing does."""
    signal = one(ISSUE, id="{{ json issueId }}", issueUrl="")
    assert len(signal.dedup_key) == 64
    assert one(ISSUE, id=None, issueUrl="", state="CLOSED").dedup_key == signal.dedup_key
    with pytest.raises(Unreadable):
        parse(b'{"state": "CREATED", "createdAt": 1772359200000}', FACTS)


def test_a_minimal_template() -> None:
    """Id, state and time are enough, and a time before all times is none."""
    signal = one({"id": ID, "state": "activated", "createdAt": 1772359200000})
    assert (signal.dedup_key, signal.severity, signal.event_time) == (ID, Severity.UNSPECIFIED, 1772359200000000000)
    broken = one({"id": ID, "state": "activated", "createdAt": "1969-12-31 23:59:55"})
    assert (broken.start_time, broken.event_time) == (None, None)
    assert any("not a time" in text for text in broken.warnings)


def test_closed_without_a_time_was_not_closed_when_it_began() -> None:
    """The beginning is no time of the end."""
    signal = one({"id": ID, "state": "CLOSED", "createdAt": 1772359200000})
    assert (signal.event_time, signal.end_time) == (None, None)


def test_several_entities_are_no_single_target() -> None:
    """Of several none is the one; a kind says whether it is a host."""
    assert one(ISSUE, impactedEntities=["a", "b"]).targets == ()
    assert [key.key for key in one(ISSUE, entityTypes=["HOST"]).targets] == ["host:checkout"]


def test_an_incident_of_the_older_channels() -> None:
    """Account and number are the key, the first target the resource."""
    signal = one(INCIDENT)
    assert (signal.dedup_key, signal.status, signal.severity) == ("incident|11|4711", Status.FIRING, Severity.WARNING)
    assert (signal.event_time, signal.rule_name) == (1772359200000000000, "Server down")
    assert [key.key for key in signal.targets] == ["host:web-1"]
    assert "cloud.account.id" not in signal.resource
    assert {link.rel for link in signal.links} == {Rel.SOURCE, Rel.GENERATOR, Rel.RUNBOOK}
    assert one(INCIDENT, current_state="closed").status is Status.RESOLVED
    assert one(INCIDENT, current_state="test").test


def test_an_incident_without_a_number() -> None:
    """What it is about tells it, and that is warned of."""
    signal = one(INCIDENT, incident_id=0)
    assert len(signal.dedup_key) == 64
    assert signal.dedup_key == one(INCIDENT, incident_id=0, current_state="closed").dedup_key
    assert any("no incident_id" in text for text in signal.warnings)


@pytest.mark.parametrize("body", [{}, [], {"current_state": "open"}, {"condition_id": 0, "targets": []}, "x"])
def test_what_names_nothing_is_unreadable(body: Any) -> None:
    """Neither issue nor incident: there is no signal."""
    with pytest.raises(Unreadable):
        parse(json.dumps(body).encode(), FACTS)


@settings(max_examples=200, deadline=None)
@given(body=mutants([ISSUE, INCIDENT, [ISSUE, INCIDENT]]))
def test_mutants(body: bytes) -> None:
    """Whatever is left of a good payload: signals or Unreadable."""
    check("newrelic", body)


def test_a_workflow_with_the_names_of_the_older_channels() -> None:
    """A template for another service: the issue's id is called incident_id, its conditions are a list."""
    body = {
        "incident_id": "98441886-dfc8-4090-afc2-bfd7a1ac8e59",
        "condition_name": ["Disk"],
        "details": "disk of orders",
        "severity": "CRITICAL",
        "current_state": "CLOSED",
        "impactedEntities": ["orders"],
        "createdAt": 1_772_359_200_000,
        "updatedAt": 1_772_359_800_000,
    }
    (signal,) = parse(json.dumps(body).encode(), DeliveryFacts("newrelic"))
    assert (signal.dedup_key, signal.status, signal.rule_name) == (body["incident_id"], Status.RESOLVED, "Disk")
    assert (signal.start_time, signal.end_time) == (1_772_359_200_000_000_000, 1_772_359_800_000_000_000)


def test_the_sample_of_a_channel_is_a_test() -> None:
    """Its target is one of the product TESTING; incident and condition are 0."""
    body = {"current_state": "open", "incident_id": 0, "condition_id": 0, "condition_name": "New Relic Alert - Test"}
    body |= {"targets": [{"id": "0", "name": "", "product": "TESTING"}]}
    assert parse(json.dumps(body).encode(), DeliveryFacts("newrelic"))[0].test


def test_the_kind_of_event_says_it_when_the_state_was_left_unfilled() -> None:
    """As older templates do."""
    body = {"incident_id": "44", "account_id": "1", "current_state": "$EVENT_STATE", "event_type": "INCIDENT_RESOLVED"}
    (signal,) = parse(json.dumps(body).encode(), DeliveryFacts("newrelic"))
    assert (signal.status, signal.status_raw) == (Status.RESOLVED, "INCIDENT_RESOLVED")


def test_a_list_where_a_text_belongs() -> None:
    """A template without an index sends all titles, and a tag with all its values."""
    body = {"id": "i-1", "state": "ACTIVATED", "title": ["Disk is full"], "labels": {"env": ["prod"]}}
    (signal,) = parse(json.dumps(body).encode(), DeliveryFacts("newrelic"))
    assert (signal.summary, signal.resource) == ("Disk is full", {"deployment.environment.name": "prod"})
