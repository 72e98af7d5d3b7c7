"""Alertmanager's webhook, by its documentation: version 4, and what older or odd senders make of it."""

import json
from typing import Any

import pytest

from services.ingest.signal import DeliveryFacts, Rel, Severity, Status, Unreadable
from services.ingest.sources.alertmanager import parse
from tests.ingest.house import START, alert, notification

FACTS = DeliveryFacts("alertmanager")
START_NANOS = 1772359200123456789


def one(**changes: Any) -> Any:
    """Parse a notification with one alert, changed so; an Ellipsis removes a field."""
    base = alert() | changes
    return parse(notification({key: value for key, value in base.items() if value is not ...}), FACTS)[0]


def test_a_firing_alert() -> None:
    """Labels, times to the nanosecond, words, resource and target of a version 4 notification."""
    signal = one()
    assert (signal.status, signal.severity) == (Status.FIRING, Severity.CRITICAL)
    assert (signal.start_time, signal.event_time, signal.end_time) == (START_NANOS, START_NANOS, None)
    assert (signal.rule_name, signal.summary) == ("CheckoutDown", "CheckoutDown on checkout")
    assert signal.resource == {"service.name": "checkout", "deployment.environment.name": "demo"}
    assert [(key.kind, key.key, key.partial) for key in signal.targets] == [("svc", "svc:demo/checkout", False)]
    assert signal.labels["alertname"] == "CheckoutDown"
    assert not signal.warnings


def test_a_resolved_alert_ends_when_it_says() -> None:
    """EndsAt counts for resolved alerts; year 1 means unknown."""
    assert one(status="resolved", endsAt="2026-03-01T10:20:00+02:00").event_time == 1772353200 * 10**9
    unknown = one(status="resolved", endsAt="0001-01-01T00:00:00Z")
    assert (unknown.status, unknown.end_time, unknown.event_time) == (Status.RESOLVED, None, None)


def test_the_status_of_each_alert_counts() -> None:
    """The status at the top only says that any alert fires."""
    body = {"version": "4", "status": "firing", "alerts": [alert("a"), alert("b", "resolved")]}
    assert [one.status for one in parse(json.dumps(body).encode(), FACTS)] == [Status.FIRING, Status.RESOLVED]


@pytest.mark.parametrize("status", [..., None, "", "exploded", 5, "<no value>", "$STATUS"])
def test_an_unreadable_status_is_never_firing(status: Any) -> None:
    """What cannot be read stays unspecified, is kept as sent, and is named in the warnings."""
    signal = one(status=status)
    assert signal.status is Status.UNSPECIFIED
    assert any("status is not understood" in text for text in signal.warnings)


@pytest.mark.parametrize(
    ("word", "severity"),
    [
        ("critical", Severity.CRITICAL),
        ("PAGE", Severity.CRITICAL),
        ("Sev1", Severity.CRITICAL),
        ("high", Severity.ERROR),
        ("P2", Severity.ERROR),
        ("warning", Severity.WARNING),
        ("none", Severity.INFO),
        ("info", Severity.INFO),
        ("ticket", Severity.UNSPECIFIED),
        ("", Severity.UNSPECIFIED),
        ("{{ $labels.severity }}", Severity.UNSPECIFIED),
    ],
)
def test_severity_words(word: str, severity: Severity) -> None:
    """Known words have one meaning; the rest is unspecified, never info."""
    signal = one(labels={"alertname": "x", "severity": word})
    assert signal.severity is severity
    assert bool(signal.warnings) is (severity is Severity.UNSPECIFIED)


def test_without_a_fingerprint_the_labels_are_the_key() -> None:
    """Old senders: the same labels in any order are the same alert, other labels another."""
    labels = {"alertname": "x", "instance": "web-1:9100", "job": "node"}
    first = one(fingerprint=..., labels=labels)
    again = one(fingerprint=..., labels=dict(reversed(labels.items())), status="resolved")
    other = one(fingerprint=..., labels=labels | {"instance": "web-2:9100"})
    assert first.dedup_key == again.dedup_key != other.dedup_key
    assert any("no fingerprint" in text for text in first.warnings)
    assert [key.key for key in first.targets] == ["host:web-1"]


def test_version_three_is_understood() -> None:
    """A numeric group key, no fingerprint, a zone without Z."""
    body = {"version": "3", "groupKey": 5615590933959184469, "status": "firing", "alerts": [alert()]}
    del body["alerts"][0]["fingerprint"]  # type: ignore[index]
    body["alerts"][0]["startsAt"] = "2026-03-01T13:27:08.008+03:00"  # type: ignore[index]
    signal = parse(json.dumps(body).encode(), FACTS)[0]
    assert (signal.group_key, signal.start_time) == ("5615590933959184469", 1772360828008000000)


