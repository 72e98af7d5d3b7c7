"""Google Cloud Monitoring's webhook, by its documentation: versions 1.1, 1.2 and the test of a channel."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings

from services.ingest.signal import DeliveryFacts, Rel, Severity, Status, Unreadable
from services.ingest.sources.gcp_monitoring import parse
from tests.ingest.sources.mutants import check, mutants

SECOND = 1_000_000_000
MACHINE = {
    "incident_id": "0.mabc",
    "scoping_project_id": "shop-prod",
    "scoping_project_number": 4711,
    "url": "https://console.cloud.google.com/monitoring/alerting/incidents/0.mabc?project=shop-prod",
    "severity": "Critical",
    "started_at": 1767225600,
    "ended_at": None,
    "state": "OPEN",
    "resource_id": "99",
    "resource_name": "shop-prod web-1",
    "resource_display_name": "web-1",
    "resource": {
        "type": "gce_instance",
        "labels": {"instance_id": "99", "project_id": "shop-prod", "zone": "europe-west3-b"},
    },
    "metric": {"type": "compute.googleapis.com/instance/cpu/utilization", "labels": {"host": "not-the-host"}},
    "metadata": {"system_labels": {"name": "web-1"}, "user_labels": {"env": "prod"}},
    "policy_name": "CPU",
    "policy_user_labels": {"team": "shop"},
    "condition_name": "CPU above 90 %",
    "threshold_value": "0.9",
    "observed_value": "0.97",
    "documentation": {
        "content": "Look at **it**",
        "mime_type": "text/markdown",
        "links": [
            {"displayName": "Playbook", "url": "https://wiki.example.org/cpu"},
            {"displayName": "Dashboard", "url": "https://d.example.org/?host=${resource.label.instance_id}"},
        ],
    },
    "summary": "CPU of web-1 is above 0.9",
}
OLD = {
    "incident_id": "f00",
    "resource_id": "i-1",
    "resource_name": "web-7",
    "state": "open",
    "started_at": 1767225600,
    "ended_at": None,
    "policy_name": "CPU",
    "condition_name": "usage",
    "url": "https://app.example.org/incidents/f00",
    "summary": "CPU is above 1 %",
    "documentation": "as text",
}
POD = {
    "type": "k8s_container",
    "labels": {
        "cluster_name": "main",
        "namespace_name": "shop",
        "pod_name": "checkout-5d4f8c7b9-x2v4q",
        "container_name": "app",
        "location": "europe-west3",
        "project_id": "shop-prod",
    },
}


def one(incident: dict[str, Any] = MACHINE, version: str = "1.2", **changes: Any) -> Any:
    """Parse an incident, changed so."""
    body = {"incident": incident | changes, "version": version}
    (signal,) = parse(json.dumps(body).encode(), DeliveryFacts("gcp-monitoring"))
    return signal


def test_an_open_incident_of_a_machine() -> None:
    """The monitored resource says where it is, and labels of the metric say nothing about that."""
    signal = one()
    assert (signal.dedup_key, signal.status, signal.severity) == ("0.mabc", Status.FIRING, Severity.CRITICAL)
    assert signal.event_time == signal.start_time == 1767225600 * SECOND
    assert signal.resource == {
        "cloud.provider": "gcp",
        "cloud.account.id": "shop-prod",
        "cloud.availability_zone": "europe-west3-b",
        "cloud.region": "europe-west3",
        "cloud.resource_id": "//compute.googleapis.com/projects/shop-prod/zones/europe-west3-b/instances/99",
        "host.id": "99",
        "host.name": "web-1",
        "deployment.environment.name": "prod",
    }
    assert signal.labels["team"] == "shop"
    assert signal.annotations["observed_value"] == "0.97"
    assert (signal.rule_name, signal.description) == ("CPU", "Look at **it**")


def test_a_link_with_an_unfilled_place_is_left_out() -> None:
    """The others stay."""
    signal = one()
    assert [link.rel for link in signal.links] == [Rel.SOURCE, Rel.RUNBOOK]
    assert "placeholder" in " ".join(signal.warnings)


def test_closed_has_the_key_of_open() -> None:
    """Its end is when it happened."""
    signal = one(state="closed", ended_at=1767225900)
    assert (signal.dedup_key, signal.status) == ("0.mabc", Status.RESOLVED)
    assert signal.event_time == signal.end_time == 1767225900 * SECOND


def test_no_severity_is_not_info() -> None:
    """Google says `no severity` where none was chosen."""
    assert one(severity="No severity").severity is Severity.UNSPECIFIED
    assert one(severity="Warning").severity is Severity.WARNING


def test_a_pod_is_its_workload() -> None:
    """Google's names of resource labels are OpenTelemetry's under others."""
    signal = one(resource=POD, metadata=None)
    assert [(key.key, key.partial) for key in signal.targets] == [("k8s:main/shop/deployment/checkout", True)]
    system = {"top_level_controller_type": "Deployment", "top_level_controller_name": "checkout"}
    signal = one(resource=POD, metadata={"system_labels": system})
    assert [(key.key, key.partial) for key in signal.targets] == [("k8s:main/shop/deployment/checkout", False)]


def test_the_old_version_names_its_machine() -> None:
    """Version 1.1 has no resource, no severity, and its documentation may be a text."""
    signal = one(OLD, "1.1")
    assert (signal.resource["host.name"], signal.resource["host.id"]) == ("web-7", "i-1")
    assert (signal.description, signal.severity) == ("as text", Severity.UNSPECIFIED)
    assert "host.name" not in one(OLD, "1.1", resource_name="shop Cloud Function labels {a=b}").resource


def test_the_test_of_a_channel_is_marked() -> None:
    """It never opens an incident, whatever it holds."""
    assert one(version="test").test
    assert parse(b'{"version":"test","incident":{}}', DeliveryFacts("gcp-monitoring"))[0].test
    assert not one().test


def test_an_unknown_state_does_not_fire() -> None:
    """And what was sent is kept."""
    signal = one(state="simmering")
    assert (signal.status, signal.status_raw) == (Status.UNSPECIFIED, "simmering")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"incident":{"state":"open"},"version":"1.2"}', b'"x"'])
def test_what_names_no_incident_is_unreadable(body: bytes) -> None:
    """It is refused with the field's name."""
    with pytest.raises(Unreadable):
        parse(body, DeliveryFacts("gcp-monitoring"))


