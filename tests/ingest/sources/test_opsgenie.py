"""Opsgenie's outgoing webhook, by its documentation: one action on one alert."""

import json
from typing import Any

import pytest
from hypothesis import given, settings

from services.ingest.signal import DeliveryFacts, Kind, Rel, Severity, Status, Unreadable
from services.ingest.sources.opsgenie import parse
from tests.ingest.sources.mutants import check, mutants

CREATED = 1_767_225_600_000
ALERT = {
    "alertId": "3b1f0a52-0000-4000-8000-0123456789ab-1767225600000",
    "alias": "disk-db-1",
    "tinyId": "77",
    "message": "Disk  is\nfull",
    "description": "93 %",
    "priority": "P2",
    "tags": ["env:prod", "team:storage", "urgent"],
    "details": {"host": "db-1", "runbook_url": "https://wiki.example.org/disk", "dashboard": "javascript:alert(1)"},
    "entity": "orders",
    "source": "ann@example.org",
    "createdAt": CREATED,
    "updatedAt": 1_767_225_600_000_000_110,
    "username": "ann@example.org",
}
BODY = {"action": "Create", "alert": ALERT, "source": {"name": "web", "type": "API"}, "integrationName": "opsmesh"}


def one(action: str = "Create", **changes: Any) -> Any:
    """Parse an action on the alert, changed so; what is None is not there."""
    alert = {name: value for name, value in {**ALERT, **changes}.items() if value is not None}
    (signal,) = parse(json.dumps(BODY | {"action": action, "alert": alert}).encode(), DeliveryFacts("opsgenie"))
    return signal


def test_a_created_alert() -> None:
    """Milliseconds and nanoseconds are told apart by their size; details and tags are labels, and name the target."""
    signal = one()
    assert (signal.dedup_key, signal.status, signal.status_raw) == (ALERT["alertId"], Status.FIRING, "Create")
    assert (signal.severity, signal.severity_raw) == (Severity.ERROR, "P2")
    assert signal.summary == "Disk is full"
    assert signal.start_time == CREATED * 1_000_000
    assert signal.event_time == 1_767_225_600_000_000_110
    assert signal.labels["urgent"] == "true"
    assert signal.resource == {
        "host.name": "db-1",
        "deployment.environment.name": "prod",
        "service.name": "orders",
    }
    assert [key.key for key in signal.targets] == ["svc:prod/orders", "host:db-1"]
    assert [(link.rel, link.url) for link in signal.links] == [(Rel.RUNBOOK, "https://wiki.example.org/disk")]


@pytest.mark.parametrize(
    ("action", "status"),
    [
        ("Acknowledge", Status.ACKNOWLEDGED),
        ("UnAcknowledge", Status.FIRING),
        ("Close", Status.RESOLVED),
        ("Delete", Status.RESOLVED),
        ("Snooze", Status.SUPPRESSED),
    ],
)
def test_actions_that_move_the_alert_keep_its_key_and_start(action: str, status: Status) -> None:
    """What Opsgenie leaves out after the first message is not needed to know which alert is meant."""
    signal = one(action, priority=None, description=None, details=None, updatedAt=1_767_225_700_000_000_000)
    assert (signal.dedup_key, signal.start_time) == (one().dedup_key, one().start_time)
    assert (signal.status, signal.kind) == (status, Kind.ALERT)
    assert signal.event_time == 1_767_225_700_000_000_000
    assert signal.end_time == (signal.event_time if status is Status.RESOLVED else None)
    assert signal.severity is Severity.UNSPECIFIED


@pytest.mark.parametrize("action", ["AddNote", "Escalate", "AddTeam", "TakeOwnership", "UpdatePriority", "my action"])
def test_other_actions_are_notes(action: str) -> None:
    """They say not how the alert stands, so they open nothing and end nothing."""
    signal = one(action)
    assert (signal.status, signal.kind) == (Status.OCCURRENCE, Kind.NOTE)
    assert signal.dedup_key == f"{ALERT['alertId']}|{action}|{ALERT['updatedAt']}"
    assert signal.annotations["alertId"] == ALERT["alertId"]


