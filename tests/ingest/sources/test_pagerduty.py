"""PagerDuty's webhooks, version 3, by its documentation."""

import json
from typing import Any

import pytest
from hypothesis import given, settings

from services.ingest.signal import DeliveryFacts, Kind, Rel, Severity, Status, Unreadable
from services.ingest.sources.pagerduty import parse
from tests.ingest.sources.mutants import check, mutants

FACTS = DeliveryFacts("pagerduty")
REFERENCE = {"id": "PINC1", "summary": "Checkout is slow", "html_url": "https://shop.pagerduty.com/incidents/PINC1"}
INCIDENT = {
    "id": "PINC1",
    "type": "incident",
    "html_url": "https://shop.pagerduty.com/incidents/PINC1",
    "number": 12,
    "status": "triggered",
    "incident_key": None,
    "created_at": "2026-03-01T10:00:00Z",
    "title": "Checkout is slow",
    "service": {"id": "PSVC1", "summary": "checkout", "type": "service_reference"},
    "teams": [{"id": "PT1", "summary": "Payments"}, {"id": "PT2", "summary": "Core"}],
    "escalation_policy": {"id": "PE1", "summary": "Default"},
    "priority": {"id": "PP1", "summary": "P1"},
    "urgency": "high",
    "resolve_reason": None,
}


def event(kind: str = "incident.triggered", data: Any = None, **changes: Any) -> dict[str, Any]:
    """Return the body of a webhook."""
    fields = {
        "id": "01EVENT",
        "event_type": kind,
        "resource_type": "incident",
        "occurred_at": "2026-03-01T10:05:00.250Z",
        "agent": None,
        "client": None,
        "data": INCIDENT if data is None else data,
    }
    return {"event": fields | changes}


def one(kind: str = "incident.triggered", data: Any = None, **changes: Any) -> Any:
    """Parse a webhook."""
    return parse(json.dumps(event(kind, data, **changes)).encode(), FACTS)[0]


def test_an_incident() -> None:
    """Its id is the key, its service the resource, its priority the severity."""
    signal = one(client={"name": "shop", "url": "https://shop.example/status"})
    assert (signal.dedup_key, signal.status, signal.status_raw) == ("PINC1", Status.FIRING, "incident.triggered")
    assert (signal.severity, signal.severity_raw) == (Severity.CRITICAL, "P1")
    assert (signal.start_time, signal.event_time) == (1772359200000000000, 1772359500250000000)
    assert signal.resource == {"service.name": "checkout"}
    assert [(key.key, key.partial) for key in signal.targets] == [("svc:checkout", True)]
    assert (signal.labels["team"], signal.labels["incident_number"]) == ("Payments,Core", "12")
    assert [link.rel for link in signal.links] == [Rel.SOURCE, Rel.GENERATOR]
    assert signal.kind is Kind.ALERT


@pytest.mark.parametrize(
    ("kind", "state", "status"),
    [
        ("incident.triggered", "triggered", Status.FIRING),
        ("incident.acknowledged", "acknowledged", Status.ACKNOWLEDGED),
        ("incident.unacknowledged", "triggered", Status.FIRING),
        ("incident.reopened", "triggered", Status.FIRING),
        ("incident.resolved", "resolved", Status.RESOLVED),
        # by the time it is sent, somebody may have gone on
        ("incident.triggered", "resolved", Status.FIRING),
        ("incident.reassigned", "acknowledged", Status.ACKNOWLEDGED),
        ("incident.escalated", "triggered", Status.FIRING),
        ("incident.priority_updated", "resolved", Status.RESOLVED),
        ("incident.delegated", "frobnicated", Status.UNSPECIFIED),
        ("incident.invented", None, Status.UNSPECIFIED),
    ],
)
def test_every_event_of_an_incident(kind: str, state: str | None, status: Status) -> None:
    """What moves an incident says it itself; every other event tells its state."""
    signal = one(kind, INCIDENT | {"status": state})
    assert (signal.status, signal.dedup_key) == (status, "PINC1")
    assert (signal.end_time is not None) is (status is Status.RESOLVED)