def test_a_push_of_pubsub_holds_the_same_message() -> None:
    """In base64, beside an id and the subscription's name."""
    inner = base64.b64encode(json.dumps({"incident": MACHINE, "version": "1.2"}).encode()).decode()
    push = {"message": {"data": inner, "messageId": "1"}, "subscription": "projects/p/subscriptions/s"}
    (signal,) = parse(json.dumps(push).encode(), DeliveryFacts("gcp-monitoring"))
    assert (signal.dedup_key, signal.status, signal.body_pointer) == ("0.mabc", Status.FIRING, "/message/data")


@pytest.mark.parametrize("data", ["%%%", "", base64.b64encode(b"nonsense").decode(), 7, None])
def test_a_push_that_holds_no_message_is_unreadable(data: Any) -> None:
    """Whatever stands in its place."""
    with pytest.raises(Unreadable):
        parse(json.dumps({"message": {"data": data, "x": 1}}).encode(), DeliveryFacts("gcp-monitoring"))


def test_machines_of_amazon_have_amazons_words() -> None:
    """Google writes their zones as regions, with a prefix."""
    labels = {"instance_id": "i-1", "region": "aws:eu-west-1b", "aws_account": "123456789012"}
    incident = {**MACHINE, "resource": {"type": "aws_ec2_instance", "labels": labels}}
    (signal,) = parse(json.dumps({"incident": incident}).encode(), DeliveryFacts("gcp-monitoring"))
    assert {name: signal.resource[f"cloud.{name}"] for name in ("provider", "account.id", "region")} == {
        "provider": "aws",
        "account.id": "123456789012",
        "region": "eu-west-1",
    }
    assert signal.resource["cloud.availability_zone"] == "eu-west-1b"


