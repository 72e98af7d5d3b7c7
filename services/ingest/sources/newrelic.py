"""New Relic's webhooks: issues of workflows (an editable template), and incidents of the older alert channels."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from services.ingest.resources import resource_of, target_keys
from services.ingest.signal import (
    DESCRIPTION_MAX,
    KEY_MAX,
    RAW_MAX,
    RULE_MAX,
    DeliveryFacts,
    ParsedSignal,
    Rel,
    Status,
    bounded_key,
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
    story_of,
    tags_of,
    text_in,
)
from services.ingest.sources.reading import Notes, read_json, text_of, time_of, word_of, words_of
from services.ingest.words import read_status

# Some templates put a notification's id where the issue's belongs; the link always has the issue's.
ISSUE_URL: Final = re.compile(
    r"https?://[^/?#]{1,255}/(?:[^?#/]{0,255}/){0,8}?issues/(?P<id>[0-9A-Za-z-]{8,64})(?:[/?#].*)?", re.DOTALL
)
LEGACY: Final = frozenset({"current_state", "incident_id", "violation_callback_url", "condition_id"})
ISSUES: Final = frozenset(
    {"impactedEntities", "alertConditionNames", "issueUrl", "issueId", "totalIncidents", "createdAt"}
)
STATES: Final = frozenset({Status.FIRING, Status.ACKNOWLEDGED, Status.RESOLVED})
HOST_TYPES: Final = frozenset({"host", "server", "infrastructure host", "infra host"})
NAMES_MAX: Final = 64
UNKNOWN_IDS: Final = frozenset({"", "0"})
TEST: Final = "test"
# The product that the sample of a channel's test button is about.
TESTING: Final = "TESTING"
# Older channels say it here too, and here only when a template left the state unfilled.
EVENTS: Final = {
    "incident_open": Status.FIRING,
    "incident_acknowledged": Status.ACKNOWLEDGED,
    "incident_resolved": Status.RESOLVED,
    "incident_closed": Status.RESOLVED,
}
# What has a field of its own in a signal, or is a label.
OWN: Final = frozenset(
    [
        *("title", "details", "description", "conditionDescription", "labels", "tags", "targets", "impactedEntities"),
        *("entityNames", "alertPolicyNames", "alertConditionNames", "sources", "workflowName", "trigger", "owner"),
        *("isCorrelated", "totalIncidents", "accountId", "account_id", "condition_name", "conditionName"),
        *("policy_name", "createdAt", "updatedAt", "closedAt", "acknowledgedAt", "timestamp", "timestamp_utc_string"),
    ]
)


def parse(body: bytes, _: DeliveryFacts) -> list[ParsedSignal]:
    """Return the signal of a notification; of a list (a template may be one) one for each."""
    notes = Notes()
    return each(read_json(body, notes), notes, _notification)


def _notification(body: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read a notification by the shape that it has; templates of workflows may use the older channels' names."""
    older = "state" not in body and LEGACY & set(body) and not ISSUES & set(body)
    return _incident(body, pointer, notes) if older else _issue(body, pointer, notes)


def _status(value: Any, name: str, notes: Notes, event: Any = None) -> tuple[Status, str]:
    raw = word_of(value, RAW_MAX, name, notes)
    found = read_status(raw)
    if found in STATES:
        return found, raw
    told = word_of(event, RAW_MAX, "event_type", notes) if not raw else ""
    if told.lower() in EVENTS:
        return EVENTS[told.lower()], told
    notes.add(f"status is not understood: {raw or '(absent)'}")
    return Status.UNSPECIFIED, raw