def test_a_reopened_incident_begins_anew() -> None:
    """With its first beginning it would be taken for what was resolved."""
    assert one(data=INCIDENT | {"reopened_at": "2026-03-01T11:00:00Z"}).start_time == 1772362800000000000
    assert one("incident.reopened").start_time == one().event_time


@pytest.mark.parametrize(
    ("priority", "urgency", "severity", "raw"),
    [
        ({"summary": "P3"}, "high", Severity.WARNING, "P3"),
        (None, "high", Severity.ERROR, "high"),
        (None, "low", Severity.WARNING, "low"),
        ({"summary": "Burning"}, "low", Severity.WARNING, "Burning"),
        (None, None, Severity.UNSPECIFIED, ""),
    ],
)
def test_priority_goes_before_urgency(priority: Any, urgency: Any, severity: Severity, raw: str) -> None:
    """Priorities bear names of the account's own; one we cannot read leaves the urgency."""
    signal = one(data=INCIDENT | {"priority": priority, "urgency": urgency})
    assert (signal.severity, signal.severity_raw) == (severity, raw)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("incident.annotated", {"type": "incident_note", "id": "N1", "content": "on it"}),
        ("incident.status_update_published", {"type": "incident_status_update", "id": "S1", "message": "soon"}),
        ("incident.responder.added", {"type": "incident_responder", "message": "help", "state": "pending"}),
    ],
)
def test_what_moves_nothing_is_a_note(kind: str, data: dict[str, Any]) -> None:
    """A note about an incident neither opens one nor is taken for its state."""
    signal = one(kind, data | {"incident": REFERENCE})
    assert (signal.kind, signal.status, signal.labels) == (Kind.NOTE, Status.OCCURRENCE, {"incident_id": "PINC1"})
    assert signal.dedup_key != "PINC1"
    assert "Checkout is slow" in signal.summary
    assert signal.description in ("on it", "soon", "help")


def test_events_of_services_are_changes() -> None:
    """Their data has another shape: there is no incident in it."""
    data = {"id": "PSVC1", "summary": "checkout", "type": "service", "html_url": "https://shop.pagerduty.com/s/PSVC1"}
    signal = one("service.updated", data)
    assert (signal.kind, signal.summary) == (Kind.CONFIGURATION, "service.updated: checkout")
    assert signal.resource == {"service.name": "checkout"}


def test_a_ping_is_a_test() -> None:
    """The button `send test event` opens nothing."""
    signal = one("pagey.ping", {"message": "Hello", "type": "ping"})
    assert signal.test
    assert signal.kind is Kind.NOTE


def test_one_bad_link_costs_itself_only() -> None:
    """A client may bear any URL, also one that is none or far too long."""
    for url in ("javascript:alert(1)", "https://x/" + "y" * 3000, "?a=1", "https://x/ y"):
        signal = one(client={"url": url})
        assert [link.url for link in signal.links] == [INCIDENT["html_url"]]
        assert any("link" in text for text in signal.warnings)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"event": None},
        {"event": {"event_type": "incident.triggered"}},
        event(data={"type": "incident", "title": "no id"}),
        event(data=INCIDENT | {"id": "{{ id }}"}),
        {"event": {"data": INCIDENT}},
    ],
)
def test_without_identity_it_is_unreadable(body: Any) -> None:
    """An event that names no incident cannot be understood."""
    with pytest.raises(Unreadable):
        parse(json.dumps(body).encode(), FACTS)


@settings(max_examples=200, deadline=None)
@given(
    body=mutants(
        [
            event(),
            event("incident.annotated", {"type": "incident_note", "id": "N1", "incident": REFERENCE, "content": "x"}),
            event("service.created", {"type": "service", "id": "P", "summary": "s"}),
            event("pagey.ping", {"type": "ping"}),
        ]
    )
)
def test_mutants(body: bytes) -> None:
    """Whatever is left of a good payload: signals or Unreadable."""
    check("pagerduty", body)