def test_truncated_alerts_are_a_warning() -> None:
    """The sender says that alerts are missing, so each signal says it."""
    body = {"version": "4", "truncatedAlerts": 3, "alerts": [alert("a"), alert("b")]}
    assert all(one.warnings == ("the sender left out 3 alerts",) for one in parse(json.dumps(body).encode(), FACTS))


def test_common_labels_and_annotations_fill_in() -> None:
    """What stands at the group counts where the alert itself does not say it."""
    body = {
        "version": "4",
        "commonLabels": {"alertname": "Shared", "cluster": "eu-1"},
        "commonAnnotations": {"summary": "shared words"},
        "alerts": [{"status": "firing", "labels": {"namespace": "shop", "deployment": "web"}}],
    }
    signal = parse(json.dumps(body).encode(), FACTS)[0]
    assert (signal.rule_name, signal.summary) == ("Shared", "shared words")
    assert [key.key for key in signal.targets] == ["k8s:eu-1/shop/deployment/web"]


def test_links() -> None:
    """The sender's links, each with what it is for; an absent generator is absent."""
    notes = {"runbook_url": "https://wiki/x", "dashboard": "https://grafana/d/1", "summary": "s"}
    signal = one(annotations=notes, generatorURL="http://prometheus/graph?x")
    assert [(link.rel, link.url) for link in signal.links] == [
        (Rel.GENERATOR, "http://prometheus/graph?x"),
        (Rel.RUNBOOK, "https://wiki/x"),
        (Rel.DASHBOARD, "https://grafana/d/1"),
    ]
    assert not one(generatorURL=...).links


def test_broken_alerts_among_good_ones_are_named() -> None:
    """A good alert is not lost for a bad neighbour, and says what was left out."""
    signals = parse(json.dumps({"alerts": [1, alert(), {"labels": "x"}]}).encode(), FACTS)
    assert len(signals) == 1
    assert signals[0].body_pointer == "/alerts/1"
    assert [text.partition(":")[0] for text in signals[0].warnings] == [
        "left out alerts[0]",
        "left out alerts[2].labels",
    ]


def test_a_placeholder_is_never_a_label() -> None:
    """What a template left unrendered is absent: it would become a key of something to act on."""
    signal = one(labels={"alertname": "x", "service": "{{ $labels.service }}", "instance": "<no value>:9100"})
    assert "service" not in signal.labels
    assert not signal.targets
    assert any("labels.service holds an unrendered placeholder" in text for text in signal.warnings)


@pytest.mark.parametrize(
    "value", ["yesterday", "2026-13-45T99:99:99Z", "-5", "1e99", True, [1], "0000-00-00T00:00:00Z"]
)
def test_an_unreadable_time_is_unknown(value: Any) -> None:
    """A start that cannot be read is unknown and named, never now."""
    signal = one(startsAt=value)
    assert signal.start_time is None
    assert any("startsAt is not a time" in text for text in signal.warnings)


def test_more_than_a_thousand_alerts_are_cut_and_said() -> None:
    """The cap per notification is a warning, not a loss without words."""
    signals = parse(json.dumps({"alerts": [alert(str(number)) for number in range(1003)]}).encode(), FACTS)
    assert len(signals) == 1000
    assert "3 beyond the first 1000 were left out" in " ".join(signals[0].warnings)


def test_long_texts_are_cut_and_said() -> None:
    """Every text keeps the bounds of the IDL; the raw bytes keep the rest."""
    signal = one(annotations={"summary": "s" * 9000, "description": "d" * 9000}, labels={"alertname": "a" * 9000})
    assert (len(signal.summary), len(signal.description), len(signal.rule_name)) == (1024, 8192, 256)
    assert any("was cut to" in text for text in signal.warnings)


def test_errors_name_every_alert() -> None:
    """When no alert can be understood, each is named with its path."""
    with pytest.raises(Unreadable) as caught:
        parse(json.dumps({"alerts": [{"labels": 1}, "x"]}).encode(), FACTS)
    assert [error.field for error in caught.value.errors] == ["alerts[0].labels", "alerts[1]"]


KSM = {
    "job": "kube-state-metrics",
    "service": "kps-kube-state-metrics",
    "instance": "192.0.2.7:8080",
    "namespace": "monitoring",
    "pod": "kps-kube-state-metrics-6d5f8c7b9-x2v4q",
    "container": "kube-state-metrics",
}
INGRESS = {"job": "ingress-metrics", "service": "ingress-metrics", "pod": "ingress-0", "namespace": "ingress"}
NODE = {"job": "node-exporter", "service": "kps-node-exporter", "pod": "kps-node-exporter-abcde", "namespace": "m"}


