"""CloudEvents 1.0 over HTTP: structured (a JSON object), batch (a list of them), binary (attributes in `ce-` headers).

An event says that something happened. Where its data names a status, it is an alert that may be over some time; where
not, it happened once.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final
from urllib.parse import unquote

from services.ingest.resources import resource_of, target_keys
from services.ingest.signal import (
    DESCRIPTION_MAX,
    GROUP_MAX,
    KEY_MAX,
    RAW_MAX,
    RULE_MAX,
    DeliveryFacts,
    FieldError,
    ParsedSignal,
    Severity,
    Status,
    Unreadable,
    bounded_key,
)
from services.ingest.sources import generic, kubernetes
from services.ingest.sources.fields import each, key_of, line_of, need_object, object_of
from services.ingest.sources.reading import (
    PAIRS_MAX,
    Notes,
    bounded,
    is_placeholder,
    read_json,
    text_of,
    time_of,
    word_of,
    words_of,
)
from services.ingest.words import read_severity

PREFIX: Final = "ce-"
STRUCTURED: Final = "application/cloudevents"
BATCH: Final = "application/cloudevents-batch"
REQUIRED: Final = ("id", "source", "specversion", "type")
VERSION: Final = "1.0"
# Of the specification; everything else is an extension, in lower-case letters and digits.
ATTRIBUTES: Final = frozenset({*REQUIRED, "datacontenttype", "dataschema", "subject", "time", "data", "data_base64"})
EXTENSION: Final = re.compile(r"[a-z0-9]{1,64}")
JSON_TYPE: Final = re.compile(r"[^;]*[/+]json\s*(?:;.*)?", re.IGNORECASE | re.DOTALL)
# OpenTelemetry's severity numbers, as the severity extension has them: the least of each step.
NUMBERS: Final = (
    (21, Severity.CRITICAL),
    (17, Severity.ERROR),
    (13, Severity.WARNING),
    (1, Severity.INFO),
)
NUMBER_MAX: Final = 24
QUOTED: Final = re.compile(r'"(?P<text>(?:[^"\\]|\\.)*+)"', re.DOTALL)
ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
DATA: Final = "/data"


def parse(body: bytes, facts: DeliveryFacts) -> list[ParsedSignal]:
    """Return a signal per event; the mode is told by the content type, else by headers and shape."""
    notes = Notes()
    content_type = facts.content_type.strip().lower()
    if not content_type.startswith(STRUCTURED) and any(name.startswith(PREFIX) for name in facts.headers):
        signal = _signal(_from_headers(body, facts, notes), "", notes)
        # The body is the data, and holds nothing else.
        return [replace(signal, body_pointer=signal.body_pointer.removeprefix(DATA))]
    value = read_json(body, notes)
    if content_type.startswith(BATCH) and not isinstance(value, list):
        raise unreadable_batch()
    return each(value, notes, _signal)


def unreadable_batch() -> Unreadable:
    """Return the error of a batch that is none."""
    return Unreadable([FieldError("", "must be a list of events, for the content type says that it is a batch")])


def _from_headers(body: bytes, facts: DeliveryFacts, notes: Notes) -> dict[str, Any]:
    """Return an event in binary mode as the structured mode would have it."""
    event: dict[str, Any] = {
        name[len(PREFIX) :]: _decoded(value) for name, value in facts.headers.items() if name.startswith(PREFIX)
    }
    event.pop("data", None)
    event.pop("data_base64", None)
    if facts.content_type:
        event["datacontenttype"] = facts.content_type
    if body:
        event["data"] = read_json(body, notes) if JSON_TYPE.fullmatch(facts.content_type) else _text(body, notes)
    return event


def _decoded(value: str) -> str:
    """Return an attribute out of its header: without the quotation marks it may stand in, and percent-decoded."""
    if match := QUOTED.fullmatch(value):
        value = ESCAPED.sub(r"\1", match["text"])
    return unquote(value)


def _text(body: bytes, notes: Notes) -> str:
    """Return data that is not JSON as text; what is no text stays in the raw body."""
    try:
        return body.decode()
    except UnicodeDecodeError:
        notes.add("the data is no text and stays in the raw body")
        return ""


def _signal(event: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read one event; Unreadable names each required attribute that is missing."""
    missing = [one for one in REQUIRED if not _attribute(event, one)]
    if missing:
        raise Unreadable([FieldError(one, "is required of a CloudEvent") for one in missing])
    version = _attribute(event, "specversion")
    if version != VERSION:
        notes.add(f"specversion is {version[:32]}, and was read as {VERSION}")
    data = _data(event, notes)
    place = DATA if event.get("data") is not None else "/data_base64"
    if kubernetes.is_event(data) or kubernetes.is_event(object_of(data).get("body")):
        return _enveloped(event, kubernetes.read_event(need_object(data, "data"), pointer + place, notes), notes)
    inner = None
    if isinstance(data, Mapping) and data:
        inner_notes = Notes()
        inner = generic.read_object(data, pointer + place, inner_notes)
        for text in inner_notes.texts:
            # An event need not have a status or a severity, nor a key of its own.
            if "(absent)" not in text and not text.startswith("no key of the sender"):
                notes.add(text)
    return _enveloped(event, _shaped(event, inner, data, pointer, notes), notes)