def test_two_notes_are_two_events() -> None:
    """Each has a moment of its own; the same bytes again are the same note."""
    first, second = (one("AddNote", note="hello", updatedAt=1_767_225_700_000_000_000 + add) for add in (0, 1))
    assert len({first.dedup_key, second.dedup_key, one("AddTags", updatedAt=first.event_time).dedup_key}) == 3
    assert one("AddNote", note="hello", updatedAt=1_767_225_700_000_000_000).dedup_key == first.dedup_key
    assert (first.start_time, first.event_time) == (1_767_225_700_000_000_000,) * 2


def test_create_again_is_no_new_alert() -> None:
    """The integration of a team that was added later gets Create once more: key, start and status are the same."""
    first, again = one(), one(updatedAt=1_767_225_900_000_000_000, teams=["t-2"])
    told = [(signal.dedup_key, signal.start_time, signal.status) for signal in (first, again)]
    assert told[0] == told[1]


def test_an_escalation_names_its_alert_and_nothing_more() -> None:
    """Opsgenie sends only the id with it."""
    body = {"action": "Escalate", "alert": {"alertId": "a-1"}, "escalationName": "night", "repeatCount": 0}
    (signal,) = parse(json.dumps(body).encode(), DeliveryFacts("opsgenie"))
    assert signal.summary == "Escalate of alert a-1"
    (later,) = parse(json.dumps(body | {"repeatCount": 1}).encode(), DeliveryFacts("opsgenie"))
    (again,) = parse(json.dumps(body).encode(), DeliveryFacts("opsgenie"))
    assert signal.dedup_key.startswith("a-1|Escalate|")
    assert again.dedup_key == signal.dedup_key != later.dedup_key


@pytest.mark.parametrize(("sent", "severity"), [(1, Severity.CRITICAL), (3, Severity.WARNING), ("P5", Severity.INFO)])
def test_a_priority_may_be_a_number(sent: Any, severity: Severity) -> None:
    """1 to 5 are P1 to P5."""
    assert one(priority=sent).severity is severity


def test_a_queue_hands_the_action_on_within_a_payload() -> None:
    """As the connector of Opsgenie's edge does."""
    (signal,) = parse(json.dumps({"payload": BODY | {"action": "Close"}}).encode(), DeliveryFacts("opsgenie"))
    assert (signal.dedup_key, signal.status) == (ALERT["alertId"], Status.RESOLVED)
    assert signal.body_pointer == "/payload"


def test_without_an_action_nobody_can_say() -> None:
    """A body without action never fires."""
    (signal,) = parse(json.dumps({"alert": ALERT}).encode(), DeliveryFacts("opsgenie"))
    assert signal.status is Status.UNSPECIFIED
    assert signal.warnings


def test_the_alias_is_the_key_of_last_resort() -> None:
    """It is the same for the next alert of its kind, which is said."""
    signal = one(alertId=None)
    assert signal.dedup_key == "disk-db-1"
    assert "alias" in " ".join(signal.warnings)


def test_a_sentence_is_no_target() -> None:
    """Entity is what its author likes; only a name may become a key."""
    assert "service.name" not in one(entity="The big database, see wiki").resource


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"action":"Create"}', b'{"alert":{"message":"x"}}', b"x=1"])
def test_what_names_no_alert_is_unreadable(body: bytes) -> None:
    """It is refused with the field's name, and never taken for an alert."""
    with pytest.raises(Unreadable):
        parse(body, DeliveryFacts("opsgenie"))


@settings(max_examples=300, deadline=None)
@given(body=mutants([BODY, BODY | {"action": "Close"}]))
def test_any_damage_gives_signals_or_unreadable(body: bytes) -> None:
    """Whatever is left of a good message, the answer is bounded and soon."""
    check("opsgenie", body)


def test_an_entity_that_is_the_host_is_no_service() -> None:
    """Alerts about a host name it there too."""
    assert "service.name" not in one(entity="db-1").resource
    assert one(entity="db-1", details=None).resource["service.name"] == "db-1"


@pytest.mark.parametrize("name", ["namespace", "cluster", "deployment"])
def test_an_entity_may_be_called_as_its_place_is(name: str) -> None:
    """A service often has a namespace or a workload of its own name."""
    assert one(entity="orders", details={name: "orders"}).resource["service.name"] == "orders"
