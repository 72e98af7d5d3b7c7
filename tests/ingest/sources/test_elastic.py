"""Kibana's rules, by the documentation of action variables and of alerts as data; Watcher; ElastAlert."""

import json
from typing import Any

import pytest
from hypothesis import given, settings

from services.ingest.signal import DeliveryFacts, Rel, Severity, Status, Unreadable
from services.ingest.sources.elastic import group_status, parse
from tests.ingest.sources.mutants import check, mutants

RULE: dict[str, Any] = {
    "rule": {"id": "r-1", "name": "CPU of shop", "tags": ["team:shop", "urgent"], "url": "https://kb.example.org/r/1"},
    "alert": {"id": "host-a", "uuid": "u-1", "actionGroup": "metrics.threshold.fired"},
    "date": "2026-03-01T10:00:00.000Z",
    "context": {
        "reason": "CPU is 97 %",
        "alertDetailsUrl": "https://kb.example.org/a/u-1",
        "host": {"name": "web-1"},
        "value": 97.5,
    },
    "kibanaBaseUrl": "",
}
DOCUMENT = {
    "kibana.alert.uuid": "u-2",
    "kibana.alert.status": "active",
    "kibana.alert.workflow_status": "open",
    "kibana.alert.severity": "high",
    "kibana.alert.start": "2026-03-01T09:00:00.000Z",
    "kibana.alert.rule.uuid": "r-2",
    "kibana.alert.rule.name": "A process that should not be",
    "kibana.alert.reason": "process evil.exe on web-1",
    "kibana.alert": {"risk_score": 73},
    "@timestamp": "2026-03-01T10:00:00.000Z",
    "host": {"name": "web-1"},
    "service.name": "shop",
    "tags": ["a", "b"],
}
WATCH = {"watch_id": "errors", "ctx": {"execution_time": "2026-03-01T10:00:00.000Z"}, "message": "17 errors"}


def read(body: Any) -> Any:
    """Parse a body with one alert."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    (signal,) = parse(raw, DeliveryFacts("elastic"))
    return signal


def rule(**alert: Any) -> Any:
    """Parse the connector's body with its alert changed so."""
    return read(RULE | {"alert": {**RULE["alert"], **alert}})


def test_a_connectors_own_json() -> None:
    """What the documentation asks for, nested."""
    signal = read(RULE)
    assert (signal.dedup_key, signal.status, signal.rule_name) == ("u-1", Status.FIRING, "CPU of shop")
    assert (signal.summary, signal.group_key) == ("CPU is 97 %", "r-1")
    assert [key.key for key in signal.targets] == ["host:web-1"]
    assert (signal.labels["team"], signal.annotations["context.value"]) == ("shop", "97.5")
    assert [link.rel for link in signal.links] == [Rel.SOURCE, Rel.GENERATOR]
    assert signal.event_time == 1772359200 * 10**9


def test_names_with_dots_say_the_same() -> None:
    """Flat, nested, or both mixed."""
    flat = {"rule.id": "r-1", "alert.uuid": "u-1", "alert": {"actionGroup": "recovered"}, "rule": {"name": "x"}}
    signal = read(flat)
    assert (signal.dedup_key, signal.status, signal.rule_name) == ("u-1", Status.RESOLVED, "x")


def test_without_a_uuid_rule_and_alert_are_the_key() -> None:
    """It stays from firing to recovered, and differs for another host."""
    fired, over = rule(uuid=None), rule(uuid="{{alert.uuid}}", actionGroup="recovered")
    assert fired.dedup_key == over.dedup_key == "r-1|host-a"
    assert over.status is Status.RESOLVED
    assert rule(uuid="", id="host-b").dedup_key != fired.dedup_key


