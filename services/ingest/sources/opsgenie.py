"""Opsgenie's outgoing webhook: one action on one alert per request.

What moves the alert says how it stands; everything else (notes, teams, tags, escalations) is kept as a note and opens
nothing, each under a key of its own that names the alert. `Create` comes again when a team is added whose integration
has not seen the alert: the key makes it the same.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from services.ingest.resources import HOST, resource_of, target_keys
from services.ingest.signal import (
    DESCRIPTION_MAX,
    RAW_MAX,
    RULE_MAX,
    DeliveryFacts,
    Kind,
    ParsedSignal,
    Rel,
    Severity,
    Status,
    bounded_key,
    hashed,
    unreadable,
)
from services.ingest.sources.fields import (
    each,
    firsts,
    key_of,
    labels_of,
    line_of,
    links_of,
    object_of,
    severity_of,
    tags_of,
)
from services.ingest.sources.reading import Notes, bounded, read_json, text_of, time_of, word_of, words_of

MOVES: Final[Mapping[str, Status]] = {
    "create": Status.FIRING,
    "acknowledge": Status.ACKNOWLEDGED,
    "unacknowledge": Status.FIRING,
    "close": Status.RESOLVED,
    # It is gone at the sender: no other word about it will come.
    "delete": Status.RESOLVED,
    "snooze": Status.SUPPRESSED,
    "snoozeended": Status.FIRING,
}
# The API has numbers where the page has P1 to P5.
PRIORITIES: Final = {
    "1": Severity.CRITICAL,
    "2": Severity.ERROR,
    "3": Severity.WARNING,
    "4": Severity.INFO,
    "5": Severity.INFO,
}
# `entity` is a name or a sentence, as its author likes.
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}")
OWN: Final = frozenset({"message", "description", "details", "tags", "createdAt", "updatedAt", "insertedAt"})
RUNBOOKS: Final = frozenset({"runbook", "runbook_url"})
DASHBOARDS: Final = frozenset({"dashboard", "dashboard_url"})


def parse(body: bytes, _: DeliveryFacts) -> list[ParsedSignal]:
    """Return the signal of an action; its key is the alert's id, through all its states."""
    notes = Notes()
    return each(read_json(body, notes), notes, _action)


def _action(body: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read one action; queues hand it on within a `payload`."""
    if "alert" not in body and isinstance(body.get("payload"), Mapping):
        body, pointer = body["payload"], f"{pointer}/payload"
    alert = object_of(body.get("alert")) or (body if "alertId" in body else {})
    identity = key_of(alert.get("alertId"), "alert.alertId", notes)
    if not identity and (identity := key_of(alert.get("alias"), "alert.alias", notes)):
        notes.add("no alertId: the key is the alias, which the next alert of the kind has too")
    if not identity:
        raise unreadable("alert.alertId", "is required: without alertId or alias the alert has no identity")
    action = word_of(body.get("action"), RAW_MAX, "action", notes)
    status = MOVES.get(action.replace(" ", "").lower())
    if status is None:
        notes.add(f"the action says not how the alert stands: {action or '(absent)'}")
    severity, severity_raw = severity_of(alert.get("priority"), "alert.priority", notes, PRIORITIES)
    began = time_of(alert.get("createdAt"), "alert.createdAt", notes)
    changed = time_of(alert.get("updatedAt"), "alert.updatedAt", notes)
    details = labels_of(tags_of(object_of(alert.get("details"))), notes, "alert.details")
    labels = labels_of([*details.items(), *tags_of(alert.get("tags"))], notes, "alert.tags")
    entity = word_of(alert.get("entity"), RULE_MAX, "alert.entity", notes)
    note = bool(action) and status is None
    resource = resource_of(firsts(labels))
    # Alerts about a host name it there too.
    if NAME.fullmatch(entity) and entity != resource.get(HOST):
        resource.setdefault("service.name", entity)
    return ParsedSignal(
        dedup_key=_note_key(body, identity, action, changed) if note else identity,
        # An action we do not know moves nothing; without one nobody can say.
        status=status or (Status.OCCURRENCE if action else Status.UNSPECIFIED),
        status_raw=action,
        severity=severity,
        severity_raw=severity_raw,
        summary=line_of(alert.get("message"), "alert.message", notes) or f"{action} of alert {identity}".strip(),
        description=bounded(alert.get("description"), DESCRIPTION_MAX, "alert.description", notes),
        event_time=changed or (began if status is Status.FIRING else None),
        # A note is an event of its own: its alert began long before.
        start_time=changed if note else began,
        end_time=changed if status is Status.RESOLVED else None,
        resource=resource,
        targets=target_keys(resource),
        labels=labels,
        annotations=words_of({name: one for name, one in alert.items() if name not in OWN}, "alert", notes),
        links=links_of(
            [
                *((Rel.RUNBOOK, value) for name, value in details.items() if name.lower() in RUNBOOKS),
                *((Rel.DASHBOARD, value) for name, value in details.items() if name.lower() in DASHBOARDS),
            ],
            notes,
        ),
        warnings=notes.texts,
        body_pointer=pointer,
        kind=Kind.NOTE if note else Kind.ALERT,
    )


def _note_key(body: Mapping[str, Any], identity: str, action: str, changed: int | None) -> str:
    """Return what tells a note from the next one on the same alert; an escalation says no time, but which it was."""
    return bounded_key(identity, action, str(changed) if changed is not None else hashed(text_of(body)))
