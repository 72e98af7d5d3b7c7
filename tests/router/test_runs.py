"""Runs that decisions start: exactly one for a failed execution, held by kills, and what people stopped is theirs."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from opsmesh.agents.v1 import agent_service_pb2
from opsmesh.automation.v1 import automation_service_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal
from services.router import work
from tests.mesh.world import World
from tests.router import minds
from tests.router.house import Decision, checkout_rules, incident
from tests.router.minds import TARGET, says
from tests.router.village import Scene, living, made, unknown
from tests.stores import Database

Execution = automation_service_pb2.Execution
KILL = "6f9d3a52-7a44-4f0e-8d8b-0a2c3a1f9b10"
KILLED = Refusal(error_reason_pb2.ERROR_REASON_KILLED, kill_id=KILL, scope="everything", target=TARGET)


@pytest.fixture
async def scene(world: World, postgres: Database) -> AsyncIterator[Scene]:
    """Give a router among its peers, with a rule that restarts."""
    async with postgres.fresh() as database, living(world, database) as running:
        await running.router.publish(checkout_rules())
        yield running


async def failed(scene: Scene, state: "Execution.State.ValueType" = Execution.STATE_FAILED, kill: str = "") -> Decision:
    """Return a decision of a rule whose execution has ended like this."""
    decision = await scene.village.decide(scene.router, incident())
    await scene.router.until(decision.decision_id, lambda one: one.execution_id)
    (execution,) = scene.village.automation.of(decision.decision_id, "restart-workload")
    execution.kill_id, execution.detail = kill, "step restart failed"
    execution.steps.add(step_id="restart", state=automation_service_pb2.StepRecord.STATE_FAILED, reason="NOT_HEALTHY")
    execution.state = state
    return await scene.router.until(decision.decision_id, lambda one: one.state == Decision.STATE_CLOSED)


@pytest.mark.parametrize("state", [Execution.STATE_FAILED, Execution.STATE_UNKNOWN, Execution.STATE_CANCELLED])
async def test_a_failed_execution_opens_exactly_one_run(scene: Scene, state: "Execution.State.ValueType") -> None:
    """Its next revision goes to diagnose-repair with the trace, the model is not asked what to do; replays add none."""
    scene.village.models.will(says(minds.RESPOND))
    first = await failed(scene, state)
    again = incident(2, first.incident_id)
    second = await scene.village.decide(scene.router, again)
    await asyncio.gather(*[scene.router.decide(again) for _ in range(10)])
    delegated = await scene.router.until(second.decision_id, lambda one: one.run_id)
    assert (delegated.outcome, delegated.template_id) == (Decision.OUTCOME_DELEGATE_AGENT, "diagnose-repair")
    (request,) = {one.request_id: one for one in scene.village.agents.requests}.values()
    assert request.execution_id == first.execution_id
    assert "step restart failed" in request.execution_trace
    assert "NOT_HEALTHY" in request.execution_trace
    assert scene.village.models.paid == []

    (run,) = scene.village.agents.runs.values()
    run.state = minds.Run.STATE_FAILED
    await scene.router.until(second.decision_id, lambda one: one.state == Decision.STATE_CLOSED)
    third = await scene.village.decide(scene.router, incident(3, first.incident_id))
    told = await scene.router.until(third.decision_id, made)
    assert told.outcome == Decision.OUTCOME_RESPOND
    assert len(scene.village.agents.runs) == 1
    assert len(scene.village.models.paid) == 1
    assert first.execution_id in scene.village.models.prompts[0]


@pytest.mark.parametrize("outcome", ["ESCALATED", "NOTHING_WRONG"])
async def test_a_run_that_hands_over_is_followed_by_a_person(scene: Scene, outcome: str) -> None:
    """The next revision asks a person, who is told; no model is asked and no other run is started.

    So it is when a run says that nothing is wrong, healthy or not: no text may talk an alert into silence.
    """
    scene.village.models.will(says(minds.DIAGNOSE))
    decision = await scene.village.decide(scene.router)
    await scene.router.until(decision.decision_id, lambda one: one.run_id)
    (run,) = scene.village.agents.runs.values()
    run.report.outcome = agent_service_pb2.RunReport.Outcome.Value(f"OUTCOME_{outcome}")
    run.state, run.health_proved = minds.Run.STATE_SUCCEEDED, outcome == "NOTHING_WRONG"
    first = await scene.router.until(decision.decision_id, lambda one: one.state == Decision.STATE_CLOSED)
    assert first.result == Decision.RESULT_ESCALATED
    asked = len(scene.village.models.paid)
    labels = {"alertname": "Other"}
    second = await scene.village.decide(scene.router, incident(2, first.incident_id, labels=labels))
    told = await scene.router.until(second.decision_id, lambda one: one.notice_execution_id)
    assert (told.state, told.outcome) == (Decision.STATE_DECIDED, Decision.OUTCOME_ASK_HUMAN)
    assert run.run_id in told.question.question
    assert len(scene.village.models.paid) == asked
    assert len(scene.village.agents.runs) == 1


async def test_without_its_template_it_waits_and_goes_on(scene: Scene) -> None:
    """A template that is disabled, or no model to ask, parks it; published again, the run is opened by itself."""
    scene.village.templates.changed = {"diagnose-repair"}
    scene.village.models.will(says(minds.RESPOND))
    first = await failed(scene)
    second = await scene.village.decide(scene.router, incident(2, first.incident_id))
    told = await scene.router.until(second.decision_id, lambda one: one.notice_execution_id)
    assert told.state == Decision.STATE_AWAITING_MODEL
    assert "no template diagnose-repair is published and enabled" in told.reason
    scene.village.templates.changed = set()
    await scene.router.pool.execute("UPDATE decisions SET resume_time = clock_timestamp() WHERE stage = 'PARKED'")
    await scene.router.until(second.decision_id, lambda one: one.run_id)
    assert len(scene.village.agents.runs) == 1


async def test_a_revision_that_comes_before_the_run_takes_its_place(scene: Scene) -> None:
    """A parked revision that is superseded hands the failed execution on; still one run, for the newer one."""
    first = await failed(scene)
    second = await scene.village.decide(scene.router, incident(2, first.incident_id))
    await scene.router.until(second.decision_id, lambda one: one.notice_execution_id)
    third = await scene.village.decide(scene.router, incident(3, first.incident_id))
    scene.village.models.will(says(minds.RESPOND))
    await scene.router.until(third.decision_id, lambda one: one.run_id)
    assert (await scene.router.decision(second.decision_id)).result == Decision.RESULT_SUPERSEDED
    (request,) = {one.request_id: one for one in scene.village.agents.requests}.values()
    assert (request.decision_id, request.execution_id) == (third.decision_id, first.execution_id)


@pytest.mark.parametrize("during", ["execution", "run"])
async def test_what_a_kill_ended_is_for_people(scene: Scene, during: str) -> None:
    """An execution or run that a kill stopped opens no run, and no model is asked: a person is told."""
    scene.village.models.will(says(minds.DIAGNOSE))
    if during == "execution":
        first = await failed(scene, Execution.STATE_CANCELLED, KILL)
    else:
        decision = await scene.village.decide(scene.router)
        await scene.router.until(decision.decision_id, lambda one: one.run_id)
        (run,) = scene.village.agents.runs.values()
        run.state, run.kill_id = minds.Run.STATE_CANCELLED, KILL
        first = await scene.router.until(decision.decision_id, lambda one: one.state == Decision.STATE_CLOSED)
    asked = len(scene.village.models.paid)
    second = await scene.village.decide(scene.router, incident(2, first.incident_id, labels={"alertname": "Other"}))
    told = await scene.router.until(second.decision_id, lambda one: one.notice_execution_id)
    assert told.state == Decision.STATE_AWAITING_MODEL
    assert "for people to say" in told.reason
    assert len(scene.village.models.paid) == asked
    assert len(scene.village.agents.runs) == (during == "run")


async def test_a_kill_holds_the_start_of_a_run(scene: Scene) -> None:
    """Refused with KILLED the decision is HELD; after the release its run is started once."""
    scene.village.models.will(says(minds.DIAGNOSE))
    scene.village.agents.refusal = KILLED
    scene.village.kills.holding = {KILL}
    decision = await scene.village.decide(scene.router)
    held = await scene.router.until(decision.decision_id, lambda one: one.held)
    assert KILL in held.reason
    scene.village.agents.refusal = None
    scene.village.kills.holding = set()
    started = await scene.router.until(decision.decision_id, lambda one: one.run_id)
    assert not started.held
    assert {one.request_id for one in scene.village.agents.requests} == {
        str(work.run_request_id(uuid.UUID(decision.decision_id)))
    }


async def test_a_run_that_is_refused_fails_its_decision(scene: Scene) -> None:
    """What agents refuse for good is FAILED with its words, so that a new revision can be decided."""
    scene.village.models.will(says(minds.DIAGNOSE))
    scene.village.agents.refusal = Refusal(
        error_reason_pb2.ERROR_REASON_TEMPLATE_DISABLED, template="diagnose-repair", tools="x"
    )
    decision = await scene.village.decide(scene.router)
    closed = await scene.router.until(decision.decision_id, lambda one: one.state == Decision.STATE_CLOSED)
    assert closed.result == Decision.RESULT_FAILED
    assert "template diagnose-repair is disabled" in closed.reason


async def test_a_run_that_is_lost_is_unknown(scene: Scene) -> None:
    """A run that agents does not know any more leaves nobody knowing what it did."""
    scene.village.models.will(says(minds.DIAGNOSE))
    decision = await scene.village.decide(scene.router, unknown())
    await scene.router.until(decision.decision_id, lambda one: one.run_id)
    scene.village.agents.runs.clear()
    closed = await scene.router.until(decision.decision_id, lambda one: one.state == Decision.STATE_CLOSED)
    assert closed.result == Decision.RESULT_UNKNOWN
