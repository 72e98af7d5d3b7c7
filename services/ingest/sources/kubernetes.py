"""Kubernetes events (core/v1 and events.k8s.io/v1), as exporters and Knative's ApiServerSource post them.

An event tells once that something happened: no resolve will come. What is normal opens no incident, but is kept for who
looks for a cause.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from services.ingest.resources import CLUSTER, HOST, NAMESPACE, VALUE_MAX, resource_of, target_keys
from services.ingest.signal import (
    DESCRIPTION_MAX,
    RAW_MAX,
    RULE_MAX,
    DeliveryFacts,
    Kind,
    ParsedSignal,
    Severity,
    Status,
    bounded_key,
    hashed,
    unreadable,
)
from services.ingest.sources.fields import each, items_of, key_of, line_of, object_of, text_in
from services.ingest.sources.reading import Notes, bounded, read_json, text_of, time_of, word_of, words_of
from services.ingest.words import read_severity

SEVERITIES: Final = {"warning": Severity.WARNING, "error": Severity.ERROR, "normal": Severity.INFO}
# Kubernetes calls these normal, people do not.
TROUBLE: Final = frozenset(
    {
        "NodeNotReady",
        "NodeNotSchedulable",
        "NodeHasDiskPressure",
        "NodeHasInsufficientMemory",
        "NodeHasInsufficientPID",
        "OOMKilling",
        "SystemOOM",
        "TaintManagerEviction",
        "Evicted",
        "BackOff",
        "Unhealthy",
    }
)
ROLLOUT: Final = frozenset({"ScalingReplicaSet"})
# Parts of a message that differ from one telling of the same trouble to the next.
VARYING: Final = re.compile(r"[0-9]+")
CLUSTERS: Final = ("clusterName", "cluster", "cluster_name", "k8s_cluster_name")
LISTS: Final = frozenset({"List", "EventList"})
WATCHES: Final = frozenset({"ADDED", "MODIFIED", "DELETED"})
PREFIX: Final = "k8s."
# What kubewatch says of objects.
CHANGED: Final = frozenset({"created", "updated", "deleted"})
MESSAGES_MAX: Final = 16
# What templates of exporters call the fields of an event, without separators and in small letters: the usual layout of
# kubernetes-event-exporter, and kube-eventer's own.
TEMPLATE: Final[Mapping[str, tuple[str, ...]]] = {
    "reason": ("reason", "eventreason"),
    "message": ("message", "eventmessage"),
    "type": ("type", "eventtype"),
    "lastTimestamp": ("lasttimestamp", "eventtime", "timestamp", "createdat"),
    "clusterName": ("clustername", "cluster"),
    "count": ("count",),
}
ABOUT: Final[Mapping[str, tuple[str, ...]]] = {
    "kind": ("kind", "eventkind"),
    "name": ("name", "eventobject"),
    "namespace": ("namespace", "eventnamespace"),
}


def parse(body: bytes, _: DeliveryFacts) -> list[ParsedSignal]:
    """Return a signal per event: of a single one, a list, a watch's frame, or the data of a CloudEvent."""
    notes = Notes()
    value = read_json(body, notes)
    if isinstance(value, Mapping) and text_of(value.get("kind")) in LISTS and isinstance(value.get("items"), list):
        found = each(value["items"], notes, read_event)
        found[:] = [replace(one, body_pointer=f"/items{one.body_pointer}") for one in found]
        return found
    return each(value, notes, read_event)


def is_event(value: Any) -> bool:
    """Say whether a JSON value looks like an event of Kubernetes."""
    return isinstance(value, Mapping) and (
        isinstance(value.get("involvedObject"), Mapping)
        or (isinstance(value.get("regarding"), Mapping) and "reason" in value)
    )


