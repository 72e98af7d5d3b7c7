"""What decisions start, follow and tell, while automation and agents are slow, dead, late or forgetful."""

import asyncio
import uuid
from functools import partial

import pytest

from opsmesh.automation.v1 import automation_service_pb2
from opsmesh.config.v1 import rules_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.mesh import policy
from services.mesh.errors import Refusal
from services.router import lanes
from services.router.work import notify_request_id, start_request_id
from tests.router.house import Decision, Router, Town, checkout_rules, incident, rule

Execution = automation_service_pb2.Execution


async def test_a_match_is_started_followed_and_closed(router: Router, town: Town) -> None:
    """The execution's end is the decision's: repaired, because a health read proved it."""
    await router.publish(checkout_rules())
    (decision,) = await router.decide(incident())
    started = await router.until(decision.decision_id, lambda one: one.execution_id)
    (execution,) = town.automation.of(decision.decision_id, "restart-workload")
    assert started.execution_id == execution.execution_id
    (request,) = town.automation.requests
    assert request.request_id == str(start_request_id(uuid.UUID(decision.decision_id)))
    assert request.rule_set_version == 1

    execution.state = Execution.STATE_AWAITING_APPROVAL
    waiting = await router.until(decision.decision_id, lambda one: one.awaiting_approval)
    assert waiting.state == Decision.STATE_DECIDED
    execution.state = Execution.STATE_RUNNING
    await router.until(decision.decision_id, lambda one: not one.awaiting_approval)
    execution.state, execution.health_proved = Execution.STATE_SUCCEEDED, True
    closed = await router.until(decision.decision_id, lambda one: one.state == Decision.STATE_CLOSED)
    assert closed.result == Decision.RESULT_REPAIRED
    assert not closed.awaiting_approval


