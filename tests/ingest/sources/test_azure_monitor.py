"""Azure Monitor's webhook, by its documentation: the common alert schema, and what the classic ones share with it."""

import json
from typing import Any

import pytest
from hypothesis import given, settings

from services.ingest.signal import DeliveryFacts, Rel, Severity, Status, Unreadable
from services.ingest.sources.azure_monitor import parse
from tests.ingest.sources.mutants import check, mutants

SUBSCRIPTION = "/subscriptions/0a1b2c3d-0000-4000-8000-000000000001"
MACHINE = f"{SUBSCRIPTION}/resourceGroups/Shop/providers/Microsoft.Compute/virtualMachines/Web-1"
SITE = f"{SUBSCRIPTION}/resourcegroups/shop/providers/microsoft.web/sites/checkout"
ESSENTIALS: dict[str, Any] = {
    "alertId": f"{SUBSCRIPTION}/providers/Microsoft.AlertsManagement/alerts/aaaa0000-0000-4000-8000-000000000009",
    "alertRule": "CPU is high",
    "severity": "Sev1",
    "signalType": "Metric",
    "monitorCondition": "Fired",
    "monitoringService": "Platform",
    "alertTargetIDs": [MACHINE],
    "configurationItems": ["Web-1"],
    "originAlertId": "0a1b_shop_microsoft.insights_metricAlerts_CPU_-1",
    "firedDateTime": "2026-01-01T00:00:00.1234567Z",
    "resolvedDateTime": "2026-01-01T00:09:00Z",
    "description": "above 90 %",
    "investigationLink": "https://portal.azure.com/#view/alert",
    "essentialsVersion": "1.0",
}
CONTEXT = {
    "properties": {"env": "prod"},
    "conditionType": "SingleResourceMultipleMetricCriteria",
    "condition": {
        "windowSize": "PT5M",
        "allOf": [
            {
                "metricName": "Percentage CPU",
                "operator": "GreaterThan",
                "threshold": "90",
                "dimensions": [{"name": "Instance", "value": "web-1_0"}],
                "metricValue": 97.5,
                "linkToSearchResultsUI": "https://portal.azure.com/#search",
            }
        ],
    },
}
CLASSIC = {
    "schemaId": "AzureMonitorMetricAlert",
    "data": {
        "status": "Activated",
        "properties": {"team": "shop"},
        "context": {
            "timestamp": "2026-01-01T00:00:00.12Z",
            "id": f"{SUBSCRIPTION}/resourceGroups/shop/providers/microsoft.insights/metricAlerts/CPU",
            "name": "CPU",
            "description": "above 90 %",
            "severity": "2",
            "resourceId": MACHINE,
            "portalLink": "https://portal.azure.com/#resource",
        },
    },
}
SEARCH = {
    "schemaId": "Microsoft.Insights/LogAlert",
    "data": {
        "SubscriptionId": "0a1b2c3d-0000-4000-8000-000000000001",
        "AlertRuleName": "No heartbeat",
        "SearchQuery": "Heartbeat",
        "SearchIntervalEndtimeUtc": "2026-01-01T00:00:00Z",
        "Severity": "Warning",
        "LinkToSearchResults": "https://portal.azure.com/#search",
    },
}


def common(context: Any = CONTEXT, properties: Any = None, **changes: Any) -> dict[str, Any]:
    """Return a body in the common schema with essentials changed so; what is None is not there."""
    essentials = {name: value for name, value in {**ESSENTIALS, **changes}.items() if value is not None}
    data = {"essentials": essentials, "alertContext": context, "customProperties": properties}
    return {"schemaId": "azureMonitorCommonAlertSchema", "data": data}


def read(body: Any) -> Any:
    """Parse a body with one alert."""
    (signal,) = parse(json.dumps(body).encode(), DeliveryFacts("azure-monitor"))
    return signal


def test_a_fired_alert() -> None:
    """That it was resolved before says nothing; ids are kept in small letters, for Azure sends them in several."""
    signal = read(common())
    assert signal.dedup_key == ESSENTIALS["alertId"].lower()
    assert (signal.status, signal.status_raw, signal.end_time) == (Status.FIRING, "Fired", None)
    assert (signal.severity, signal.severity_raw) == (Severity.ERROR, "Sev1")
    assert signal.event_time == signal.start_time == 1_767_225_600_123_456_700
    assert (signal.rule_name, signal.summary) == ("CPU is high", "CPU is high: above 90 %")
    assert signal.resource["cloud.resource_id"] == MACHINE.lower()
    assert signal.resource["cloud.account.id"] == "0a1b2c3d-0000-4000-8000-000000000001"
    assert (signal.resource["host.name"], signal.resource["deployment.environment.name"]) == ("web-1", "prod")
    assert [key.kind for key in signal.targets] == ["cloud", "host"]
    assert signal.group_key == ESSENTIALS["originAlertId"]
    assert signal.labels["Instance"] == "web-1_0"
    assert signal.annotations["condition.metricValue"] == "97.5"
    assert [link.rel for link in signal.links] == [Rel.SOURCE, Rel.GENERATOR]


