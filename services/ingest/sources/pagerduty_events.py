"""The shape of PagerDuty's Events API, version 2 (PD-CEF), for senders that were made to speak to PagerDuty.

`routing_key` is such a sender's secret: it is looked at by who lets senders in, and becomes no word of a signal.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from services.ingest.resources import resource_of, target_keys, without_port
from services.ingest.signal import (
    DESCRIPTION_MAX,
    GROUP_MAX,
    KEY_MAX,
    RAW_MAX,
    RULE_MAX,
    DeliveryFacts,
    ParsedSignal,
    Rel,
    Status,
    hashed,
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
)
from services.ingest.sources.reading import Notes, bounded, clean, read_json, text_of, time_of, word_of, words_of

ACTIONS: Final = {"trigger": Status.FIRING, "acknowledge": Status.ACKNOWLEDGED, "resolve": Status.RESOLVED}
# What tells one alert from another when the sender leaves that to PagerDuty.
IDENTITY: Final = ("summary", "source", "component", "group", "class")
HOST_MAX: Final = 253
MACHINE: Final = re.compile(r"[0-9.]")


def parse(body: bytes, _: DeliveryFacts) -> list[ParsedSignal]:
    """Return the signal of an event; of a list (which PagerDuty would refuse) one for each."""
    notes = Notes()
    return each(read_json(body, notes), notes, _event)


def _event(event: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read one event."""
    action = word_of(event.get("event_action"), RAW_MAX, "event_action", notes)
    status = ACTIONS.get(action.strip().lower(), Status.UNSPECIFIED)
    payload = object_of(event.get("payload"))
    summary = line_of(payload.get("summary"), "payload.summary", notes)
    key = key_of(event.get("dedup_key"), "dedup_key", notes)
    if not key:
        key = _derived(payload, status, notes)
    if status is Status.UNSPECIFIED:
        if not summary:
            raise unreadable("event_action", "must be trigger, acknowledge or resolve")
        notes.add(f"status is not understood: {action or '(absent)'}")
    if status is Status.FIRING and not summary:
        notes.add("payload.summary is absent")
    severity, severity_raw = severity_of(payload.get("severity"), "payload.severity", notes)
    details = payload.get("custom_details")
    labels, annotations = _words(payload, details, notes)
    if client := word_of(event.get("client"), KEY_MAX, "client", notes):
        annotations = {"client": client, **annotations}
    resource = resource_of(_telling(event, labels, notes))
    when = time_of(payload.get("timestamp"), "payload.timestamp", notes)
    source = labels.get("source", "")
    return ParsedSignal(
        dedup_key=key,
        status=status,
        status_raw=action,
        severity=severity,
        severity_raw=severity_raw,
        summary=summary or f"{action} of {source or key}",
        description=bounded(details, DESCRIPTION_MAX, "payload.custom_details", notes)
        if not isinstance(details, Mapping)
        else "",
        rule_name=word_of(payload.get("class"), RULE_MAX, "payload.class", notes),
        group_key=word_of(payload.get("group"), GROUP_MAX, "payload.group", notes),
        event_time=when,
        end_time=when if status is Status.RESOLVED else None,
        resource=resource,
        targets=target_keys(resource),
        labels=labels,
        annotations=annotations,
        links=links_of(_links(event), notes),
        warnings=notes.texts,
        body_pointer=pointer,
    )


def _derived(payload: Mapping[str, Any], status: Status, notes: Notes) -> str:
    """Return a key for an alert that has none: the same words again are the same alert."""
    if status in (Status.ACKNOWLEDGED, Status.RESOLVED):
        raise unreadable("dedup_key", "is required: without it nobody knows which alert is meant")
    words = [text for name in IDENTITY if (text := text_of(payload.get(name)))]
    if not words:
        raise unreadable("payload", "without dedup_key, payload.summary or payload.source the alert has no identity")
    notes.add("no dedup_key: the key is a hash of what names the alert")
    return hashed(*(part for name in IDENTITY for part in (name, text_of(payload.get(name)))))


def _words(payload: Mapping[str, Any], details: Any, notes: Notes) -> tuple[dict[str, str], dict[str, str]]:
    """Return what is short as labels, and details that are long or nested as annotations."""
    own = [(name, text_of(payload.get(name))) for name in ("source", "component", "group", "class")]
    found = words_of(details, "payload.custom_details", notes) if isinstance(details, Mapping) else {}
    nested = {clean(name)[:KEY_MAX] for name, one in object_of(details).items() if isinstance(one, Mapping | list)}
    short = {name: one for name, one in found.items() if name not in nested and len(one) <= KEY_MAX}
    labels = labels_of([*own, *short.items()], notes, "payload")
    return labels, {name: one for name, one in found.items() if name not in short}


def _telling(event: Mapping[str, Any], labels: Mapping[str, str], notes: Notes) -> dict[str, str]:
    """Return the labels that may say what is meant; `source` is the host unless the details name one."""
    telling = firsts({name: one for name, one in labels.items() if name not in ("group", "class")})
    source = word_of(object_of(event.get("payload")).get("source"), KEY_MAX, "payload.source", notes).strip()
    # Zabbix' media type writes the host and its address.
    source = source.partition(" : ")[0]
    # PagerDuty asks for a host there; a sentence or a URL is none, nor is the name of who sends (Alertmanager does so),
    # while a name with a digit or a dot is that of a machine which sends for itself.
    if _plain(source) == _plain(text_of(event.get("client"))) and not MACHINE.search(source):
        return telling
    # An instance without a port may be one of a database or a disk: only with one it goes before the source.
    instance = telling.get("instance", "")
    if without_port(instance) != instance:
        return telling
    if source and len(source) <= HOST_MAX and all(mark.isalnum() or mark in ".-_:" for mark in source):
        telling.setdefault("host_name", source)
    return telling


def _plain(name: str) -> str:
    return "".join(name.lower().split())


def _links(event: Mapping[str, Any]) -> Iterator[tuple[Rel, Any]]:
    yield Rel.SOURCE, event.get("client_url")
    for link in items_of(event.get("links")):
        yield Rel.SOURCE, object_of(link).get("href")
    for image in items_of(event.get("images")):
        yield Rel.IMAGE, object_of(image).get("src")
