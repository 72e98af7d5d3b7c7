"""Sentry's webhooks: issue alerts, issues, metric alerts, errors, comments, and those of the old plugin.

An issue alert says that something happened, and nothing ever takes it back but the issue's own resolve: it is an
occurrence under the issue's key. Stack traces, requests and users stay in the raw body: they are full of people's data.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from services.ingest.resources import resource_of, target_keys
from services.ingest.signal import (
    DESCRIPTION_MAX,
    KEY_MAX,
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
    firsts,
    items_of,
    key_of,
    labels_of,
    line_of,
    links_of,
    need_object,
    object_of,
    severity_of,
    tags_of,
    text_in,
)
from services.ingest.sources.reading import Notes, bounded, read_json, text_of, time_of, word_of, words_of
from services.ingest.words import read_status

ISSUE_URL: Final = re.compile(r"/issues/(\d{1,24})(?:[/?#]|\Z)")
PROJECT_URL: Final = re.compile(r"/projects/[^/?#]{1,128}/([^/?#]{1,128})(?:[/?#]|\Z)")
ISSUE_STATES: Final[Mapping[str, Status]] = {
    "created": Status.FIRING,
    "unresolved": Status.FIRING,
    "resolved": Status.RESOLVED,
    "archived": Status.SUPPRESSED,
    "ignored": Status.SUPPRESSED,
}
METRIC_STATES: Final[Mapping[str, tuple[Status, Severity]]] = {
    "critical": (Status.FIRING, Severity.CRITICAL),
    "warning": (Status.FIRING, Severity.WARNING),
    "resolved": (Status.RESOLVED, Severity.UNSPECIFIED),
}
REOPENED: Final = "unresolved"
REGRESSED: Final = "regressed"
COUNTED: Final = ("firstSeen", "lastSeen", "count", "userCount")
# Tags that are about who was hit.
PEOPLE: Final = ("user", "user.")


def parse(body: bytes, _: DeliveryFacts) -> list[ParsedSignal]:
    """Return the signal of a webhook, told by its shape: the header that names it is not signed."""
    notes = Notes()
    value = need_object(read_json(body, notes), "")
    if "data" not in value:
        return [_plugin(value, notes)]
    data = need_object(value["data"], "data")
    action = text_in(value, ["action"], RAW_MAX, notes).strip()
    for name in ("event", "error"):
        if isinstance(data.get(name), Mapping):
            return [_event(need_object(data[name], f"data.{name}"), data, action, f"/data/{name}", notes)]
    if isinstance(data.get("metric_alert"), Mapping):
        return [_metric(data["metric_alert"], data, action, notes)]
    if isinstance(data.get("issue"), Mapping):
        return [_issue(data["issue"], data, action, notes)]
    return [_beside(value, data, action, notes)]


def _event(event: Mapping[str, Any], data: Mapping[str, Any], action: str, pointer: str, notes: Notes) -> ParsedSignal:
    """Read an issue alert, or one error of an issue."""
    tags = _tags(event.get("tags"), notes)
    title = line_of(event.get("title"), "title", notes) or line_of(event.get("message"), "message", notes)
    severity, severity_raw = severity_of(event.get("level") or tags.get("level"), "level", notes)
    links = [(Rel.SOURCE, event.get("web_url")), (Rel.GENERATOR, event.get("issue_url") or event.get("url"))]
    urls = [text_of(event.get(name)) for name in ("issue_url", "web_url")]
    project = _project(event.get("project_slug"), [text_of(event.get("url"))], notes)
    own = [
        *_own(event, project),
        ("triggered_rule", text_of(data.get("triggered_rule"))),
        ("event_id", text_of(event.get("event_id"))),
        ("project_id", text_of(event.get("project")) if isinstance(event.get("project"), int | str) else ""),
    ]
    when = time_of(event.get("datetime") or event.get("timestamp"), "datetime", notes)
    labels = {**labels_of(own, notes, "event"), **tags}
    resource = _resource(labels, event, project)
    return ParsedSignal(
        dedup_key=_issue_id(event.get("issue_id"), urls, (project, title), notes),
        status=Status.OCCURRENCE,
        status_raw=action,
        severity=severity,
        severity_raw=severity_raw,
        summary=title or text_in(event, ["culprit"], RULE_MAX, notes) or "an event of Sentry without a title",
        description=_description(event, notes),
        rule_name=title[:RULE_MAX],
        event_time=when,
        resource=resource,
        targets=target_keys(resource),
        labels=labels,
        links=links_of(links, notes),
        warnings=notes.texts,
        body_pointer=pointer,
    )


def _issue(issue: Mapping[str, Any], data: Mapping[str, Any], action: str, notes: Notes) -> ParsedSignal:
    """Read what happened to an issue."""
    word = text_in(issue, ["status"], RAW_MAX, notes)
    status = ISSUE_STATES.get(action.lower()) or read_status(word)
    if status is Status.UNSPECIFIED:
        notes.add(f"status is not understood: {action or '(absent)'}, {word or '(absent)'}")
    severity, severity_raw = severity_of(issue.get("level"), "level", notes)
    held = object_of(issue.get("project"))
    project = _project(held.get("slug") or held.get("name"), [], notes)
    title = line_of(issue.get("title"), "title", notes)
    own = [
        *_own(issue, project),
        ("short_id", text_of(issue.get("shortId"))),
        ("substatus", text_of(issue.get("substatus"))),
        ("resolution_type", text_of(data.get("resolution_type"))),
    ]
    labels = {**labels_of(own, notes, "issue"), **_tags(issue.get("tags"), notes)}
    resource = _resource(labels, issue, project)
    urls = [text_of(issue.get(name)) for name in ("web_url", "url", "permalink")]
    return ParsedSignal(
        dedup_key=_issue_id(issue.get("id"), urls, (project, title), notes),
        status=status,
        status_raw=action or word,
        severity=severity,
        severity_raw=severity_raw,
        summary=title or f"issue {text_of(issue.get('shortId'))} of Sentry",
        description=_description(issue, notes),
        rule_name=title[:RULE_MAX],
        event_time=_moved(issue, action, notes),
        resource=resource,
        targets=target_keys(resource),
        labels=labels,
        annotations=words_of({name: issue.get(name) for name in COUNTED}, "issue", notes),
        links=links_of(((Rel.SOURCE, url) for url in urls), notes),
        warnings=notes.texts,
        body_pointer="/data/issue",
    )


def _moved(issue: Mapping[str, Any], action: str, notes: Notes) -> int | None:
    """Return when the issue's last event came: the best it says, for no webhook tells when somebody resolved it.

    Somebody may take a resolve back without any new event: then that moment would say that nothing was new.
    """
    regressed = text_in(issue, ["substatus"], RAW_MAX, notes).strip().lower() == REGRESSED
    if action.lower() == REOPENED and not regressed:
        return None
    return time_of(issue.get("lastSeen") or issue.get("firstSeen"), "lastSeen", notes)


def _metric(alert: Mapping[str, Any], data: Mapping[str, Any], action: str, notes: Notes) -> ParsedSignal:
    """Read a metric alert: one incident of a rule, from its start to its end."""
    status, severity = METRIC_STATES.get(action.lower(), (Status.UNSPECIFIED, Severity.UNSPECIFIED))
    if status is Status.UNSPECIFIED:
        notes.add(f"status is not understood: {action or '(absent)'}")
    identity = key_of(alert.get("id"), "data.metric_alert.id", notes)
    title = line_of(alert.get("title"), "title", notes)
    if not identity and not title:
        raise unreadable("data.metric_alert.id", "is required: without it the alert cannot be told from others")
    if not identity:
        notes.add("no id: the key is a hash of the title")
        identity = hashed(title)
    rule = object_of(alert.get("alert_rule"))
    projects = [text for one in items_of(alert.get("projects") or rule.get("projects")) if (text := text_of(one))]
    name = word_of(rule.get("name"), RULE_MAX, "alert_rule.name", notes)
    own = [
        *(("project", one) for one in projects),
        *((key, text_of(rule.get(key))) for key in ("environment", "aggregate", "query", "dataset")),
        ("identifier", text_of(alert.get("identifier"))),
        ("organization_id", text_of(alert.get("organization_id"))),
    ]
    labels = labels_of(own, notes, "metric_alert")
    resource = _resource(labels, {}, projects[0] if len(projects) == 1 else "")
    began = time_of(alert.get("date_started"), "date_started", notes)
    closed = time_of(alert.get("date_closed"), "date_closed", notes) if status is Status.RESOLVED else None
    found = time_of(alert.get("date_detected"), "date_detected", notes) if status is Status.FIRING else None
    return ParsedSignal(
        dedup_key=bounded_key("metric_alert", identity),
        status=status,
        status_raw=action,
        severity=severity,
        severity_raw=action if severity is not Severity.UNSPECIFIED else "",
        summary=line_of(data.get("description_title"), "description_title", notes)
        or name
        or title
        or f"metric alert {identity} of Sentry",
        description=bounded(data.get("description_text"), DESCRIPTION_MAX, "description_text", notes),
        rule_name=name,
        event_time=closed or found or (began if status is Status.FIRING else None),
        start_time=began,
        end_time=closed,
        resource=resource,
        targets=target_keys(resource),
        labels=labels,
        links=links_of([(Rel.SOURCE, data.get("web_url") or alert.get("web_url"))], notes),
        warnings=notes.texts,
        body_pointer="/data/metric_alert",
    )


def _plugin(body: Mapping[str, Any], notes: Notes) -> ParsedSignal:
    """Read a webhook of the old plugin: an event, and beside it the issue's number as `id`.

    A service hook sends issue and project as objects.
    """
    if isinstance(body.get("group"), Mapping):
        body = {**body["group"], "project": object_of(body.get("project")).get("slug"), "event": body.get("event")}
    if not isinstance(body.get("event"), Mapping) and not ("project" in body and "id" in body):
        raise unreadable("data", "is required: it is neither a webhook of an integration nor of the old plugin")
    event = object_of(body.get("event"))
    notes.add("a webhook of Sentry's old plugin")
    tags = _tags(event.get("tags"), notes)
    title = line_of(event.get("title"), "title", notes) or line_of(body.get("message"), "message", notes)
    project = _project(body.get("project_slug") or body.get("project"), [], notes)
    severity, severity_raw = severity_of(body.get("level") or event.get("level"), "level", notes)
    when = event.get("datetime") or event.get("timestamp") or event.get("received") or event.get("dateCreated")
    rules = ((("triggered_rule", text_of(one))) for one in items_of(body.get("triggering_rules")))
    labels = {**labels_of([*_own(event, project), *rules], notes, "event"), **tags}
    resource = _resource(labels, event, project)
    culprit = line_of(body.get("culprit"), "culprit", notes)
    return ParsedSignal(
        dedup_key=_issue_id(body.get("id"), [text_of(body.get("url"))], (project, title), notes),
        status=Status.OCCURRENCE,
        severity=severity,
        severity_raw=severity_raw,
        summary=title or culprit or "an event of Sentry without a title",
        description=_description({**body, **event}, notes),
        rule_name=title[:RULE_MAX],
        event_time=time_of(when, "datetime", notes),
        resource=resource,
        targets=target_keys(resource),
        labels=labels,
        links=links_of([(Rel.SOURCE, body.get("url"))], notes),
        warnings=notes.texts,
    )


def _beside(value: Mapping[str, Any], data: Mapping[str, Any], action: str, notes: Notes) -> ParsedSignal:
    """Read what says how nothing stands: an installation (a handshake, with a code that is a secret), a comment."""
    if not action:
        raise unreadable("action", "is required: it says what happened")
    installed = "installation" in data
    issue = key_of(data.get("issue_id") or data.get("group_id"), "issue_id", notes)
    what = "installation" if installed else "comment" if "comment" in data else "webhook"
    names = ("comment_id", "run_id", "timestamp")
    parts = [text_of(data.get(name))[:KEY_MAX] for name in names]
    uuid = text_of(object_of(data.get("installation") or value.get("installation")).get("uuid"))
    when = time_of(data.get("timestamp"), "timestamp", notes)
    comment = data.get("comment") if isinstance(data.get("comment"), str) else ""
    return ParsedSignal(
        dedup_key=bounded_key(what, action, issue, *parts, uuid),
        status=Status.OCCURRENCE,
        status_raw=action,
        summary=line_of(f"{what} {action}" + (f" at issue {issue}" if issue else ""), "action", notes),
        description=bounded(comment, DESCRIPTION_MAX, "comment", notes),
        event_time=when,
        start_time=when,
        labels=labels_of([("issue_id", issue), ("project", text_of(data.get("project_slug")))], notes, "data"),
        warnings=notes.texts,
        test=installed,
        body_pointer="/data",
        kind=Kind.NOTE,
    )


def _issue_id(value: Any, urls: Iterable[str], names: tuple[str, ...], notes: Notes) -> str:
    """Return the issue's number: as told, else out of a link, else a hash of project and title."""
    if identity := key_of(value, "issue_id", notes):
        return identity
    for url in urls:
        if match := ISSUE_URL.search(url[:DESCRIPTION_MAX]):
            return match[1]
    if not names[-1]:
        raise unreadable(
            "data.event.issue_id", "is required: without issue_id, issue_url or title there is no identity"
        )
    notes.add("no issue_id: the key is a hash of project and title")
    return hashed("issue", *names)


