"""Dynatrace's problem notifications and the events of its newer platform, by their documentation."""

import json
from typing import Any

import pytest
from hypothesis import given, settings

from services.ingest.signal import DeliveryFacts, Rel, Severity, Status, Unreadable
from services.ingest.sources.dynatrace import parse
from tests.ingest.sources.mutants import check, mutants

PROBLEM = {
    "State": "OPEN",
    "ProblemID": "P-26011",
    "PID": "-4711_1767225600000V2",
    "ProblemTitle": "High failure rate",
    "ProblemSeverity": "ERROR",
    "ProblemImpact": "SERVICE",
    "Problem URL": "https://abc.live.dynatrace.com/#problems/problemdetails;pid=-4711",
    "ProblemDetailsText": "OPEN Problem P-26011",
    "Tags": "[AWS]env:prod, team:shop, urgent",
    "ImpactedEntity": "2 impacted entities",
    "ImpactedEntities": [
        {"type": "SERVICE", "name": "checkout", "entity": "SERVICE-1"},
        {"type": "PROCESS_GROUP_INSTANCE", "name": "java", "entity": "PROCESS_GROUP_INSTANCE-1"},
        {"type": "SERVICE", "name": "cart", "entity": "SERVICE-2"},
        {"type": "HOST", "name": "web-1", "entity": "HOST-1"},
    ],
    "ProblemDetailsJSON": {"startTime": 1767225600000, "endTime": -1, "status": "OPEN"},
}
EVENT = {
    "event.kind": "DAVIS_EVENT",
    "event.id": "-80500_1767225600000",
    "event.name": "CPU saturation",
    "event.category": "RESOURCE_CONTENTION",
    "event.status": "ACTIVE",
    "event.status_transition": "CREATED",
    "event.start": "2026-01-01T00:00:00.000000000Z",
    "event.end": "2026-01-01T00:00:02.000000001Z",
    "event.severity": "5",
    "event.description": "a long text",
    "timestamp": "2026-01-01T00:00:03Z",
    "host.name": "node-1",
    "k8s.cluster.name": "main",
    "k8s.namespace.name": "shop",
    "dt.entity.cloud_application.name": "checkout",
    "gcp.project.id": "shop-prod",
    "gcp.zone": "europe-west3-b",
    "maintenance.is_under_maintenance": False,
    "affected_entity_ids": ["HOST-1"],
}
FACTS = DeliveryFacts("dynatrace")


def one(base: dict[str, Any] = PROBLEM, **changes: Any) -> Any:
    """Parse a message, changed so; what is None is not there."""
    body = {name: value for name, value in {**base, **changes}.items() if value is not None}
    (signal,) = parse(json.dumps(body).encode(), FACTS)
    return signal


def test_an_open_problem() -> None:
    """Every impacted entity is a target; tags may bear the name of their origin."""
    signal = one()
    assert (signal.dedup_key, signal.status, signal.severity) == ("P-26011", Status.FIRING, Severity.ERROR)
    assert (signal.rule_name, signal.description) == ("High failure rate", "OPEN Problem P-26011")
    assert signal.start_time == signal.event_time == 1_767_225_600_000_000_000
    assert [key.key for key in signal.targets] == ["svc:prod/checkout", "svc:prod/cart", "host:web-1"]
    assert signal.resource == {
        "service.name": "checkout",
        "host.name": "web-1",
        "deployment.environment.name": "prod",
    }
    assert signal.labels["[AWS]env"] == "prod"
    assert [link.rel for link in signal.links] == [Rel.SOURCE]


@pytest.mark.parametrize("state", ["RESOLVED", "CLOSED"])
def test_the_end_of_a_problem_has_its_number_and_another_pid(state: str) -> None:
    """The number is the key."""
    signal = one(State=state, PID="99", ProblemDetailsJSON='{"startTime": 1767225600000, "endTime": 1767225660000}')
    assert (signal.dedup_key, signal.status) == ("P-26011", Status.RESOLVED)
    assert signal.event_time == signal.end_time == 1_767_225_660_000_000_000


def test_a_merged_problem_is_over_and_says_nothing_else() -> None:
    """Placeholders without quotes leave a hole in the JSON then."""
    body = b'{"State":"MERGED","ProblemID":"P-26011","PID":"","ProblemTitle":"","ImpactedEntities": , "Tags":""}'
    (signal,) = parse(body, FACTS)
    assert (signal.dedup_key, signal.status, signal.status_raw) == ("P-26011", Status.RESOLVED, "MERGED")
    assert "not JSON" in " ".join(signal.warnings)


