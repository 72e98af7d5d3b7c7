"""GitHub's webhooks: what is deployed and pushed is a change, an alert of a scanner is an alert, the rest a note.

The header `X-GitHub-Event` names the event; where it did not come along, the shape of the body does.
"""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qs

from services.ingest.resources import ENVIRONMENT, SERVICE, resource_of, target_keys
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
    unreadable,
)
from services.ingest.sources.fields import items_of, key_of, line_of, links_of, need_object, object_of, severity_of
from services.ingest.sources.reading import Notes, bounded, clean, read_json, text_of, time_of, word_of, words_of
from services.ingest.words import read_status

EVENT_HEADER: Final = "x-github-event"
DELIVERY_HEADER: Final = "x-github-delivery"
FORM: Final = "application/x-www-form-urlencoded"
# Results of deployments and workflows; others are kept without a severity.
RESULTS: Final[Mapping[str, Severity]] = {
    **dict.fromkeys(("failure", "error", "timed_out", "startup_failure"), Severity.ERROR),
    "action_required": Severity.WARNING,
    **dict.fromkeys(
        ("success", "pending", "queued", "in_progress", "inactive", "waiting", "requested", "completed"), Severity.INFO
    ),
    **dict.fromkeys(("cancelled", "skipped", "neutral", "stale"), Severity.INFO),
}
# States of a scanner's alert that are not in every sender's vocabulary.
ALERT_STATES: Final = {
    "open": Status.FIRING,
    "fixed": Status.RESOLVED,
    "resolved": Status.RESOLVED,
    "closed": Status.RESOLVED,
    "dismissed": Status.SUPPRESSED,
    "auto_dismissed": Status.SUPPRESSED,
}
# Of alerts that name no state.
ALERT_ACTIONS: Final = {
    **dict.fromkeys(("created", "create", "reopened", "reintroduced", "appeared_in_branch"), Status.FIRING),
    **dict.fromkeys(("fixed", "resolved", "resolve", "closed"), Status.RESOLVED),
    **dict.fromkeys(("dismissed", "dismiss", "closed_by_user", "auto_dismissed"), Status.SUPPRESSED),
}
# SARIF's least.
ALERT_SEVERITIES: Final = {"note": Severity.INFO}
# The key of a body that only this event has, for bodies whose header did not come along.
SHAPES: Final[Mapping[str, str]] = {
    "zen": "ping",
    "deployment_status": "deployment_status",
    "deployment": "deployment",
    "workflow_run": "workflow_run",
    "release": "release",
    "comment": "issue_comment",
    "commits": "push",
    "alert": "dependabot_alert",
}
COMMENT_EVENTS: Final = frozenset({"issue_comment", "commit_comment", "pull_request_review_comment"})


def parse(body: bytes, facts: DeliveryFacts) -> list[ParsedSignal]:
    """Return the one signal of an event; Unreadable when the body is none of GitHub's."""
    notes = Notes()
    value = need_object(read_json(_unformed(body, facts), notes), "")
    event = facts.headers.get(EVENT_HEADER, "") or _guessed(value, notes)
    if event.endswith("_alert") and isinstance(value.get("alert"), Mapping):
        return [_alert(value, event, notes)]
    return [READERS.get(event, _note)(value, event, notes, facts)]


def _unformed(body: bytes, facts: DeliveryFacts) -> bytes:
    """Return the JSON of a form's field `payload`; GitHub sends either."""
    if not facts.content_type.lower().startswith(FORM):
        return body
    try:
        fields = parse_qs(body.decode(), max_num_fields=8)
    except ValueError:
        raise unreadable("", "the form cannot be decoded") from None
    if not fields.get("payload"):
        raise unreadable("payload", "is required in a form")
    return fields["payload"][0].encode("utf-8", "replace")


def _guessed(value: Mapping[str, Any], notes: Notes) -> str:
    """Return the event that a body shows."""
    event = next((event for key, event in SHAPES.items() if key in value), "")
    if not any(isinstance(value.get(name), Mapping) for name in ("repository", "organization", "hook")):
        raise unreadable("", "is no event of GitHub: it names neither repository nor organization")
    notes.add(f"no {EVENT_HEADER} header: the body looks like {event or 'an event we have no use for'}")
    return event


