"""GitHub's webhooks, by its documentation of events and payloads."""

import json
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings

from services.ingest.signal import DeliveryFacts, Kind, Severity, Status, Unreadable
from services.ingest.sources.github import parse
from tests.ingest.sources.mutants import check, mutants

REPOSITORY = {
    "name": "shop",
    "full_name": "acme/shop",
    "html_url": "https://github.com/acme/shop",
    "pushed_at": 1772359200,
    "owner": {"login": "acme"},
}
COMMON = {"repository": REPOSITORY, "sender": {"login": "ann"}}
PING = {"zen": "Keep it logically awesome.", "hook_id": 7, "hook": {"created_at": "2026-03-01T10:00:00Z"}, **COMMON}
PUSH = {
    "ref": "refs/heads/main",
    "before": "a" * 40,
    "after": "b" * 40,
    "compare": "https://github.com/acme/shop/compare/a...b",
    "commits": [{"id": "b" * 40}],
    "head_commit": {"message": "raise the limit", "timestamp": "2026-03-01T09:59:00+01:00"},
    "pusher": {"name": "ann"},
    **COMMON,
}
DEPLOYMENT = {
    "action": "created",
    "deployment_status": {
        "state": "success",
        "environment": "production",
        "updated_at": "2026-03-01T10:00:00Z",
        "target_url": "https://ci.example.org/7",
    },
    "deployment": {"id": 12, "sha": "b" * 40, "ref": "main", "task": "deploy", "environment": "production"},
    **COMMON,
}
WORKFLOW = {
    "action": "completed",
    "workflow_run": {
        "id": 30,
        "run_number": 4,
        "run_attempt": 1,
        "name": "deploy",
        "conclusion": "failure",
        "status": "completed",
        "head_branch": "main",
        "head_sha": "b" * 40,
        "html_url": "https://github.com/acme/shop/actions/runs/30",
        "updated_at": "2026-03-01T10:00:00Z",
    },
    **COMMON,
}
COMMENT = {
    "action": "created",
    "issue": {"number": 3, "title": "it is slow"},
    "comment": {"id": 9, "body": "me too", "created_at": "2026-03-01T10:00:00Z", "updated_at": "2026-03-01T10:00:00Z"},
    **COMMON,
}
ALERT = {
    "action": "created",
    "alert": {
        "number": 20,
        "state": "open",
        "dependency": {"package": {"ecosystem": "npm", "name": "left"}, "manifest_path": "package-lock.json"},
        "security_advisory": {"ghsa_id": "GHSA-aaaa-bbbb-cccc", "summary": "left is not right", "severity": "high"},
        "html_url": "https://github.com/acme/shop/security/dependabot/20",
        "created_at": "2026-03-01T10:00:00Z",
        "updated_at": "2026-03-01T10:00:00Z",
        "fixed_at": None,
    },
    **COMMON,
}
EVENTS = {
    "ping": PING,
    "push": PUSH,
    "deployment_status": DEPLOYMENT,
    "workflow_run": WORKFLOW,
    "issue_comment": COMMENT,
    "dependabot_alert": ALERT,
}


def read(event: str, body: Any, **headers: str) -> Any:
    """Parse an event as the header names it; an empty name is no header."""
    named = {"x-github-event": event} if event else {}
    (signal,) = parse(json.dumps(body).encode(), DeliveryFacts("github", headers={**named, **headers}))
    return signal


def alert(**changes: Any) -> Any:
    """Parse the scanner's alert, changed so."""
    return read("dependabot_alert", ALERT | {"alert": {**ALERT["alert"], **changes}})  # type: ignore[dict-item]


def test_a_ping_is_a_test() -> None:
    """The first word on a new hook never becomes more than a test."""
    assert read("ping", PING).test


def test_a_deployment_is_a_change_of_the_service_in_its_environment() -> None:
    """Each state of it is told once, and opens nothing."""
    signal = read("deployment_status", DEPLOYMENT)
    assert (signal.kind, signal.status, signal.status_raw) == (Kind.DEPLOYMENT, Status.OCCURRENCE, "success")
    assert [key.key for key in signal.targets] == ["svc:production/shop"]
    assert (signal.labels["version"], signal.labels["actor"]) == ("b" * 40, "ann")
    assert signal.event_time == 1772359200 * 10**9
    failed = read("deployment_status", DEPLOYMENT | {"deployment_status": {"state": "failure"}})
    assert failed.severity is Severity.ERROR
    assert failed.dedup_key != signal.dedup_key
    odd = read("deployment_status", DEPLOYMENT | {"deployment_status": {"state": "frobnicated"}})
    assert odd.severity is Severity.UNSPECIFIED


def test_a_push_is_a_change_of_what_may_be_deployed() -> None:
    """It names the ref and the commit, and opens nothing."""
    signal = read("push", PUSH)
    assert (signal.kind, signal.labels["sha"]) == (Kind.CONFIGURATION, "b" * 40)
    assert signal.dedup_key == f"acme/shop|push|refs/heads/main|{'b' * 40}|"


def test_a_workflow_says_how_it_ended() -> None:
    """A run is told under its id and attempt."""
    signal = read("workflow_run", WORKFLOW)
    assert (signal.kind, signal.severity, signal.status_raw) == (Kind.DEPLOYMENT, Severity.ERROR, "failure")
    assert signal.summary == "acme/shop: workflow deploy #4: failure"