@pytest.mark.parametrize(
    ("sent", "severity"),
    [
        ("AVAILABILITY", Severity.CRITICAL),
        ("ERROR", Severity.ERROR),
        ("PERFORMANCE", Severity.WARNING),
        ("RESOURCE_CONTENTION", Severity.WARNING),
        ("CUSTOM_ALERT", Severity.UNSPECIFIED),
        ("{ProblemSeverity}", Severity.UNSPECIFIED),
    ],
)
def test_a_class_of_trouble_stands_for_a_severity(sent: str, severity: Severity) -> None:
    """Dynatrace has no urgencies."""
    assert one(ProblemSeverity=sent).severity is severity


def test_the_button_for_a_test_is_marked() -> None:
    """It leaves places unfilled; a real problem may bear the same number."""
    assert one(ProblemID="TESTID").test
    assert one(ProblemID="999", PID="99999", ProblemTitle="Dynatrace problem notification test run").test
    assert one(ProblemID="{ProblemID}", PID="{PID}").test
    body = b'{"State":"OPEN","ProblemID":"TESTID","PID":"{PID}","ImpactedEntities": {ImpactedEntities}, "Tags":"a"}'
    assert parse(body, FACTS)[0].test
    assert not one(ProblemID="999").test
    assert not one().test


def test_a_template_may_have_the_pid_only() -> None:
    """Then it is the key, which is said."""
    signal = one(ProblemID=None)
    assert signal.dedup_key == PROBLEM["PID"]
    assert "PID" in " ".join(signal.warnings)


def test_entities_in_the_details_or_in_a_text() -> None:
    """Templates quote what should not be quoted, and newer details have entities of their own."""
    assert one(ImpactedEntities=json.dumps(PROBLEM["ImpactedEntities"])).targets == one().targets
    details = {"affectedEntities": [{"entityId": {"id": "HOST-1", "type": "HOST"}, "name": "db-1"}]}
    signal = one(ImpactedEntities=None, ProblemDetailsJSON=None, ProblemDetailsJSONv2=details)
    assert signal.resource["host.name"] == "db-1"


def test_an_event_of_the_newer_platform() -> None:
    """Its fields are flat and mostly OpenTelemetry's; its severity is on a scale of its own and is not read."""
    signal = one(EVENT)
    assert (signal.dedup_key, signal.status) == ("-80500_1767225600000", Status.FIRING)
    assert (signal.severity, signal.severity_raw) == (Severity.WARNING, "RESOURCE_CONTENTION")
    assert signal.start_time == signal.event_time == 1_767_225_600_000_000_000
    assert [key.key for key in signal.targets] == ["k8s:main/shop/deployment/checkout", "host:node-1"]
    assert signal.resource["cloud.availability_zone"] == "europe-west3-b"
    assert signal.resource["cloud.provider"] == "gcp"


def test_a_short_event_opens_and_closes_in_one_message() -> None:
    """How it stands counts, not how it came to that."""
    signal = one(EVENT, **{"event.status": "CLOSED"})
    assert (signal.status, signal.end_time) == (Status.RESOLVED, 1_767_225_602_000_000_001)
    assert "one message" in " ".join(signal.warnings)


def test_a_problem_of_the_newer_platform_has_the_number_of_the_older() -> None:
    """Also within an object of a workflow; what is muted is suppressed."""
    event = EVENT | {"event.kind": "DAVIS_PROBLEM", "display_id": "P-26011"}
    assert one({"event": event}).dedup_key == "P-26011"
    assert one(event, **{"maintenance.is_under_maintenance": True}).status is Status.SUPPRESSED


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"State":"OPEN"}', b'{"event.kind":"DAVIS_EVENT"}', b"{,}"])
def test_what_names_no_problem_is_unreadable(body: bytes) -> None:
    """It is refused with the field's name."""
    with pytest.raises(Unreadable):
        parse(body, FACTS)


