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


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"schemaId":"x","data":{}}', b'{"data":{"essentials":{"a":1}}}'])
def test_what_names_no_alert_is_unreadable(body: bytes) -> None:
    """It is refused with the field's name."""
    with pytest.raises(Unreadable):
        parse(body, DeliveryFacts("azure-monitor"))


@settings(max_examples=300, deadline=None)
@given(body=mutants([common(), common(monitorCondition="Resolved"), CLASSIC, SEARCH]))
def test_any_damage_gives_signals_or_unreadable(body: bytes) -> None:
    """Whatever is left of a good message, the answer is bounded and soon."""
    check("azure-monitor", body)