def test_a_resolved_alert_has_the_key_of_the_fired() -> None:
    """In whatever case its id comes."""
    signal = read(common(monitorCondition="Resolved", alertId=ESSENTIALS["alertId"].upper()))
    assert signal.dedup_key == read(common()).dedup_key
    assert (signal.status, signal.event_time) == (Status.RESOLVED, signal.end_time)
    assert signal.start_time == read(common()).start_time


@pytest.mark.parametrize(
    ("sent", "severity"),
    [
        ("Sev0", Severity.CRITICAL),
        ("Sev1", Severity.ERROR),
        ("Sev2", Severity.WARNING),
        ("Sev3", Severity.INFO),
        ("sev4", Severity.INFO),
        ("Sev9", Severity.UNSPECIFIED),
    ],
)
def test_sev1_is_azures_and_no_other(sent: str, severity: Severity) -> None:
    """Elsewhere it is the worst there is."""
    assert read(common(severity=sent)).severity is severity


def test_several_resources_are_all_targets() -> None:
    """Each has its keys."""
    signal = read(common(alertTargetIDs=[MACHINE, SITE, 7, "nonsense"]))
    assert [key.key for key in signal.targets] == [
        f"cloud:{MACHINE.lower()}",
        "host:web-1",
        "svc:prod/checkout",
        f"cloud:{SITE}",
    ]


def test_a_resource_may_stand_in_a_dimension_only() -> None:
    """Log searches name it there."""
    context = {"condition": {"allOf": [{"dimensions": [{"name": "ResourceId", "value": MACHINE}]}]}}
    assert read(common(context, alertTargetIDs=None)).resource["host.name"] == "web-1"
    context = {"condition": {"allOf": [{"dimensions": [{"name": "Computer", "value": "db-1"}]}]}}
    assert read(common(context, alertTargetIDs=None)).resource["host.name"] == "db-1"


@pytest.mark.parametrize("nothing", [None, {}, {"properties": None, "condition": None}, "x", []])
def test_a_context_may_be_anything(nothing: Any) -> None:
    """Each kind of signal has its own; what is needed stands in the essentials."""
    signal = read(common(nothing, description=None, configurationItems=None))
    assert (signal.status, signal.summary) == (Status.FIRING, "CPU is high")


def test_the_button_for_a_test_is_marked() -> None:
    """Its samples are of a subscription that there is not."""
    test = "/subscriptions/11111111-1111-1111-1111-111111111111/providers/Microsoft.AlertsManagement/alerts/1"
    assert read(common(alertId=test)).test
    assert not read(common()).test


def test_the_classic_schema_of_metrics() -> None:
    """It has no id of the alert: the rule on its resource is one."""
    fired = read(CLASSIC)
    assert (fired.status, fired.severity, fired.rule_name) == (Status.FIRING, Severity.WARNING, "CPU")
    assert fired.resource["host.name"] == "web-1"
    assert "common alert schema" in " ".join(fired.warnings)
    over = json.loads(json.dumps(CLASSIC).replace("Activated", "Deactivated").replace("T00:00:00.12Z", "T00:05:00Z"))
    assert (read(over).dedup_key, read(over).status) == (fired.dedup_key, Status.RESOLVED)


def test_the_classic_schema_of_log_searches() -> None:
    """It tells of what was found, and never of an end."""
    signal = read(SEARCH)
    assert (signal.status, signal.rule_name) == (Status.OCCURRENCE, "No heartbeat")
    other = read(json.loads(json.dumps(SEARCH).replace("No heartbeat", "Errors")))
    assert signal.dedup_key != other.dedup_key


HEALTH = {"signalType": "Activity Log", "monitoringService": "ServiceHealth", "alertTargetIDs": [SUBSCRIPTION]}


