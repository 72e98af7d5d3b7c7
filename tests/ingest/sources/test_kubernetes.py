"""Kubernetes events, by the API reference: core/v1 and events.k8s.io/v1, and what exporters put around them."""

import json
from typing import Any

import pytest
from hypothesis import given, settings

from services.ingest.signal import DeliveryFacts, Kind, Severity, Status, Unreadable
from services.ingest.sources.kubernetes import parse
from tests.ingest.sources.mutants import check, mutants

EVENT = {
    "apiVersion": "v1",
    "kind": "Event",
    "metadata": {"name": "web-1.17", "namespace": "default", "uid": "e-1", "resourceVersion": "70"},
    "involvedObject": {
        "kind": "Pod",
        "namespace": "shop",
        "name": "web-5d4f8c7b9-x2v4q",
        "uid": "u-1",
        "fieldPath": "spec.containers{nginx}",
        "labels": {"app": "web"},
    },
    "reason": "BackOff",
    "message": "Back-off 40s restarting failed container nginx",
    "source": {"component": "kubelet", "host": "node-7"},
    "firstTimestamp": "2026-03-01T10:00:00Z",
    "lastTimestamp": "2026-03-01T10:05:00Z",
    "eventTime": None,
    "count": 6,
    "type": "Warning",
    "clusterName": "prod-1",
}
NEWER = {
    "apiVersion": "events.k8s.io/v1",
    "kind": "Event",
    "metadata": {"name": "db-0.18", "namespace": "shop", "uid": "e-2"},
    "regarding": {"kind": "Pod", "namespace": "shop", "name": "db-0", "uid": "u-2"},
    "reason": "FailedMount",
    "note": "MountVolume.SetUp failed",
    "eventTime": "2026-03-01T10:00:00.000001Z",
    "series": {"count": 3, "lastObservedTime": "2026-03-01T10:07:00.000002Z"},
    "reportingController": "kubelet",
    "type": "Warning",
}


def read(body: Any) -> Any:
    """Parse a body with one event."""
    (signal,) = parse(json.dumps(body).encode(), DeliveryFacts("kubernetes"))
    return signal


def one(**changes: Any) -> Any:
    """Parse the event, changed so."""
    return read(EVENT | changes)


def test_a_warning_is_an_occurrence_about_its_object() -> None:
    """The namespace is the object's, not the event's; the workload is guessed from the pod's name."""
    signal = one()
    assert (signal.status, signal.severity, signal.kind) == (Status.OCCURRENCE, Severity.WARNING, Kind.ALERT)
    assert (signal.rule_name, signal.group_key) == ("BackOff", "u-1")
    assert [key.key for key in signal.targets] == ["k8s:prod-1/shop/deployment/web"]
    assert signal.resource["k8s.container.name"] == "nginx"
    assert signal.resource["k8s.node.name"] == "node-7"
    assert (signal.labels["app"], signal.annotations["count"]) == ("web", "6")
    assert signal.event_time == 1772359500 * 10**9


def test_an_update_of_the_same_event_is_the_same_trouble() -> None:
    """Count and numbers within the message grow; object, reason and what is wrong stay."""
    first, later = one(), one(count=9, message="Back-off 80s restarting failed container nginx")
    assert first.dedup_key == later.dedup_key
    assert first.dedup_key != one(reason="Failed").dedup_key
    assert first.dedup_key != one(message="another trouble").dedup_key


def test_the_newer_api_says_the_same_in_other_words() -> None:
    """`regarding`, `note` and `series` of events.k8s.io/v1."""
    signal = read(NEWER)
    assert signal.summary == "FailedMount: MountVolume.SetUp failed"
    assert signal.event_time == 1772359620 * 10**9 + 2000
    assert [key.key for key in signal.targets] == ["k8s:shop/statefulset/db"]


def test_what_is_normal_opens_nothing() -> None:
    """It is a note; a rollout is a deployment; some normal events are trouble for people."""
    assert one(type="Normal", reason="Pulled").kind is Kind.NOTE
    assert one(type="Normal", reason="ScalingReplicaSet").kind is Kind.DEPLOYMENT
    assert one(type="Normal", reason="NodeNotReady").kind is Kind.ALERT
    first, other = (one(type="Normal", reason="Pulled", metadata={"uid": uid}) for uid in ("a", "b"))
    assert first.dedup_key != other.dedup_key