@pytest.mark.parametrize(
    ("labels", "targets"),
    [
        (KSM | {"namespace": "shop", "pod": "web-5d4f8c7b9-x2v4q", "container": "app"}, ["k8s:shop/deployment/web"]),
        (KSM | {"namespace": "shop", "deployment": "web"}, ["k8s:shop/deployment/web"]),
        (KSM | {"node": "n-1"}, []),
        (KSM | {"exported_namespace": "shop", "exported_pod": "db-0"}, ["k8s:shop/statefulset/db"]),
        (NODE | {"container": "node-exporter", "instance": "192.0.2.8:9100"}, ["host:192.0.2.8"]),
        ({"job": "kubelet", "service": "kps-kubelet", "instance": "192.0.2.8:10250"}, ["host:192.0.2.8"]),
        ({"job": "push", "exported_instance": "db-1", "instance": "push:9091", "service": "push"}, ["host:db-1"]),
        ({"job": "web", "service": "web", "exported_service": "b@file"}, ["svc:web"]),
        (NODE | {"job": "node_exporter", "instance": "192.0.2.8:9100"}, ["host:192.0.2.8"]),
        (KSM | {"exported_namespace": "shop", "deployment": "web"}, ["k8s:shop/deployment/web"]),
        (KSM | {"job": "endpoints", "exported_namespace": "shop", "exported_pod": "db-0"}, ["k8s:shop/statefulset/db"]),
        (INGRESS | {"exported_namespace": "shop", "exported_service": "web"}, ["svc:web"]),
        ({"exported_namespace": "shop", "deployment": "web"}, ["k8s:shop/deployment/web"]),
    ],
)
def test_who_measures_is_not_what_an_alert_is_about(labels: dict[str, str], targets: list[str]) -> None:
    """Prometheus adds where an exporter runs: as a target it would be the same for everything the exporter measures."""
    signal = one(labels={"alertname": "A"} | labels)
    assert [key.key for key in signal.targets] == targets
    assert signal.labels == {"alertname": "A"} | labels


@pytest.mark.parametrize(
    ("labels", "targets"),
    [
        (KSM | {"node": "n-1"}, ["svc:prod/checkout"]),
        (NODE | {"instance": "192.0.2.8:9100"}, ["svc:prod/checkout", "host:192.0.2.8"]),
        ({"job": "cadvisor", "instance": "docker-1:8080"}, ["svc:prod/checkout", "host:docker-1"]),
        ({"job": "pushgateway", "exported_instance": "cron-1"}, ["svc:prod/checkout", "host:cron-1"]),
        ({"exported_namespace": "shop", "exported_pod": "db-0"}, ["k8s:shop/statefulset/db", "svc:prod/checkout"]),
    ],
)
def test_the_service_of_a_rule_is_kept(labels: dict[str, str], targets: list[str]) -> None:
    """Whoever measures, a `service` without the exporter's name is what the rule's author says."""
    signal = one(labels={"alertname": "A"} | labels | {"service": "checkout", "env": "prod"})
    assert [key.key for key in signal.targets] == targets


@pytest.mark.parametrize("exporter", [KSM, NODE])
def test_without_an_instance_it_is_about_the_exporter(exporter: dict[str, str]) -> None:
    """TargetDown counts what Prometheus does not reach by job, namespace and service."""
    counted = {name: exporter[name] for name in ("job", "namespace", "service")}
    signal = one(labels={"alertname": "TargetDown"} | counted)
    assert [key.key for key in signal.targets] == [f"svc:{exporter['service']}"]
    assert signal.resource["service.namespace"] == exporter["namespace"]


@pytest.mark.parametrize("theirs", ["default", "root"])
def test_a_namespace_of_the_jobs_own_is_no_place(theirs: str) -> None:
    """Temporal and Vault have namespaces within: alone `exported_namespace` takes nothing from where they run."""
    own = {"job": "vault", "service": "vault", "namespace": "safe", "pod": "vault-0", "instance": "192.0.2.9:8200"}
    signal = one(labels={"alertname": "A", "exported_namespace": theirs} | own)
    assert [key.key for key in signal.targets] == ["k8s:safe/statefulset/vault", "svc:vault", "host:192.0.2.9"]


def test_start_of_the_house() -> None:
    """The constant the tests compare with is the start the payloads carry."""
    assert START == "2026-03-01T10:00:00.123456789Z"
