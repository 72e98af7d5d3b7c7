"""Pure facts: paths, request ids, whose turn it is, what a refusal means."""

import pytest

from services.automation.domain import (
    Order,
    Part,
    Path,
    PathError,
    StepState,
    is_target,
    may_run,
    parse_path,
    request_id,
)
from services.mesh.failures import After, after_failure, sentence

EXECUTION = "7f3f1a52-59a3-4e0b-8b9c-2f8f6a9c1d11"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("incident.title", Path(None, (Part("title"),))),
        ('incident.labels["k8s.io/app"]', Path(None, (Part("labels", key="k8s.io/app"),))),
        ("incident.targets[1]", Path(None, (Part("targets", 1), Part("target_id")))),
        ("incident.targets[0].region", Path(None, (Part("targets", 0), Part("region")))),
        ("incident.environment", Path(None, (Part("targets", 0), Part("environment")))),
        ("execution.note", Path(None, (Part("note"),), of_start=True)),
        ("steps.check.healthy", Path("check", (Part("healthy"),))),
        ("steps.find.hits[0].runbook.title", Path("find", (Part("hits", 0), Part("runbook"), Part("title")))),
    ],
)
def test_paths(text: str, path: Path) -> None:
    """A path is a root, then fields with an index or a key."""
    assert parse_path(text) == path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "incident",
        "incident.",
        "incident..title",
        "incident.title.",
        "incident.links[0].url",
        "incident.correlation_key",
        "incident.labels[team]",
        'incident.labels["a"b"]',
        'incident["x"].title',
        "steps.check",
        "steps.check[0].healthy",
        "steps",
        "environment.HOME",
        "execution",
        "execution.identity_token",
        "incident.title; drop",
        "incident.targets[99999]",
        " incident.title",
    ],
)
def test_no_paths(text: str) -> None:
    """Everything else is no path."""
    with pytest.raises(PathError):
        parse_path(text)


def test_target_paths() -> None:
    """Only a canonical id out of incident.targets names a target."""
    assert is_target(parse_path("incident.targets[0]"))
    assert is_target(parse_path("incident.targets[0].target_id"))
    assert not is_target(parse_path("incident.targets[0].raw_key"))
    assert not is_target(parse_path("steps.a.target_id"))


def test_request_ids() -> None:
    """A try has one id for ever; another try, step or execution has another."""
    assert request_id(EXECUTION, "restart", 1) == request_id(EXECUTION, "restart", 1)
    assert len({request_id(EXECUTION, step, n) for step in ("restart", "restart.undo") for n in (1, 2)}) == 4


@pytest.mark.parametrize(
    ("step", "states", "allowed"),
    [
        ("a", {}, True),
        ("b", {}, False),
        ("b", {"a": StepState.SUCCEEDED}, True),
        ("b", {"a": StepState.SKIPPED}, True),
        ("b", {"a": StepState.FAILED}, False),
        ("a.undo", {"a": StepState.SUCCEEDED}, False),
        ("a.undo", {"a": StepState.SUCCEEDED, "b": StepState.FAILED}, True),
        ("a.undo", {"a": StepState.SKIPPED, "b": StepState.FAILED}, False),
        ("a.undo", {"a": StepState.SUCCEEDED, "b": StepState.UNKNOWN}, False),
        ("last", {"a": StepState.SUCCEEDED}, False),
        ("last", {"a": StepState.FAILED}, True),
        ("last", {"a": StepState.OBSERVED}, False),
        ("stranger", {"a": StepState.SUCCEEDED, "b": StepState.SUCCEEDED}, False),
    ],
)
def test_turns(step: str, states: dict[str, StepState], allowed: bool) -> None:  # noqa: FBT001  a table
    """A step runs after those before it; undoing and the failure step only after a failure."""
    assert may_run(step, Order(["a", "b"], "last"), states) is allowed


def test_tolerated_failure() -> None:
    """A failure that is tolerated neither ends the steps nor starts the undoing."""
    order = Order(["prove", "tell", "more"], "last", frozenset({"tell", "more"}))
    states = {"prove": StepState.SUCCEEDED, "tell": StepState.FAILED}
    assert may_run("more", order, states)
    assert not may_run("last", order, states)


@pytest.mark.parametrize(
    ("reason", "status", "effect", "after"),
    [
        ("LEASE_STALE", "UNAVAILABLE", True, After.AGAIN),
        ("AUDIT_UNAVAILABLE", "UNAVAILABLE", True, After.AGAIN),
        ("EFFECT_IN_FLIGHT", "ABORTED", True, After.AGAIN),
        ("LOCK_HELD", "ABORTED", False, After.AGAIN),
        ("GRANT_STALE", "ABORTED", True, After.AUTHORISE),
        ("EFFECT_FAILED", "FAILED_PRECONDITION", True, After.RETRY),
        ("BACKEND_MISSING", "FAILED_PRECONDITION", True, After.FAIL),
        ("STATE_CHANGED", "FAILED_PRECONDITION", True, After.RETRY),
        ("EFFECT_UNKNOWN", "UNKNOWN", True, After.UNKNOWN),
        ("POLICY_DENIED", "PERMISSION_DENIED", False, After.FAIL),
        ("REQUEST_ID_REUSED", "ALREADY_EXISTS", True, After.FAIL),
        ("a reason of a later version", "FAILED_PRECONDITION", True, After.FAIL),
        ("", "UNAVAILABLE", True, After.AGAIN),
        ("", "UNKNOWN", True, After.AGAIN),
        ("", "PERMISSION_DENIED", True, After.FAIL),
        ("", "DEADLINE_EXCEEDED", True, After.AGAIN),
        ("", "DEADLINE_EXCEEDED", False, After.RETRY),
    ],
)
def test_failures(reason: str, status: str, effect: bool, after: After) -> None:  # noqa: FBT001  a table
    """A failed call means what its reason says; an effect without an answer is asked for again, never anew."""
    assert after_failure(reason, status, effect=effect) is after


def test_sentences() -> None:
    """A text within its bound is unchanged, a longer one shows that it was cut."""
    assert sentence("abc", 3) == "abc"
    assert sentence("abcd", 3) == "ab…"