def test_a_database_is_a_target() -> None:
    """By its name within its project."""
    labels = {"database_id": "shop-prod:orders", "project_id": "shop-prod", "region": "europe-west3"}
    incident = {**MACHINE, "resource": {"type": "cloudsql_database", "labels": labels}}
    (signal,) = parse(json.dumps({"incident": incident}).encode(), DeliveryFacts("gcp-monitoring"))
    assert signal.targets[0].key == "cloud://sqladmin.googleapis.com/projects/shop-prod/instances/orders"


def test_no_severity_and_no_time_are_understood() -> None:
    """A policy need have no severity, and the test of a channel has 0 for times."""
    incident = {**MACHINE, "severity": "No severity", "started_at": 0, "ended_at": 0}
    (signal,) = parse(json.dumps({"incident": incident, "version": "test"}).encode(), DeliveryFacts("gcp-monitoring"))
    assert (signal.severity, signal.severity_raw) == (Severity.UNSPECIFIED, "No severity")
    assert (signal.test, signal.event_time) == (True, None)
    assert not [text for text in signal.warnings if "severity" in text or "started_at" in text]


def test_a_target_of_prometheus_names_cluster_namespace_and_service() -> None:
    """What Prometheus labels its metrics with is about what it scraped."""
    target = {
        **MACHINE,
        "resource": {
            "type": "prometheus_target",
            "labels": {"cluster": "main", "namespace": "shop", "instance": "web-1:9090", "location": "europe-west3"},
        },
        "metric": {"type": "prometheus.googleapis.com/errors/counter", "labels": {"service": "checkout"}},
    }
    (signal,) = parse(json.dumps({"incident": target, "version": "1.2"}).encode(), DeliveryFacts("gcp-monitoring"))
    assert (signal.resource["k8s.cluster.name"], signal.resource["k8s.namespace.name"]) == ("main", "shop")
    assert (signal.resource["service.name"], signal.resource["host.name"]) == ("checkout", "web-1")


def test_what_another_measured_is_no_place_of_the_exporter() -> None:
    """Of kube-state-metrics namespace and pod are those of what it measures, and its instance is nothing."""
    place = {"cluster": "main", "namespace": "gmp-public", "instance": "kube-state-metrics-0:k8s-objects"}
    told = {"exported_namespace": "shop", "pod": "web-5d4f8c7b9-x2v4q"}
    watched = {
        "incident_id": "0.w",
        "resource": {"type": "prometheus_target", "labels": place | {"job": "kube-state-metrics"}},
        "metric": {"type": "prometheus.googleapis.com/kube_pod_status_phase/gauge", "labels": told},
    }
    (signal,) = parse(json.dumps({"incident": watched, "version": "1.2"}).encode(), DeliveryFacts("gcp-monitoring"))
    assert [key.key for key in signal.targets] == ["k8s:main/shop/deployment/web"]


def test_a_cluster_and_an_instance_are_what_their_kind_says() -> None:
    """Those of Bigtable are no cluster of Kubernetes and no host."""
    labels = {"project_id": "p-1", "instance": "orders", "cluster": "orders-c1", "namespace": "n"}
    table = {"incident_id": "0.t", "resource": {"type": "bigtable_cluster", "labels": labels}}
    (signal,) = parse(json.dumps({"incident": table, "version": "1.2"}).encode(), DeliveryFacts("gcp-monitoring"))
    assert signal.resource == {"cloud.provider": "gcp", "cloud.account.id": "p-1"}


@settings(max_examples=300, deadline=None)
@given(body=mutants([{"incident": MACHINE, "version": "1.2"}, {"incident": OLD, "version": "1.1"}]))
def test_any_damage_gives_signals_or_unreadable(body: bytes) -> None:
    """Whatever is left of a good message, the answer is bounded and soon."""
    check("gcp-monitoring", body)
