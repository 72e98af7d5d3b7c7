"""Splunk's webhook alert action and that of its Observability Cloud, by their documentation."""

import json
from typing import Any

import pytest
from hypothesis import given, settings

from services.ingest.signal import DeliveryFacts, Rel, Severity, Status, Unreadable
from services.ingest.sources.splunk import parse
from tests.ingest.sources.mutants import check, mutants

SECOND = 1_000_000_000
BODY = {
    "sid": "scheduler__admin__search__RMD5a1b2_at_1767225600_17",
    "search_name": "Too many 500s",
    "app": "search",
    "owner": "ann",
    "results_link": "https://splunk.example.org:8000/app/search/@go?sid=x",
    "result": {
        "host": ["web-1", "web-2"],
        "service": "checkout",
        "env": "prod",
        "count": "612",
        "severity": "critical",
        "_time": "1767225540",
        "_raw": "GET / 500",
    },
}
DETECTOR = {
    "incidentId": "E1abc",
    "status": "anomalous",
    "statusExtended": "anomalous",
    "severity": "Critical",
    "detector": "Latency",
    "detectorUrl": "https://app.eu0.signalfx.com/#/detector/D1",
    "detectorId": "D1",
    "rule": "p99 is high",
    "timestamp": "2026-01-01T00:00:00Z",
    "messageTitle": "Critical Alert: Latency",
    "messageBody": "p99 is 3 s",
    "inputs": {"A": {"value": "3", "fragment": "data('x')", "key": {"service": "checkout", "environment": "prod"}}},
    "runbookUrl": "https://wiki.example.org/latency",
}


def one(base: dict[str, Any] = BODY, **changes: Any) -> Any:
    """Parse a message, changed so; what is None is not there."""
    body = {name: value for name, value in {**base, **changes}.items() if value is not None}
    (signal,) = parse(json.dumps(body).encode(), DeliveryFacts("splunk"))
    return signal


def test_a_scheduled_search_is_an_occurrence() -> None:
    """It has no status and no severity: a field of a row that is called so is one of the log's, not of the alert."""
    signal = one()
    assert (signal.status, signal.severity) == (Status.OCCURRENCE, Severity.UNSPECIFIED)
    assert signal.dedup_key == "search|Too many 500s|host=web-1|service=checkout|env=prod"
    assert (signal.rule_name, signal.summary) == ("Too many 500s", "Too many 500s on web-1")
    assert signal.event_time == signal.start_time == 1_767_225_600 * SECOND
    assert [key.key for key in signal.targets] == ["svc:prod/checkout", "host:web-1"]
    assert signal.description == "GET / 500"
    assert [link.rel for link in signal.links] == [Rel.SOURCE]


def test_each_run_of_a_search_is_told_from_the_last() -> None:
    """The key stays, the start is another: the same run told twice is one, the next run is another."""
    later = one(sid="scheduler__admin__search__RMD5a1b2_at_1767225900_18")
    assert later.dedup_key == one().dedup_key
    assert later.start_time == one().start_time + 300 * SECOND


def test_a_search_in_real_time_is_timed_by_its_row() -> None:
    """Its sid tells when it was started, which is the same for all that it ever finds."""
    assert one(sid="rt_scheduler__admin__search__x_at_1767200000_3.7").event_time == 1_767_225_540 * SECOND


def test_without_a_name_the_sid_tells_the_search() -> None:
    """Two searches without a name are not one."""
    signal = one(search_name=None)
    assert signal.dedup_key.startswith("search|scheduler__admin__search__RMD5a1b2|")
    other = one(search_name=None, sid="scheduler__admin__search__RMD5ffff_at_1767225600_17")
    assert signal.dedup_key != other.dedup_key
    assert signal.summary


def test_without_a_row_there_is_no_target() -> None:
    """Missing results are no reason to lose the alert."""
    signal = one(result=None)
    assert (signal.dedup_key, signal.targets) == ("search|Too many 500s", ())


def test_a_long_name_is_cut_where_it_is_shown_and_whole_in_the_key() -> None:
    """Names that differ only at their end are two searches."""
    first, second = one(search_name="a" * 900 + "1"), one(search_name="a" * 900 + "2")
    assert first.rule_name == second.rule_name
    assert first.dedup_key != second.dedup_key


def test_a_detector_knows_states_and_severities() -> None:
    """Splunk Observability Cloud has incidents."""
    signal = one(DETECTOR)
    assert (signal.dedup_key, signal.status, signal.severity) == ("E1abc", Status.FIRING, Severity.CRITICAL)
    assert [key.key for key in signal.targets] == ["svc:prod/checkout"]
    assert {link.rel for link in signal.links} == {Rel.SOURCE, Rel.RUNBOOK}
    over = one(DETECTOR, status="ok", statusExtended="ok", timestamp="2026-01-01T00:10:00Z")
    assert (over.dedup_key, over.status, over.end_time) == ("E1abc", Status.RESOLVED, over.event_time)
    assert one(DETECTOR, status="purple", statusExtended=None).status is Status.UNSPECIFIED


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"app":"search"}', b'{"incidentId":""}', b"7"])
def test_what_names_no_search_is_unreadable(body: bytes) -> None:
    """It is refused with the field's name."""
    with pytest.raises(Unreadable):
        parse(body, DeliveryFacts("splunk"))


def test_names_of_opentelemetry_in_a_row_are_the_resource() -> None:
    """They keep alerts of one search apart as well."""
    signal = one(result={"service.name": "checkout", "k8s.namespace.name": "shop", "k8s.pod.name": "web-0"})
    assert signal.resource["service.name"] == "checkout"
    assert signal.dedup_key == "search|Too many 500s|service.name=checkout|k8s.namespace.name=shop|k8s.pod.name=web-0"


def test_the_search_of_a_sid_does_not_hold_its_time() -> None:
    """However many digits that has."""
    first, second = (
        one(search_name=None, result=None, sid=f"scheduler_admin_W2_at_{at}_7") for at in (14232356, 14232999)
    )
    assert first.dedup_key == second.dedup_key == "search|scheduler_admin_W2"
    assert first.event_time is None


def test_a_detector_names_dimensions_and_may_be_muted() -> None:
    """Muted is suppressed, and what it was about stands in the dimensions."""
    signal = one(
        DETECTOR, dimensions={"host.name": "web-1", "deployment.environment": "prod"}, triggeredWhileMuted=True
    )
    assert (signal.status, signal.status_raw) == (Status.SUPPRESSED, "anomalous")
    assert (signal.resource["host.name"], signal.resource["deployment.environment.name"]) == ("web-1", "prod")
    assert one(DETECTOR, statusExtended="ok", triggeredWhileMuted=True).status is Status.RESOLVED


def test_dimensions_of_traces_name_the_service() -> None:
    """Splunk's own names for service and environment."""
    signal = one(DETECTOR, inputs=None, dimensions={"sf_service": "cart", "sf_environment": "prod"})
    assert signal.resource == {"service.name": "cart", "deployment.environment.name": "prod"}


@settings(max_examples=300, deadline=None)
@given(body=mutants([BODY, DETECTOR]))
def test_any_damage_gives_signals_or_unreadable(body: bytes) -> None:
    """Whatever is left of a good message, the answer is bounded and soon."""
    check("splunk", body)
