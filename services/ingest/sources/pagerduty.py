"""PagerDuty's webhooks, version 3: one event of an incident or a service per request.

Only what moves an incident says how it stands. What is added to one (notes, responders, updates of its status page) and
what happens to services is kept as a note or a change: it opens nothing.
"""

from collections.abc import Mapping
from typing import Any, Final

from services.ingest.resources import resource_of, target_keys
from services.ingest.signal import (
    DESCRIPTION_MAX,
    RAW_MAX,
    DeliveryFacts,
    Kind,
    ParsedSignal,
    Rel,
    Severity,
    Status,
    bounded_key,
    unreadable,
)
from services.ingest.sources.fields import (
    items_of,
    key_of,
    labels_of,
    line_of,
    links_of,
    need_object,
    object_of,
    severity_of,
    text_in,
)
from services.ingest.sources.reading import Notes, bounded, read_json, text_of, time_of, word_of
from services.ingest.words import read_status

PING: Final = "pagey.ping"
REOPENED: Final = "incident.reopened"
SERVICE: Final = "service."
# These say it themselves, whatever the incident has become by the time the event is sent.
MOVES: Final[Mapping[str, Status]] = {
    "incident.triggered": Status.FIRING,
    "incident.acknowledged": Status.ACKNOWLEDGED,
    "incident.unacknowledged": Status.FIRING,
    REOPENED: Status.FIRING,
    "incident.resolved": Status.RESOLVED,
}
STATES: Final = frozenset({Status.FIRING, Status.ACKNOWLEDGED, Status.RESOLVED})
URGENCY: Final = {"high": Severity.ERROR, "low": Severity.WARNING}


def parse(body: bytes, _: DeliveryFacts) -> list[ParsedSignal]:
    """Return the signal of an event; its key is the incident's id, through all its states."""
    notes = Notes()
    event = need_object(need_object(read_json(body, notes), "").get("event"), "event")
    kind = text_in(event, ["event_type"], RAW_MAX, notes)
    data = need_object(event.get("data"), "event.data")
    if kind == PING:
        return [_beside(event, data, kind, notes, test=True)]
    if kind.startswith(SERVICE):
        return [_service(event, data, kind, notes)]
    incident = data if text_of(data.get("type")) in ("incident", "") else object_of(data.get("incident"))
    identity = key_of(incident.get("id"), "event.data.id", notes)
    if incident is not data or not kind:
        # what PagerDuty adds later is kept even if it is about something we have never heard of
        if not kind:
            raise unreadable("event.event_type", "is required: it says what happened")
        return [_beside(event, data, kind, notes, about=identity)]
    if not identity:
        raise unreadable("event.data.id", "is required: without it the incident cannot be told from others")
    return [_incident(event, incident, identity, kind, notes)]


def _incident(
    event: Mapping[str, Any], incident: Mapping[str, Any], identity: str, kind: str, notes: Notes
) -> ParsedSignal:
    """Read an event that carries its incident."""
    word = word_of(incident.get("status"), RAW_MAX, "event.data.status", notes)
    told = read_status(word)
    status = MOVES.get(kind) or (told if told in STATES else Status.UNSPECIFIED)
    if status is Status.UNSPECIFIED:
        notes.add(f"status is not understood: {kind}, {word or '(absent)'}")
    severity, severity_raw = _severity(incident, notes)
    occurred = time_of(event.get("occurred_at"), "event.occurred_at", notes)
    # Reopened, it burns anew: with its first beginning it would be taken for the fire that was put out.
    began = time_of(incident.get("reopened_at"), "event.data.reopened_at", notes)
    began = began or (occurred if kind == REOPENED else None)
    began = began or time_of(incident.get("created_at"), "event.data.created_at", notes)
    resolved = time_of(incident.get("resolved_at"), "event.data.resolved_at", notes) or occurred
    labels = _labels(incident, notes)
    resource = resource_of({"service": labels["service"]} if "service" in labels else {})
    client = object_of(event.get("client"))
    details = object_of(incident.get("body"))
    return ParsedSignal(
        dedup_key=identity,
        status=status,
        status_raw=kind,
        severity=severity,
        severity_raw=severity_raw,
        summary=line_of(incident.get("title"), "event.data.title", notes)
        or line_of(incident.get("summary"), "event.data.summary", notes)
        or f"incident {identity} of PagerDuty",
        description=bounded(details.get("details"), DESCRIPTION_MAX, "event.data.body.details", notes),
        event_time=occurred,
        start_time=began,
        end_time=resolved if status is Status.RESOLVED else None,
        resource=resource,
        targets=target_keys(resource),
        labels=labels,
        links=links_of([(Rel.SOURCE, incident.get("html_url")), (Rel.GENERATOR, client.get("url"))], notes),
        warnings=notes.texts,
        body_pointer="/event",
    )


