"""In-house senders: where their JSON says what is declared in `deploy/sources.yaml`, and the rest has the usual names.

What is mapped and not there is absent, never guessed; only the key falls back, for an alert without one would be lost.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, timedelta, tzinfo
from typing import Any, Final

from services.ingest.resources import VALUE_MAX, resource_of, target_keys
from services.ingest.signal import (
    DESCRIPTION_MAX,
    GROUP_MAX,
    RAW_MAX,
    RULE_MAX,
    DeliveryFacts,
    ParsedSignal,
    Rel,
    Severity,
    Status,
    bounded_key,
    unreadable,
)
from services.ingest.sources import generic
from services.ingest.sources.fields import each, key_of, line_of, links_of
from services.ingest.sources.reading import PAIRS_MAX, UNIX, Notes, read_json, text_of, time_of, word_of, words_of
from services.ingest.words import read_severity, read_status

SEGMENT: Final = re.compile(r'\["(?P<quoted>[^"]+)"\]|\[(?P<place>[0-9]{1,3})\]|\.?(?P<name>[^.\[\]"]+)')
ZONED: Final = re.compile(r".*(?:[zZ]|UTC|[+-]\d\d:?\d\d)\s*", re.DOTALL)
NANOS: Final = 1_000_000_000
Path = tuple[str | int, ...]
Paths = tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class FieldMap:
    """Where a sender says what; the fields of config.v1.FieldMapping, with paths taken apart."""

    items: Path = ()
    key: Paths = ()
    status: Paths = ()
    status_words: Mapping[str, Status] = field(default_factory=dict)
    occurrence: bool = False
    severity: Paths = ()
    severity_words: Mapping[str, Severity] = field(default_factory=dict)
    summary: Paths = ()
    description: Paths = ()
    rule_name: Paths = ()
    group_key: Paths = ()
    event_time: Paths = ()
    start_time: Paths = ()
    end_time: Paths = ()
    zone: tzinfo = UTC
    resource: Mapping[str, Path] = field(default_factory=dict)
    labels: Mapping[str, Path] = field(default_factory=dict)
    links: tuple[tuple[Rel, Path], ...] = ()
    test: tuple[tuple[Path, str], ...] = ()


def path_of(text: str) -> Path:
    """Return a path taken apart: `a.b[0]["c.d"]` is a, b, the first of it, and its c.d."""
    found: list[str | int] = []
    for match in SEGMENT.finditer(text):
        place = match["place"]
        found.append(int(place) if place is not None else match["quoted"] or match["name"])
    return tuple(found)


def look(value: Any, path: Path) -> Any:
    """Return what stands at a path; None when nothing does."""
    for step in path:
        if isinstance(step, int):
            value = value[step] if isinstance(value, list) and step < len(value) else None
        else:
            value = value.get(step) if isinstance(value, Mapping) else None
        if value is None:
            return None
    return value


def parse_declared(body: bytes, _: DeliveryFacts, fields: FieldMap) -> list[ParsedSignal]:
    """Return a signal per alert of a body, read as FIELDS says."""
    notes = Notes()
    value = read_json(body, notes)
    place = ""
    if fields.items:
        value = look(value, fields.items)
        place = "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in fields.items)
        if value is None:
            raise unreadable(".".join(map(str, fields.items)), "is mapped as the list of alerts, and is not there")

    def read(one: Mapping[str, Any], pointer: str, said: Notes) -> ParsedSignal:
        return _signal(one, f"{place}{pointer}", said, fields)

    return each(value, notes, read)


def _signal(body: Mapping[str, Any], pointer: str, notes: Notes, fields: FieldMap) -> ParsedSignal:
    """Read one alert: by the usual names, and over it what is mapped."""
    usual = Notes()
    signal = generic.read_object(body, pointer, usual)
    changes: dict[str, Any] = {
        **_judged(body, fields, notes),
        **_words(body, fields, notes),
        **_times(body, signal, fields, notes),
        **_about(body, signal, fields, notes),
    }
    if fields.key and (key := _key(body, fields.key, notes)):
        changes["dedup_key"] = key
    if fields.links:
        changes["links"] = links_of([(rel, look(body, path)) for rel, path in fields.links], notes)
    if fields.test:
        changes["test"] = any(text_of(look(body, path)) == value for path, value in fields.test)
    mapped = {"status": "status_raw" in changes, "severity": "severity_raw" in changes}
    for text in usual.texts:
        # What the usual names do not say does not matter where it is mapped.
        if not any(text.startswith(f"{name} is not understood") for name, done in mapped.items() if done) and not (
            "dedup_key" in changes and text.startswith("no key of the sender")
        ):
            notes.add(text)
    status = changes.get("status", signal.status)
    if status is not Status.RESOLVED:
        changes["end_time"] = None
    return replace(signal, **changes, warnings=notes.texts)


def _first(body: Mapping[str, Any], paths: Iterable[Path], limit: int, name: str, notes: Notes) -> str:
    """Return the first that says something."""
    for path in paths:
        found = look(body, path)
        if isinstance(found, str | int | float) and (word := word_of(found, limit, name, notes)):
            return word
    return ""


def _judged(body: Mapping[str, Any], fields: FieldMap, notes: Notes) -> dict[str, Any]:
    """Return status and severity as far as they are mapped; a word nobody declared or knows is not understood."""
    found: dict[str, Any] = {}
    if fields.status:
        raw = _first(body, fields.status, RAW_MAX, "status", notes)
        status = fields.status_words.get(raw.strip().lower()) or read_status(raw)
        if status is Status.UNSPECIFIED:
            notes.add(f"status is not understood: {raw or '(absent)'}")
        found |= {"status": status, "status_raw": raw}
    elif fields.occurrence:
        found |= {"status": Status.OCCURRENCE, "status_raw": ""}
    if fields.severity:
        raw = _first(body, fields.severity, RAW_MAX, "severity", notes)
        severity = fields.severity_words.get(raw.strip().lower()) or read_severity(raw)
        if severity is Severity.UNSPECIFIED:
            notes.add(f"severity is not understood: {raw or '(absent)'}")
        found |= {"severity": severity, "severity_raw": raw}
    return found


def _words(body: Mapping[str, Any], fields: FieldMap, notes: Notes) -> dict[str, Any]:
    """Return the texts that are mapped."""
    found: dict[str, Any] = {}
    if fields.rule_name:
        found["rule_name"] = _first(body, fields.rule_name, RULE_MAX, "rule_name", notes)
    if fields.summary:
        line = line_of(_first(body, fields.summary, DESCRIPTION_MAX, "summary", notes), "summary", notes)
        found["summary"] = line or found.get("rule_name") or generic.NOTHING
    if fields.description:
        found["description"] = _first(body, fields.description, DESCRIPTION_MAX, "description", notes)
    if fields.group_key:
        found["group_key"] = _first(body, fields.group_key, GROUP_MAX, "group_key", notes)
    return found


def _key(body: Mapping[str, Any], paths: Paths, notes: Notes) -> str:
    """Return all parts of the key together; nothing when none is there."""
    parts = [key_of(look(body, path), "key", notes) for path in paths]
    absent = [".".join(map(str, path)) for path, part in zip(paths, parts, strict=True) if not part]
    if absent:
        notes.add(f"parts of the key are absent: {', '.join(absent)}")
    return bounded_key(*parts) if any(parts) else ""


def _times(body: Mapping[str, Any], signal: ParsedSignal, fields: FieldMap, notes: Notes) -> dict[str, Any]:
    """Return the moments that are mapped."""
    found: dict[str, Any] = {}
    for name, paths in (
        ("start_time", fields.start_time),
        ("end_time", fields.end_time),
        ("event_time", fields.event_time),
    ):
        if paths:
            read = (_moment(look(body, path), name, fields.zone, notes) for path in paths)
            found[name] = next((one for one in read if one is not None), None)
    if found and not fields.event_time and signal.event_time is None:
        found["event_time"] = found.get("end_time") or found.get("start_time")
    return found


def _moment(value: Any, name: str, zone: tzinfo, notes: Notes) -> int | None:
    """Return a moment; one that names no zone is of the sender's."""
    text = text_of(value).strip() if isinstance(value, str | int | float) else ""
    naive = zone is not UTC and "-" in text and not ZONED.fullmatch(text[:64])
    said = Notes()
    found = time_of(text, name, said)
    for one in said.texts:
        if not (naive and "names no time zone" in one):
            notes.add(one)
    if found is None or not naive:
        return found
    wall = (UNIX + timedelta(seconds=found // NANOS)).replace(tzinfo=zone)
    offset = wall.utcoffset() or timedelta()
    return found - int(offset.total_seconds()) * NANOS


def _about(body: Mapping[str, Any], signal: ParsedSignal, fields: FieldMap, notes: Notes) -> dict[str, Any]:
    """Return labels and resource; what is mapped goes before what the usual names say."""
    if not (fields.labels or fields.resource):
        return {}
    told = {name: value for name, path in fields.labels.items() if (value := look(body, path)) is not None}
    mapped = words_of(told, "labels", notes)
    labels = dict(
        list({**mapped, **{name: one for name, one in signal.labels.items() if name not in told}}.items())[:PAIRS_MAX]
    )
    resource: dict[str, str] = {}
    for name, path in fields.resource.items():
        value = look(body, path)
        if isinstance(value, str | int | float) and (word := word_of(value, VALUE_MAX, name, notes)):
            resource[name] = word
    known = {**resource_of(labels), **signal.resource} | resource_of(resource)
    known |= {name: word for name, word in resource.items() if name not in known}
    return {"labels": labels, "resource": known, "targets": target_keys(known)}
