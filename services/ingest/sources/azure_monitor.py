"""Azure Monitor's common alert schema; of the classic schemas what says the same.

The ids of Azure are the same in any case, and come in several: keys and resource ids are kept in small letters.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from services.ingest.resources import CLOUD_ID, CLUSTER, HOST, SERVICE, resource_of, targets_of_all
from services.ingest.signal import (
    DESCRIPTION_MAX,
    GROUP_MAX,
    RAW_MAX,
    RULE_MAX,
    SUMMARY_MAX,
    DeliveryFacts,
    ParsedSignal,
    Rel,
    Severity,
    Status,
    unreadable,
)
from services.ingest.sources.fields import (
    each,
    firsts,
    items_of,
    key_of,
    labels_of,
    line_of,
    links_of,
    object_of,
    severity_of,
    tags_of,
)
from services.ingest.sources.reading import Notes, bounded, read_json, text_of, time_of, word_of, words_of
from services.ingest.words import read_status

SEVERITIES: Final = {
    "sev0": Severity.CRITICAL,
    "sev1": Severity.ERROR,
    "sev2": Severity.WARNING,
    "sev3": Severity.INFO,
    "sev4": Severity.INFO,
}
CLASSIC: Final = {"activated": Status.FIRING, "deactivated": Status.RESOLVED}
ARM: Final = re.compile(
    r"/subscriptions/(?P<subscription>[^/]+)(?:/resourcegroups/(?P<group>[^/]+))?"
    r"(?:/providers/(?P<type>[^/]+/[^/]+)/(?P<name>[^/]+)(?:/.*)?)?",
    re.DOTALL,
)
# What the last name of a resource id names, where OpenTelemetry has a word for it.
NAMED: Final = {
    "microsoft.compute/virtualmachines": HOST,
    "microsoft.hybridcompute/machines": HOST,
    "microsoft.containerservice/managedclusters": CLUSTER,
    "microsoft.web/sites": SERVICE,
    "microsoft.app/containerapps": SERVICE,
}
# The subscription of the samples that the button "test action group" sends.
TEST_SUBSCRIPTION: Final = "/subscriptions/11111111-1111-1111-1111-111111111111/"
RESOURCES_MAX: Final = 32
CONDITIONS_MAX: Final = 32
LABELS: Final = (
    "alertRule",
    "severity",
    "signalType",
    "monitoringService",
    "targetResourceType",
    "targetResourceGroup",
    "originAlertId",
)
MEASURES: Final = ("metricName", "metricNamespace", "operator", "threshold", "metricValue", "timeAggregation")


def parse(body: bytes, _: DeliveryFacts) -> list[ParsedSignal]:
    """Return the signal of an alert; its key is the alert instance's id, the same when it is fired and resolved."""
    notes = Notes()
    return each(read_json(body, notes), notes, _alert)


