"""Stories that do not end with a restart: nobody knows the alert, policy only observes, a person must approve."""

from collections.abc import Mapping, Sequence

import pytest

from opsmesh.agents.v1 import model_service_pb2
from opsmesh.automation.v1 import automation_service_pb2
from opsmesh.guardrails.v1 import approval_service_pb2
from opsmesh.ingest.v1 import signal_pb2
from opsmesh.router.v1 import decision_service_pb2
from tests.flows.payloads import alertmanager, generic, grafana, now
from tests.flows.world import APPROVAL_SECONDS, RESTART, SPARE, Execution, Incident, World, until

Decision = decision_service_pb2.Decision
Step = automation_service_pb2.StepRecord
Approval = approval_service_pb2.Approval


async def unknown(world: World, name: str) -> Incident:
    """Post an alert that no rule knows; return its incident once a model or a person is awaited."""
    _, incident_id = await world.recorded(await world.accepted("alertmanager", alertmanager(now(), name=name)))
    return await world.reaches(incident_id, Incident.STATE_AWAITING_MODEL)


async def told(world: World, incident_id: str, kind: str) -> Sequence[Mapping[str, str]]:
    """Wait until a person was told of an incident; return all notices of KIND."""

    async def look() -> Sequence[Mapping[str, str]]:
        return [one for one in world.notices(incident_id) if one["kind"] == kind]

    return await until(look, f"a notice {kind}")


async def last_decision(world: World, incident_id: str, state: "Decision.State.ValueType") -> Decision:
    """Wait until the newest decision about an incident is in STATE."""

    async def look() -> Decision | None:
        newest = (await world.decisions(incident_id))[-1]
        return newest if newest.state == state else None

    found = await until(look, f"the last decision in {Decision.State.Name(state)}")
    assert found is not None
    return found


async def test_an_unknown_alert_waits_and_a_person_is_told_once(world: World) -> None:
    """Without rule and model an incident is AWAITING_MODEL with its age, one notice goes out, a person ends it."""
    incident = await unknown(world, "NobodyKnowsThis")
    assert "no rule" in incident.state_detail
    decision = await last_decision(world, incident.incident_id, Decision.STATE_AWAITING_MODEL)
    assert (decision.rule_id, decision.model_call_count) == ("", 0)
    (notice,) = await told(world, incident.incident_id, "PERSON_NEEDED")
    assert f"opsmesh decisions show {decision.decision_id}`: no rule matches" in notice["detail"]

    async def aged() -> bool:
        return (await world.incident(incident.incident_id)).age_seconds >= 1

    await until(aged, "an age")
    resolved = await world.resolve(incident.incident_id)
    assert resolved.state == Incident.STATE_RESOLVED
    closed = await last_decision(world, incident.incident_id, Decision.STATE_CLOSED)
    assert closed.outcome == Decision.OUTCOME_RESPOND
    assert {one.state for one in await world.decisions(incident.incident_id)} == {Decision.STATE_CLOSED}
    assert len(world.notices(incident.incident_id)) == 1


async def test_the_senders_resolve_closes_what_nobody_answered(world: World) -> None:
    """When the sender says it is over, an incident that waits for a model is resolved and its decision superseded."""
    started = now()
    body = alertmanager(started, name="GoesAwayByItself")
    _, incident_id = await world.recorded(await world.accepted("alertmanager", body))
    await world.reaches(incident_id, Incident.STATE_AWAITING_MODEL)
    over = alertmanager(started, name="GoesAwayByItself", over=True)
    assert await world.recorded(await world.accepted("alertmanager", over)) == ("JOINED", incident_id)
    incident = await world.reaches(incident_id, Incident.STATE_RESOLVED)
    assert not incident.firing
    # Superseding the first and making the second are one step.
    await last_decision(world, incident_id, Decision.STATE_CLOSED)
    first, second = await world.decisions(incident_id)
    assert (first.state, first.result) == (Decision.STATE_CLOSED, Decision.RESULT_SUPERSEDED)
    assert (second.outcome, second.result) == (Decision.OUTCOME_RESPOND, Decision.RESULT_RESPONDED)


