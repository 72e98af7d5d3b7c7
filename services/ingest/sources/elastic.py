"""Kibana's rules (a connector's own JSON, or alert documents), Watcher, and ElastAlert as far as it says.

Kibana has no body of its own: whoever sets up the connector writes it. Asked for are `rule.id`, `rule.name`,
`alert.uuid`, `alert.id`, `alert.actionGroup`, `date`, `context` and `kibanaBaseUrl`, nested or with dots in the names.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from services.ingest.resources import SERVICE, resource_of, target_keys
from services.ingest.signal import (
    DESCRIPTION_MAX,
    RAW_MAX,
    RULE_MAX,
    DeliveryFacts,
    ParsedSignal,
    Rel,
    Severity,
    Status,
    bounded_key,
)
from services.ingest.sources import generic
from services.ingest.sources.elastic_bodies import PARTS_MAX, at, canonical, read_body
from services.ingest.sources.fields import (
    each,
    items_of,
    key_of,
    labels_of,
    line_of,
    links_of,
    need_object,
    object_of,
    severity_of,
    tags_of,
)
from services.ingest.sources.reading import PAIRS_MAX, Notes, time_of, word_of, words_of
from services.ingest.words import read_status

DOCUMENT: Final = "kibana.alert."
# Where bodies have their documents; those of one line belong together.
LISTS: Final = (
    ("alerts.new.data", "alerts.ongoing.data", "alerts.recovered.data"),
    ("alerts",),
    ("context.alerts",),
    ("documents",),
    ("hits.hits",),
)
# ElastAlert adds these to the document that it found; it never says that something is over.
ELASTALERT: Final = ("num_hits", "num_matches", "alert_subject", "alert_text")
# Action groups of Kibana's own rule types that mean an active alert; of others it is not assumed.
ACTIVE: Final = frozenset(
    {
        "default",
        "active",
        "query matched",
        "threshold met",
        "threshold_met",
        "anomaly_score_match",
        "anomaly_detection_realtime_issue",
        "transform_issue",
        "tracked entity contained",
        "slo.burnrate.alert",
        "slo.burnrate.high",
        "slo.burnrate.medium",
        "slo.burnrate.low",
        "xpack.uptime.alerts.actiongroups.monitorstatus",
        "xpack.uptime.alerts.actiongroups.tls",
        "xpack.uptime.alerts.actiongroups.tlscertificate",
        "xpack.uptime.alerts.actiongroups.durationanomaly",
        "xpack.synthetics.alerts.actiongroups.monitorstatus",
        "xpack.synthetics.alerts.actiongroups.tls",
    }
)
ENDINGS: Final[Mapping[str, Status]] = {
    ".fired": Status.FIRING,
    ".warning": Status.FIRING,
    ".nodata": Status.NO_DATA,
    ".recovered": Status.RESOLVED,
}
# Of a document: what people did with it goes before what the rule says.
WORKFLOW: Final = {"acknowledged": Status.ACKNOWLEDGED, "closed": Status.RESOLVED}
GROUPS: Final = ("alert.actionGroup", "alert.actionGroupName")
STATES: Final = ("kibana.alert.status", "alert.status", "status", "state")
SEVERITIES: Final = (
    "kibana.alert.severity",
    "alert.severity",
    "rule.severity",
    "severity",
    "context.severity",
    "context.rule.severity",
    "metadata.severity",
    "ctx.metadata.severity",
)
RULE_IDS: Final = ("kibana.alert.rule.uuid", "rule.id")
RULE_NAMES: Final = (
    "kibana.alert.rule.name",
    "rule.name",
    "rule_name",
    "metadata.name",
    "ctx.metadata.name",
    "watch_id",
    "ctx.watch_id",
    "Title",
)
INSTANCES: Final = ("kibana.alert.instance.id", "alert.id")
UUIDS: Final = ("kibana.alert.uuid", "alert.uuid")
TIMES: Final = (
    "kibana.alert.last_detected",
    "date",
    "@timestamp",
    "timestamp",
    "execution_time",
    "ctx.execution_time",
    "trigger.triggered_time",
    "ctx.trigger.triggered_time",
    "context.timestamp",
    "context.date",
)
SUMMARIES: Final = (
    "kibana.alert.reason",
    "context.title",
    "context.reason",
    "context.internalShortMessage",
    "alert_subject",
    "title",
)
DESCRIPTIONS: Final = ("context.message", "context.reason", "message", "alert_text", "kibana.alert.reason")
WATCHES: Final = ("watch_id", "ctx.watch_id")
# ECS and OpenTelemetry share most of these names.
RESOURCE: Final[Mapping[str, tuple[str, ...]]] = {
    SERVICE: ("service.name", "context.service.name", "context.serviceName"),
    "deployment.environment.name": (
        "service.environment",
        "context.service.environment",
        "context.environment",
        "labels.env",
    ),
    "host.name": ("host.name", "host.hostname", "context.host.name", "context.hostName", "agent.name"),
    "k8s.cluster.name": ("orchestrator.cluster.name", "context.orchestrator.cluster.name"),
    "k8s.namespace.name": ("kubernetes.namespace", "orchestrator.namespace", "context.kubernetes.namespace"),
    "k8s.pod.name": ("kubernetes.pod.name", "context.kubernetes.pod.name"),
    "k8s.deployment.name": ("kubernetes.deployment.name", "context.kubernetes.deployment.name"),
    "k8s.node.name": ("kubernetes.node.name", "context.kubernetes.node.name"),
    "k8s.container.name": ("kubernetes.container.name", "container.name", "context.container.name"),
    "cloud.region": ("cloud.region", "context.cloud.region"),
    "cloud.account.id": ("cloud.account.id",),
    "cloud.provider": ("cloud.provider",),
}


def parse(body: bytes, _: DeliveryFacts) -> list[ParsedSignal]:
    """Return a signal per alert; a summary's list of alert documents is several."""
    notes = Notes()
    value = read_body(body, notes)
    found = list(_documents(value)) if isinstance(value, Mapping) else []
    if not found:
        return each(value, notes, _signal)
    signals = each([one for _, one in found], notes, _signal)
    # Where each stands in its list is not where it stands in the body.
    places = {f"/{index}": place for index, (place, _) in enumerate(found)}
    signals[:] = [replace(one, body_pointer=_placed(one.body_pointer, places)) for one in signals]
    return signals


