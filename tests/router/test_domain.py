"""What is decided on an incident, and what the answers of others mean for a decision."""

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from opsmesh.ingest.v1.ingest_service_pb2 import Incident
from opsmesh.ingest.v1.signal_pb2 import Signal
from services.router.deciding import decide
from services.router.domain import (
    Decision,
    History,
    Outcome,
    Result,
    Rule,
    Snapshot,
    Stage,
    State,
    decision_id,
    first_stage,
)
from services.router.messages import snapshot_of
from services.router.rules import Index
from services.router.work import Execution, Work, follow, notify_request_id, pause, start_request_id

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
INCIDENT = Snapshot(uuid.UUID(int=7), 1, {"severity": "critical"}, open_time=NOW - timedelta(seconds=5))
RESTART = Rule("restart", 1, Outcome.TRIGGER_AUTOMATION, {"severity": "critical"}, playbook_id="restart-workload")
INDEX = Index([RESTART], version=3)


def test_a_match_is_decided_at_once() -> None:
    """A rule that starts a playbook gives a decided verdict, with work for the starter."""
    verdict = decide(INCIDENT, INDEX, History(), NOW)
    assert (verdict.state, verdict.outcome, first_stage(verdict)) == (
        State.DECIDED,
        Outcome.TRIGGER_AUTOMATION,
        Stage.START,
    )
    assert (verdict.rule_id, verdict.rule_set_version, verdict.playbook_id) == ("restart", 3, "restart-workload")


@pytest.mark.parametrize(
    ("snapshot", "index", "history", "words"),
    [
        (replace(INCIDENT, facts={}), INDEX, History(), "no rule matches"),
        (replace(INCIDENT, readable=False), INDEX, History(), "could not be read"),
        (replace(INCIDENT, readable=False, firing=False), INDEX, History(), "could not be read"),
        (INCIDENT, Index(), History(), "no rule set is published"),
        (replace(INCIDENT, revision=2), INDEX, History(frozenset({"restart"}), 1), "not again: restart"),
    ],
)
def test_what_is_not_known_waits(snapshot: Snapshot, index: Index, history: History, words: str) -> None:
    """No match, an unreadable status, no rules and a rule that ran before leave the decision to model or person."""
    verdict = decide(snapshot, index, history, NOW)
    # What could not be read is nothing to reason about: people are told.
    assert (verdict.state, first_stage(verdict)) == (
        State.AWAITING_MODEL,
        Stage.MODEL if snapshot.readable else Stage.NOTIFY,
    )
    assert words in verdict.reason


@pytest.mark.parametrize("snapshot", [replace(INCIDENT, resolved=True), replace(INCIDENT, firing=False)])
def test_what_is_over_is_closed(snapshot: Snapshot) -> None:
    """A resolved incident, and one without a firing alert, are answered and closed."""
    verdict = decide(snapshot, INDEX, History(), NOW)
    assert (verdict.state, verdict.outcome, verdict.result) == (State.CLOSED, Outcome.RESPOND, Result.RESPONDED)


def test_an_occurrence_that_was_not_told_again_is_no_resolve() -> None:
    """Why it is over is said as ingest says it; while it fires, until when it is kept is no reason."""
    over = Incident(incident_id=str(INCIDENT.incident_id), status=Signal.STATUS_OCCURRENCE, state_detail="silence")
    over.expire_time.FromDatetime(NOW)
    assert decide(snapshot_of(over), INDEX, History(), NOW).reason == "silence"
    over.firing = True
    assert snapshot_of(over).why_over == ""
    over.firing = False
    over.ClearField("expire_time")
    assert decide(snapshot_of(over), INDEX, History(), NOW).reason == "the sender resolved every alert"


def test_an_old_incident_is_not_acted_on() -> None:
    """Beyond the rule's max_age the decision is closed as STALE and starts nothing."""
    old = replace(INCIDENT, open_time=NOW - timedelta(hours=1, seconds=1))
    verdict = decide(old, INDEX, History(), NOW)
    assert (verdict.state, verdict.result, first_stage(verdict)) == (State.CLOSED, Result.STALE, Stage.NONE)
    assert (verdict.rule_id, verdict.outcome) == ("restart", Outcome.UNSPECIFIED)


def test_a_late_revision_is_superseded() -> None:
    """A revision older than what was decided starts nothing."""
    verdict = decide(INCIDENT, INDEX, History(newest=2), NOW)
    assert (verdict.state, verdict.result, first_stage(verdict)) == (State.CLOSED, Result.SUPERSEDED, Stage.NONE)


def test_ids_follow_from_the_incident() -> None:
    """The same revision has the same decision id, the same decision the same request ids."""
    one = decision_id(INCIDENT.incident_id, 1)
    assert one == decision_id(INCIDENT.incident_id, 1) != decision_id(INCIDENT.incident_id, 2)
    assert start_request_id(one) == uuid.uuid5(one, "start") != notify_request_id(one)


def work(stage: Stage = Stage.FOLLOW, attempts: int = 1, *, awaiting: bool = False) -> Work:
    """Return a decision with a running execution, as a lane has it."""
    made = Decision(
        decision_id=decision_id(INCIDENT.incident_id, 1),
        incident_id=INCIDENT.incident_id,
        revision=1,
        state=State.DECIDED,
        outcome=Outcome.TRIGGER_AUTOMATION,
        result=Result.UNSPECIFIED,
        rule_id="restart",
        rule_set_version=3,
        playbook_id="restart-workload",
        reason="known",
        execution_id="e",
        notice_execution_id="",
        awaiting_approval=awaiting,
        create_time=NOW,
        close_time=None,
        age=timedelta(),
    )
    return Work(made, stage, attempts, "")


@pytest.mark.parametrize(
    ("state", "proved", "result"),
    [
        ("SUCCEEDED", True, Result.REPAIRED),
        ("SUCCEEDED", False, Result.SUCCEEDED),
        ("FAILED", True, Result.FAILED),
        ("CANCELLED", False, Result.CANCELLED),
        ("UNKNOWN", False, Result.UNKNOWN),
        ("OBSERVED", False, Result.OBSERVED),
    ],
)
def test_the_end_of_an_execution_closes_its_decision(state: str, proved: bool, result: Result) -> None:  # noqa: FBT001
    """Only a success with a passing health read is a repair."""
    step = follow(work(), Execution("e", state, proved))
    assert (step.stage, step.state, step.result) == (Stage.NONE, State.CLOSED, result)


def test_a_waiting_approval_is_news() -> None:
    """The decision says that the execution waits for a person, and looks soon again; without news ever later."""
    step = follow(work(attempts=9), Execution("e", "AWAITING_APPROVAL"))
    assert (step.awaiting_approval, step.news, step.delay) == (True, True, 0.1)
    still = follow(work(attempts=9, awaiting=True), Execution("e", "AWAITING_APPROVAL"))
    assert not still.news
    assert 0.1 < still.delay < 5


def test_the_pause_is_bounded() -> None:
    """From 100 ms to 5 s, never longer."""
    assert pause(0) == pytest.approx(0.1)
    assert pause(10_000) == 5.0