class _Facts:
    """What most events say: whose repository, who did it, and where it can be seen."""

    def __init__(self, value: Mapping[str, Any], event: str, notes: Notes) -> None:
        repository = object_of(value.get("repository"))
        owner = object_of(value.get("organization")) or object_of(repository.get("owner"))
        self.name = word_of(repository.get("name"), RULE_MAX, "repository.name", notes)
        self.full_name = word_of(repository.get("full_name"), RULE_MAX, "repository.full_name", notes) or self.name
        self.action = word_of(value.get("action"), RAW_MAX, "action", notes)
        self.place = self.full_name or word_of(owner.get("login"), RULE_MAX, "organization.login", notes)
        words = {
            "event": event,
            "action": self.action,
            "repository": self.full_name,
            "organization": owner.get("login"),
            "actor": object_of(value.get("sender")).get("login"),
        }
        self.labels = words_of({name: one for name, one in words.items() if text_of(one)}, "event", notes)

    def labelled(self, notes: Notes, **words: Any) -> dict[str, str]:
        """Return the labels with these words added."""
        return {**self.labels, **words_of({name: one for name, one in words.items() if text_of(one)}, "event", notes)}


def _change(  # each is said by name
    facts: _Facts,
    notes: Notes,
    *,
    kind: Kind,
    key: tuple[str, ...],
    state: str,
    summary: str,
    labels: Mapping[str, str],
    link: Any,
    moment: int | None,
    description: Any = "",
    environment: Any = "",
    test: bool = False,
) -> ParsedSignal:
    """Return word of a change: of the service named like the repository, in the environment it says."""
    severity = RESULTS.get(state, Severity.UNSPECIFIED) if state else Severity.INFO
    if severity is Severity.UNSPECIFIED:
        notes.add(f"state is not understood: {state}")
    where = {SERVICE: facts.name, ENVIRONMENT: word_of(environment, RULE_MAX, "environment", notes)}
    resource = resource_of({name: one for name, one in where.items() if one})
    return ParsedSignal(
        dedup_key=bounded_key(facts.place, *key, state),
        status=Status.OCCURRENCE,
        status_raw=state or facts.action,
        severity=severity,
        severity_raw=state,
        summary=line_of(summary, "summary", notes) or "an event of GitHub",
        description=bounded(description, DESCRIPTION_MAX, "description", notes),
        event_time=moment,
        start_time=moment,
        resource=resource,
        # What only says that somebody wrote something is about nothing that runs.
        targets=target_keys(resource) if kind is not Kind.NOTE else (),
        labels=labels,
        links=links_of([(Rel.SOURCE, link)], notes),
        warnings=notes.texts,
        test=test,
        kind=kind,
    )


def _ping(value: Mapping[str, Any], event: str, notes: Notes, _: DeliveryFacts) -> ParsedSignal:
    """Read GitHub's first word on a new hook: a test, whatever it says."""
    facts = _Facts(value, event, notes)
    hook = object_of(value.get("hook"))
    return _change(
        facts,
        notes,
        kind=Kind.NOTE,
        key=("ping", text_of(value.get("hook_id"))),
        state="",
        summary=f"ping of a webhook of {facts.place or 'GitHub'}",
        labels=facts.labelled(notes, hook_id=value.get("hook_id")),
        link=None,
        moment=time_of(hook.get("updated_at") or hook.get("created_at"), "hook.updated_at", notes),
        description=value.get("zen"),
        test=True,
    )


def _push(value: Mapping[str, Any], event: str, notes: Notes, _: DeliveryFacts) -> ParsedSignal:
    """Read a push: code or configuration changed, which is not yet deployed."""
    facts = _Facts(value, event, notes)
    head = object_of(value.get("head_commit"))
    repository = object_of(value.get("repository"))
    ref, after = (word_of(value.get(name), RULE_MAX, name, notes) for name in ("ref", "after"))
    commits = items_of(value.get("commits"))
    deleted = value.get("deleted") is True
    what = "deleted" if deleted else f"{len(commits)} commit(s) pushed to"
    return _change(
        facts,
        notes,
        kind=Kind.CONFIGURATION,
        key=("push", ref, after),
        state="",
        summary=f"{facts.place}: {what} {ref}",
        labels=facts.labelled(
            notes, ref=ref, sha=after, before=value.get("before"), pusher=object_of(value.get("pusher")).get("name")
        ),
        link=value.get("compare"),
        moment=time_of(repository.get("pushed_at"), "repository.pushed_at", notes)
        or time_of(head.get("timestamp"), "head_commit.timestamp", notes),
        description=head.get("message"),
    )