def _documents(value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield place and content of the documents that a summary holds: all that are new, go on or have recovered."""
    for paths in LISTS:
        lists = [(path, found) for path in paths if isinstance(found := at(value, path), list)]
        if any(_is_document(one) for _, found in lists for one in found):
            for path, found in lists:
                yield from ((f"/{path.replace('.', '/')}/{index}", one) for index, one in enumerate(found))
            return


def _placed(pointer: str, places: Mapping[str, str]) -> str:
    """Return a pointer into the list of documents as one into the body."""
    first, slash, rest = pointer[1:].partition("/")
    return f"{places.get(f'/{first}', '')}{slash}{rest}"


def _is_document(value: Any) -> bool:
    source = object_of(value).get("_source", value)
    return any(at(source, name) is not None for name in (*UUIDS, *RULE_NAMES))


def _first(value: Mapping[str, Any], names: Iterable[str], limit: int, notes: Notes) -> str:
    """Return the first scalar under these paths that says something."""
    for name in names:
        found = at(value, name)
        if isinstance(found, list) and found:
            found = found[0]
        scalar = isinstance(found, str | int | float) and not isinstance(found, bool)
        if scalar and (word := word_of(found, limit, name, notes)):
            return word
    return ""


def _signal(outer: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read one alert; what is neither Kibana's nor Watcher's is read by the usual names."""
    if isinstance(outer.get("_source"), Mapping):
        outer, pointer = need_object(outer["_source"], "_source"), f"{pointer}/_source"
    if at(outer, "watch_id") is None and at(outer, "payload.watch_id") is not None:
        outer, pointer = need_object(outer["payload"], "payload"), f"{pointer}/payload"
    outer = canonical(outer)
    uuid = key_of(_first(outer, UUIDS, DESCRIPTION_MAX, notes), "alert.uuid", notes)
    rule_id = _first(outer, RULE_IDS, RULE_MAX, notes)
    watch = _first(outer, WATCHES, RULE_MAX, notes) or _elastalert(outer, notes)
    if not (uuid or rule_id or watch):
        notes.add("neither an alert of Kibana nor of Watcher: read by the usual names")
        return generic.read_object(outer, pointer, notes)
    status, status_raw = _status(outer, notes)
    if watch and status is Status.UNSPECIFIED and not status_raw:
        # A watch acts when its condition is met, and says nothing when it no longer is.
        status, status_raw = Status.OCCURRENCE, ""
    if status is Status.UNSPECIFIED:
        notes.add(f"alert.actionGroup is not understood: {status_raw or '(absent)'}")
    severity, severity_raw = _severity(outer, status_raw, notes)
    rule_name = _first(outer, RULE_NAMES, RULE_MAX, notes)
    started = time_of(at(outer, "kibana.alert.start"), "kibana.alert.start", notes)
    ended = time_of(at(outer, "kibana.alert.end"), "kibana.alert.end", notes) if status is Status.RESOLVED else None
    resource = _resource(outer, notes)
    return ParsedSignal(
        dedup_key=uuid or _key(outer, rule_id or watch, notes),
        status=status,
        status_raw=status_raw,
        severity=severity,
        severity_raw=severity_raw,
        summary=line_of(_first(outer, SUMMARIES, DESCRIPTION_MAX, notes) or rule_name, "title", notes)
        or "an alert without a name",
        description=_first(outer, DESCRIPTIONS, DESCRIPTION_MAX, notes),
        rule_name=rule_name,
        group_key=rule_id,
        event_time=ended or _time(outer, notes) or started,
        start_time=started,
        end_time=ended,
        resource=resource,
        targets=target_keys(resource),
        labels=_labels(outer, resource, notes),
        annotations=_annotations(outer, notes),
        links=_links(outer, notes),
        warnings=notes.texts,
        body_pointer=pointer,
    )


def _elastalert(body: Mapping[str, Any], notes: Notes) -> str:
    """Return the rule of ElastAlert that found a document, with the host it names; like a watch it tells no end."""
    if not any(one in body for one in ELASTALERT):
        return ""
    return _first(body, ("rule_name",), RULE_MAX, notes)


def _status(body: Mapping[str, Any], notes: Notes) -> tuple[Status, str]:
    """Return what people, the alert's group or the document say, and the word for it."""
    workflow = _first(body, ("kibana.alert.workflow_status",), RAW_MAX, notes)
    if found := WORKFLOW.get(workflow.lower()):
        return found, workflow
    first = ""
    for name in (*GROUPS, *STATES):
        raw = _first(body, (name,), RAW_MAX, notes)
        if raw and (status := group_status(raw)) is not Status.UNSPECIFIED:
            return status, raw
        first = first or raw
    return Status.UNSPECIFIED, first


def group_status(raw: str) -> Status:
    """Return what an action group, or a status, means."""
    word = raw.strip().lower()
    if word in ACTIVE:
        return Status.FIRING
    if word == "untracked":
        return Status.SUPPRESSED
    ending = next((status for end, status in ENDINGS.items() if word.endswith(end)), None)
    return ending or read_status(word)


def _severity(body: Mapping[str, Any], group: str, notes: Notes) -> tuple[Severity, str]:
    """Return what the alert says; else that its group is the one for warnings."""
    raw = _first(body, SEVERITIES, RAW_MAX, notes)
    if not raw and group.lower().endswith(".warning"):
        return Severity.WARNING, group
    if not raw:
        notes.add("severity is not understood: (absent)")
    return severity_of(raw, "severity", notes)


def _key(body: Mapping[str, Any], rule: str, notes: Notes) -> str:
    """Return rule and instance, which stay the same over all firings of an alert."""
    instance = _first(body, INSTANCES, DESCRIPTION_MAX, notes)
    notes.add("no alert.uuid: the key is made of rule and alert")
    # What tells no instance may be told of each host.
    instance = instance or (_first(body, RESOURCE["host.name"], RULE_MAX, notes) if _elastalert(body, Notes()) else "")
    return bounded_key(rule, instance) if instance else bounded_key(rule)


def _time(body: Mapping[str, Any], notes: Notes) -> int | None:
    return next((found for name in TIMES if (found := time_of(at(body, name), name, notes)) is not None), None)


def _resource(body: Mapping[str, Any], notes: Notes) -> dict[str, str]:
    found = {name: _first(body, paths, RULE_MAX, notes) for name, paths in RESOURCE.items()}
    return resource_of({name: value for name, value in found.items() if value})


def _labels(body: Mapping[str, Any], resource: Mapping[str, str], notes: Notes) -> dict[str, str]:
    """Return tags of rule and alert, ECS labels, and what the alert is about."""
    words = words_of(at(body, "labels"), "labels", notes)
    for name in ("kibana.alert.rule.tags", "rule.tags", "context.tags", "tags"):
        words |= labels_of(tags_of(at(body, name)), notes, name)
    for name in ("rule.spaceId", "rule.type", "kibana.alert.rule.category", "kibana.alert.rule.rule_type_id"):
        if word := _first(body, (name,), RULE_MAX, notes):
            words[name] = word
    return dict(list({**words, **resource}.items())[:PAIRS_MAX])


def _annotations(body: Mapping[str, Any], notes: Notes) -> dict[str, str]:
    """Return the context of the rule and the numbers of the document."""
    found = {f"context.{name}"[:RULE_MAX]: one for name, one in object_of(body.get("context")).items()}
    found |= {name[:RULE_MAX]: one for name, one in body.items() if name.startswith("context.")}
    for name in ("payload.hits.total", "ctx.payload.hits.total"):
        found[name] = at(body, name)
    for name in ("risk_score", "evaluation.value", "evaluation.threshold", "depth", "action_group"):
        found[DOCUMENT + name] = at(body, DOCUMENT + name)
    told = {name: one for name, one in found.items() if isinstance(one, str | int | float)}
    return words_of(dict(list(told.items())[:PAIRS_MAX]), "context", notes)


def _whole(body: Mapping[str, Any], name: str) -> Any:
    """Return a page of Kibana with the address of Kibana before its path."""
    page, base = at(body, name), at(body, "kibanaBaseUrl")
    if isinstance(page, str) and isinstance(base, str) and page.startswith("/"):
        return base.rstrip("/") + page if base else ""
    return page


def _links(body: Mapping[str, Any], notes: Notes) -> tuple[Any, ...]:
    """Return the pages of the alert and its rule; `kibanaBaseUrl` is empty where it is not configured."""
    references = items_of(at(body, "kibana.alert.rule.references"))[:PARTS_MAX]
    return links_of(
        [
            (Rel.SOURCE, at(body, "context.alertDetailsUrl")),
            (Rel.SOURCE, at(body, "kibana.alert.url")),
            (Rel.GENERATOR, at(body, "rule.url") or at(body, "context.link")),
            (Rel.DASHBOARD, _whole(body, "context.viewInAppUrl")),
            (Rel.SOURCE, at(body, "context.results_link")),
            (Rel.SOURCE, at(body, "kibanaBaseUrl")),
            (Rel.RUNBOOK, at(body, "kibana.alert.rule.note") or at(body, "runbook_url")),
            *((Rel.UNSPECIFIED, one) for one in references),
        ],
        notes,
    )