def read_event(outer: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read one event; Unreadable when it does not say what it is about."""
    event, path = _unwrapped(outer)
    about = object_of(event.get("involvedObject") or event.get("regarding"))
    reason = word_of(event.get("reason"), RULE_MAX, "reason", notes)
    kind = word_of(about.get("kind"), RAW_MAX, "involvedObject.kind", notes)
    name = word_of(about.get("name"), RULE_MAX, "involvedObject.name", notes)
    if not name and not text_of(about.get("uid")):
        raise unreadable("involvedObject", "must name what the event is about")
    message = _message(event)
    type_raw = word_of(event.get("type"), RAW_MAX, "type", notes)
    severity = SEVERITIES.get(type_raw.lower(), read_severity(type_raw))
    if severity is Severity.UNSPECIFIED:
        notes.add(f"type is not understood: {type_raw or '(absent)'}")
    signal_kind = _kind(reason, severity)
    if signal_kind is Kind.ALERT and severity is Severity.INFO:
        severity = Severity.WARNING
    labels = _labels(outer, event, about, reason, notes)
    resource = resource_of(labels)
    return ParsedSignal(
        dedup_key=_key(event, about, signal_kind, notes),
        status=Status.OCCURRENCE,
        status_raw=type_raw,
        severity=severity,
        severity_raw=type_raw,
        summary=line_of(": ".join(one for one in (reason, message) if one), "message", notes)
        or f"an event about {kind} {name}",
        description=bounded(message, DESCRIPTION_MAX, "message", notes),
        rule_name=reason,
        group_key=key_of(about.get("uid"), "involvedObject.uid", notes),
        event_time=_time(event, notes),
        resource=resource,
        targets=target_keys(resource),
        labels=labels,
        annotations=_annotations(event, about, notes),
        warnings=notes.texts,
        body_pointer=pointer + path,
        kind=signal_kind,
    )


def _unwrapped(outer: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """Return the event within what a watch, a CloudEvent or an exporter puts around it, and where it stands."""
    if isinstance(outer.get("data"), Mapping) and "specversion" in outer:
        return outer["data"], "/data"
    if isinstance(outer.get("object"), Mapping) and text_of(outer.get("type")) in WATCHES:
        return outer["object"], "/object"
    if isinstance(outer.get("event"), Mapping) and not is_event(outer):
        return outer["event"], "/event"
    if is_event(outer.get("body")):
        # As OpenTelemetry's collector has it in a log record.
        return outer["body"], "/body"
    return _of_exporter(outer)


def _of_exporter(outer: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """Return as an event what exporters tell in words of their own; what is none of theirs as it is."""
    if isinstance(outer.get("eventmeta"), Mapping):
        return _of_kubewatch(outer, outer["eventmeta"]), ""
    if isinstance(outer.get("meta"), Mapping) and isinstance(outer.get("status"), Mapping):
        return _of_botkube(outer, outer["meta"], outer["status"]), ""
    if "Kind" in (data := object_of(outer.get("data"))):
        told = {name.lower(): value for name, value in data.items()}
        return _of_botkube({"timestamp": told.get("timestamp")}, told, told), "/data"
    return _of_template(outer), ""


def _of_template(outer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return as an event what a template made flat, the fields of `details` among them; what is none as it is."""
    plain = {name.lower().replace("_", ""): one for name, one in {**outer, **object_of(outer.get("details"))}.items()}

    def named(names: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
        found = {name: next((plain[one] for one in spelt if one in plain), None) for name, spelt in names.items()}
        return {name: one for name, one in found.items() if isinstance(one, str | int | float)}

    event, about = named(TEMPLATE), named(ABOUT)
    if is_event(outer) or "metadata" in outer or "reason" not in event or not {"kind", "name"} <= about.keys():
        return outer
    source = {"component": plain.get("component"), "host": plain.get("host")}
    return {**event, "involvedObject": about, "source": source}


def _of_kubewatch(outer: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return what kubewatch tells as an event: that an object was made, changed or removed, which is no trouble."""
    reason = text_of(meta.get("reason"))
    name = text_of(meta.get("name")).rpartition("/")[2]
    return {
        "involvedObject": {"kind": meta.get("kind"), "namespace": meta.get("namespace"), "name": name},
        "reason": reason,
        "message": outer.get("text"),
        "type": "Normal" if reason.lower() in CHANGED else "",
        "lastTimestamp": outer.get("time"),
    }


def _of_botkube(outer: Mapping[str, Any], meta: Mapping[str, Any], status: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Botkube tells as an event."""
    messages = [text_of(one) for one in items_of(status.get("messages"))[:MESSAGES_MAX]]
    return {
        "involvedObject": {name: meta.get(name) for name in ("kind", "namespace", "name")},
        "clusterName": meta.get("cluster"),
        "reason": status.get("reason"),
        "message": " ".join(one for one in messages if one) or status.get("error") or outer.get("summary"),
        "type": status.get("level") or status.get("type"),
        "lastTimestamp": outer.get("timestamp"),
    }


def _message(event: Mapping[str, Any]) -> str:
    return text_of(event.get("message") or event.get("note"))


def _kind(reason: str, severity: Severity) -> Kind:
    """Return what an event is for us: only trouble is an alert; what type nobody understands may be trouble."""
    if severity is not Severity.INFO or reason in TROUBLE:
        return Kind.ALERT
    return Kind.DEPLOYMENT if reason in ROLLOUT else Kind.NOTE


def _key(event: Mapping[str, Any], about: Mapping[str, Any], kind: Kind, notes: Notes) -> str:
    """Return object, reason and message without numbers; of what is only kept, each event has its own."""
    uid = key_of(about.get("uid"), "involvedObject.uid", notes)
    reason = word_of(event.get("reason"), RULE_MAX, "reason", Notes())
    message = bounded(_message(event), RULE_MAX, "message", Notes())
    if not uid:
        notes.add("no involvedObject.uid: the key is made of kind, namespace and name")
        uid = hashed(*(text_of(about.get(one)) for one in ("kind", "namespace", "name")))
    if kind is not Kind.ALERT:
        metadata = object_of(event.get("metadata"))
        own = text_of(metadata.get("uid")) or f"{text_of(metadata.get('namespace'))}/{text_of(metadata.get('name'))}"
        return bounded_key(uid, reason, own if own != "/" else hashed(message))
    return bounded_key(uid, reason, hashed(VARYING.sub("", message))[:16])


def _time(event: Mapping[str, Any], notes: Notes) -> int | None:
    """Return when it happened last: of a series its newest, then what the sender saw, then when it was written."""
    series = object_of(event.get("series"))
    metadata = object_of(event.get("metadata"))
    candidates = (
        ("series.lastObservedTime", series.get("lastObservedTime")),
        ("lastTimestamp", event.get("lastTimestamp")),
        ("deprecatedLastTimestamp", event.get("deprecatedLastTimestamp")),
        ("eventTime", event.get("eventTime")),
        ("firstTimestamp", event.get("firstTimestamp")),
        ("metadata.creationTimestamp", metadata.get("creationTimestamp")),
    )
    return next((found for name, value in candidates if (found := time_of(value, name, notes)) is not None), None)


def _labels(
    outer: Mapping[str, Any], event: Mapping[str, Any], about: Mapping[str, Any], reason: str, notes: Notes
) -> dict[str, str]:
    """Return the labels an exporter added to the object, and what the event says of it under OpenTelemetry's names."""
    labels = words_of(about.get("labels"), "involvedObject.labels", notes)
    kind = text_of(about.get("kind"))
    source = object_of(event.get("source") or event.get("deprecatedSource"))
    own = {
        NAMESPACE: about.get("namespace"),
        CLUSTER: text_in(event, CLUSTERS, VALUE_MAX, notes)
        or text_in(outer, CLUSTERS, VALUE_MAX, notes)
        or text_in(object_of(outer.get("resource")), (CLUSTER,), VALUE_MAX, notes),
        "k8s.event.reason": reason,
        "k8s.object.kind": kind,
        "k8s.object.name": about.get("name"),
        "k8s.object.uid": about.get("uid"),
        "reporting_component": event.get("reportingComponent")
        or event.get("reportingController")
        or source.get("component"),
    }
    if kind and kind.isalpha() and len(kind) <= RAW_MAX:
        own[f"{PREFIX}{kind.lower()}.name"] = about.get("name")
    if kind == "Node":
        own[HOST] = about.get("name")
    elif text_of(source.get("host")):
        own["k8s.node.name"] = source.get("host")
    if container := re.search(r"\{([^{}]{1,253})\}", text_of(about.get("fieldPath"))[:VALUE_MAX]):
        own["k8s.container.name"] = container[1]
    return {**labels, **words_of({name: value for name, value in own.items() if text_of(value)}, "labels", notes)}


def _annotations(event: Mapping[str, Any], about: Mapping[str, Any], notes: Notes) -> dict[str, str]:
    """Return how often and since when, and what an exporter added."""
    series = object_of(event.get("series"))
    told = {
        "count": series.get("count") or event.get("count") or event.get("deprecatedCount"),
        "firstTimestamp": event.get("firstTimestamp") or event.get("deprecatedFirstTimestamp"),
        "resourceVersion": object_of(event.get("metadata")).get("resourceVersion"),
        "action": event.get("action"),
    }
    found = words_of({name: value for name, value in told.items() if text_of(value)}, "event", notes)
    return {**found, **dict(list(words_of(about.get("annotations"), "involvedObject.annotations", notes).items())[:64])}
