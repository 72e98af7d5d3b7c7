"""What earlier revisions of an incident say about the next one: an end holds until there is another, pure."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.router.domain import Brake, Decision, History, Outcome, Result, Snapshot, State
from services.router.rows import history_of

INCIDENT = uuid.UUID(int=5)
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def decision(revision: int, **changes: Any) -> Decision:
    """Return a question to people that nobody answered."""
    values: dict[str, Any] = {
        "decision_id": uuid.uuid4(),
        "incident_id": INCIDENT,
        "revision": revision,
        "state": State.DECIDED,
        "outcome": Outcome.ASK_HUMAN,
        "result": Result.UNSPECIFIED,
        "rule_id": "",
        "rule_set_version": 1,
        "playbook_id": "",
        "reason": "",
        "execution_id": "",
        "notice_execution_id": "",
        "awaiting_approval": False,
        "create_time": NOW,
        "close_time": None,
        "age": timedelta(),
        "held": False,
        "held_by": "",
        "held_words": "",
        "held_time": None,
        "max_age": timedelta(seconds=60),
    }
    return Decision(**(values | changes))


def ended(revision: int, result: Result, **changes: Any) -> Decision:
    """Return an execution that ended so."""
    values = {"outcome": Outcome.TRIGGER_AUTOMATION, "execution_id": "e-1", "playbook_id": "restart", "rule_id": "r"}
    return decision(revision, state=State.CLOSED, result=result, **(values | changes))


def after(*known: Decision) -> History:
    """Return what the next revision finds."""
    return history_of(known, Snapshot(INCIDENT, len(known) + 1, {}))


@pytest.mark.parametrize("brake", [Brake.FLAPPING, Brake.CAP, Brake.UNSPECIFIED])
def test_what_people_stopped_stays_theirs_behind_an_open_question(brake: Brake) -> None:
    """Neither a brake nor a question without an answer hides that a kill ended what was done; an end does."""
    killed = ended(1, Result.CANCELLED, killed=True)
    assert after(killed, decision(2, brake=brake)).killed
    assert after(killed, decision(2, brake=brake, state=State.CLOSED, result=Result.SUPERSEDED), decision(3)).killed
    assert not after(killed, decision(2, state=State.CLOSED, result=Result.RESPONDED)).killed


def test_a_run_that_left_it_to_people_is_remembered_behind_a_brake() -> None:
    """An incident that flapped meanwhile is not handed to the next agent."""
    escalated = ended(1, Result.ESCALATED, outcome=Outcome.DELEGATE_AGENT, execution_id="", run_id="run-1")
    assert after(escalated, decision(2, brake=Brake.FLAPPING)).escalated == "run-1"


@pytest.mark.parametrize(
    ("known", "told"),
    [
        ([decision(1, brake=Brake.FLAPPING, notice_execution_id="n")], True),
        ([decision(1, brake=Brake.FLAPPING, notice_execution_id="n"), decision(2, brake=Brake.FLAPPING)], True),
        ([decision(1, brake=Brake.FLAPPING)], False),
        ([decision(1, brake=Brake.FLAPPING, notice_execution_id="n"), decision(2)], False),
        ([decision(1, notice_execution_id="n")], False),
    ],
    ids=["told", "told once, quiet since", "nobody could be told yet", "calm in between", "told of something else"],
)
def test_quiet_is_only_what_people_were_told(known: list[Decision], told: bool) -> None:  # noqa: FBT001  a parameter
    """A notice that was superseded before it was sent is sent with the next revision."""
    assert after(*known).flapping is told
