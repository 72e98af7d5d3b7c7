"""Azure Monitor's common alert schema; the classic ones are read beside it.

The ids of Azure are the same in any case, and come in several: keys and resource ids are kept in small letters.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from services.ingest.resources import HOST, targets_of_all
from services.ingest.signal import (
    DESCRIPTION_MAX,
    GROUP_MAX,
    RAW_MAX,
    RULE_MAX,
    DeliveryFacts,
    ParsedSignal,
    Rel,
    Status,
    unreadable,
)
from services.ingest.sources import azure_classic
from services.ingest.sources.alerts import about
from services.ingest.sources.azure_parts import (
    SEVERITIES,
    TEST_SUBSCRIPTION,
    Health,
    health_of,
    resources_of,
    summary_of,
)
from services.ingest.sources.fields import (
    each,
    firsts,
    items_of,
    key_of,
    labels_of,
    links_of,
    object_of,
    severity_of,
    tags_of,
)
from services.ingest.sources.reading import PAIRS_MAX, Notes, bounded, read_json, text_of, time_of, word_of, words_of
from services.ingest.words import read_status

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
MEASURES: Final = (
    "metricName",
    "metricNamespace",
    "operator",
    "threshold",
    "metricValue",
    "timeAggregation",
    "webTestName",
    "searchQuery",
)
# Said by links, or by nothing but the raw body: what a claim proves is not ours to spread.
UNSAID: Final = frozenset({"claims", "httpRequest"})
# The label with the id of the cluster.
SCRAPED: Final = "microsoft.resourceid"
# Properties of Azure's own services, which are none of ours and no place of ours.
OF_AZURE: Final = frozenset({"service", "region"})


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
    if context := azure_classic.context_of(data):
        notes.add("a classic schema: switch the common alert schema on in the action group")
        return azure_classic.read_classic(data, context, pointer, notes)
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
    context = object_of(data.get("alertContext"))
    conditions = [object_of(one) for one in items_of(object_of(context.get("condition")).get("allOf"))]
    conditions = conditions[:CONDITIONS_MAX]
    labels = labels_of(_labels(data, essentials, context, conditions), notes, "data")
    # Prometheus' rules are about what they measure; their target is the workspace where it is stored.
    measured = object_of(context.get("labels"))
    ids = [one for one in (measured.get(SCRAPED),) if text_of(one)] or items_of(essentials.get("alertTargetIDs"))
    rule_name = word_of(essentials.get("alertRule"), RULE_MAX, "essentials.alertRule", notes)
    health = health_of(context, rule_name, text_of(next(iter(ids), "")).lower(), notes)
    if health and health.over and status is Status.FIRING:
        # The notice that a trouble is over fires as an alert of its own.
        status, status_raw = Status.RESOLVED, health.stage[:RAW_MAX]
    began, moment, ended = _times(essentials, context, health, status, notes)
    told = {name: one for name, one in firsts(labels).items() if not (health and name in OF_AZURE)}
    if measured:
        told = about(told)
    if "instance" in told and (host := text_of(measured.get("instance"))):
        told.setdefault(HOST, host)
    # Of log searches of the first version, the machines that sent what was found.
    machines = [text_of(one) for one in items_of(context.get("AffectedConfigurationItems"))]
    if len(machines) == 1 and not machines[0].startswith("/"):
        told.setdefault(HOST, machines[0])
    resources = resources_of(ids or [told.get("resourceid")], told)
    description = bounded(essentials.get("description"), DESCRIPTION_MAX, "essentials.description", notes)
    title = (health.title if health else "") or description or _headline(context)
    return ParsedSignal(
        dedup_key=health.key if health else key,
        status=status,
        status_raw=status_raw,
        severity=severity,
        severity_raw=severity_raw,
        summary=summary_of(rule_name, title, key),
        description=description,
        rule_name=rule_name,
        # The same for all alerts of a rule: what joins one that flaps.
        group_key=bounded(essentials.get("originAlertId"), GROUP_MAX, "essentials.originAlertId", notes),
        event_time=moment,
        start_time=began,
        end_time=ended,
        resource=resources[0],
        targets=targets_of_all(resources),
        labels=labels,
        annotations=_annotations(essentials, context, conditions, notes),
        links=links_of(_links(essentials, context, conditions), notes),
        warnings=notes.texts,
        test=identity.startswith(TEST_SUBSCRIPTION),
        body_pointer=pointer,
    )


def _times(
    essentials: Mapping[str, Any], context: Mapping[str, Any], health: Health | None, status: Status, notes: Notes
) -> tuple[int | None, int | None, int | None]:
    """Return when it began, when this was told of, and when it ended."""
    fired = time_of(essentials.get("firedDateTime"), "essentials.firedDateTime", notes)
    # What fires again may still carry when it was resolved before.
    ended = time_of(essentials.get("resolvedDateTime"), "essentials.resolvedDateTime", notes)
    if not health:
        return fired, ended if status is Status.RESOLVED else fired, ended if status is Status.RESOLVED else None
    # Each telling was fired when it was told; only the trouble itself has a beginning.
    properties = object_of(context.get("properties"))
    began = time_of(properties.get("impactStartTime"), "properties.impactStartTime", notes)
    told = fired or time_of(context.get("eventTimestamp"), "eventTimestamp", notes)
    if status is not Status.RESOLVED:
        return began or told, told, None
    return began, told, ended or told


def _labels(
    data: Mapping[str, Any],
    essentials: Mapping[str, Any],
    context: Mapping[str, Any],
    conditions: list[Mapping[str, Any]],
) -> Iterator[tuple[str, str]]:
    """Yield what the rule was labelled with, and the dimensions of what was measured."""
    yield from ((name, text_of(essentials.get(name))) for name in LABELS)
    yield from tags_of(object_of(data.get("customProperties")))
    # Of Prometheus' rules.
    yield from tags_of(object_of(context.get("labels")))
    yield from tags_of(object_of(context.get("properties")))
    for one in conditions:
        yield from tags_of(items_of(one.get("dimensions")))
    # Of log searches of the first version.
    yield from tags_of(items_of(context.get("Dimensions")))


def _headline(context: Mapping[str, Any]) -> str:
    """Return what alerts without a description say of themselves: Prometheus' rules, smart detection."""
    told = object_of(context.get("annotations"))
    return next(
        (text for one in ("summary", "description", "title") if (text := text_of(told.get(one)))), ""
    ) or text_of(context.get("DetectionSummary"))


