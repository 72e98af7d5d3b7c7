"""Dynatrace: problem notifications of a custom integration, and the events and problems of its newer platform.

The body of a problem notification is an operator's template. The key is the problem's number, unique within one
environment: give each environment a source of its own. A problem that was merged into another is over.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from services.ingest.resources import CLUSTER, HOST, NAMESPACE, SERVICE, VALUE_MAX, resource_of, targets_of_all
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
    Unreadable,
    unreadable,
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
from services.ingest.sources.reading import PAIRS_MAX, Notes, read_json, text_of, time_of, words_of
from services.ingest.sources.templates import Filled, filled_in, is_unfilled, plain_of, read_template
from services.ingest.words import read_status

# Classes of trouble, not urgencies; who wants others has the router's rules.
SEVERITIES: Final = {
    "availability": Severity.CRITICAL,
    "error": Severity.ERROR,
    "performance": Severity.WARNING,
    "slowdown": Severity.WARNING,
    "resource_contention": Severity.WARNING,
    "custom_alert": Severity.UNSPECIFIED,
    "monitoring_unavailable": Severity.UNSPECIFIED,
}
ENTITIES: Final = {
    "HOST": HOST,
    "SERVICE": SERVICE,
    "APPLICATION": SERVICE,
    "KUBERNETES_CLUSTER": CLUSTER,
    "K8S_CLUSTER": CLUSTER,
    "CLOUD_APPLICATION": "k8s.deployment.name",
    "CLOUD_APPLICATION_NAMESPACE": NAMESPACE,
    "KUBERNETES_NODE": "k8s.node.name",
}
# What the newer platform calls otherwise than OpenTelemetry, the best first.
FLAT: Final[Mapping[str, tuple[str, ...]]] = {
    HOST: ("dt.entity.host.name",),
    SERVICE: ("dt.entity.service.name",),
    CLUSTER: ("dt.entity.kubernetes_cluster.name",),
    NAMESPACE: ("dt.entity.cloud_application_namespace.name",),
    "k8s.deployment.name": ("dt.entity.cloud_application.name",),
    "host.id": ("gcp.instance.id", "aws.resource.id"),
    "cloud.region": ("gcp.region", "aws.region", "azure.location"),
    "cloud.availability_zone": ("gcp.zone", "aws.availability_zone"),
    "cloud.account.id": ("gcp.project.id", "aws.account.id", "azure.subscription"),
    "cloud.resource_id": ("gcp.resource.name", "aws.arn", "azure.resource.id"),
}
CLOUDS: Final = ("gcp", "aws", "azure")
CONTEXT: Final = re.compile(r"\[[^\]]{0,64}\]")
# Where templates made for other receivers have the fields of a problem.
INNER: Final = ("payload.custom_details", "custom_details", "data", "problem")
PROBLEM: Final = frozenset({"problemid", "displayid", "problemdisplayid"})
TESTS: Final = frozenset({"TESTID", "999"})
TEST_PID: Final = "99999"
# Told as the description, and too long for a label.
LONG: Final = frozenset({"event.description"})
ENTITIES_MAX: Final = 64
DETAILS: Final = ("problemdetailsjsonv2", "problemdetailsjson")
TEXTS: Final = ("problemdetailstext", "problemdetails", "problemdetailsmarkdown", "problemdetailshtml", "description")
LABELS: Final = ("problemimpact", "problemseverity", "impactlevel", "severitylevel")


def parse(body: bytes, _: DeliveryFacts) -> list[ParsedSignal]:
    """Return the signal of a problem or an event, in whichever shape; a test notification is marked as such."""
    notes = Notes()
    return each(read_template(body, notes), notes, _one)


def _one(body: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read one message."""
    inner = object_of(body.get("event"))
    if "event.kind" in body or "event.id" in body:
        return _event(body, pointer, notes)
    if "event.kind" in inner or "event.id" in inner:
        return _event(inner, f"{pointer}/event", notes)
    if not PROBLEM & {plain_of(name) for name in body}:
        for path in INNER:
            value: Any = body
            for step in path.split("."):
                value = object_of(value).get(step)
            if PROBLEM & {plain_of(name) for name in object_of(value)}:
                return _problem(object_of(value), f"{pointer}/{path.replace('.', '/')}", notes)
    return _problem(body, pointer, notes)