@pytest.mark.parametrize(
    ("group", "status"),
    [
        ("recovered", Status.RESOLVED),
        ("default", Status.FIRING),
        ("query matched", Status.FIRING),
        ("metrics.threshold.warning", Status.FIRING),
        ("metrics.threshold.nodata", Status.NO_DATA),
        ("slo.burnRate.high", Status.FIRING),
        ("xpack.uptime.alerts.actionGroups.monitorStatus", Status.FIRING),
        ("untracked", Status.SUPPRESSED),
        ("frobnicated", Status.UNSPECIFIED),
        ("", Status.UNSPECIFIED),
    ],
)
def test_action_groups(group: str, status: Status) -> None:
    """Those of Kibana's rule types are known; no other is taken for firing."""
    assert group_status(group) is status
    assert rule(actionGroup=group).status is status


def test_the_group_for_warnings_is_a_severity() -> None:
    """Else nothing is assumed."""
    assert rule(actionGroup="metrics.threshold.warning").severity is Severity.WARNING
    assert read(RULE).severity is Severity.UNSPECIFIED


def test_an_alert_document() -> None:
    """As `context.alerts` has it: dotted names beside ECS objects."""
    signal = read(DOCUMENT)
    assert (signal.dedup_key, signal.status, signal.severity) == ("u-2", Status.FIRING, Severity.ERROR)
    assert signal.start_time == 1772355600 * 10**9
    assert [key.key for key in signal.targets] == ["svc:shop", "host:web-1"]
    assert signal.annotations["kibana.alert.risk_score"] == "73"


def test_what_people_did_with_a_document_counts() -> None:
    """Acknowledged or closed by somebody, whatever the rule says."""
    assert read(DOCUMENT | {"kibana.alert.workflow_status": "acknowledged"}).status is Status.ACKNOWLEDGED
    closed = read(DOCUMENT | {"kibana.alert.workflow_status": "closed", "kibana.alert.end": "2026-03-01T11:00:00Z"})
    assert (closed.status, closed.end_time) == (Status.RESOLVED, 1772362800 * 10**9)


@pytest.mark.parametrize(
    "body",
    [
        [DOCUMENT, RULE],
        {"context": {"alerts": [DOCUMENT, DOCUMENT]}},
        {"alerts": {"new": {"count": 2, "data": [DOCUMENT, RULE]}}},
        {"hits": {"hits": [{"_source": DOCUMENT}, {"_source": DOCUMENT}]}},
    ],
)
def test_a_summary_is_several(body: Any) -> None:
    """Every alert of it is a signal."""
    assert len(parse(json.dumps(body).encode(), DeliveryFacts("elastic"))) == 2


def test_a_watch_is_an_occurrence() -> None:
    """Watcher acts when its condition is met and never says that it no longer is."""
    signal = read(WATCH)
    assert (signal.status, signal.dedup_key, signal.description) == (Status.OCCURRENCE, "errors", "17 errors")
    assert signal.event_time == 1772359200 * 10**9


def test_objects_in_quotation_marks_are_read() -> None:
    """What a template with toJson between quotation marks makes of it."""
    signal = read(b'{"watch_id": "errors", "ctx": "{"execution_time": "2026-03-01T10:00:00Z"}"}')
    assert signal.event_time == 1772359200 * 10**9
    assert "objects between quotation marks were read as objects" in signal.warnings


def test_another_shape_is_read_by_the_usual_names() -> None:
    """ElastAlert's is the operator's own: nothing is assumed, and that is said."""
    signal = read({"Id": "7", "Title": "errors", "event_type": "create"})
    assert (signal.dedup_key, signal.status, signal.summary) == ("7", Status.UNSPECIFIED, "errors")
    assert signal.warnings[0].startswith("neither an alert of Kibana")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"7", b'{"a":"{{{x}}}', b"<x/>"])
def test_what_says_nothing_is_unreadable(body: bytes) -> None:
    """It is refused."""
    with pytest.raises(Unreadable):
        parse(body, DeliveryFacts("elastic"))