def _project(value: Any, urls: Iterable[str], notes: Notes) -> str:
    """Return the project's short name; a bare number names nothing."""
    name = word_of(value, KEY_MAX, "project", notes).strip() if isinstance(value, str) else ""
    found = (match[1] for url in urls if (match := PROJECT_URL.search(url[:DESCRIPTION_MAX])))
    return name if name and not name.isdigit() else next(found, "")


def _own(value: Mapping[str, Any], project: str) -> Iterator[tuple[str, str]]:
    yield "project", project
    for name in ("platform", "environment", "release", "culprit", "server_name", "transaction", "logger"):
        if isinstance(value.get(name), str):
            yield name, text_of(value[name])


def _tags(value: Any, notes: Notes) -> dict[str, str]:
    """Return tags but those about people."""
    pairs = [(name, one) for name, one in tags_of(value) if not (name == PEOPLE[0] or name.startswith(PEOPLE[1]))]
    return labels_of(pairs, notes)


def _resource(labels: Mapping[str, str], value: Mapping[str, Any], project: str) -> dict[str, str]:
    """Return what is meant: the project is the service, `server_name` the host."""
    telling = firsts(labels)
    if project:
        telling.setdefault("service", project)
    if host := telling.get("server_name"):
        telling.setdefault("host", host)
    found = resource_of(telling)
    if release := text_of(value.get("release") or labels.get("release"))[:KEY_MAX]:
        found["service.version"] = release
    return found


def _description(value: Mapping[str, Any], notes: Notes) -> str:
    """Return where it happened and what was said; nothing of requests, variables or users."""
    metadata = object_of(value.get("metadata"))
    lines = [text_in(value, ["culprit"], DESCRIPTION_MAX, notes), text_in(metadata, ["value"], DESCRIPTION_MAX, notes)]
    lines.append(text_in(value, ["message"], DESCRIPTION_MAX, notes))
    return "\n".join(dict.fromkeys(filter(None, lines)))[:DESCRIPTION_MAX]