def test_a_comment_is_a_note_about_nothing_that_runs() -> None:
    """What people write opens nothing and is no cause; the same comment again is the same."""
    signal = read("issue_comment", COMMENT)
    assert (signal.kind, signal.targets) == (Kind.NOTE, ())
    assert signal.dedup_key == read("issue_comment", COMMENT).dedup_key


def test_an_event_without_a_use_is_a_note_too() -> None:
    """A hook that sends everything makes no incidents; what has no id is told apart by the delivery."""
    body = {"action": "created", "starred_at": "x", **COMMON}
    first = read("star", body, **{"x-github-delivery": "d-1"})
    second = read("star", body, **{"x-github-delivery": "d-2"})
    assert first.kind is Kind.NOTE
    assert first.dedup_key != second.dedup_key


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("open", Status.FIRING),
        ("fixed", Status.RESOLVED),
        ("dismissed", Status.SUPPRESSED),
        ("auto_dismissed", Status.SUPPRESSED),
        ("frobnicated", Status.UNSPECIFIED),
        (None, Status.FIRING),
    ],
)
def test_a_scanners_alert_is_an_alert(state: str | None, status: Status) -> None:
    """Its number in the repository stays, whatever becomes of it."""
    signal = alert(state=state)
    assert (signal.kind, signal.status, signal.severity) == (Kind.ALERT, status, Severity.ERROR)
    assert signal.dedup_key == "acme/shop|dependabot_alert|20"
    assert signal.rule_name == "GHSA-aaaa-bbbb-cccc"


def test_the_body_tells_what_the_header_did_not() -> None:
    """Without X-GitHub-Event the shape decides, and that is said."""
    for event, body in EVENTS.items():
        guessed, named = read("", body), read(event, body)
        assert (guessed.kind, guessed.dedup_key, guessed.test) == (named.kind, named.dedup_key, named.test)
        assert "no x-github-event header" in guessed.warnings[0]


def test_a_form_holds_the_same() -> None:
    """GitHub can send the JSON in a form's field `payload`."""
    form = urlencode({"payload": json.dumps(PUSH)}).encode()
    facts = DeliveryFacts("github", "application/x-www-form-urlencoded", {"x-github-event": "push"})
    assert parse(form, facts)[0].dedup_key == read("push", PUSH).dedup_key
    for bad in (b"", b"a=b", b"payload=", b"\xff\xfe", b"&" * 50):
        with pytest.raises(Unreadable):
            parse(bad, facts)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"alert":{"number":1}}', b'{"x":1}', b'"push"'])
def test_what_is_not_githubs_is_unreadable(body: bytes) -> None:
    """A body without repository or organization is refused."""
    with pytest.raises(Unreadable):
        parse(body, DeliveryFacts("github"))


@pytest.mark.parametrize(
    ("action", "status"),
    [
        ("created", Status.FIRING),
        ("reopened", Status.FIRING),
        ("resolved", Status.RESOLVED),
        ("dismissed", Status.SUPPRESSED),
        ("frobnicated", Status.UNSPECIFIED),
    ],
)
def test_an_alert_without_a_state_is_told_by_the_action(action: str, status: Status) -> None:
    """Those of secrets name none; their kind of secret is what people read."""
    secret = {"number": 3, "secret_type": "acme_token", "secret_type_display_name": "Acme token"}
    signal = read("secret_scanning_alert", {**COMMON, "action": action, "alert": secret})
    assert (signal.status, signal.status_raw, signal.rule_name) == (status, action if status else "", "acme_token")
    assert signal.summary == "acme/shop: Acme token"


def test_a_note_of_a_code_scanner_is_info() -> None:
    """The least that a rule may be."""
    scanned = {"number": 4, "state": "open", "rule": {"id": "js/x", "severity": "note", "description": "a style"}}
    signal = read("code_scanning_alert", {**COMMON, "action": "created", "alert": scanned})
    assert (signal.severity, signal.severity_raw) == (Severity.INFO, "note")


def test_a_run_without_a_name_has_that_of_its_workflow() -> None:
    """Older runs have none."""
    run = {name: value for name, value in WORKFLOW["workflow_run"].items() if name != "name"}  # type: ignore[attr-defined]
    signal = read("workflow_run", {**WORKFLOW, "workflow_run": run, "workflow": {"name": "release"}})
    assert "workflow release" in signal.summary


def test_a_dismissed_alert_is_told_of_when_it_was_dismissed() -> None:
    """Older alerts have no time of their last change."""
    alert = {"number": 1, "state": "dismissed", "created_at": "2026-03-01T09:00:00Z"}
    body = {"action": "dismissed", "alert": {**alert, "dismissed_at": "2026-03-01T10:00:00Z"}, **COMMON}
    facts = DeliveryFacts("github", headers={"x-github-event": "repository_vulnerability_alert"})
    (signal,) = parse(json.dumps(body).encode(), facts)
    assert (signal.status, signal.event_time) == (Status.SUPPRESSED, 1_772_359_200_000_000_000)


@settings(max_examples=300, deadline=None)
@given(body=mutants(list(EVENTS.values())))
def test_any_damage_gives_signals_or_unreadable(body: bytes) -> None:
    """Whatever is left of a good event, the answer is bounded and soon."""
    check("github", body)
    check("github", body, "application/x-www-form-urlencoded")
