"""A wish of a person who talks to the router: an incident of its own for each message. Only the router submits it.

The body is a JSON object of ours, and every field but `description` is required:

    {"message_id": UUID, "conversation_id": UUID, "message_digest": 64 hex digits, "person": "human/operator",
     "time": RFC 3339, "title": text, "description": text, "targets": [canonical target id, ...]}

`message_digest` is that of router.v1.Identity, `time` is when the message was kept: both are the message's for ever.
What it says beside is nobody's alert: its severity is unset, it fires until a person resolves it or it is done, and its
words choose nothing. Labels carry ids, digest and person to whoever must know for whom something is done.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from services.ingest.signal import (
    DESCRIPTION_MAX,
    SUMMARY_MAX,
    DeliveryFacts,
    FieldError,
    ParsedSignal,
    Status,
    TargetKey,
    Unreadable,
    unreadable,
)
from services.ingest.sources.reading import Notes, bounded, read_json, time_of

TARGETS_MAX: Final = 8
UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
SHAPES: Final[Mapping[str, tuple[re.Pattern[str], str]]] = {
    "message_id": (UUID, "must be a UUID in small letters"),
    "conversation_id": (UUID, "must be a UUID in small letters"),
    "message_digest": (re.compile(r"[0-9a-f]{64}"), "must be 64 hexadecimal digits in small letters"),
    "person": (re.compile(r"human/[a-z][a-z0-9-]{0,62}"), "must be a person, such as human/operator"),
}
TARGET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@-]{0,199}")
OTHERS: Final = frozenset({"time", "title", "description", "targets"})


def parse(body: bytes, _: DeliveryFacts) -> list[ParsedSignal]:
    """Return the one signal of a message; Unreadable names every field that breaks the contract."""
    notes = Notes()
    value = read_json(body, notes)
    if not isinstance(value, Mapping):
        raise unreadable("", "must be a JSON object")
    moment = time_of(value.get("time"), "time", Notes())
    if errors := [*_errors(value), *([] if moment else [FieldError("time", "must be a time of RFC 3339")])]:
        raise Unreadable(errors)
    title = bounded(value["title"], SUMMARY_MAX, "title", notes)
    return [
        ParsedSignal(
            dedup_key=value["message_id"],
            status=Status.FIRING,
            summary=title,
            description=bounded(value.get("description"), DESCRIPTION_MAX, "description", notes),
            event_time=moment,
            start_time=moment,
            targets=[TargetKey("", one) for one in value["targets"]],
            labels={name: value[name] for name in SHAPES},
            warnings=notes.texts,
        )
    ]


def _errors(value: Mapping[str, Any]) -> list[FieldError]:
    """Return what breaks the contract: it is our own, so nothing is guessed at."""
    errors = [
        FieldError(name, words)
        for name, (shape, words) in SHAPES.items()
        if not (isinstance(value.get(name), str) and shape.fullmatch(value[name]))
    ]
    errors += [FieldError(name, "is no field of this body") for name in value if name not in OTHERS | SHAPES.keys()]
    if not (isinstance(value.get("title"), str) and value["title"].strip()):
        errors.append(FieldError("title", "must be a text"))
    if not isinstance(value.get("description", ""), str):
        errors.append(FieldError("description", "must be a text"))
    targets = value.get("targets")
    if not (isinstance(targets, list) and len(targets) <= TARGETS_MAX and all(map(_is_target, targets))):
        errors.append(FieldError("targets", f"must be a list of at most {TARGETS_MAX} target ids"))
    return errors


def _is_target(value: object) -> bool:
    return isinstance(value, str) and TARGET.fullmatch(value) is not None
