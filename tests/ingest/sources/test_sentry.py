"""Sentry's webhooks, by its documentation."""

import json
from typing import Any

import pytest
from hypothesis import given, settings

from services.ingest.signal import DeliveryFacts, Kind, Rel, Severity, Status, Unreadable
from services.ingest.sources.sentry import parse
from tests.ingest.sources.mutants import check, mutants

FACTS = DeliveryFacts("sentry")
EVENT = {
    "event_id": "e4874d664c3540c1a32eab185f12c5ab",
    "project": 1,
    "release": "shop@1.4.2",
    "platform": "python",
    "message": "",
    "datetime": "2026-03-01T10:00:00.250000Z",
    "level": "error",
    "culprit": "shop.checkout in pay",
    "title": "ValueError: no such card",
    "metadata": {"type": "ValueError", "value": "no such card"},
    "tags": [
        ["environment", "production"],
        ["server_name", "web-1"],
        ["user", "id:7"],
        ["user.email", "ann@x.example"],
    ],
    "user": {"email": "ann@x.example"},
    "request": {"headers": [["Cookie", "s3cr3t"]]},
    "exception": {"values": [{"stacktrace": {"frames": [{"vars": {"card": "4111"}}]}}]},
    "url": "https://sentry.io/api/0/projects/acme/checkout/events/e4874d664c3540c1a32eab185f12c5ab/",
    "web_url": "https://sentry.io/organizations/acme/issues/1117540176/events/e4874d66/",
    "issue_url": "https://sentry.io/api/0/issues/1117540176/",
    "issue_id": "1117540176",
}
ALERT = {
    "action": "triggered",
    "actor": {"id": "sentry", "name": "Sentry", "type": "application"},
    "data": {"event": EVENT, "triggered_rule": "Very important rule"},
    "installation": {"uuid": "a8e5d37a-696c-4c54-adb5-b3f28d64c7de"},
}
ISSUE = {
    "id": "1117540176",
    "shortId": "CHECKOUT-9",
    "title": "ValueError: no such card",
    "culprit": "shop.checkout in pay",
    "level": "error",
    "status": "unresolved",
    "substatus": "new",
    "platform": "python",
    "project": {"id": "1", "name": "Checkout", "slug": "checkout"},
    "firstSeen": "2026-03-01T09:00:00.000000Z",
    "lastSeen": "2026-03-01T10:00:00.000000Z",
    "permalink": None,
    "metadata": {"type": "ValueError", "value": "no such card"},
}
METRIC = {
    "id": "4",
    "identifier": "1",
    "organization_id": "5",
    "projects": ["checkout"],
    "title": "Sacred Marmot",
    "date_started": "2026-03-01T10:00:00.000000Z",
    "date_detected": "2026-03-01T10:01:00.000000Z",
    "date_closed": None,
    "alert_rule": {"id": "7", "name": "Too many errors", "environment": "production", "aggregate": "count()"},
}
PLUGIN = {
    "id": "1117540176",
    "project": "checkout",
    "project_name": "Checkout",
    "project_slug": "checkout",
    "level": "error",
    "culprit": "shop.checkout in pay",
    "message": "no such card",
    "url": "https://sentry.example/acme/checkout/issues/1117540176/",
    "triggering_rules": ["Send to us"],
    "event": {"event_id": "e4", "environment": "production", "timestamp": 1772359200.25, "tags": [["level", "error"]]},
}


def issue(action: str, **changes: Any) -> dict[str, Any]:
    """Return a webhook about an issue."""
    return {"action": action, "data": {"issue": ISSUE | changes}, "installation": {"uuid": "a8"}}


def metric(action: str, **changes: Any) -> dict[str, Any]:
    """Return a webhook of a metric alert."""
    data = {
        "metric_alert": METRIC | changes,
        "description_title": "Critical: Too many errors",
        "description_text": "1000 events in the last 10 minutes",
        "web_url": "https://sentry.io/organizations/acme/alerts/1/",
    }
    return {"action": action, "data": data}


