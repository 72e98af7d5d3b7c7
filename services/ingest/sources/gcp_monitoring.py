"""Google Cloud Monitoring: one incident per request, versions 1.1 and 1.2, the test of a channel, and Pub/Sub's push.

A subscription of Pub/Sub can prove who pushes (OpenID Connect); it wraps the same message in base64.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any, Final

from services.ingest.resources import CLOUD_ID, CLUSTER, HOST, NAMESPACE, SERVICE, VALUE_MAX, resource_of, target_keys
from services.ingest.signal import (
    DESCRIPTION_MAX,
    RAW_MAX,
    RULE_MAX,
    DeliveryFacts,
    ParsedSignal,
    Rel,
    Severity,
    Status,
    unreadable,
)
from services.ingest.sources.alerts import about
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

TEST: Final = "test"
NO_SEVERITY: Final = "no severity"
# Labels of monitored resources, by what OpenTelemetry calls them.
ATTRIBUTES: Final = {
    "project_id": "cloud.account.id",
    "zone": "cloud.availability_zone",
    "region": "cloud.region",
    "instance_id": "host.id",
    "cluster_name": CLUSTER,
    "namespace_name": NAMESPACE,
    "pod_name": "k8s.pod.name",
    "container_name": "k8s.container.name",
    "node_name": "k8s.node.name",
    "service_name": SERVICE,
    "function_name": SERVICE,
    "module_id": SERVICE,
    "host": HOST,
}
PROMETHEUS: Final = "prometheus_target"
CONTROLLERS: Final = {
    "Deployment": "k8s.deployment.name",
    "StatefulSet": "k8s.statefulset.name",
    "DaemonSet": "k8s.daemonset.name",
}
ZONE: Final = re.compile(r"(?P<region>[a-z]+-[a-z]+[0-9]{1,2})-[a-z]")
# As labels of Amazon's machines have them: `aws:eu-west-1a`, where the zone is a region and a letter.
AWS: Final = "aws:"
AWS_ZONE: Final = re.compile(r"(?P<region>[a-z]{2}(?:-[a-z]+){1,2}-[0-9]{1,2})[a-z]")
MACHINES: Final = frozenset({"gce_instance", "aws_ec2_instance"})
HOST_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,250}[A-Za-z0-9])?")
UNFILLED: Final = re.compile(r"\$\{|\{\{|%\{")
RUNBOOKS: Final = ("runbook", "playbook", "sop")
ANNOTATIONS: Final = (
    "condition_name",
    "threshold_value",
    "observed_value",
    "resource_name",
    "resource_display_name",
    "resource_type_display_name",
    "scoping_project_id",
)
LINKS_MAX: Final = 32


def parse(body: bytes, _: DeliveryFacts) -> list[ParsedSignal]:
    """Return the signal of an incident; its key is the incident's id, the same when it is open and closed."""
    notes = Notes()
    return each(read_json(body, notes), notes, _incident)