def test_a_summary_holds_what_is_new_goes_on_and_has_recovered() -> None:
    """Each alert has its place in the body."""
    ended = {**DOCUMENT, "kibana.alert.uuid": "u-3", "kibana.alert.status": "recovered"}
    lists = {"new": {"count": 1, "data": [DOCUMENT]}, "ongoing": {"data": []}, "recovered": {"data": [ended]}}
    signals = parse(json.dumps({"alerts": lists}).encode(), DeliveryFacts("elastic"))
    assert [(one.dedup_key, one.status) for one in signals] == [("u-2", Status.FIRING), ("u-3", Status.RESOLVED)]
    assert [one.body_pointer for one in signals] == ["/alerts/new/data/0", "/alerts/recovered/data/0"]


def test_hits_are_documents_in_an_envelope() -> None:
    """The pointer reaches into it."""
    (signal,) = parse(json.dumps({"hits": {"hits": [{"_source": DOCUMENT}]}}).encode(), DeliveryFacts("elastic"))
    assert (signal.dedup_key, signal.body_pointer) == ("u-2", "/hits/hits/0/_source")


def test_a_watch_says_what_its_metadata_says() -> None:
    """Name, severity and time; what it found is counted."""
    body = {
        "watch_id": "w-1",
        "metadata": {"name": "Errors", "severity": "critical"},
        "execution_time": "2026-03-01T10:00:00.000Z",
        "payload": {"hits": {"total": 7}},
    }
    for sent in (body, {"ctx": body}):
        signal = read(sent)
        assert (signal.dedup_key, signal.status, signal.severity) == ("w-1", Status.OCCURRENCE, Severity.CRITICAL)
        assert (signal.rule_name, signal.event_time) == ("Errors", 1_772_359_200_000_000_000)
        assert "7" in signal.annotations.values()


def test_what_elastalert_found_is_an_occurrence_of_its_rule_on_its_host() -> None:
    """The id of the document that it found would make each one an alert of its own."""
    first, second = (
        read({"rule_name": "Errors", "num_hits": 9, "num_matches": 1, "_id": str(at), "host": {"name": "web-1"}})
        for at in range(2)
    )
    assert first.status is Status.OCCURRENCE
    assert first.dedup_key == second.dedup_key == "Errors|web-1"


def test_a_path_of_kibana_has_its_address_before_it() -> None:
    """Where Kibana does not know its address, the path is no link."""
    context = {"viewInAppUrl": "/app/metrics", "service": {"name": "shop", "environment": "prod"}}
    known, unknown = (
        read({**RULE, "context": context, "kibanaBaseUrl": base}) for base in ("https://kb.example.org", "")
    )
    assert "https://kb.example.org/app/metrics" in [link.url for link in known.links]
    assert not [link for link in unknown.links if "metrics" in link.url]
    assert known.resource["deployment.environment.name"] == "prod"


FLAT = {
    "ruleId": "r-1",
    "name": "CPU of shop",
    "id": "web-1",
    "actionGroup": "metrics.inventory_threshold.fired",
    "status": "Alert",
    "description": "CPU is 97 %",
    "url": "https://kb.example.org/a/u-1",
    "lastReceived": "2026-03-01T10:00:00.000Z",
    "context.host": '{"name":"web-1","ip":["10.0.0.1"]}',
    "context.value": '{"condition0":"97%"}',
    "contextTags": "team:shop",
}


def test_a_flat_template_tells_rule_alert_and_context() -> None:
    """Its alerts are told apart, and each is known again when it has recovered."""
    fired = read(FLAT)
    assert (fired.dedup_key, fired.status, fired.rule_name) == ("r-1|web-1", Status.FIRING, "CPU of shop")
    assert (fired.summary, fired.event_time) == ("CPU is 97 %", 1_772_359_200_000_000_000)
    assert fired.resource == {"host.name": "web-1"}
    assert fired.labels["team"] == "shop"
    assert fired.annotations["context.value"] == '{"condition0":"97%"}'
    assert read({**FLAT, "id": "web-2"}).dedup_key != fired.dedup_key
    over = read({**FLAT, "actionGroup": "recovered", "context.host": ""})
    assert (over.dedup_key, over.status) == (fired.dedup_key, Status.RESOLVED)