async def test_a_start_waits_for_no_period(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the question to the started playbook nobody waits for the next look of a lane: each is woken."""
    monkeypatch.setattr(lanes, "PERIOD", 300.0)
    async with town.serve_automation(), town.serve_agents(), town.serve_audit(), town.router() as router:
        await router.publish(checkout_rules())
        for _ in range(3):
            (decision,) = await router.decide(incident())
            await router.until(decision.decision_id, lambda one: one.execution_id)


async def test_a_lost_reply_is_asked_for_again_with_the_same_request_id(router: Router, town: Town) -> None:
    """Automation started the playbook and its answers were lost: asked again, it is the same execution."""
    await router.publish(checkout_rules())
    town.automation.lost = 6
    (decision,) = await router.decide(incident())
    await router.until(decision.decision_id, lambda one: one.execution_id)
    assert len(town.automation.requests) == 7
    assert len({one.request_id for one in town.automation.requests}) == 1
    assert len(town.automation.of(decision.decision_id, "restart-workload")) == 1


async def test_automation_that_comes_late_is_waited_for(town: Town) -> None:
    """With automation dead decisions are made at once; when it comes, what they want is started."""
    async with town.serve_agents(), town.serve_audit():
        async with town.serve_automation(), town.router() as router:
            await router.publish(checkout_rules())
        async with town.router() as router:
            decisions = [(await router.decide(incident()))[0] for _ in range(10)]
            assert {one.state for one in decisions} == {Decision.STATE_DECIDED}
            async with town.serve_automation():
                for one in decisions:
                    await router.until(one.decision_id, lambda now: now.execution_id)
    assert len(town.automation.executions) == 10


async def test_a_stuck_automation_delays_no_decision(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """While every call to automation hangs, DecideIncident answers as ever; afterwards all is started, once."""
    # Whoever waited for such a call would wait longer than this test may take.
    monkeypatch.setattr(lanes, "Job", partial(lanes.Job, seconds=300.0))
    async with town.serve_automation(), town.serve_agents(), town.serve_audit(), town.router() as router:
        await router.publish(checkout_rules())
        town.automation.open.clear()
        (first,) = await router.decide(incident())
        await town.automation.entered.wait()
        batches = await asyncio.gather(*[router.decide(*[incident() for _ in range(8)]) for _ in range(8)])
        town.automation.open.set()
        wanted = [first, *[one for batch in batches for one in batch]]
        for one in wanted:
            await router.until(one.decision_id, lambda now: now.execution_id)
    assert len(town.automation.executions) == len(wanted)


async def test_a_stuck_model_lane_delays_no_match(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """While agents hangs, for longer than is waited here, over more than its lane takes, matches are started."""
    # No call ends at the policy's time: what hangs does so for the two minutes that the lane gives it.
    monkeypatch.setattr(policy, "seconds", lambda _: 300.0)
    async with town.serve_automation(), town.serve_agents(), town.serve_audit(), town.router() as router:
        await router.publish(checkout_rules())
        town.models.open.clear()
        unmatched = await router.decide(*[incident(labels={"alertname": "New"}) for _ in range(20)])
        await town.models.entered.wait()
        (decision,) = await router.decide(incident())
        await router.until(decision.decision_id, lambda one: one.execution_id)
        for one in unmatched:
            assert (await router.decision(one.decision_id)).state == Decision.STATE_AWAITING_MODEL
        town.models.open.set()
        for one in unmatched:
            await router.until(one.decision_id, lambda now: now.notice_execution_id)


async def test_a_person_is_told_once_about_what_no_rule_knows(router: Router, town: Town) -> None:
    """Without a model the decision stays AWAITING_MODEL and one notice goes out, even when its answer is lost."""
    await router.publish(checkout_rules())
    town.automation.lost = 5
    (decision,) = await router.decide(incident(labels={"alertname": "New"}))
    told = await router.until(decision.decision_id, lambda one: one.notice_execution_id)
    assert told.state == Decision.STATE_AWAITING_MODEL
    assert "no rule matches; no model is configured; a person is notified" in told.reason
    assert {one.request_id for one in town.automation.requests} == {
        str(notify_request_id(uuid.UUID(decision.decision_id)))
    }
    assert len(town.automation.of(decision.decision_id, "notify-person")) == 1
    shown = f"See `opsmesh decisions show {decision.decision_id}`"
    assert {one.note for one in town.automation.requests} == {f"{shown}: no rule matches"}


async def test_a_person_is_told_although_agents_is_dead(town: Town) -> None:
    """When agents does not answer, a person is told all the same."""
    async with town.serve_automation(), town.serve_audit(), town.router() as router:
        (decision,) = await router.decide(incident())
        told = await router.until(decision.decision_id, lambda one: one.notice_execution_id)
    assert "agents does not answer" in told.reason


async def test_a_question_is_put_to_a_person(router: Router, town: Town) -> None:
    """A rule that asks a person starts the notice and nothing else, and stays open."""
    await router.publish(checkout_rules(rule("Ask", ask_human=rules_pb2.AskHuman(question="is it planned?"))))
    (decision,) = await router.decide(incident(labels={"alertname": "Ask"}))
    told = await router.until(decision.decision_id, lambda one: one.notice_execution_id)
    assert (told.state, told.reason, told.execution_id) == (Decision.STATE_DECIDED, "is it planned?", "")
    (request,) = town.automation.requests
    assert request.playbook_id == "notify-person"
    command = f"opsmesh decisions answer {decision.decision_id} TEXT"
    assert request.note == f"Answer with `{command}`: is it planned? (some words, at most 500 characters)"


async def test_a_refused_start_closes_the_decision(router: Router, town: Town) -> None:
    """What automation refuses for good is FAILED with its words, so that a new revision can be decided."""
    await router.publish(checkout_rules())
    town.automation.refusal = Refusal(
        error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="playbook", id="restart-workload"
    )
    (decision,) = await router.decide(incident())
    closed = await router.until(decision.decision_id, lambda one: one.state == Decision.STATE_CLOSED)
    assert closed.result == Decision.RESULT_FAILED
    assert "there is no playbook restart-workload" in closed.reason


async def test_a_superseded_decision_keeps_what_it_started(router: Router, town: Town) -> None:
    """A start that was under way when a newer revision came is on record, and the decision stays closed."""
    await router.publish(checkout_rules())
    town.automation.open.clear()
    (decision,) = await router.decide(incident())
    await town.automation.entered.wait()
    await router.decide(incident(2, decision.incident_id, firing=False))
    town.automation.open.set()
    kept = await router.until(decision.decision_id, lambda one: one.execution_id)
    assert (kept.state, kept.result) == (Decision.STATE_CLOSED, Decision.RESULT_SUPERSEDED)


async def test_two_replicas_share_the_work(router: Router, town: Town) -> None:
    """With two replicas every playbook is started once."""
    await router.publish(checkout_rules())
    async with town.router() as other:
        await other.book.refresh()
        batches = await asyncio.gather(
            *[one.decide(*[incident() for _ in range(10)]) for one in (router, other) for _ in range(2)]
        )
        for one in [one for batch in batches for one in batch]:
            await router.until(one.decision_id, lambda now: now.execution_id)
    assert len(town.automation.requests) == 40