def told(stage: str, number: int) -> Any:
    """Read one telling of an incident of Azure's own; each fires with an alert id of its own."""
    properties = {
        "title": f"Storage is slow ({stage})",
        "service": "Storage",
        "region": "West Europe",
        "trackingId": "AB12-3CD",
        "impactStartTime": "2026-01-01T00:00:00Z",
        "stage": stage,
    }
    context = {"eventSource": 2, "level": 3, "claims": "{}", "properties": properties, "status": stage}
    identity = f"{SUBSCRIPTION}/providers/Microsoft.AlertsManagement/alerts/{number}"
    moment = f"2026-01-01T00:0{number}:00Z"
    return read(common(context, alertId=identity, firedDateTime=moment, resolvedDateTime=None, **HEALTH))


def test_service_health_is_over_when_its_stage_says_so() -> None:
    """Every telling is fired; the tracking id joins them, and the last one resolves what the first one opened."""
    first, last = told("Active", 1), told("Resolved", 2)
    assert first.dedup_key == last.dedup_key == "CPU is high|AB12-3CD"
    assert [(one.status, one.status_raw) for one in (first, last)] == [
        (Status.FIRING, "Fired"),
        (Status.RESOLVED, "Resolved"),
    ]
    assert first.start_time == last.start_time == 1_767_225_600_000_000_000
    assert first.end_time is None
    assert last.end_time == last.event_time == first.start_time + 120_000_000_000
    assert last.summary == "CPU is high: Storage is slow (Resolved)"
    # A service of Azure is none of ours, and must not become a target.
    assert "service.name" not in first.resource
    assert "claims" not in first.annotations


def test_resource_health_is_over_when_it_is_available() -> None:
    """The rule on the resource joins the tellings."""

    def health(now: str) -> Any:
        context = {"properties": {"title": f"it is {now}", "currentHealthStatus": now}, "status": "Active"}
        return read(common(context, monitoringService="Resource Health", resolvedDateTime=None))

    down, up = health("Unavailable"), health("Available")
    assert (down.status, up.status) == (Status.FIRING, Status.RESOLVED)
    assert down.dedup_key == up.dedup_key
    assert up.status_raw == "Available"


def test_rules_of_prometheus_have_labels_and_annotations() -> None:
    """They stand in the context, and say what the alert is about."""
    context = {
        "expression": "up == 0",
        "labels": {"cluster": "c1", "namespace": "shop", "deployment": "web"},
        "annotations": {"summary": "web is down", "runbook_url": "https://wiki.example.org/web"},
    }
    signal = read(common(context, description=None))
    assert signal.summary == "CPU is high: web is down"
    assert signal.targets[0].key == "k8s:c1/shop/deployment/web"
    assert (signal.labels["namespace"], signal.annotations["expression"]) == ("shop", "up == 0")
    assert Rel.RUNBOOK in [link.rel for link in signal.links]


@pytest.mark.parametrize(
    ("context", "kept"),
    [
        ({"DetectionSummary": "more failures", "FailedRequestCount": "90"}, {"FailedRequestCount": "90"}),
        ({"AlertCategory": "budgets", "AlertData": {"SpentAmount": "$9.00"}}, {"SpentAmount": "$9.00"}),
        ({"SearchQuery": "Heartbeat", "LinkToSearchResults": "https://x.example.org"}, {"SearchQuery": "Heartbeat"}),
    ],
)
def test_what_each_kind_of_alert_says_is_kept(context: Any, kept: dict[str, str]) -> None:
    """Smart detection, budgets and the first log searches have shapes of their own."""
    annotations = read(common(context)).annotations
    assert kept.items() <= annotations.items()
    assert "LinkToSearchResults" not in annotations


def test_the_first_log_searches_name_a_computer() -> None:
    """As a dimension beside the query."""
    signal = read(common({"Dimensions": [{"name": "Computer", "value": "db-1"}]}, alertTargetIDs=None))
    assert signal.resource["host.name"] == "db-1"


def entry(**log: Any) -> dict[str, Any]:
    """Return an entry of the activity log in its classic schema."""
    base = {"correlationId": "c-1", "eventTimestamp": "2026-01-01T00:00:00Z", "resourceId": MACHINE}
    return {
        "schemaId": "Microsoft.Insights/activityLogs",
        "data": {"status": "Activated", "context": {"activityLog": base | log}},
    }