def one(body: Any) -> Any:
    """Parse a body."""
    return parse(json.dumps(body).encode(), FACTS)[0]


def event(**changes: Any) -> Any:
    """Parse an issue alert whose event is changed so."""
    return one(ALERT | {"data": {"event": EVENT | changes, "triggered_rule": "r"}})


def test_an_issue_alert_is_an_occurrence_of_its_issue() -> None:
    """It never resolves by itself; what can be told of it becomes labels and resource."""
    signal = one(ALERT)
    assert (signal.dedup_key, signal.status, signal.status_raw) == ("1117540176", Status.OCCURRENCE, "triggered")
    assert (signal.severity, signal.severity_raw) == (Severity.ERROR, "error")
    assert (signal.event_time, signal.start_time) == (1772359200250000000, None)
    assert signal.resource == {
        "service.name": "checkout",
        "deployment.environment.name": "production",
        "host.name": "web-1",
        "service.version": "shop@1.4.2",
    }
    assert [key.key for key in signal.targets] == ["svc:production/checkout", "host:web-1"]
    assert (signal.summary, signal.labels["triggered_rule"]) == (EVENT["title"], "Very important rule")
    assert [link.rel for link in signal.links] == [Rel.SOURCE, Rel.GENERATOR]


def test_people_stay_in_the_raw_body() -> None:
    """Users, requests and variables of stack traces become no part of a signal."""
    found = str(one(ALERT))
    assert not [word for word in ("ann@", "id:7", "s3cr3t", "4111") if word in found]


def test_the_key_of_an_issue_is_one_for_all() -> None:
    """Alert, issue, error, old plugin, ids as numbers and out of links: its resolve meets them all."""
    resolved = one(issue("resolved", status="resolved"))
    assert (resolved.dedup_key, resolved.status) == ("1117540176", Status.RESOLVED)
    bare = {name: value for name, value in EVENT.items() if name != "issue_id"}
    for body in (
        ALERT | {"data": {"event": EVENT | {"issue_id": 1117540176}}},
        ALERT | {"data": {"event": bare}},
        {"action": "created", "data": {"error": EVENT}},
        issue("created"),
        PLUGIN,
    ):
        assert one(body).dedup_key == resolved.dedup_key


def test_an_event_without_any_issue_is_known_by_its_title() -> None:
    """The derived key is warned of; without a title there is no identity."""
    nothing = {"issue_id": None, "issue_url": "", "web_url": None}
    signal = event(**nothing)
    assert len(signal.dedup_key) == 64
    assert any("no issue_id" in text for text in signal.warnings)
    with pytest.raises(Unreadable):
        event(**nothing, title="")


@pytest.mark.parametrize(
    ("action", "status", "meant"),
    [
        ("created", "unresolved", Status.FIRING),
        ("unresolved", "unresolved", Status.FIRING),
        ("resolved", "resolved", Status.RESOLVED),
        ("archived", "ignored", Status.SUPPRESSED),
        ("ignored", "ignored", Status.SUPPRESSED),
        ("assigned", "resolved", Status.RESOLVED),
        ("assigned", "unresolved", Status.FIRING),
        ("invented", "unheard", Status.UNSPECIFIED),
    ],
)
def test_every_action_of_an_issue(action: str, status: str, meant: Status) -> None:
    """What moves an issue says it itself; every other action tells its state."""
    assert one(issue(action, status=status)).status is meant


@pytest.mark.parametrize("action", ["created", "resolved", "assigned", "archived"])
def test_the_time_of_an_issue_is_that_of_its_last_event(action: str) -> None:
    """No webhook says when somebody resolved it; what comes after that moment is new."""
    assert one(issue(action)).event_time == 1772359200000000000


def test_an_issue_that_somebody_opened_again_has_no_time() -> None:
    """By its last event it would be as old as its resolve; one that came back by itself had a new event."""
    assert one(issue("unresolved")).event_time is None
    assert one(issue("unresolved", substatus="regressed")).event_time == 1772359200000000000


