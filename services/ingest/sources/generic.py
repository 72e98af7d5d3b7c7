"""Any other JSON: read by the names that most senders use; what they do not say stays unspecified."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from services.ingest.resources import resource_of, target_keys
from services.ingest.signal import (
    DESCRIPTION_MAX,
    GROUP_MAX,
    KEY_MAX,
    RAW_MAX,
    RULE_MAX,
    SIGNALS_MAX,
    SUMMARY_MAX,
    DeliveryFacts,
    FieldError,
    LeftOut,
    Link,
    ParsedSignal,
    Severity,
    Signals,
    Status,
    Unreadable,
    beyond,
    hashed,
    unreadable,
)
from services.ingest.sources.alerts import read_alerts
from services.ingest.sources.fields import each, links_of
from services.ingest.sources.names import (
    ANNOTATIONS,
    CONTAINERS,
    DESCRIPTION,
    END,
    IDENTITY,
    KEYS,
    LABELS,
    LINKS,
    REASONS,
    RULE,
    SEVERITY,
    SHARED,
    START,
    STATUS,
    SUMMARY,
    TIME,
    TITLES,
    VOLATILE,
    VOLATILE_ENDINGS,
)
from services.ingest.sources.reading import (
    NAME_MAX,
    PAIRS_MAX,
    Notes,
    bounded,
    read_json,
    text_of,
    time_of,
    word_of,
    words_of,
)
from services.ingest.words import read_severity, read_status

LABEL_LENGTH_MAX: Final = 256
BATCH: Final = "alerts"
ENUM: Final = re.compile(r"(?:[A-Z]{1,32}_){0,8}(?:STATUS|STATE|SEVERITY|LEVEL|PRIORITY)_(?P<word>[A-Z0-9_]{1,32})")
# The summary of what has none.
NOTHING: Final = "a signal that says nothing about itself"


def parse(body: bytes, _: DeliveryFacts) -> list[ParsedSignal]:
    """Return one signal of an object, or one per object of a list; anything else is Unreadable."""
    notes = Notes()
    value = read_json(body, notes)
    if isinstance(value, Mapping):
        return _batch(value, notes) or [read_object(value, "", notes)]
    if not isinstance(value, list):
        raise unreadable("", "must be a JSON object or a list of objects")
    if not value:
        raise unreadable("", "the list is empty")
    left_out = [
        LeftOut(at, FieldError(f"[{at}]", "must be an object"))
        for at, one in enumerate(value[:SIGNALS_MAX])
        if not _is_signal(one)
    ]
    if len(left_out) == min(len(value), SIGNALS_MAX):
        raise Unreadable([one.error for one in left_out])
    left_out += beyond(len(value), "")
    notes.leave_out(left_out)
    readable = ((at, one) for at, one in enumerate(value[:SIGNALS_MAX]) if _is_signal(one))
    return Signals((read_object(one, f"/{at}", Notes(*notes.texts)) for at, one in readable), left_out)


def _batch(body: Mapping[str, Any], notes: Notes) -> list[ParsedSignal]:
    """Return the signals of a list called `alerts`, of Alertmanager or in-house; none if it is none."""
    found = body.get(BATCH)
    if not isinstance(found, list) or not any(_is_signal(one) for one in found):
        return []
    if any(isinstance(one, Mapping) and isinstance(one.get("labels"), Mapping) and "startsAt" in one for one in found):
        return read_alerts(body, notes)
    shared = {name: one for name, one in body.items() if _plain(name) in SHARED and isinstance(one, str | int | float)}

    def read(alert: Mapping[str, Any], pointer: str, said: Notes) -> ParsedSignal:
        own = {_plain(name) for name in alert}
        lent = {name: one for name, one in shared.items() if _plain(name) not in own}
        return read_object({**alert, **lent}, f"/{BATCH}{pointer}", said)

    return each(found, notes, read)


def _is_signal(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value)


class _Fields:
    """The fields of an object under plain names; those of known containers where the top does not say it."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._values: dict[str, Any] = {}
        nested = []
        for name, value in body.items():
            plain = _plain(name)
            if isinstance(value, Mapping) and plain in CONTAINERS:
                nested.append(value)
            if text_of(value):
                self._values.setdefault(plain, value)
        for inner in nested:
            for name, value in inner.items():
                # A container may bear the name of a word (`alert`, `check`): its content is what speaks.
                if text_of(value) and not isinstance(self._values.get(_plain(name)), str | int | float):
                    self._values[_plain(name)] = value

    def values(self, names: Sequence[str]) -> Iterator[Any]:
        """Yield the scalars that stand under these names, the best first."""
        for name in names:
            value = self._values.get(name)
            if isinstance(value, str | int | float):
                yield value

    def first(self, names: Sequence[str]) -> Any:
        """Return the best scalar, or None."""
        return next(self.values(names), None)

    def named(self, names: Sequence[str]) -> list[str]:
        """Return names and texts of all scalars under these names, in this order."""
        found = ((name, self._values.get(name)) for name in names)
        return [
            part for name, value in found if isinstance(value, str | int | float) for part in (name, text_of(value))
        ]

    def nested(self, names: Sequence[str], notes: Notes) -> dict[str, str]:
        """Return the words of objects, `k:v` lists and `k:v,k:v` texts under these names."""
        found: dict[str, str] = {}
        for name in names:
            value = self._values.get(name)
            if isinstance(value, Mapping):
                found = {**words_of(value, name, notes), **found}
            elif name in LABELS and isinstance(value, str | list):
                found = {**words_of(_pairs(value), name, notes), **found}
        return found


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(".", "").replace(" ", "")


