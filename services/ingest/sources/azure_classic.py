"""Azure's classic schemas, from before the common one: metrics, activity log, log searches, budgets, scaling."""

from collections.abc import Mapping
from typing import Any, Final

from services.ingest.resources import targets_of_all
from services.ingest.signal import (
    DESCRIPTION_MAX,
    RAW_MAX,
    RULE_MAX,
    ParsedSignal,
    Rel,
    Severity,
    Status,
    unreadable,
)
from services.ingest.sources.azure_parts import (
    SEVERITIES,
    TEST_SUBSCRIPTION,
    Health,
    health_of,
    resources_of,
    summary_of,
)
from services.ingest.sources.fields import (
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
from services.ingest.sources.reading import Notes, bounded, text_of, time_of, word_of, words_of
from services.ingest.words import read_status

CLASSIC: Final = {"activated": Status.FIRING, "deactivated": Status.RESOLVED}
LEVELS: Final = {"verbose": Severity.INFO}
CONDITIONS_MAX: Final = 32


def context_of(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what metrics and the activity log call the context, made up for schemas without one; else nothing."""
    if context := object_of(data.get("context")):
        return context
    if "AlertRuleName" in data:
        return _log_search(data)
    return _budget(data) if "BudgetName" in data else {}


def _log_search(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of log searches as that of metrics; it tells of what was found, and never of an end."""
    return {
        "name": data["AlertRuleName"],
        "severity": text_of(data.get("Severity")).lower().removeprefix("sev"),
        "timestamp": data.get("SearchIntervalEndtimeUtc"),
        "description": data.get("Description") or data.get("SearchQuery"),
        "portalLink": data.get("LinkToFilteredSearchResultsUI") or data.get("LinkToSearchResults"),
        "resourceId": data.get("ResourceId"),
        "dimensions": data.get("Dimensions"),
        "activityLog": {"correlationId": data.get("WorkspaceId") or data.get("SubscriptionId")},
        "status": "Activated",
    }


def _budget(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of budgets as that of metrics: so much of it is spent, which is told once."""
    amounts = " of ".join(one for one in (text_of(data.get("SpendingAmount")), text_of(data.get("Budget"))) if one)
    return {
        "name": data["BudgetName"],
        "description": f"{amounts} {text_of(data.get('Unit'))} are spent" if amounts else "",
        "activityLog": {"correlationId": data.get("SubscriptionId") or data["BudgetName"]},
        "status": "Activated",
    }


def read_classic(data: Mapping[str, Any], context: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read an alert of a classic schema, which has no id of its own: the rule on its resource."""
    log = object_of(context.get("activityLog"))
    target = text_of(context.get("resourceId") or log.get("resourceId")).lower()
    rule = text_of(context.get("id") or log.get("correlationId")).lower()
    named = text_of(context.get("name"))
    operation = text_of(log.get("operationName"))
    health = health_of(log, operation.partition("/")[0].lower(), target, notes)
    key = (
        health.key
        if health
        else key_of(
            "|".join(one for one in (rule, "" if context.get("id") else named, target) if one), "context.id", notes
        )
    )
    if not key:
        raise unreadable("data.context.id", "is required: without it the alert has no identity")
    status_raw = word_of(data.get("status") or context.get("status"), RAW_MAX, "status", notes)
    status = _status(status_raw, once=bool(log) or "operation" in data, health=health)
    if health and health.over:
        status_raw = health.stage[:RAW_MAX]
    if status is Status.UNSPECIFIED:
        notes.add(f"status is not understood: {status_raw or '(absent)'}")
    level = word_of(context.get("severity"), RAW_MAX, "context.severity", notes)
    severity = SEVERITIES.get(f"sev{level}", Severity.UNSPECIFIED)
    if severity is Severity.UNSPECIFIED:
        severity, level = severity_of(level or log.get("level"), "severity", notes, LEVELS)
    moment = time_of(context.get("timestamp") or log.get("eventTimestamp"), "context.timestamp", notes)
    conditions = [object_of(one) for one in items_of(object_of(context.get("condition")).get("allOf"))][:CONDITIONS_MAX]
    dimensions = [pair for one in (*conditions, context) for pair in tags_of(items_of(one.get("dimensions")))]
    labels = labels_of([*tags_of(object_of(data.get("properties"))), *dimensions], notes, "data.properties")
    region = text_of(context.get("resourceRegion"))
    resources = resources_of([target], {**firsts(labels), **({"region": region} if region else {})})
    rule_name = word_of(context.get("name") or operation, RULE_MAX, "context.name", notes)
    description = bounded(
        context.get("description") or context.get("details") or log.get("description"),
        DESCRIPTION_MAX,
        "context.description",
        notes,
    )
    title = (health.title if health else "") or description
    return ParsedSignal(
        dedup_key=key,
        status=status,
        status_raw=status_raw,
        severity=severity,
        severity_raw=level,
        summary=line_of(summary_of(rule_name, title, key), "context.name", notes) or key,
        description=description,
        rule_name=rule_name,
        event_time=moment,
        end_time=moment if status is Status.RESOLVED else None,
        resource=resources[0],
        targets=targets_of_all(resources),
        labels=labels,
        annotations=_annotations(data, context, log, conditions, notes),
        links=links_of([(Rel.SOURCE, context.get("portalLink"))], notes),
        warnings=notes.texts,
        test=TEST_SUBSCRIPTION in f"{rule}/",
        body_pointer=pointer,
    )


def _status(raw: str, *, once: bool, health: Health | None) -> Status:
    """Return what a classic status means; an entry of the activity log is never resolved, but by another on health."""
    status = CLASSIC.get(raw.lower()) or read_status(raw)
    if health:
        return Status.RESOLVED if health.over else status
    return Status.OCCURRENCE if once and status is Status.FIRING else status


def _annotations(
    data: Mapping[str, Any],
    context: Mapping[str, Any],
    log: Mapping[str, Any],
    conditions: list[Mapping[str, Any]],
    notes: Notes,
) -> dict[str, str]:
    """Return what was measured, and what the entry of the log says."""
    condition = object_of(context.get("condition"))
    found: dict[str, Any] = {}
    for at, one in enumerate(conditions or [condition]):
        found |= {f"condition{at or ''}.{name}": value for name, value in one.items()}
    for one in (log, object_of(log.get("properties")), data):
        found |= {name: value for name, value in one.items() if name not in found and name not in ("claims", "status")}
    said = log.get("status")
    told = {name: value for name, value in {**found, "activityLog.status": said}.items() if _is_word(name, value)}
    return words_of(told, "context", notes)


def _is_word(name: str, value: Any) -> bool:
    """Say whether a field is told as an annotation: links are told as such."""
    return isinstance(value, str | int | float) and value != "" and not name.lower().startswith("linkto")