@pytest.mark.parametrize(
    "wrapped",
    [
        {"dedup_key": "x", "payload": {"summary": "x", "custom_details": PROBLEM}},
        {"specversion": "1.0", "type": "problem", "data": PROBLEM},
        {"problem": PROBLEM},
    ],
)
def test_a_problem_within_another_receivers_template(wrapped: dict[str, Any]) -> None:
    """It is the same problem."""
    signal = one(wrapped)
    assert (signal.dedup_key, signal.status) == ("P-26011", Status.FIRING)
    assert signal.body_pointer != ""


def test_the_older_details_name_entities_tags_and_times() -> None:
    """A template need have nothing but them."""
    details = {
        "startTime": 1767225600000,
        "endTime": 1767225900000,
        "severityLevel": "RESOURCE_CONTENTION",
        "tagsOfAffectedEntities": [{"context": "CONTEXTLESS", "key": "env", "value": "prod"}],
        "rankedEvents": [{"entityId": "HOST-1F", "entityName": "web-1", "eventType": "CPU_SATURATED"}],
    }
    signal = one({"State": "RESOLVED", "ProblemID": "762", "ProblemTitle": "CPU", "ProblemDetailsJSON": details})
    assert (signal.severity, signal.end_time) == (Severity.WARNING, 1_767_225_900_000_000_000)
    assert signal.resource == {"host.name": "web-1", "deployment.environment.name": "prod"}


def test_a_problem_as_the_api_has_it() -> None:
    """The number that people see is the key, as in notifications."""
    body = {
        "problemId": "-881",
        "displayId": "P-7",
        "title": "x",
        "status": "OPEN",
        "startTime": 1767225600000,
        "endTime": -1,
    }
    signal = one(body)
    assert (signal.dedup_key, signal.start_time, signal.end_time) == ("P-7", 1_767_225_600_000_000_000, None)


def test_a_problem_of_the_newer_platform_names_what_is_affected() -> None:
    """What each entity is stands in its id."""
    signal = one(
        {
            "event.kind": "DAVIS_PROBLEM",
            "event.id": "1",
            "display_id": "P-8",
            "event.status": "ACTIVE",
            "affected_entity_ids": ["HOST-1", "SERVICE-2", "PROCESS_GROUP-3"],
            "affected_entity_names": ["web-1", "checkout", "java"],
        }
    )
    assert [key.key for key in signal.targets] == ["host:web-1", "svc:checkout"]


def test_a_problem_of_the_newest_kind_names_its_entities_and_tags() -> None:
    """Entities have names in a list of their own, tags of several may say where they run."""
    problem: dict[str, Any] = {
        "event.kind": "DAVIS_PROBLEM",
        "event.id": "-1_1V2",
        "display_id": "P-1",
        "event.name": "Slow",
        "event.status": "ACTIVE",
        "event.start": "2026-01-01T00:00:00Z",
        "smartscape.affected_entities": [{"id": "SERVICE-1", "name": "checkout", "type": "SERVICE"}],
        "entity_tags": ["[AWS]env:prod", "urgent"],
    }
    signal = one(problem)
    assert signal.resource == {"service.name": "checkout", "deployment.environment.name": "prod"}
    assert signal.labels["urgent"] == "true"


def test_times_of_a_problem_may_be_fields_of_the_template() -> None:
    """Without details the template itself may say when it began and ended."""
    times: dict[str, Any] = {
        "ProblemStartTime": 1767225600000,
        "ProblemEndTime": "1767225660000",
        "ProblemDetailsJSON": None,
    }
    opened, over = (one(**times, State=state) for state in ("OPEN", "RESOLVED"))
    assert opened.event_time == opened.start_time == over.start_time == 1_767_225_600_000_000_000
    assert over.event_time == over.end_time == 1_767_225_660_000_000_000


def test_a_tag_without_a_value_is_a_flag() -> None:
    """As the details of the second version have it, in objects."""
    tags = [{"key": "env", "value": "prod"}, {"key": "urgent", "stringRepresentation": "urgent"}]
    signal = one(Tags="", ProblemDetailsJSON={"entityTags": tags})
    assert (signal.labels["env"], signal.labels["urgent"]) == ("prod", "true")


@settings(max_examples=300, deadline=None)
@given(body=mutants([PROBLEM, EVENT, {"event": EVENT}]))
def test_any_damage_gives_signals_or_unreadable(body: bytes) -> None:
    """Whatever is left of a good message, the answer is bounded and soon."""
    check("dynatrace", body)