async def test_observe_runs_the_reads_and_changes_nothing(world: World) -> None:
    """Where policy observes, execution and incident end OBSERVED, and nothing is restarted.

    A sender that fires anew without a resolve opens the next incident: the first one would swallow it.
    """
    starts = world.workloads[SPARE].start_count()
    await world.break_down(SPARE)
    signal_id = await world.accepted("alertmanager", alertmanager(now(), env="observed"))
    _, incident_id = await world.recorded(signal_id)
    await world.reaches(incident_id, Incident.STATE_OBSERVED)
    (decision,) = await world.decisions(incident_id)
    assert decision.result == Decision.RESULT_OBSERVED
    execution = await world.execution(decision.execution_id)
    assert execution.state == Execution.STATE_OBSERVED
    steps = {step.step_id: step for step in execution.steps}
    assert steps["check"].state == Step.STATE_SUCCEEDED
    assert steps["restart"].state == Step.STATE_OBSERVED
    assert "notify_failure" not in steps
    assert world.notices(incident_id) == []
    assert await world.events(incident_id, RESTART) == []
    signal_id = await world.accepted("alertmanager", alertmanager(now(), env="observed"))
    disposition, following = await world.recorded(signal_id)
    assert (disposition, following == incident_id) == ("OPENED", False)
    assert "fired anew" in (await world.reaches(incident_id, Incident.STATE_RESOLVED)).state_detail
    await world.reaches(following, Incident.STATE_OBSERVED)
    assert world.workloads[SPARE].start_count() == starts


async def test_an_approval_that_nobody_gives_expires_and_fails_the_step(world: World) -> None:
    """No answer means no: the step fails as APPROVAL_EXPIRED, people are told, and the incident is decided anew."""
    starts = world.workloads[SPARE].start_count()
    await world.break_down(SPARE)
    signal_id = await world.accepted("alertmanager", alertmanager(now(), env="production"))
    _, incident_id = await world.recorded(signal_id)
    await world.reaches(incident_id, Incident.STATE_AWAITING_APPROVAL)
    listed = approval_service_pb2.ListApprovalsRequest(incident_id=incident_id)
    (approval,) = (await world.stubs.approvals.ListApprovals(listed)).approvals
    assert (approval.state, approval.method) == (Approval.STATE_PENDING, RESTART)
    lifetime = approval.expire_time.ToDatetime() - approval.create_time.ToDatetime()
    assert lifetime.total_seconds() == pytest.approx(APPROVAL_SECONDS, abs=0.1)

    incident = await world.reaches(incident_id, Incident.STATE_AWAITING_MODEL, seconds=APPROVAL_SECONDS + 60)
    asked = approval_service_pb2.GetApprovalRequest(approval_id=approval.approval_id)
    assert (await world.stubs.approvals.GetApproval(asked)).approval.state == Approval.STATE_EXPIRED
    first, second = await world.decisions(incident_id)
    assert (first.result, second.rule_id, incident.revision) == (Decision.RESULT_FAILED, "", 2)
    execution = await world.execution(first.execution_id)
    assert execution.state == Execution.STATE_FAILED
    steps = {step.step_id: step for step in execution.steps}
    assert (steps["restart"].state, steps["restart"].reason) == (Step.STATE_FAILED, "APPROVAL_EXPIRED")
    assert steps["notify_failure"].state == Step.STATE_SUCCEEDED
    assert steps["verify"].state == Step.STATE_SKIPPED
    assert len(await told(world, incident_id, "FAILED")) == 1
    assert await world.events(incident_id, RESTART) == []
    assert world.workloads[SPARE].start_count() == starts


async def test_grafana_becomes_an_incident(world: World) -> None:
    """A notification of Grafana's unified alerting, posted with basic authentication, ends as an incident."""
    body = grafana(now(), "CheckoutLatencyHigh")
    _, incident_id = await world.recorded(await world.accepted("grafana", body))
    incident = await world.reaches(incident_id, Incident.STATE_AWAITING_MODEL)
    assert (incident.source, incident.rule_name) == ("grafana", "CheckoutLatencyHigh")
    assert incident.severity == signal_pb2.Signal.SEVERITY_CRITICAL


async def test_any_json_becomes_an_incident(world: World) -> None:
    """What a script posts to `generic` ends as an incident on the host it names, which the inventory does not know."""
    _, incident_id = await world.recorded(await world.accepted("generic", generic("disk almost full", "db-1")))
    incident = await world.reaches(incident_id, Incident.STATE_AWAITING_MODEL)
    assert (incident.source, incident.title) == ("generic", "disk almost full")
    assert [(one.target_id, one.in_inventory) for one in incident.targets] == [("host:db-1", False)]


async def test_without_a_model_the_mesh_is_automation_only(world: World) -> None:
    """Agents without a provider says so, and lists no model."""
    answer = await world.stubs.models.ListModels(model_service_pb2.ListModelsRequest())
    assert answer.automation_only
    assert list(answer.models) == []