def _deployment(value: Mapping[str, Any], event: str, notes: Notes, _: DeliveryFacts) -> ParsedSignal:
    """Read a deployment, or what became of one; each state is told once."""
    facts = _Facts(value, event, notes)
    deployment, told = (object_of(value.get(name)) for name in ("deployment", "deployment_status"))
    state = word_of(told.get("state"), RAW_MAX, "deployment_status.state", notes) or ("" if told else "requested")
    named = (word_of(one.get("environment"), RULE_MAX, "environment", notes) for one in (told, deployment))
    environment = next(filter(None, named), "")
    ref = word_of(deployment.get("ref"), RULE_MAX, "deployment.ref", notes)
    number = key_of(deployment.get("id"), "deployment.id", notes)
    return _change(
        facts,
        notes,
        kind=Kind.DEPLOYMENT,
        key=("deployment", number or text_of(deployment.get("sha")), environment),
        state=state,
        summary=f"{facts.place}: deployment of {ref or 'something'} to {environment or 'nowhere said'}: {state}",
        labels=facts.labelled(
            notes,
            ref=ref,
            version=deployment.get("sha"),
            task=deployment.get("task"),
            deployment_id=number,
            deployment_environment=environment,
        ),
        link=text_of(told.get("log_url")) or text_of(told.get("target_url")) or _page(value),
        moment=time_of(told.get("updated_at") or told.get("created_at"), "deployment_status.updated_at", notes)
        or time_of(deployment.get("updated_at") or deployment.get("created_at"), "deployment.updated_at", notes),
        description=told.get("description") or deployment.get("description"),
        environment=environment,
    )


def _workflow(value: Mapping[str, Any], event: str, notes: Notes, _: DeliveryFacts) -> ParsedSignal:
    """Read a run of a workflow: a pipeline did something, which may have deployed."""
    facts = _Facts(value, event, notes)
    run = object_of(value.get("workflow_run"))
    state = word_of(run.get("conclusion") or run.get("status"), RAW_MAX, "workflow_run.conclusion", notes)
    name = word_of(
        run.get("name") or object_of(value.get("workflow")).get("name"), RULE_MAX, "workflow_run.name", notes
    )
    return _change(
        facts,
        notes,
        kind=Kind.DEPLOYMENT,
        key=("workflow_run", key_of(run.get("id"), "workflow_run.id", notes), text_of(run.get("run_attempt"))),
        state=state,
        summary=f"{facts.place}: workflow {name or 'without a name'} #{text_of(run.get('run_number'))}: {state}",
        labels=facts.labelled(
            notes,
            workflow=name,
            ref=run.get("head_branch"),
            version=run.get("head_sha"),
            trigger=run.get("event"),
            run_id=run.get("id"),
        ),
        link=run.get("html_url"),
        moment=time_of(run.get("updated_at"), "workflow_run.updated_at", notes),
        description=object_of(run.get("head_commit")).get("message"),
    )


def _release(value: Mapping[str, Any], event: str, notes: Notes, _: DeliveryFacts) -> ParsedSignal:
    """Read a release."""
    facts = _Facts(value, event, notes)
    release = object_of(value.get("release"))
    tag = word_of(release.get("tag_name"), RULE_MAX, "release.tag_name", notes)
    return _change(
        facts,
        notes,
        kind=Kind.DEPLOYMENT,
        key=("release", key_of(release.get("id"), "release.id", notes), facts.action),
        state="",
        summary=f"{facts.place}: release {tag} {facts.action}",
        labels=facts.labelled(notes, version=tag),
        link=release.get("html_url"),
        moment=time_of(release.get("published_at") or release.get("created_at"), "release.published_at", notes),
        description=release.get("body"),
    )