def _attribute(event: Mapping[str, Any], name: str) -> str:
    """Return a context attribute as text; one that is null, no scalar, or an unrendered placeholder is absent."""
    value = event.get(name)
    text = text_of(value).strip() if isinstance(value, str | int | float) else ""
    return "" if is_placeholder(text) else text


def _data(event: Mapping[str, Any], notes: Notes) -> Any:
    """Return the data: JSON as it is, base64 decoded, JSON in a text read."""
    kind = _attribute(event, "datacontenttype") or "application/json"
    encoded = event.get("data_base64")
    data = event.get("data")
    if isinstance(encoded, str) and data is None:
        try:
            raw = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            notes.add("data_base64 is not base64 and was left as it is")
            return None
        data = _text(raw, notes)
    if isinstance(data, str) and JSON_TYPE.fullmatch(kind) and data.lstrip()[:1] in ("{", "["):
        try:
            return read_json(data.encode("utf-8", "replace"), notes)
        except Unreadable:
            notes.add("the data says that it is JSON, and is not")
    return data


def _shaped(
    event: Mapping[str, Any], inner: ParsedSignal | None, data: Any, pointer: str, notes: Notes
) -> ParsedSignal:
    """Return the signal that data and attributes make together."""
    event_type = _attribute(event, "type")
    source, subject = _attribute(event, "source"), _attribute(event, "subject")
    moment = time_of(event.get("time"), "time", notes)
    stated = inner if inner and (inner.status is not Status.UNSPECIFIED or inner.status_raw) else None
    text = text_of(data) if isinstance(data, str) else ""
    base = inner or ParsedSignal("", summary="", description=bounded(text, DESCRIPTION_MAX, "data", notes))
    title = base.summary if inner and inner.summary != generic.NOTHING else ""
    about = f" about {subject}" if subject else ""
    return replace(
        base,
        dedup_key=_key(event, stated, notes),
        status=stated.status if stated else Status.OCCURRENCE,
        start_time=stated.start_time if stated else moment,
        event_time=moment or base.event_time,
        summary=line_of(title, "data", notes)
        or line_of(f"{event_type} from {source}{about}", "type", notes)
        or "an event of which nothing can be said",
        rule_name=base.rule_name or word_of(event_type, RULE_MAX, "type", notes),
        group_key=source[:GROUP_MAX],
        body_pointer=base.body_pointer or pointer,
    )


def _key(event: Mapping[str, Any], stated: ParsedSignal | None, notes: Notes) -> str:
    """Return what stays the same from firing to resolved; of what happened once, source and id, which are unique."""
    source = _attribute(event, "source")
    if correlation := key_of(event.get("correlationid"), "correlationid", notes):
        return bounded_key(source, correlation)
    if stated:
        return bounded_key(source, _attribute(event, "subject"), stated.dedup_key)
    return bounded_key(source, _attribute(event, "id"))


def _enveloped(event: Mapping[str, Any], signal: ParsedSignal, notes: Notes) -> ParsedSignal:
    """Add the attributes: extensions are labels, and one may be the severity."""
    severity, severity_raw = _severity(event, signal, notes)
    named = {f"ce.{name}": event.get(name) for name in ("id", "source", "type", "subject", "dataschema")}
    extensions: dict[str, Any] = {}
    for name, value in event.items():
        if name in ATTRIBUTES or value is None:
            continue
        if EXTENSION.fullmatch(name) and isinstance(value, str | int | float):
            extensions[name] = value
        elif len(name) <= KEY_MAX:
            notes.add(f"left out {name}: no extension attribute")
    told = words_of({name: one for name, one in {**named, **extensions}.items() if text_of(one)}, "event", notes)
    labels = dict(list({**told, **signal.labels}.items())[:PAIRS_MAX])
    resource = signal.resource or resource_of(labels)
    return replace(
        signal,
        severity=severity,
        severity_raw=severity_raw,
        labels=labels,
        resource=resource,
        targets=signal.targets or target_keys(resource),
        warnings=notes.texts,
    )


def _severity(event: Mapping[str, Any], signal: ParsedSignal, notes: Notes) -> tuple[Severity, str]:
    """Return the severity of the data; else of the severity extension, by its word or its number."""
    if signal.severity is not Severity.UNSPECIFIED:
        return signal.severity, signal.severity_raw
    word = word_of(event.get("severitytext"), RAW_MAX, "severitytext", notes)
    if word and (found := read_severity(word)) is not Severity.UNSPECIFIED:
        return found, word
    number = word_of(event.get("severitynumber"), RAW_MAX, "severitynumber", notes)
    if number.isdecimal() and len(number) <= 2 and int(number) <= NUMBER_MAX:  # noqa: PLR2004  two digits
        for least, severity in NUMBERS:
            if int(number) >= least:
                return severity, word or number
    raw = word or number or signal.severity_raw
    notes.add(f"severity is not understood: {raw or '(absent)'}")
    return Severity.UNSPECIFIED, raw
