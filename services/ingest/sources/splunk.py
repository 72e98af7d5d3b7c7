"""Splunk's webhook alert action, and the webhook of Splunk Observability Cloud.

A saved search that found something has no state and no severity: it is an occurrence, and no resolve will come.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from services.ingest.resources import ENVIRONMENT, SERVICE, resource_of, target_keys
from services.ingest.signal import (
    DESCRIPTION_MAX,
    RAW_MAX,
    RULE_MAX,
    SUMMARY_MAX,
    DeliveryFacts,
    ParsedSignal,
    Rel,
    Severity,
    Status,
    bounded_key,
    unreadable,
)
from services.ingest.sources.fields import each, key_of, line_of, links_of, object_of, severity_of
from services.ingest.sources.reading import Notes, bounded, read_json, text_of, time_of, word_of, words_of
from services.ingest.words import read_status

# `scheduler__admin__search__NAME_at_1483557185_2`: of what search, when it was started, the how-manieth.
SID: Final = re.compile(r"(?P<search>.{1,400})_at_(?P<time>[0-9]{6,11})(?:_[0-9.]{1,40})?", re.DOTALL)
REAL_TIME: Final = "rt_"
# Fields of the first row that say which thing the search is about; they keep alerts of one search apart.
APART: Final = (
    "host",
    "service",
    "env",
    "environment",
    "namespace",
    "pod",
    "instance",
    "host.name",
    "service.name",
    "deployment.environment.name",
    "k8s.namespace.name",
    "k8s.pod.name",
)
# The least digits of a time in seconds since 1970.
EPOCH_DIGITS: Final = 9
ANNOTATIONS: Final = (
    "rule",
    "description",
    "tip",
    "originatingMetric",
    "detectOnCondition",
    "detectOffCondition",
    "triggeredWhileMuted",
    "eventType",
    "detectorId",
    "orgId",
)
# Dimensions of its own, of what traces tell.
DIMENSIONS: Final = {"sf_service": SERVICE, "sf_environment": ENVIRONMENT}
STATES: Final = {
    "anomalous": Status.FIRING,
    "ok": Status.RESOLVED,
    "manually resolved": Status.RESOLVED,
    "stopped": Status.RESOLVED,
    "auto resolved": Status.RESOLVED,
}


def parse(body: bytes, _: DeliveryFacts) -> list[ParsedSignal]:
    """Return the occurrence that a search found, or what a detector says of its incident."""
    notes = Notes()
    return each(read_json(body, notes), notes, _one)


def _one(body: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read one message."""
    if "incidentId" in body and "sid" not in body:
        return _detector(body, pointer, notes)
    return _search(body, pointer, notes)


def _search(body: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read what a search found: only its first row comes along."""
    sid = text_of(body.get("sid"))
    name = word_of(body.get("search_name"), DESCRIPTION_MAX, "search_name", notes)
    app = key_of(body.get("app"), "app", notes)
    row = object_of(body.get("result"))
    found = {one: value for one in row if (value := word_of(_single(row[one]), RULE_MAX, f"result.{one}", notes))}
    match = SID.fullmatch(sid)
    search = name or (match["search"] if match else sid)
    if not search:
        raise unreadable("search_name", "is required: without search_name or sid the search has no identity")
    if not name:
        notes.add("no search_name: the key is the search in the sid")
    # A search in real time has one start for everything that it ever finds.
    row_time = time_of(found.get("_time"), "result._time", notes)
    started = time_of(match["time"], "sid", notes) if match and len(match["time"]) >= EPOCH_DIGITS else None
    moment = (row_time or started) if sid.startswith(REAL_TIME) else (started or row_time)
    visible = {one: value for one, value in found.items() if not one.startswith("_")}
    resource = resource_of({one.lower(): value for one, value in visible.items()})
    return ParsedSignal(
        dedup_key=bounded_key(app, search, *(f"{one}={found[one]}" for one in APART if one in found)),
        status=Status.OCCURRENCE,
        summary=_summary(name or f"a search of app {app or '(unknown)'}", found.get("host", "")),
        description=bounded(row.get("_raw"), DESCRIPTION_MAX, "result._raw", notes),
        rule_name=bounded(name, RULE_MAX, "search_name", notes),
        event_time=moment,
        start_time=moment,
        resource=resource,
        targets=target_keys(resource),
        labels=words_of(visible, "result", notes),
        annotations=words_of({one: body.get(one) for one in ("sid", "app", "owner", "search_name")}, "body", notes),
        links=links_of([(Rel.SOURCE, body.get("results_link"))], notes),
        warnings=notes.texts,
        body_pointer=pointer,
    )


def _summary(what: str, where: str) -> str:
    """Return one line on what was found, and where."""
    return " ".join((f"{what} on {where}" if where else what).split())[:SUMMARY_MAX]


def _single(value: Any) -> Any:
    """Return the first of several values."""
    if isinstance(value, list):
        return next((one for one in value if isinstance(one, str) and one.strip()), None)
    return value


def _detector(body: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read a message of Splunk Observability Cloud, whose detectors know states and severities."""
    identity = key_of(body.get("incidentId"), "incidentId", notes)
    if not identity:
        raise unreadable("incidentId", "is required: without it the incident cannot be told from others")
    raws = [word_of(body.get(name), RAW_MAX, name, notes) for name in ("statusExtended", "status")]
    known = [(one, raw) for raw in raws if (one := STATES.get(raw.strip().lower(), read_status(raw)))]
    status, status_raw = known[0] if known else (Status.UNSPECIFIED, raws[0] or raws[1])
    if status is Status.UNSPECIFIED:
        notes.add(f"status is not understood: {status_raw or '(absent)'}")
    if status is Status.FIRING and body.get("triggeredWhileMuted") is True:
        status = Status.SUPPRESSED
    severity, severity_raw = severity_of(body.get("severity"), "severity", notes)
    moment = time_of(body.get("timestamp"), "timestamp", notes)
    labels: dict[str, str] = {}
    for one in object_of(body.get("inputs")).values():
        labels = words_of({**object_of(object_of(one).get("key")), **labels}, "inputs", notes)
    labels = words_of({**labels, **object_of(body.get("dimensions"))}, "dimensions", notes)
    resource = resource_of({DIMENSIONS.get(name, name.lower()): value for name, value in labels.items()})
    rule_name = word_of(body.get("detector"), RULE_MAX, "detector", notes)
    links = [(Rel.SOURCE, "detectorUrl"), (Rel.RUNBOOK, "runbookUrl"), (Rel.IMAGE, "imageUrl")]
    return ParsedSignal(
        dedup_key=identity,
        status=status,
        status_raw=status_raw,
        severity=severity if severity_raw else Severity.UNSPECIFIED,
        severity_raw=severity_raw,
        summary=line_of(body.get("messageTitle"), "messageTitle", notes) or rule_name or f"incident {identity}",
        description=bounded(body.get("messageBody") or body.get("description"), DESCRIPTION_MAX, "messageBody", notes),
        rule_name=rule_name,
        event_time=moment,
        # The time of a message is that of its state: only the first says when the incident began.
        end_time=moment if status is Status.RESOLVED else None,
        resource=resource,
        targets=target_keys(resource),
        labels=labels,
        annotations=words_of(
            {name: body.get(name) for name in ANNOTATIONS},
            "body",
            notes,
        ),
        links=links_of([(rel, body.get(name)) for rel, name in links], notes),
        warnings=notes.texts,
        body_pointer=pointer,
    )