def _issue(body: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read an issue: its key is its id, whatever it was merged with."""
    status, status_raw = _status(_first(body, "state", "current_state"), "state", notes)
    severity, severity_raw = severity_of(body.get("priority") or body.get("severity"), "priority", notes)
    if not severity_raw:
        notes.add("priority is not understood: (absent)")
    began = time_of(_first(body, "createdAt", "activatedAt"), "createdAt", notes)
    updated = time_of(_first(body, "updatedAt", "timestamp", "lastReceived"), "updatedAt", notes)
    ended = time_of(body.get("closedAt"), "closedAt", notes) or updated if status is Status.RESOLVED else None
    acked = time_of(body.get("acknowledgedAt"), "acknowledgedAt", notes) if status is Status.ACKNOWLEDGED else None
    conditions = list(_names(_first(body, "alertConditionNames", "condition_name", "conditionName")))
    entities = list(dict.fromkeys(_names(_first(body, "impactedEntities", "entityNames"))))
    labels = _labels(body, conditions, entities, notes)
    resource = resource_of(_telling(labels, entities, _kinds(body)))
    title = line_of(_only(body.get("title")), "title", notes) or line_of(body.get("details"), "details", notes)
    key = _issue_key(body, notes)
    return ParsedSignal(
        dedup_key=key,
        status=status,
        status_raw=status_raw,
        severity=severity,
        severity_raw=severity_raw,
        summary=title or f"issue {key} of New Relic",
        description=text_in(body, ("description", "details", "conditionDescription"), DESCRIPTION_MAX, notes),
        rule_name=", ".join(conditions)[:RULE_MAX],
        # Closed without a time of its own: it was not closed when it began.
        event_time=ended or acked or updated or (began if status is not Status.RESOLVED else None),
        start_time=began,
        end_time=ended,
        resource=resource,
        targets=target_keys(resource),
        labels=labels,
        annotations=_rest(body),
        links=links_of(_links(body), notes),
        warnings=notes.texts,
        body_pointer=pointer,
    )


def _first(body: Mapping[str, Any], *names: str) -> Any:
    return next((body[name] for name in names if body.get(name) not in (None, "", [])), None)


def _only(value: Any) -> Any:
    """Return the first of a list: annotations of an issue are lists, and a template may send one whole."""
    return next(iter(value), None) if isinstance(value, list) else value


def _rest(body: Mapping[str, Any]) -> dict[str, str]:
    """Return what else the template sends, as far as it was filled in."""
    return words_of({name: one for name, one in body.items() if name not in OWN}, "body", Notes())


def _issue_key(body: Mapping[str, Any], notes: Notes) -> str:
    """Return the issue's id: the one in its link is it for sure."""
    url = text_of(_first(body, "issueUrl", "issuePageUrl", "issueLink", "url"))
    own = key_of(_first(body, "issueId", "issue_id", "id", "incident_id"), "id", notes)
    if match := ISSUE_URL.fullmatch(url[:DESCRIPTION_MAX].strip()):
        if own and own != match["id"]:
            notes.add("id differs from the issue's in issueUrl, which was taken")
        return match["id"]
    if own:
        return own
    words = [
        *_names(body.get("alertConditionNames")),
        *_names(body.get("alertPolicyNames")),
        text_of(body.get("title")),
    ]
    words = [word_of(word, KEY_MAX, "title", notes) for word in words if word]
    if not any(words):
        raise unreadable("id", "is required: without id, issueUrl or title the issue has no identity")
    notes.add("no id of an issue: the key is a hash of title, conditions and policies")
    return hashed(*words)


def _names(value: Any) -> Iterator[str]:
    """Yield the names of a list, of one text, or of objects with a name."""
    for one in [value] if isinstance(value, str) else items_of(value)[:NAMES_MAX]:
        name = object_of(one).get("name") if isinstance(one, Mapping) else one
        if isinstance(name, str | int) and (
            text := word_of(text_of(name)[:KEY_MAX], KEY_MAX, "a name", Notes()).strip()
        ):
            yield text


def _kinds(body: Mapping[str, Any]) -> list[str]:
    """Return what kinds of things the entities are, where a template says it."""
    return [one.lower() for one in _names(_first(body, "entityTypes", "impactedEntityTypes", "entitiesTypes"))]


def _labels(body: Mapping[str, Any], conditions: list[str], entities: list[str], notes: Notes) -> dict[str, str]:
    pairs = [
        *tags_of(_first(body, "labels", "tags")),
        *(("entity", one) for one in entities),
        *(("condition", one) for one in conditions),
        *(("policy", one) for one in _names(_first(body, "alertPolicyNames", "policy_name"))),
        *(("reporter", one) for one in _names(body.get("sources"))),
        *(
            (name, text_of(body.get(name)))
            for name in (
                "workflowName",
                "trigger",
                "isCorrelated",
                "totalIncidents",
                "accountId",
                "account_id",
                "owner",
            )
            if not isinstance(body.get(name), list | Mapping)
        ),
    ]
    return labels_of(pairs, notes, "the issue")


def _telling(labels: Mapping[str, str], entities: list[str], kinds: list[str]) -> dict[str, str]:
    """Return what may say which thing is meant: tags, and the one entity there is. Of several none is the one."""
    # the account is one of New Relic, not of a cloud
    telling = firsts({name: value for name, value in labels.items() if name not in ("account_id", "accountId")})
    if len(entities) == 1:
        telling.setdefault("host" if kinds and set(kinds) <= HOST_TYPES else "service", entities[0])
    return telling


def _links(body: Mapping[str, Any]) -> Iterator[tuple[Rel, Any]]:
    for name in ("issueUrl", "issuePageUrl", "issueLink", "incident_url"):
        yield Rel.SOURCE, body.get(name)
    for name in ("violationChartUrl", "violation_chart_url", "chartLink"):
        yield Rel.IMAGE, body.get(name)
    for name in ("violation_callback_url", "deepLinkUrl", "policy_url"):
        yield Rel.GENERATOR, body.get(name)
    for value in (body.get("runbook_url"), *items_of(body.get("runbookUrl")), body.get("runbookUrl")):
        yield Rel.RUNBOOK, value


def _incident(body: Mapping[str, Any], pointer: str, notes: Notes) -> ParsedSignal:
    """Read an incident of the older alert channels."""
    notes.add("a notification of New Relic's older alert channels")
    status, status_raw = _status(body.get("current_state"), "current_state", notes, body.get("event_type"))
    severity, severity_raw = severity_of(body.get("severity"), "severity", notes)
    when = time_of(_first(body, "timestamp", "timestamp_utc_string"), "timestamp", notes)
    targets = [object_of(one) for one in items_of(body.get("targets"))[:NAMES_MAX]]
    sample = any(one.get("product") == TESTING for one in targets)
    test = sample or text_of(body.get("current_state")).strip().lower() == TEST
    entities = list(dict.fromkeys(name for one in targets for name in _names(one.get("name"))))
    condition = word_of(body.get("condition_name"), RULE_MAX, "condition_name", notes)
    labels = _labels(body, [condition] if condition else [], entities, notes)
    tags = labels_of((pair for one in targets[:1] for pair in tags_of(one.get("labels"))), notes, "targets.labels")
    kinds = [text_of(one.get("type")).lower() for one in targets]
    resource = resource_of(_telling({**labels, **tags}, entities, kinds))
    details = story_of(body.get("details"), DESCRIPTION_MAX, "details", notes)
    return ParsedSignal(
        dedup_key=_incident_key(body, entities, notes),
        status=status,
        status_raw=status_raw,
        severity=severity,
        severity_raw=severity_raw,
        summary=line_of(details, "details", notes) or condition or "an incident of New Relic",
        description=details,
        rule_name=condition,
        event_time=when,
        end_time=when if status is Status.RESOLVED else None,
        resource=resource,
        targets=target_keys(resource),
        labels={**tags, **labels},
        annotations=_rest(body),
        links=links_of(_links(body), notes),
        warnings=notes.texts,
        test=test,
        body_pointer=pointer,
    )


def _incident_key(body: Mapping[str, Any], entities: list[str], notes: Notes) -> str:
    """Return account and incident; an incident without a number is told by what it is about."""
    account = key_of(body.get("account_id"), "account_id", notes)
    identity = key_of(body.get("incident_id"), "incident_id", notes)
    if identity not in UNKNOWN_IDS:
        return bounded_key("incident", account, identity)
    names = ("condition_id", "condition_name", "policy_name")
    words = [word_of(text_of(body.get(name))[:KEY_MAX], KEY_MAX, name, notes) for name in names]
    if set(words) <= UNKNOWN_IDS and not entities:
        raise unreadable("incident_id", "is required: without incident, condition or policy there is no identity")
    notes.add("no incident_id: the key is a hash of account, condition, policy and entities")
    return hashed("incident", account, *words, *entities)