def _links(
    essentials: Mapping[str, Any], context: Mapping[str, Any], conditions: list[Mapping[str, Any]]
) -> Iterator[tuple[Rel, Any]]:
    """Yield the alert's page and what shows what was found."""
    yield Rel.SOURCE, essentials.get("investigationLink")
    yield from ((Rel.GENERATOR, one.get("linkToFilteredSearchResultsUI")) for one in conditions)
    yield from ((Rel.GENERATOR, one.get("linkToSearchResultsUI")) for one in conditions)
    yield Rel.GENERATOR, context.get("LinkToFilteredSearchResultsUI")
    yield Rel.GENERATOR, context.get("LinkToSearchResultsUI") or context.get("LinkToSearchResults")
    yield Rel.RUNBOOK, object_of(context.get("annotations")).get("runbook_url")


def _annotations(
    essentials: Mapping[str, Any], context: Mapping[str, Any], conditions: list[Mapping[str, Any]], notes: Notes
) -> dict[str, str]:
    """Return what was measured (of several conditions, which one it was), and what else this kind of alert says."""
    found: dict[str, Any] = {"configurationItems": essentials.get("configurationItems")}
    for at, one in enumerate(conditions):
        prefix = f"condition{at}." if at else "condition."
        found |= {prefix + name: one.get(name) for name in MEASURES}
    for one in (context, object_of(context.get("AlertData")), object_of(context.get("annotations"))):
        found |= {
            name: value
            for name, value in one.items()
            if isinstance(value, str | int | float)
            and name not in UNSAID
            and not name.lower().startswith("linkto")
            and name not in found
        }
    told = {name: value for name, value in found.items() if value not in (None, "", [])}
    return words_of(dict(list(told.items())[:PAIRS_MAX]), "alertContext", notes)