def _problem(body: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read a problem notification."""
    fields = Filled(body, notes)
    number = key_of(fields.first("displayid", "problemdisplayid", "problemid"), "ProblemID", notes)
    pid = key_of(fields.first("pid", "probleminternalid"), "PID", notes)
    test = _is_test(fields, number, pid)
    if not number and pid:
        notes.add("no ProblemID: the key is the PID, which may be another when the problem is closed")
    if not (key := number or pid or ("TESTID" if test else "")):
        raise unreadable("ProblemID", "is required: without it the problem cannot be told from others")
    status_raw = fields.text(RAW_MAX, "state", "problemstate", "status", "problemstatus")
    status = read_status(status_raw)
    if status is Status.UNSPECIFIED:
        notes.add(f"State is not understood: {status_raw or '(absent)'}")
    details = _details(fields, notes)
    severity, severity_raw = severity_of(
        fields.text(RAW_MAX, "problemseverity", "severity", "severitylevel") or details.get("severityLevel"),
        "ProblemSeverity",
        notes,
        SEVERITIES,
    )
    began = time_of(
        _past(details.get("startTime") or fields.first("starttime", "problemstarttime")), "startTime", notes
    )
    over = _past(details.get("endTime") or fields.first("endtime", "problemendtime"))
    ended = time_of(over, "endTime", notes) if status is Status.RESOLVED else None
    tagged = fields.first("tags", "problemtags", "entitytags")
    tagged = tagged or details.get("entityTags") or details.get("tagsOfAffectedEntities")
    tags = labels_of(tags_of(_flags(tagged)), notes, "Tags")
    resources = _resources(fields, details, tags, notes)
    title = fields.text(SUMMARY_MAX, "problemtitle", "title")
    words = {name: one for name, one in filled_in(body).items() if isinstance(one, str | int | float)}
    found = {name: one for name, one in words.items() if plain_of(name) in LABELS}
    hidden = (*LABELS, *TEXTS, *DETAILS, "tags", "state")
    return ParsedSignal(
        dedup_key=key,
        status=status,
        status_raw=status_raw,
        severity=severity,
        severity_raw=severity_raw,
        summary=" ".join(title.split()) or f"problem {key} of Dynatrace"[:SUMMARY_MAX],
        description=fields.text(DESCRIPTION_MAX, *TEXTS),
        rule_name=title[:RULE_MAX],
        event_time=ended if status is Status.RESOLVED else began,
        start_time=began,
        end_time=ended,
        resource=resources[0],
        targets=targets_of_all(resources[1:] or resources),
        labels=dict([*words_of(found, "labels", notes).items(), *tags.items()][:PAIRS_MAX]),
        annotations=words_of({one: text for one, text in words.items() if plain_of(one) not in hidden}, "body", notes),
        links=links_of([(Rel.SOURCE, fields.first("problemurl", "url", "link"))], notes),
        warnings=notes.texts,
        test=test,
        body_pointer=pointer,
    )


def _is_test(fields: Filled, number: str, pid: str) -> bool:
    """Say whether this is what the button "send test notification" sends; a real problem may bear the number 999."""
    if number not in TESTS:
        return fields.lacks("pid") and not pid and not number
    named = "test" in fields.text(SUMMARY_MAX, "problemtitle", "title").lower()
    return number == "TESTID" or pid in ("", TEST_PID) or named


def _flags(tags: Any) -> Any:
    """Return tags with those that have no value as their names: an object of such a tag has no `value`."""
    if not isinstance(tags, list):
        return tags
    return [
        object_of(one).get("key") if "key" in object_of(one) and not object_of(one).get("value") else one
        for one in tags
    ]


def _past(value: Any) -> Any:
    """Return a time of Dynatrace, where -1 is one that is not yet."""
    return None if text_of(value).startswith("-") else value


def _details(fields: Filled, notes: Notes) -> Mapping[str, Any]:
    """Return the problem as JSON, as some templates have it: an object, or a text that holds one."""
    for name in DETAILS:
        value = fields.first(name)
        if isinstance(value, str) and value.lstrip().startswith("{"):
            value = _inner(value, name, notes)
        if isinstance(value, Mapping) and value:
            return value
    return {}


def _inner(text: str, name: str, notes: Notes) -> Any:
    """Return the JSON within a text, None when there is none."""
    try:
        return read_json(text.encode("utf-8", "replace"), notes)
    except Unreadable:
        notes.add(f"{name} holds no JSON")
        return None


def _resources(
    fields: Filled, details: Mapping[str, Any], tags: Mapping[str, str], notes: Notes
) -> list[dict[str, str]]:
    """Return what all that is impacted says together, the first of each kind, and then each entity for itself."""
    entities = fields.first("impactedentities", "affectedentities")
    if isinstance(entities, str):
        entities = _inner(entities, "ImpactedEntities", notes) if entities.lstrip().startswith("[") else None
    entities = items_of(entities) or items_of(details.get("affectedEntities")) or items_of(details.get("rankedEvents"))
    shared = _named(tags)
    single = []
    for one in entities[:ENTITIES_MAX]:
        entity = object_of(one)
        kind = text_of(entity.get("type") or object_of(entity.get("entityId")).get("type"))
        kind = kind or text_of(entity.get("entityId")).rpartition("-")[0]
        name = text_of(entity.get("name") or entity.get("entityName"))
        if (attribute := ENTITIES.get(kind)) and name and not is_unfilled(name):
            single.append({attribute: name[:VALUE_MAX]})
    together: dict[str, str] = {}
    for attributes in single:
        together = {**attributes, **together}
    return [resource_of({**shared, **one}) for one in (together, *single)]


def _named(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags without the names of their origin, which some bear: `[AWS]env:prod`."""
    return firsts({CONTEXT.sub("", name).strip() or name: value for name, value in tags.items()})


def _event(body: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read an event or a problem of the newer platform: flat fields with dots in their names."""
    key = key_of(body.get("display_id"), "display_id", notes) or key_of(body.get("event.id"), "event.id", notes)
    if not key:
        raise unreadable("event.id", "is required: without it the event cannot be told from others")
    status_raw = text_of(body.get("event.status"))[:RAW_MAX]
    transition = text_of(body.get("event.status_transition"))
    status = read_status(status_raw)
    if status is Status.UNSPECIFIED:
        notes.add(f"event.status is not understood: {status_raw or '(absent)'}")
    if status is Status.RESOLVED and transition == "CREATED":
        notes.add("it was over when it was told: opened and closed in one message")
    quiet = body.get("maintenance.is_under_maintenance") is True or text_of(body.get("dt.davis.mute.status")) == "MUTED"
    if quiet and status is Status.FIRING:
        status = Status.SUPPRESSED
    severity, severity_raw = severity_of(body.get("event.category"), "event.category", notes, SEVERITIES)
    told = time_of(body.get("timestamp"), "timestamp", notes)
    began = time_of(body.get("event.start"), "event.start", notes)
    ended = time_of(body.get("event.end"), "event.end", notes) if status is Status.RESOLVED else None
    flat = {name: one for name, one in body.items() if isinstance(one, str | int | float) and name not in LONG}
    labels = labels_of(((name, text_of(one)) for name, one in flat.items()), notes, "event")
    tags = labels_of(tags_of(items_of(body.get("entity_tags"))), notes, "entity_tags")
    labels = dict([*labels.items(), *((name, one) for name, one in tags.items() if name not in labels)][:PAIRS_MAX])
    affected = _affected(body)
    shared = {**_named(tags), **_aliases(labels)}
    resource = resource_of({**shared, **next(iter(affected), {}), **labels})
    resources = [resource, *(resource_of({**shared, **one}) for one in affected[1:])]
    lists = {name: one for name, one in body.items() if isinstance(one, list | Mapping)}
    rule_name = text_of(body.get("event.name") or body.get("event.type"))[:RULE_MAX]
    description = text_of(body.get("event.description"))[:DESCRIPTION_MAX]
    return ParsedSignal(
        dedup_key=key,
        status=status,
        status_raw=status_raw,
        severity=severity,
        severity_raw=severity_raw,
        summary=" ".join((rule_name or description or f"event {key} of Dynatrace").split())[:SUMMARY_MAX],
        description=description,
        rule_name=rule_name,
        event_time=(ended or told) if status is Status.RESOLVED else (began or told),
        start_time=began,
        end_time=ended,
        resource=resource,
        targets=targets_of_all(resources),
        labels=labels,
        annotations=words_of(lists, "event", notes),
        links=links_of([(Rel.SOURCE, body.get("event.url") or body.get("problem.url"))], notes),
        warnings=notes.texts,
        body_pointer=pointer,
    )


def _affected(body: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the attributes of the entities that a problem names; what they are stands in their ids, `HOST-1F`."""
    ids, names = (items_of(body.get(f"affected_entity_{one}")) for one in ("ids", "names"))
    pairs = list(zip(ids, names, strict=True)) if len(ids) == len(names) else []
    # Newest, and with its own kinds: an id tells the kind as before.
    several = [object_of(one) for one in items_of(body.get("smartscape.affected_entities"))]
    pairs = pairs or [(one.get("id"), one.get("name")) for one in several]
    found = []
    for one, name in pairs[:ENTITIES_MAX]:
        if (attribute := ENTITIES.get(text_of(one).rpartition("-")[0])) and text_of(name):
            found.append({attribute: text_of(name)[:VALUE_MAX]})
    return found


def _aliases(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the attributes that stand under other names."""
    found = {}
    for attribute, names in FLAT.items():
        if value := next((labels[name] for name in names if name in labels), ""):
            found[attribute] = value
    if cloud := next((one for one in CLOUDS if any(name.startswith(f"{one}.") for name in labels)), ""):
        found["cloud.provider"] = cloud
    return found