def _alert(body: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read one alert, in whichever schema."""
    data = object_of(body.get("data")) or body
    essentials = object_of(data.get("essentials"))
    if essentials:
        return _common(data, essentials, f"{pointer}/data" if "data" in body else pointer, notes)
    if context := object_of(data.get("context")) or _log_search(data):
        notes.add("a classic schema: switch the common alert schema on in the action group")
        return _classic(data, context, pointer, notes)
    raise unreadable("data.essentials", "is required: switch the common alert schema on in the action group")


def _common(data: Mapping[str, Any], essentials: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read an alert in the common schema."""
    identity = text_of(essentials.get("alertId")).lower()
    if not (key := key_of(identity, "essentials.alertId", notes)):
        key = key_of(text_of(essentials.get("originAlertId")).lower(), "essentials.originAlertId", notes)
        notes.add("no alertId: the key is that of the rule")
    if not key:
        raise unreadable("data.essentials.alertId", "is required: without it the alert has no identity")
    status_raw = word_of(essentials.get("monitorCondition"), RAW_MAX, "essentials.monitorCondition", notes)
    status = read_status(status_raw)
    if status is Status.UNSPECIFIED:
        notes.add(f"monitorCondition is not understood: {status_raw or '(absent)'}")
    severity, severity_raw = severity_of(essentials.get("severity"), "essentials.severity", notes, SEVERITIES)
    fired = time_of(essentials.get("firedDateTime"), "essentials.firedDateTime", notes)
    # What fires again may still carry when it was resolved before.
    ended = time_of(essentials.get("resolvedDateTime"), "essentials.resolvedDateTime", notes)
    ended = ended if status is Status.RESOLVED else None
    context = object_of(data.get("alertContext"))
    conditions = [object_of(one) for one in items_of(object_of(context.get("condition")).get("allOf"))]
    conditions = conditions[:CONDITIONS_MAX]
    labels = labels_of(
        [
            *((name, text_of(essentials.get(name))) for name in LABELS),
            *tags_of(object_of(data.get("customProperties"))),
            *tags_of(object_of(context.get("properties"))),
            *(pair for one in conditions for pair in tags_of(items_of(one.get("dimensions")))),
        ],
        notes,
        "data",
    )
    told = firsts(labels)
    resources = _resources(items_of(essentials.get("alertTargetIDs")) or [told.get("resourceid")], told)
    rule_name = word_of(essentials.get("alertRule"), RULE_MAX, "essentials.alertRule", notes)
    description = bounded(essentials.get("description"), DESCRIPTION_MAX, "essentials.description", notes)
    return ParsedSignal(
        dedup_key=key,
        status=status,
        status_raw=status_raw,
        severity=severity,
        severity_raw=severity_raw,
        summary=_summary(rule_name, description, key),
        description=description,
        rule_name=rule_name,
        # The same for all alerts of a rule: what joins one that flaps.
        group_key=bounded(essentials.get("originAlertId"), GROUP_MAX, "essentials.originAlertId", notes),
        event_time=ended if status is Status.RESOLVED else fired,
        start_time=fired,
        end_time=ended,
        resource=resources[0],
        targets=targets_of_all(resources),
        labels=labels,
        annotations=_annotations(essentials, context, conditions, notes),
        links=links_of(
            [
                (Rel.SOURCE, essentials.get("investigationLink")),
                *((Rel.GENERATOR, one.get("linkToFilteredSearchResultsUI")) for one in conditions),
                *((Rel.GENERATOR, one.get("linkToSearchResultsUI")) for one in conditions),
                (Rel.GENERATOR, context.get("LinkToFilteredSearchResultsUI")),
                (Rel.GENERATOR, context.get("LinkToSearchResultsUI") or context.get("LinkToSearchResults")),
            ],
            notes,
        ),
        warnings=notes.texts,
        test=identity.startswith(TEST_SUBSCRIPTION),
        body_pointer=pointer,
    )


def _summary(rule_name: str, description: str, key: str) -> str:
    """Return one line: the rule, and what its author says of it."""
    words = [one for one in (rule_name, description) if one]
    return " ".join(": ".join(words).split())[:SUMMARY_MAX] or f"alert {key}"


def _annotations(
    essentials: Mapping[str, Any], context: Mapping[str, Any], conditions: list[Mapping[str, Any]], notes: Notes
) -> dict[str, str]:
    """Return what was measured; of several conditions, which one it was."""
    found = {"conditionType": context.get("conditionType"), "configurationItems": essentials.get("configurationItems")}
    for at, one in enumerate(conditions):
        prefix = f"condition{at}." if at else "condition."
        found |= {prefix + name: one.get(name) for name in (*MEASURES, "searchQuery")}
    return words_of({name: value for name, value in found.items() if value not in (None, [])}, "alertContext", notes)


def _resources(ids: list[Any], labels: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the attributes of each resource that an alert is about; at least one."""
    # A dimension called Instance is a disk or a part of a scale set, Computer is what a log search calls a host.
    named = {name: value for name, value in labels.items() if name != "instance"}
    shared = resource_of({**named, **({HOST: labels["computer"]} if "computer" in labels else {})})
    shared |= {"cloud.provider": "azure"}
    found = []
    for one in ids[:RESOURCES_MAX]:
        resource_id = text_of(one).strip().lower()
        match = ARM.fullmatch(resource_id)
        if not match:
            continue
        own = {CLOUD_ID: resource_id, "cloud.account.id": match["subscription"]}
        if attribute := NAMED.get(match["type"] or ""):
            own[attribute] = match["name"]
        found.append(resource_of({**shared, **own}))
    return found or [shared]


def _log_search(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the classic schema of log searches as that of metrics; it tells of what was found, and never of an end."""
    if "AlertRuleName" not in data:
        return {}
    return {
        "name": data["AlertRuleName"],
        "severity": text_of(data.get("Severity")).lower().removeprefix("sev"),
        "timestamp": data.get("SearchIntervalEndtimeUtc"),
        "description": data.get("Description") or data.get("SearchQuery"),
        "portalLink": data.get("LinkToFilteredSearchResultsUI") or data.get("LinkToSearchResults"),
        "activityLog": {"correlationId": data.get("WorkspaceId") or data.get("SubscriptionId")},
        "status": "Activated",
    }


def _classic(data: Mapping[str, Any], context: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read an alert of the classic schema for metrics, which has no id of its own: the rule on its resource."""
    log = object_of(context.get("activityLog"))
    target = text_of(context.get("resourceId") or log.get("resourceId")).lower()
    rule = text_of(context.get("id") or log.get("correlationId")).lower()
    named = text_of(context.get("name"))
    key = key_of(
        "|".join(one for one in (rule, "" if context.get("id") else named, target) if one), "context.id", notes
    )
    if not key:
        raise unreadable("data.context.id", "is required: without it the alert has no identity")
    status_raw = word_of(data.get("status") or context.get("status"), RAW_MAX, "status", notes)
    status = CLASSIC.get(status_raw.lower()) or read_status(status_raw)
    if log and status is Status.FIRING:
        # An entry of the activity log is never resolved.
        status = Status.OCCURRENCE
    if status is Status.UNSPECIFIED:
        notes.add(f"status is not understood: {status_raw or '(absent)'}")
    level = word_of(context.get("severity"), RAW_MAX, "context.severity", notes)
    severity = SEVERITIES.get(f"sev{level}", Severity.UNSPECIFIED)
    moment = time_of(context.get("timestamp") or log.get("eventTimestamp"), "context.timestamp", notes)
    labels = labels_of(tags_of(object_of(data.get("properties"))), notes, "data.properties")
    resources = _resources([target], firsts(labels))
    rule_name = word_of(context.get("name") or log.get("operationName"), RULE_MAX, "context.name", notes)
    description = bounded(
        context.get("description") or log.get("description"), DESCRIPTION_MAX, "context.description", notes
    )
    return ParsedSignal(
        dedup_key=key,
        status=status,
        status_raw=status_raw,
        severity=severity,
        severity_raw=level,
        summary=line_of(_summary(rule_name, description, key), "context.name", notes) or key,
        description=description,
        rule_name=rule_name,
        event_time=moment,
        end_time=moment if status is Status.RESOLVED else None,
        resource=resources[0],
        targets=targets_of_all(resources),
        labels=labels,
        links=links_of([(Rel.SOURCE, context.get("portalLink"))], notes),
        warnings=notes.texts,
        test=TEST_SUBSCRIPTION in f"{rule}/",
        body_pointer=pointer,
    )