def _incident(body: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read one incident."""
    place = f"{pointer}/incident" if "incident" in body else pointer
    if message := object_of(body.get("message")):
        body, place = _pushed(message, notes), f"{pointer}/message/data"
    test = text_of(body.get("version")).lower() == TEST
    incident = object_of(body.get("incident")) or (body if "incident_id" in body else {})
    identity = key_of(incident.get("incident_id"), "incident.incident_id", notes) or (TEST if test else "")
    if not identity:
        raise unreadable("incident.incident_id", "is required: without it the incident cannot be told from others")
    status_raw = word_of(incident.get("state"), RAW_MAX, "incident.state", notes)
    status = read_status(status_raw)
    if status is Status.UNSPECIFIED:
        notes.add(f"state is not understood: {status_raw or '(absent)'}")
    severity, severity_raw = _severity(incident, notes)
    began = _moment(incident.get("started_at"), "incident.started_at", notes)
    ended = _moment(incident.get("ended_at"), "incident.ended_at", notes) if status is Status.RESOLVED else None
    metadata = object_of(incident.get("metadata"))
    monitored = object_of(incident.get("resource"))
    metric = object_of(incident.get("metric"))
    user = [incident.get("policy_user_labels"), metadata.get("user_labels")]
    labels = labels_of(
        (
            pair
            for one in (monitored.get("labels"), *user, metric.get("labels"), metadata.get("system_labels"))
            for pair in tags_of(object_of(one))
        ),
        notes,
        "labels",
    )
    # What a metric is labelled with is about what it counts, and not about what it runs on.
    told = labels_of((pair for one in reversed(user) for pair in tags_of(object_of(one))), Notes())
    if text_of(monitored.get("type")) == PROMETHEUS:
        # But those of Prometheus are what it scraped and what a query left of it.
        kept, scraped = (labels_of(tags_of(object_of(one.get("labels"))), Notes()) for one in (metric, monitored))
        told = about(kept | told | scraped)
    resource = resource_of(
        {**firsts(told), **_attributes(incident, monitored, object_of(metadata.get("system_labels")))}
    )
    documentation = incident.get("documentation")
    content = documentation.get("content") if isinstance(documentation, Mapping) else documentation
    rule_name = word_of(incident.get("policy_name"), RULE_MAX, "incident.policy_name", notes)
    extra = {name: incident.get(name) for name in ANNOTATIONS}
    extra |= {"metric.type": metric.get("type"), "resource.type": monitored.get("type")}
    extra["documentation.subject"] = object_of(documentation).get("subject")
    return ParsedSignal(
        dedup_key=identity,
        status=status,
        status_raw=status_raw,
        severity=severity,
        severity_raw=severity_raw,
        summary=line_of(incident.get("summary"), "incident.summary", notes)
        or rule_name
        or line_of(incident.get("condition_name"), "incident.condition_name", notes)
        or f"incident {identity}",
        description=bounded(content, DESCRIPTION_MAX, "incident.documentation", notes),
        rule_name=rule_name,
        event_time=ended if status is Status.RESOLVED else began,
        start_time=began,
        end_time=ended,
        resource=resource,
        targets=target_keys(resource),
        labels=labels,
        annotations=words_of({name: value for name, value in extra.items() if value is not None}, "incident", notes),
        links=_links(incident, object_of(documentation), notes),
        warnings=notes.texts,
        test=test,
        body_pointer=place,
    )


def _pushed(message: Mapping[str, Any], notes: Notes) -> Mapping[str, Any]:
    """Return the message within a push of Pub/Sub."""
    try:
        raw = base64.b64decode(text_of(message.get("data")), validate=True)
    except (binascii.Error, ValueError):
        raise unreadable("message.data", "must be base64") from None
    return object_of(read_json(raw, notes))


def _severity(incident: Mapping[str, Any], notes: Notes) -> tuple[Severity, str]:
    """Return the severity of the policy; that it has none is understood."""
    raw = text_of(incident.get("severity")).strip()
    if raw.lower() == NO_SEVERITY:
        return Severity.UNSPECIFIED, raw
    return severity_of(raw, "incident.severity", notes)


def _moment(value: Any, name: str, notes: Notes) -> int | None:
    """Return a time; 0 is none."""
    return None if text_of(value) == "0" else time_of(value, name, notes)


def _word(value: Any) -> str:
    return word_of(value, VALUE_MAX, "resource", Notes())


def _attributes(incident: Mapping[str, Any], monitored: Mapping[str, Any], system: Mapping[str, Any]) -> dict[str, str]:
    """Return what the monitored resource is, in OpenTelemetry's words."""
    kind = text_of(monitored.get("type"))
    # a template's placeholder is noted where labels and keys are made of these
    labels = {name: _word(value) for name, value in object_of(monitored.get("labels")).items()}
    found = {"cloud.provider": "aws" if kind.startswith("aws_") else "gcp"}
    found |= {ATTRIBUTES[name]: value for name, value in labels.items() if name in ATTRIBUTES and value}
    place = labels.get("location") or labels.get("zone", "")
    if found["cloud.provider"] == "aws":
        found |= _amazon(labels)
    elif match := ZONE.fullmatch(place):
        found["cloud.availability_zone"] = place
        found.setdefault("cloud.region", match["region"])
    elif place:
        found.setdefault("cloud.region", place)
    project = found.get("cloud.account.id") or _word(incident.get("scoping_project_id"))
    found["cloud.account.id"] = project
    controller = CONTROLLERS.get(text_of(system.get("top_level_controller_type")))
    if controller and (name := _word(system.get("top_level_controller_name"))):
        found[controller] = name
    instance = labels.get("instance_id") or _word(incident.get("resource_id"))
    if kind in MACHINES or (not kind and instance):
        found["host.id"] = instance
        found[HOST] = _host(incident, system, project)
    if kind == "gce_instance" and project and instance and place:
        found[CLOUD_ID] = f"//compute.googleapis.com/projects/{project}/zones/{place}/instances/{instance}"
    database = labels.get("database_id", "").removeprefix(f"{project}:")
    if kind == "cloudsql_database" and project and database:
        found[CLOUD_ID] = f"//sqladmin.googleapis.com/projects/{project}/instances/{database}"
    return {name: value for name, value in found.items() if value}


def _amazon(labels: Mapping[str, str]) -> dict[str, str]:
    """Return account, region and zone of a machine of Amazon's that Google watches."""
    place = labels.get("region", "").removeprefix(AWS)
    match = AWS_ZONE.fullmatch(place)
    return {
        "cloud.account.id": labels.get("aws_account", ""),
        "cloud.region": match["region"] if match else place,
        "cloud.availability_zone": place if match else "",
    }


def _host(incident: Mapping[str, Any], system: Mapping[str, Any], project: str) -> str:
    """Return the name of a machine: `resource_name` has the project before it, where there is no better."""
    names = (
        text_of(incident.get("resource_display_name")),
        text_of(system.get("name")),
        text_of(incident.get("resource_name")).removeprefix(f"{project} "),
    )
    return next((name for name in names if HOST_NAME.fullmatch(name)), "")


def _links(incident: Mapping[str, Any], documentation: Mapping[str, Any], notes: Notes) -> tuple[Any, ...]:
    """Return the page of the incident, and what its documentation points to."""
    candidates: list[tuple[Rel, Any]] = [(Rel.SOURCE, incident.get("url"))]
    for one in items_of(documentation.get("links"))[:LINKS_MAX]:
        url = text_of(object_of(one).get("url"))
        if UNFILLED.search(url):
            notes.add("a link of the documentation holds an unrendered placeholder")
            continue
        title = text_of(object_of(one).get("displayName")).lower()
        rel = Rel.RUNBOOK if any(word in title for word in RUNBOOKS) else Rel.UNSPECIFIED
        candidates.append((Rel.DASHBOARD if "dashboard" in title else rel, url))
    return links_of(candidates, notes)