def _severity(incident: Mapping[str, Any], notes: Notes) -> tuple[Severity, str]:
    """Return what the priority says, whose names are the account's own; else the urgency."""
    priority = object_of(incident.get("priority"))
    severity, raw = severity_of(priority.get("summary") or priority.get("name"), "event.data.priority", notes)
    if severity is not Severity.UNSPECIFIED:
        return severity, raw
    urgency, urgency_raw = severity_of(incident.get("urgency"), "event.data.urgency", notes, URGENCY)
    return urgency, raw or urgency_raw


def _labels(incident: Mapping[str, Any], notes: Notes) -> dict[str, str]:
    """Return what can be told of an incident in words."""
    service = object_of(incident.get("service"))
    pairs = [
        ("service", text_of(service.get("summary"))),
        ("service_id", text_of(service.get("id"))),
        ("incident_key", text_of(incident.get("incident_key"))),
        ("incident_number", text_of(incident.get("number"))),
        ("urgency", text_of(incident.get("urgency"))),
        ("priority", text_of(object_of(incident.get("priority")).get("summary"))),
        ("escalation_policy", text_of(object_of(incident.get("escalation_policy")).get("summary"))),
        ("incident_type", text_of(object_of(incident.get("incident_type")).get("name"))),
        ("resolve_reason", text_of(object_of(incident.get("resolve_reason")).get("type"))),
        *(("team", text_of(object_of(team).get("summary"))) for team in items_of(incident.get("teams"))),
    ]
    return labels_of(pairs, notes, "event.data")


def _service(event: Mapping[str, Any], data: Mapping[str, Any], kind: str, notes: Notes) -> ParsedSignal:
    """Read what happened to a service of PagerDuty: a change of its configuration."""
    name = word_of(data.get("summary"), RAW_MAX, "event.data.summary", notes)
    identity = key_of(data.get("id"), "event.data.id", notes)
    labels = labels_of([("service", name), ("service_id", identity)], notes, "event.data")
    resource = resource_of({"service": name} if name else {})
    occurred = time_of(event.get("occurred_at"), "event.occurred_at", notes)
    event_id = key_of(event.get("id"), "event.id", notes)
    if not event_id and not identity:
        raise unreadable("event.data.id", "is required: without it the service cannot be told from others")
    return ParsedSignal(
        dedup_key=bounded_key("event", event_id or f"{identity} {kind} {occurred}"),
        status=Status.OCCURRENCE,
        status_raw=kind,
        summary=f"{kind}: {name or identity or event_id}",
        event_time=occurred,
        start_time=occurred,
        resource=resource,
        targets=target_keys(resource),
        labels=labels,
        links=links_of([(Rel.SOURCE, data.get("html_url"))], notes),
        warnings=notes.texts,
        body_pointer="/event",
        kind=Kind.CONFIGURATION,
    )


def _beside(
    event: Mapping[str, Any],
    data: Mapping[str, Any],
    kind: str,
    notes: Notes,
    *,
    about: str = "",
    test: bool = False,
) -> ParsedSignal:
    """Read an event that says how nothing stands: a ping, a note, a responder, an update of a status page."""
    event_id = key_of(event.get("id"), "event.id", notes) or key_of(data.get("id"), "event.data.id", notes)
    said = next((data[name] for name in ("content", "message") if isinstance(data.get(name), str)), "")
    incident = object_of(data.get("incident"))
    title = line_of(incident.get("summary"), "event.data.incident.summary", notes)
    service = word_of(object_of(data.get("service")).get("summary"), RAW_MAX, "event.data.service", notes)
    occurred = time_of(event.get("occurred_at"), "event.occurred_at", notes)
    return ParsedSignal(
        dedup_key=bounded_key("event", kind, event_id, about, "" if event_id else str(occurred)),
        status=Status.OCCURRENCE,
        status_raw=kind,
        summary=line_of(f"{kind}: {title or said}", "event.data", notes) or kind,
        description=bounded(said, DESCRIPTION_MAX, "event.data", notes),
        event_time=occurred,
        start_time=occurred,
        labels=labels_of([("incident_id", about), ("service", service)], notes, "event.data"),
        links=links_of([(Rel.SOURCE, incident.get("html_url") or data.get("html_url"))], notes),
        warnings=notes.texts,
        test=test,
        body_pointer="/event",
        kind=Kind.NOTE,
    )