@pytest.mark.parametrize("word", ["", "Frobnicated", None, 7])
def test_a_type_nobody_knows_is_an_alert_without_severity(word: Any) -> None:
    """Nothing becomes info by default, and a person sees it."""
    signal = one(type=word)
    assert (signal.kind, signal.severity) == (Kind.ALERT, Severity.UNSPECIFIED)
    assert any("type is not understood" in text for text in signal.warnings)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"type": "MODIFIED", "object": EVENT}, "/object"),
        ({"specversion": "1.0", "type": "dev.knative.apiserver.resource.update", "data": EVENT}, "/data"),
        ({"cluster": "prod-1", "event": EVENT}, "/event"),
        ([EVENT], "/0"),
        ({"kind": "EventList", "items": [EVENT]}, "/items/0"),
        ({"severity": 0, "attributes": {"event_type": "ADDED"}, "body": EVENT}, "/body"),
    ],
)
def test_what_stands_around_an_event_is_taken_off(body: Any, pointer: str) -> None:
    """A watch, a CloudEvent, an exporter's envelope, lists."""
    signal = read(body)
    assert (signal.rule_name, signal.body_pointer) == ("BackOff", pointer)


def test_a_node_is_a_host() -> None:
    """What is said of a node can be matched by its name."""
    signal = one(involvedObject={"kind": "Node", "name": "node-7", "uid": "node-7"})
    assert [key.key for key in signal.targets] == ["host:node-7"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"reason":"x"}', b'{"involvedObject":{"kind":"Pod"}}', b"[1]"])
def test_what_is_about_nothing_is_unreadable(body: bytes) -> None:
    """An event that names no object is refused."""
    with pytest.raises(Unreadable):
        parse(body, DeliveryFacts("kubernetes"))


def test_exporters_with_words_of_their_own() -> None:
    """Botkube names a level and kubewatch a change, which is no trouble."""
    meta = {"kind": "Pod", "name": "web-0", "namespace": "shop", "cluster": "c1"}
    status = {"type": "error", "level": "error", "reason": "BackOff", "messages": ["Back-off restarting"]}
    old = read({"meta": meta, "status": status, "timestamp": "2026-03-01T10:00:00Z"})
    names = {name.title(): value for name, value in {**meta, **status}.items()}
    new = read({"source": "kubernetes", "data": {**names, "TimeStamp": "2026-03-01T10:00:00Z"}})
    for signal in (old, new):
        assert (signal.kind, signal.severity, signal.rule_name) == (Kind.ALERT, Severity.ERROR, "BackOff")
        assert signal.resource["k8s.cluster.name"] == "c1"
        assert (signal.summary, signal.dedup_key) == ("BackOff: Back-off restarting", old.dedup_key)
        assert signal.event_time == 1_772_359_200_000_000_000
    changed = {"kind": "Pod", "name": "shop/web-0", "namespace": "shop", "reason": "Updated"}
    signal = read({"eventmeta": changed, "text": "A pod was updated", "time": "2026-03-01T10:00:00Z"})
    assert (signal.kind, signal.severity) == (Kind.NOTE, Severity.INFO)
    assert signal.labels["k8s.object.name"] == "web-0"


def test_a_cluster_may_stand_in_the_resource_of_a_log_record() -> None:
    """As OpenTelemetry's collector has it."""
    event = {name: value for name, value in EVENT.items() if name != "clusterName"}
    assert read({"resource": {"k8s.cluster.name": "c9"}, "body": event}).resource["k8s.cluster.name"] == "c9"


@pytest.mark.parametrize(
    "body",
    [
        {
            "EventType": "Warning",
            "EventNamespace": "shop",
            "EventKind": "Pod",
            "EventObject": "db-0",
            "EventReason": "BackOff",
            "EventTime": "2026-03-01 11:05:00 +0100 CET",
            "EventMessage": "Back-off restarting failed container",
        },
        {
            "createdAt": "1772359500000",
            "details": {
                "message": "Back-off restarting failed container",
                "reason": "BackOff",
                "type": "Warning",
                "count": "6",
                "kind": "Pod",
                "name": "db-0",
                "namespace": "shop",
                "component": "kubelet",
                "host": "node-7",
            },
        },
    ],
)
def test_what_a_template_made_flat_is_an_event(body: dict[str, Any]) -> None:
    """Both exporters' own examples of a template."""
    signal = read(body)
    assert (signal.status, signal.severity, signal.rule_name) == (Status.OCCURRENCE, Severity.WARNING, "BackOff")
    assert signal.event_time == 1_772_359_500_000_000_000
    assert (signal.resource["k8s.namespace.name"], signal.resource["k8s.pod.name"]) == ("shop", "db-0")
    assert signal.description == "Back-off restarting failed container"


@settings(max_examples=300, deadline=None)
@given(
    body=mutants(
        [
            {"meta": {"kind": "Pod", "name": "x"}, "status": {"level": "error", "messages": ["a"]}},
            {"eventmeta": {"name": "a/b"}},
            EVENT,
            NEWER,
            {"kind": "List", "items": [EVENT]},
            {"type": "ADDED", "object": EVENT},
        ]
    )
)
def test_any_damage_gives_signals_or_unreadable(body: bytes) -> None:
    """Whatever is left of a good event, the answer is bounded and soon."""
    check("kubernetes", body)