def _pairs(value: str | list[Any]) -> dict[str, str]:
    """Read tags such as `env:prod,team:shop,urgent`; a tag without a value is true."""
    parts = value.split(",") if isinstance(value, str) else [one for one in value if isinstance(one, str)]
    found = {}
    for part in parts:
        name, colon, content = part.strip().partition(":")
        if name:
            found[name] = content.strip() if colon else "true"
    return found


def read_object(body: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read one object by the usual names."""
    if not body:
        raise unreadable("", "the object is empty")
    fields = _Fields(body)
    status, status_raw = _status(fields, notes)
    severity_raw = bounded(fields.first(SEVERITY), RAW_MAX, "severity", notes)
    severity = read_severity(severity_raw) or read_severity(_of_enum(severity_raw))
    if severity is Severity.UNSPECIFIED:
        notes.add(f"severity is not understood: {severity_raw or '(absent)'}")
    labels = _labels(body, fields, notes)
    resource = resource_of({**{name.lower(): value for name, value in labels.items()}, **labels})
    started = _time(fields, START, notes)
    ended = _time(fields, END, notes) if status is Status.RESOLVED else None
    rule_name = word_of(fields.first(RULE), RULE_MAX, "name", notes)
    summary = text_of(fields.first(SUMMARY)) or NOTHING
    if rule_name and fields.first(SUMMARY) in list(fields.values(REASONS)) and rule_name not in summary:
        summary = f"{rule_name}: {summary}"
    return ParsedSignal(
        dedup_key=_key(fields, body, notes),
        status=status,
        status_raw=status_raw,
        severity=severity,
        severity_raw=severity_raw,
        summary=" ".join(summary.split())[:SUMMARY_MAX],
        description=bounded(fields.first(DESCRIPTION), DESCRIPTION_MAX, "description", notes),
        rule_name=rule_name,
        group_key=bounded(fields.first(("groupkey", "group")), GROUP_MAX, "group", notes),
        event_time=ended or _time(fields, TIME, notes) or (started if status is not Status.RESOLVED else None),
        start_time=started,
        end_time=ended,
        resource=resource,
        targets=target_keys(resource),
        labels=labels,
        annotations=fields.nested(ANNOTATIONS, notes),
        links=_links(fields, notes),
        warnings=notes.texts,
        test=body.get("test") is True,
        body_pointer=pointer,
    )


def _status(fields: _Fields, notes: Notes) -> tuple[Status, str]:
    """Return the first word we know; else nothing is assumed, and the sender's word is kept."""
    raws = [bounded(value, RAW_MAX, "status", notes) for value in fields.values(STATUS) if not isinstance(value, bool)]
    for raw in raws:
        if status := read_status(raw) or read_status(_of_enum(raw)):
            return status, raw
    raw = raws[0] if raws else ""
    notes.add(f"status is not understood: {raw or '(absent)'}")
    return Status.UNSPECIFIED, raw


def _of_enum(raw: str) -> str:
    """Return the word of a constant, such as SEVERITY_CRITICAL; nothing for what is written in another way."""
    match = ENUM.fullmatch(raw)
    return match["word"] if match else ""


def _labels(body: Mapping[str, Any], fields: _Fields, notes: Notes) -> dict[str, str]:
    """Return the sender's labels and tags, and its short scalar fields under their own names."""
    found = fields.nested(LABELS, notes)
    containers = [value for name, value in body.items() if isinstance(value, Mapping) and _plain(name) in CONTAINERS]
    for source in (body, *containers):
        for name, value in source.items():
            short = name if len(name) <= NAME_MAX else ""
            if not isinstance(value, str | int | float) or _plain(short) in LABELS or len(found) >= PAIRS_MAX:
                continue
            word = word_of(value, LABEL_LENGTH_MAX, short, Notes()) if len(text_of(value)) <= LABEL_LENGTH_MAX else ""
            if word and (key := text_of(short)):
                found.setdefault(key, word)
    return found


def _time(fields: _Fields, names: Sequence[str], notes: Notes) -> int | None:
    """Return the first readable time; unreadable ones are noted."""
    for name in names:
        value = fields.first((name,))
        if value is not None and (found := time_of(value, name, notes)) is not None:
            return found
    return None


def _key(fields: _Fields, body: Mapping[str, Any], notes: Notes) -> str:
    """Return what stays the same from firing to resolved: the sender's key, else a hash of what names the thing."""
    for value in fields.values(KEYS):
        key = text_of(value)
        if len(key) > KEY_MAX:
            return hashed(key)
        if word := word_of(key, KEY_MAX, "key", notes):
            return word
    tags = fields.nested(LABELS, Notes())
    identity = fields.named(IDENTITY) + [part for pair in sorted(tags.items()) for part in pair]
    # A title may change with the status, so a rule's name is better; but without one, only the title tells two troubles
    # of one host apart: a resolve that matches nothing does less harm than an alert taken for another's duplicate.
    if identity := identity + ([] if fields.named(RULE) else fields.named(TITLES)):
        notes.add("no key of the sender: the key is a hash of names and labels")
        return hashed(*identity)
    notes.add("no key of the sender and no name: the key is a hash of the whole, without what varies")
    return hashed(json.dumps(_steady(body) or body, sort_keys=True, default=str))


def _steady(value: Any) -> Any:
    """Return a JSON value without what differs from one message about a thing to the next."""
    if isinstance(value, Mapping):
        kept = {name: _steady(one) for name, one in value.items() if not _varies(_plain(name))}
        return {name: one for name, one in kept.items() if one not in (None, "", {}, [])}
    return [_steady(one) for one in value] if isinstance(value, list) else value


def _varies(plain: str) -> bool:
    return plain in VOLATILE or plain.endswith(VOLATILE_ENDINGS)


def _links(fields: _Fields, notes: Notes) -> tuple[Link, ...]:
    return links_of([(rel, value) for rel, names in LINKS.items() for value in fields.values(names)], notes)