def _note(value: Mapping[str, Any], event: str, notes: Notes, delivery: DeliveryFacts) -> ParsedSignal:
    """Read anything else, comments above all: it is kept and opens nothing."""
    facts = _Facts(value, event, notes)
    comment, issue = (object_of(value.get(name)) for name in ("comment", "issue"))
    told = comment or issue or object_of(value.get(event))
    key = key_of(told.get("id") or told.get("node_id"), f"{event}.id", notes)
    moment = text_of(told.get("updated_at")) or text_of(told.get("created_at"))
    if event not in COMMENT_EVENTS:
        notes.add(f"an event we have no use for: {event or '(unnamed)'}")
    # The same comment edited is another word; what has no id is told apart by the delivery, which a retry keeps.
    own = (key, moment) if key else (clean(delivery.headers.get(DELIVERY_HEADER, "")), moment)
    about = f" on #{text_of(issue.get('number'))}" if issue else ""
    title = text_of(issue.get("title"))
    return _change(
        facts,
        notes,
        kind=Kind.NOTE,
        key=(event, facts.action, *own),
        state="",
        summary=f"{facts.place or 'GitHub'}: {event} {facts.action}{about}{': ' if title else ''}{title}",
        labels=facts.labelled(notes, issue=issue.get("number")),
        link=told.get("html_url"),
        moment=time_of(moment, "updated_at", notes),
        description=comment.get("body"),
    )


def _alert(value: Mapping[str, Any], event: str, notes: Notes) -> ParsedSignal:
    """Read an alert of Dependabot or another scanner. It may be reopened, so only the newest word has a time."""
    facts = _Facts(value, event, notes)
    alert = object_of(value.get("alert"))
    advisory, rule = (object_of(alert.get(name)) for name in ("security_advisory", "rule"))
    package = object_of(object_of(alert.get("dependency")).get("package"))
    number = key_of(alert.get("number") or alert.get("id"), "alert.number", notes)
    if not number:
        raise unreadable("alert.number", "is required: without it the alert has no identity")
    state = word_of(alert.get("state"), RAW_MAX, "alert.state", notes)
    status = ALERT_STATES.get(state.lower()) or read_status(state)
    if not state and (told := ALERT_ACTIONS.get(facts.action.lower())):
        status, state = told, facts.action
    if status is Status.UNSPECIFIED:
        notes.add(f"alert.state is not understood: {state or '(absent)'}")
    raw = advisory.get("severity") or rule.get("security_severity_level") or rule.get("severity")
    severity, severity_raw = severity_of(raw or alert.get("severity"), "severity", notes, ALERT_SEVERITIES)
    ended = alert.get("fixed_at") or alert.get("resolved_at")
    moment = time_of(alert.get("updated_at"), "alert.updated_at", notes)
    rule_name = text_of(advisory.get("ghsa_id")) or text_of(rule.get("id")) or text_of(alert.get("secret_type"))
    resource = resource_of({SERVICE: facts.name} if facts.name else {})
    told_name = advisory.get("summary") or rule.get("description") or alert.get("secret_type_display_name")
    name = line_of(told_name, "summary", notes) or rule_name or text_of(alert.get("affected_package_name")) or event
    told = ended or alert.get("dismissed_at") or alert.get("created_at")
    return ParsedSignal(
        dedup_key=bounded_key(facts.place, event, number),
        status=status,
        status_raw=state,
        severity=severity,
        severity_raw=severity_raw,
        summary=line_of(f"{facts.place}: {name}", "summary", notes) or event,
        description=bounded(advisory.get("description"), DESCRIPTION_MAX, "description", notes),
        rule_name=bounded(rule_name, RULE_MAX, "rule", notes),
        event_time=moment or time_of(told, "alert.created_at", notes),
        end_time=time_of(ended, "alert.fixed_at", notes) if status is Status.RESOLVED else None,
        resource=resource,
        targets=target_keys(resource),
        labels=facts.labelled(
            notes,
            number=number,
            package=package.get("name") or alert.get("affected_package_name"),
            ecosystem=package.get("ecosystem"),
            manifest=object_of(alert.get("dependency")).get("manifest_path"),
            cve=advisory.get("cve_id"),
        ),
        links=links_of([(Rel.SOURCE, alert.get("html_url"))], notes),
        warnings=notes.texts,
        body_pointer="/alert",
    )


def _page(value: Mapping[str, Any]) -> str:
    """Return the page of the repository."""
    return text_of(object_of(value.get("repository")).get("html_url"))


READERS: Final = {
    "ping": _ping,
    "push": _push,
    "deployment": _deployment,
    "deployment_status": _deployment,
    "workflow_run": _workflow,
    "release": _release,
}