@pytest.mark.parametrize(
    ("action", "status", "severity"),
    [
        ("critical", Status.FIRING, Severity.CRITICAL),
        ("warning", Status.FIRING, Severity.WARNING),
        ("resolved", Status.RESOLVED, Severity.UNSPECIFIED),
        ("open", Status.UNSPECIFIED, Severity.UNSPECIFIED),
    ],
)
def test_metric_alerts(action: str, status: Status, severity: Severity) -> None:
    """The action is both; key and beginning are those of the incident, whose id may be that of an issue."""
    signal = one(metric(action))
    assert (signal.status, signal.severity, signal.dedup_key) == (status, severity, "metric_alert|4")
    assert (signal.rule_name, signal.start_time) == ("Too many errors", 1772359200000000000)
    assert [key.key for key in signal.targets] == ["svc:production/checkout"]


def test_a_metric_alert_without_id_is_known_by_its_title() -> None:
    """Which is noted, for the next one of its rule has the same."""
    firing, over = one(metric("critical", id=None, title="p95")), one(metric("resolved", id=None, title="p95"))
    assert firing.dedup_key == over.dedup_key
    assert "no id" in " ".join(firing.warnings)


def test_the_end_of_a_metric_alert() -> None:
    """It is told when it is known."""
    closed = one(metric("resolved", date_closed="2026-03-01T11:00:00Z"))
    assert closed.end_time == closed.event_time == 1772362800000000000


def test_the_old_plugin() -> None:
    """No action, no data; the number of the issue stands beside the event."""
    signal = one(PLUGIN)
    assert (signal.status, signal.severity, signal.event_time) == (
        Status.OCCURRENCE,
        Severity.ERROR,
        1772359200250000000,
    )
    assert [key.key for key in signal.targets] == ["svc:production/checkout"]


def test_a_service_hook() -> None:
    """Issue and project are objects there; its key is that of the issue's other webhooks."""
    body = {
        "project": {"slug": "checkout", "name": "Checkout"},
        "group": {"id": "1117540176", "title": "KeyError", "level": "error", "url": "https://s.example/issues/1/"},
        "event": {"title": "KeyError", "dateCreated": "2026-03-01T10:00:00Z", "tags": [{"key": "env", "value": "x"}]},
    }
    signal = one(body)
    assert (signal.dedup_key, signal.severity, signal.status) == ("1117540176", Severity.ERROR, Status.OCCURRENCE)
    assert signal.event_time == 1_772_359_200_000_000_000
    assert [key.key for key in signal.targets] == ["svc:x/checkout"]


def test_an_installation_is_a_handshake() -> None:
    """It opens nothing, and its code is a secret."""
    body = {"action": "created", "data": {"installation": {"uuid": "a8", "code": "SECRET", "status": "installed"}}}
    signal = one(body)
    assert (signal.test, signal.kind) == (True, Kind.NOTE)
    assert "SECRET" not in str(signal)


def test_a_comment_is_a_note() -> None:
    """It says how nothing stands, and has not the issue's key."""
    data = {"comment": "hello", "comment_id": 5, "issue_id": 1117540176, "project_slug": "checkout"}
    signal = one({"action": "created", "data": data})
    assert (signal.kind, signal.test, signal.description) == (Kind.NOTE, False, "hello")
    assert signal.dedup_key != "1117540176"


@pytest.mark.parametrize("body", [{}, [], {"action": "created"}, {"data": {}}, {"data": {"x": 1}}, {"data": [1]}])
def test_what_says_nothing_is_unreadable(body: Any) -> None:
    """Without data and without an event there is no signal."""
    with pytest.raises(Unreadable):
        parse(json.dumps(body).encode(), FACTS)


@settings(max_examples=200, deadline=None)
@given(body=mutants([ALERT, issue("created"), metric("critical"), PLUGIN, {"action": "x", "data": {"comment": "a"}}]))
def test_mutants(body: bytes) -> None:
    """Whatever is left of a good payload: signals or Unreadable."""
    check("sentry", body)