def test_classic_entries_of_the_activity_log() -> None:
    """They happened once, at a level; of a resource's health one ends what another began."""
    once = read(entry(operationName="Microsoft.Compute/virtualMachines/restart/action", level="Error", status="Failed"))
    assert (once.status, once.severity, once.severity_raw) == (Status.OCCURRENCE, Severity.ERROR, "Error")
    assert once.annotations["activityLog.status"] == "Failed"
    down, up = (
        read(
            entry(
                operationName=f"Microsoft.Resourcehealth/healthevent/{word}/action",
                correlationId=word,
                properties={"title": "x", "currentHealthStatus": health},
            )
        )
        for word, health in (("Activated", "Unavailable"), ("Resolved", "Available"))
    )
    assert (down.status, up.status) == (Status.FIRING, Status.RESOLVED)
    assert down.dedup_key == up.dedup_key


def test_classic_budgets_and_scaling_happen_once() -> None:
    """Neither ever ends."""
    budget = {"schemaId": "AIP Budget Notification", "data": {"BudgetName": "b", "SpendingAmount": "9", "Budget": "5"}}
    scaling = {
        "operation": "Scale Out",
        "status": "Activated",
        "context": {"id": "x", "name": "s", "details": "3 to 4"},
    }
    assert (read(budget).status, read(budget).summary) == (Status.OCCURRENCE, "b: 9 of 5 are spent")
    assert (read(scaling).status, read(scaling).summary) == (Status.OCCURRENCE, "s: 3 to 4")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"schemaId":"x","data":{}}', b'{"data":{"essentials":{"a":1}}}'])
def test_what_names_no_alert_is_unreadable(body: bytes) -> None:
    """It is refused with the field's name."""
    with pytest.raises(Unreadable):
        parse(body, DeliveryFacts("azure-monitor"))


def test_a_rule_of_prometheus_is_about_what_it_measures() -> None:
    """And not about the workspace where that is stored."""
    cluster = f"{SUBSCRIPTION}/resourcegroups/shop/providers/microsoft.containerservice/managedclusters/main"
    workspace = f"{SUBSCRIPTION}/resourcegroups/shop/providers/microsoft.monitor/accounts/metrics"
    context = {"labels": {"instance": "node-1:9100", "microsoft.resourceid": cluster}}
    body = {"data": {"essentials": {**ESSENTIALS, "alertTargetIDs": [workspace]}, "alertContext": context}}
    (signal,) = parse(json.dumps(body).encode(), DeliveryFacts("azure-monitor"))
    assert signal.resource["cloud.resource_id"] == cluster
    assert (signal.resource["k8s.cluster.name"], signal.resource["host.name"]) == ("main", "node-1")


def test_where_prometheus_exporter_runs_is_no_host() -> None:
    """The instance of kube-state-metrics would be the same for all that it measures."""
    measured = {"job": "kube-state-metrics", "instance": "ama-ksm.kube-system:8080", "namespace": "shop", "pod": "db-0"}
    body = {"data": {"essentials": {**ESSENTIALS, "alertTargetIDs": []}, "alertContext": {"labels": measured}}}
    (signal,) = parse(json.dumps(body).encode(), DeliveryFacts("azure-monitor"))
    assert [key.key for key in signal.targets] == ["k8s:shop/statefulset/db"]


def test_an_old_log_search_names_the_machine_it_is_about() -> None:
    """Of one only: several are no single host."""
    workspace = f"{SUBSCRIPTION}/resourcegroups/shop/providers/microsoft.operationalinsights/workspaces/logs"
    found = []
    for machines in (["web-1"], ["web-1", "web-2"], [MACHINE]):
        context = {"AffectedConfigurationItems": machines, "Dimensions": []}
        body = {"data": {"essentials": {**ESSENTIALS, "alertTargetIDs": [workspace]}, "alertContext": context}}
        (signal,) = parse(json.dumps(body).encode(), DeliveryFacts("azure-monitor"))
        found.append(signal.resource.get("host.name"))
    assert found == ["web-1", None, None]


def test_a_classic_alert_names_its_region() -> None:
    """The oldest schema of metrics does."""
    context = {"id": "/r", "name": "CPU", "resourceId": MACHINE, "resourceRegion": "centralus"}
    body = {"status": "Activated", "context": context}
    (signal,) = parse(json.dumps(body).encode(), DeliveryFacts("azure-monitor"))
    assert signal.resource["cloud.region"] == "centralus"


@settings(max_examples=300, deadline=None)
@given(
    body=mutants(
        [common(), common(monitorCondition="Resolved"), CLASSIC, SEARCH, entry(properties={"trackingId": "t"})]
    )
)
def test_any_damage_gives_signals_or_unreadable(body: bytes) -> None:
    """Whatever is left of a good message, the answer is bounded and soon."""
    check("azure-monitor", body)
