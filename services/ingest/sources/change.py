"""Deployments and configuration changes, as a pipeline tells of them: a JSON object of ours, or a list of them.

The contract is our own, so what breaks it is refused with the field's name, and not guessed at.
"""

from collections.abc import Mapping
from typing import Any, Final

from services.ingest.resources import VALUE_MAX, resource_of, target_keys
from services.ingest.signal import (
    DESCRIPTION_MAX,
    RAW_MAX,
    SIGNALS_MAX,
    SUMMARY_MAX,
    DeliveryFacts,
    FieldError,
    Kind,
    ParsedSignal,
    Rel,
    Severity,
    Status,
    TargetKey,
    Unreadable,
    bounded_key,
    hashed,
    unreadable,
)
from services.ingest.sources.fields import line_of, links_of
from services.ingest.sources.reading import Notes, bounded, read_json, text_of, time_of, word_of, words_of

KINDS: Final[Mapping[str, Kind]] = {
    **dict.fromkeys(("deployment", "deploy", "release", "rollout", "rollback"), Kind.DEPLOYMENT),
    **dict.fromkeys(("configuration", "config", "feature_flag", "setting"), Kind.CONFIGURATION),
}
# What a change says beside what it changed; everything else that is a word becomes a label, and so may name the target.
OWN: Final = frozenset({"kind", "target_id", "title", "description", "time", "url", "id", "status", "labels", "test"})
TARGET_MAX: Final = 200
ID_MAX: Final = 200


def parse(body: bytes, _: DeliveryFacts) -> list[ParsedSignal]:
    """Return a signal per change; Unreadable names every field that is wrong."""
    notes = Notes()
    value = read_json(body, notes)
    changes = value if isinstance(value, list) else [value]
    if not changes or len(changes) > SIGNALS_MAX:
        raise unreadable("", f"must be a JSON object, or a list of 1 to {SIGNALS_MAX}")
    errors: list[FieldError] = []
    found = []
    for at, one in enumerate(changes):
        place = f"[{at}]" if isinstance(value, list) else ""
        try:
            found.append(_change(one, place, f"/{at}" if place else "", Notes(*notes.texts)))
        except Unreadable as error:
            errors += error.errors
    if errors:
        raise Unreadable(errors)
    return found


def _change(value: Any, place: str, pointer: str, notes: Notes) -> ParsedSignal:
    """Return one change."""
    if not isinstance(value, Mapping):
        raise unreadable(place, "must be an object")
    prefix = f"{place}." if place else ""
    kind = KINDS.get(text_of(value.get("kind")).strip().lower())
    if kind is None:
        raise unreadable(f"{prefix}kind", "must be deployment or configuration")
    words = {name: one for name, one in value.items() if name not in OWN and isinstance(one, str | int | float)}
    labels = words_of(words, "the change", notes) | words_of(value.get("labels"), "labels", notes)
    resource = resource_of({name: one[:VALUE_MAX] for name, one in labels.items()})
    targets = _targets(value, resource, notes)
    if not targets:
        raise unreadable(f"{prefix}target_id", "nothing says what was changed: give target_id, or service, environment")
    status = bounded(value.get("status"), RAW_MAX, "status", notes)
    moment = time_of(value.get("time"), "time", notes)
    what = labels.get("version", "")
    title = line_of(value.get("title"), "title", notes)
    identity = word_of(value.get("id"), ID_MAX, "id", notes)
    keys = [one.key for one in targets]
    return ParsedSignal(
        # The same change told twice is one; what becomes of it later (another status) is told as another.
        dedup_key=bounded_key("change", identity, status)
        if identity
        else hashed(kind.name, *keys, title, what, status, str(moment)),
        status=Status.OCCURRENCE,
        status_raw=status,
        severity=Severity.INFO,
        summary=title or f"{kind.name.lower()} of {keys[0]} {what}".strip()[:SUMMARY_MAX],
        description=bounded(value.get("description"), DESCRIPTION_MAX, "description", notes),
        event_time=moment,
        start_time=moment,
        resource=resource,
        targets=targets,
        labels=labels,
        links=links_of([(Rel.SOURCE, value.get("url"))], notes),
        warnings=notes.texts,
        test=value.get("test") is True,
        body_pointer=pointer,
        kind=kind,
    )


def _targets(value: Mapping[str, Any], resource: Mapping[str, str], notes: Notes) -> tuple[TargetKey, ...]:
    """Return what was changed: named by its id, or by what its labels say."""
    named = word_of(value.get("target_id"), TARGET_MAX, "target_id", notes).strip()
    return (TargetKey("", named),) if named else target_keys(resource)