@pytest.mark.parametrize(
    "ids",
    [
        {"ruleId": "r-1", "alertId": "web-1"},
        {"alertId": "r-1", "alertInstanceId": "web-1"},
        {"alert_id": "r-1", "alert_instance_id": "web-1"},
        {"rule_id": "r-1", "alert_id": "web-1"},
    ],
)
def test_an_alert_was_the_rule_and_an_instance_the_alert(ids: dict[str, str]) -> None:
    """Names before and after Kibana called them otherwise mean the same."""
    for group, status in (("threshold met", Status.FIRING), ("recovered", Status.RESOLVED)):
        signal = read({**ids, "alert_action_group": group, "alert_reason": "CPU is 97 %"})
        assert (signal.dedup_key, signal.status, signal.summary) == ("r-1|web-1", status, "CPU is 97 %")


@pytest.mark.parametrize("name", ["groupByKeys", "grouping"])
def test_what_an_alert_is_grouped_by_is_what_it_is_about(name: str) -> None:
    """It is rendered as JSON in a text; what the body says itself goes before it."""
    told = {name: '{"host":{"name":"web-2"},"service":{"name":"shop"}}', "timestamp": "2026-03-01T10:00:00.000Z"}
    signal = read({**RULE, "date": None, "context": told})
    assert signal.resource == {"host.name": "web-2", "service.name": "shop"}
    assert signal.event_time == 1_772_359_200_000_000_000
    assert read({**RULE, "context": told, "service": {"name": "cart"}}).resource["service.name"] == "cart"
    assert read({**RULE, "context": {name: "{broken"}}).resource == {}


@pytest.mark.parametrize(
    "group",
    [
        {"status": "ok"},
        {"severity": "critical"},
        {"date": "2020-01-01T00:00:00.000Z"},
        {"kibana": {"alert": {"workflow_status": "closed", "uuid": "u-9"}}},
        {"alert.uuid": "u-9"},
    ],
)
def test_what_an_alert_is_grouped_by_says_nothing_else_of_it(group: dict[str, Any]) -> None:
    """Its fields are those of the documents, whatever they are called: not the alert's key, status or time."""
    body = {"ruleId": "r-1", "alertId": "web-1"}
    plain, grouped = (read({**body, "context": {"grouping": one}}) for one in ({}, group))
    told = [(one.dedup_key, one.status, one.severity, one.event_time) for one in (plain, grouped)]
    assert told[0] == told[1] == ("r-1|web-1", Status.UNSPECIFIED, Severity.UNSPECIFIED, None)


def test_many_names_with_dots_are_soon_read() -> None:
    """Each could stand for as many nestings as it has places to cut it, and here every one of these is there."""
    nested: list[dict[str, Any]] = [{}]
    for depth in range(1, 9):
        nested.append({".".join(["a"] * size): nested[depth - size] for size in range(1, depth + 1)})
    middle = "a." * 7
    flat = {f"context_{middle}{at}": 1 for at in range(30_000)}
    check("elastic", json.dumps({"ruleId": "r-1", "context": nested[8], **flat}).encode())
    group = {f"host.{middle}{at}": 1 for at in range(30_000)}
    check("elastic", json.dumps({"ruleId": "r-1", "host": nested[8], "context": {"grouping": group}}).encode())


def test_a_watch_in_an_envelope_is_a_watch() -> None:
    """What the envelope says is the same for each, and no state."""
    signal = read({"payload": {"watch_id": "w-1", "metadata": {"name": "Errors"}}, "status": "Alert"})
    assert (signal.dedup_key, signal.status, signal.rule_name) == ("w-1", Status.OCCURRENCE, "Errors")
    assert signal.body_pointer == "/payload"


@settings(max_examples=300, deadline=None)
@given(body=mutants([RULE, DOCUMENT, WATCH, [DOCUMENT, RULE], {"context": {"alerts": [DOCUMENT]}}]))
def test_any_damage_gives_signals_or_unreadable(body: bytes) -> None:
    """Whatever is left of a good alert, the answer is bounded and soon."""
    check("elastic", body)
