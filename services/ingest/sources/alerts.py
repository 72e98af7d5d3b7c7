"""Alerts in Prometheus' shape (labels, annotations, startsAt, fingerprint), as Alertmanager and Grafana send them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.ingest.resources import resource_of, target_keys
from services.ingest.signal import (
    DESCRIPTION_MAX,
    GROUP_MAX,
    KEY_MAX,
    LINKS_MAX,
    RAW_MAX,
    RULE_MAX,
    SIGNALS_MAX,
    SUMMARY_MAX,
    FieldError,
    LeftOut,
    Link,
    ParsedSignal,
    Rel,
    Severity,
    Signals,
    Status,
    Unreadable,
    beyond,
    hashed,
    unreadable,
)
from services.ingest.sources.fields import links_of, object_of, story_of
from services.ingest.sources.reading import Notes, bounded, text_of, time_of, word_of, words_of
from services.ingest.words import read_severity, read_status

SEVERITY_LABELS: Final = ("severity", "priority")
RUNBOOKS: Final = ("runbook_url", "runbook")
NAME_LABEL: Final = "alertname"
# Jobs that measure others, and what Prometheus adds of where they run themselves: their alerts are not about that.
WATCHERS: Final[Mapping[str, tuple[str, ...]]] = {
    "kube-state-metrics": ("instance",),
    "kubelet": (),
    "cadvisor": (),
    "node-exporter": ("namespace", "pod", "container"),
}
# Of the exporter only when they bear its name: rules say them too, and so does what is measured.
NAMED: Final = ("service", "pod", "container")
# What a job says itself under a name that Prometheus has taken; with one of these it speaks of somebody else.
EXPORTED: Final = "exported_"
ELSEWHERE: Final = frozenset({"pod", "instance"})
# With one of these a namespace is Kubernetes' too; alone it may be the job's own word (Temporal, Vault).
BESIDE: Final = frozenset({"service", "container"})


@dataclass(frozen=True, slots=True)
class Group:
    """What the alerts of one notification share."""

    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    group_key: str
    links: tuple[Link, ...]
    notes: tuple[str, ...]


Shape = Callable[[ParsedSignal, Mapping[str, Any], Notes], ParsedSignal]


def read_alerts(body: Any, notes: Notes, shape: Shape | None = None) -> list[ParsedSignal]:
    """Return a signal per alert of a notification; SHAPE may add what only its sender knows.

    An alert that cannot be understood is named in the warnings of the others; Unreadable when none can.
    """
    alerts = _alerts_of(body)
    shared = any(object_of(body.get(name)) for name in ("groupLabels", "commonLabels"))
    left_out: list[LeftOut] = []
    readable: list[tuple[int, Mapping[str, Any]]] = []
    for index, alert in enumerate(alerts[:SIGNALS_MAX]):
        if found := _broken(alert, f"alerts[{index}]", shared=shared):
            left_out.append(LeftOut(index, found))
        else:
            readable.append((index, alert))
    if not readable:
        raise Unreadable([one.error for one in left_out])
    left_out += beyond(len(alerts), "alerts")
    notes.leave_out(left_out)
    group = _group_of(body, notes)
    return Signals((_signal(alert, index, group, shape) for index, alert in readable), left_out)


def _alerts_of(body: Any) -> list[Any]:
    """Return the list of alerts; Unreadable when the body has another shape."""
    if not isinstance(body, dict):
        raise unreadable("", "must be a JSON object")
    if "alerts" not in body:
        raise unreadable("alerts", "is required")
    alerts = body["alerts"]
    if not isinstance(alerts, list):
        raise unreadable("alerts", "must be a list of alerts")
    if not alerts:
        raise unreadable("alerts", "must hold at least one alert")
    return alerts


def _broken(alert: Any, path: str, *, shared: bool) -> FieldError | None:
    """Say why an alert cannot be told from others; labels that are SHARED by its group are labels of its own."""
    if not isinstance(alert, dict):
        return FieldError(path, "must be an object")
    labels = alert.get("labels")
    if text_of(alert.get("fingerprint")):
        return None
    if labels is not None and not isinstance(labels, dict):
        return FieldError(f"{path}.labels", "must be an object of texts")
    if not labels and not shared:
        return FieldError(f"{path}.labels", "is required: without labels or fingerprint the alert has no identity")
    return None


def _group_of(body: Mapping[str, Any], notes: Notes) -> Group:
    """Read what stands beside the alerts."""
    truncated = body.get("truncatedAlerts")
    if isinstance(truncated, int) and truncated > 0:
        notes.add(f"the sender left out {truncated} alerts")
    labels = words_of(body.get("groupLabels"), "groupLabels", notes)
    labels |= words_of(body.get("commonLabels"), "commonLabels", notes)
    links = links_of([(Rel.SOURCE, body.get("externalURL"))], notes)
    return Group(
        labels=labels,
        annotations=words_of(body.get("commonAnnotations"), "commonAnnotations", notes, story_of),
        group_key=bounded(body.get("groupKey"), GROUP_MAX, "groupKey", notes),
        links=links,
        notes=notes.texts,
    )


def _signal(alert: Mapping[str, Any], index: int, group: Group, shape: Shape | None) -> ParsedSignal:
    """Read one alert."""
    notes = Notes(*group.notes)
    labels = {**group.labels, **words_of(alert.get("labels"), "labels", notes)}
    annotations = {**group.annotations, **words_of(alert.get("annotations"), "annotations", notes, story_of)}
    status_raw = bounded(alert.get("status"), RAW_MAX, "status", notes)
    status = read_status(status_raw)
    if status is Status.UNSPECIFIED:
        notes.add(f"status is not understood: {status_raw or '(absent)'}")
    severity_raw = severity_in(labels) or severity_in(annotations)
    severity = read_severity(severity_raw)
    if severity is Severity.UNSPECIFIED:
        notes.add(f"severity is not understood: {severity_raw or '(absent)'}")
    started = time_of(alert.get("startsAt"), "startsAt", notes)
    ended = time_of(alert.get("endsAt"), "endsAt", notes) if status is Status.RESOLVED else None
    rule_name = labels.get(NAME_LABEL, "")[:RULE_MAX]
    summary = annotations.get("summary") or annotations.get("message") or annotations.get("title") or rule_name
    resource = resource_of(about(labels))
    signal = ParsedSignal(
        dedup_key=fingerprint_of(alert, labels, notes),
        status=status,
        status_raw=status_raw,
        severity=severity,
        severity_raw=severity_raw,
        summary=" ".join((summary or "an alert without a name").split())[:SUMMARY_MAX],
        description=(annotations.get("description") or annotations.get("message", ""))[:DESCRIPTION_MAX],
        rule_name=rule_name,
        group_key=group.group_key,
        event_time=ended if status is Status.RESOLVED else started,
        start_time=started,
        end_time=ended,
        resource=resource,
        targets=target_keys(resource),
        labels=labels,
        annotations=annotations,
        links=(*group.links, *links_of_alert(alert, annotations, notes))[:LINKS_MAX],
        warnings=notes.texts,
        body_pointer=f"/alerts/{index}",
    )
    return shape(signal, alert, notes) if shape else signal


def about(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels that say what an alert is about, without those of who measured it."""
    job = _plain(labels.get("job", ""))
    watchers = [name for name in WATCHERS if name in job]
    told = {name.removeprefix(EXPORTED): value for name, value in labels.items() if name.startswith(EXPORTED)}
    placed = "namespace" in told and (watchers or "namespace" not in labels or not BESIDE.isdisjoint(told))
    theirs: set[str] = set()
    if placed or not ELSEWHERE.isdisjoint(told):
        # Of a watcher a pod that bears another name is what it measures.
        theirs |= {"namespace", "instance"} if watchers else {"namespace", "instance", "pod", "container"}
    else:
        told = {}
    # Without an instance an alert of a watcher is about its job (TargetDown), or about what a query left.
    if told or (watchers and "instance" in labels):
        theirs |= {name for watcher in watchers for name in WATCHERS[watcher]}
        words = [word for word in (*(watchers or WATCHERS), job) if word]
        theirs |= {name for name in NAMED if any(word in _plain(labels.get(name, "")) for word in words)}
    return {name: value for name, value in labels.items() if name not in theirs} | told


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def severity_in(words: Mapping[str, str]) -> str:
    """Return how bad it is, in whatever case people write the name of the label or annotation."""
    for name in SEVERITY_LABELS:
        if name in words:
            return words[name][:RAW_MAX]
    plain = {name.lower(): value for name, value in reversed(list(words.items()))}
    return next((plain[name] for name in SEVERITY_LABELS if name in plain), "")[:RAW_MAX]


def fingerprint_of(alert: Mapping[str, Any], labels: Mapping[str, str], notes: Notes) -> str:
    """Return the sender's fingerprint; old senders have none, then the labels are the identity."""
    fingerprint = word_of(alert.get("fingerprint"), KEY_MAX, "fingerprint", notes)
    if fingerprint:
        return fingerprint
    notes.add("no fingerprint: the key is a hash of the labels")
    return hashed(*(part for pair in sorted(labels.items()) for part in pair))


def links_of_alert(alert: Mapping[str, Any], annotations: Mapping[str, str], notes: Notes) -> tuple[Link, ...]:
    """Return the links of an alert and its annotations."""
    return links_of(
        [
            (Rel.GENERATOR, alert.get("generatorURL")),
            (Rel.SILENCE, alert.get("silenceURL")),
            (Rel.DASHBOARD, alert.get("dashboardURL")),
            (Rel.PANEL, alert.get("panelURL")),
            (Rel.IMAGE, alert.get("imageURL")),
            *((Rel.RUNBOOK, annotations[name]) for name in RUNBOOKS if name in annotations),
            *((Rel.DASHBOARD, value) for name, value in annotations.items() if name.startswith("dashboard")),
        ],
        notes,
    )
