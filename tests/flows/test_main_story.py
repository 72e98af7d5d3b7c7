"""The main story: one real alert, from webhook to a repaired workload, provable afterwards."""

import asyncio
from datetime import UTC, datetime

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from opsmesh.audit.v1 import audit_service_pb2
from opsmesh.automation.v1 import automation_service_pb2
from opsmesh.router.v1 import decision_service_pb2
from services.audit import chain
from services.local.demo import TARGET
from services.local.demo import alert as demo_alert
from tests.flows.payloads import alertmanager, now
from tests.flows.world import RESTART, Event, Incident, World, until

Decision = decision_service_pb2.Decision
Step = automation_service_pb2.StepRecord
TRAIL = [(Event.PHASE_INTENT, Event.OUTCOME_UNSPECIFIED), (Event.PHASE_OUTCOME, Event.OUTCOME_SUCCEEDED)]


async def trail(world: World, incident_id: str, count: int = 2) -> list[Event]:
    """Wait for the audit events of the restarts on an incident."""

    async def look() -> list[Event] | None:
        found = list(await world.events(incident_id, RESTART))
        return found if len(found) >= count else None

    found = await until(look, f"{count} audit events of the restart")
    assert found is not None
    return found


async def test_an_alert_is_repaired_once(world: World) -> None:
    """Three posts of one alert are three accepted signals, one incident, one rule, one restart and one proof of it."""
    workload = world.workloads["checkout"]
    starts = workload.start_count()
    await world.break_down("checkout")
    body = demo_alert(now())
    answers = [await world.post("alertmanager", body) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 202]
    signals = [answer.json()["results"][0]["signal_id"] for answer in answers]
    rows = [await world.recorded(one) for one in signals]
    assert sorted(disposition for disposition, _ in rows) == ["DUPLICATE", "DUPLICATE", "OPENED"]
    (incident_id,) = {incident for _, incident in rows}

    incident = await world.reaches(incident_id, Incident.STATE_RESOLVED)
    assert await world.health("checkout") == httpx.codes.OK
    assert workload.start_count() == starts + 1
    assert (incident.signal_count, incident.duplicate_count) == (3, 2)
    assert [(one.target_id, one.environment, one.in_inventory) for one in incident.targets] == [(TARGET, "demo", True)]

    (decision,) = await world.decisions(incident_id)
    assert decision.decision_id == incident.decision_id
    assert (decision.rule_id, decision.rule_set_version, decision.model_call_count) == ("checkout-down", 1, 0)
    assert (decision.state, decision.result) == (Decision.STATE_CLOSED, Decision.RESULT_REPAIRED)

    execution = await world.execution(decision.execution_id)
    assert (execution.playbook_id, execution.state) == ("restart-workload", execution.STATE_SUCCEEDED)
    assert execution.health_proved
    assert [step.step_id for step in execution.steps] == ["check", "restart", "verify", "notify"]
    assert {step.state for step in execution.steps} == {Step.STATE_SUCCEEDED}
    assert [one["kind"] for one in world.notices(incident_id)] == ["REPAIRED"]

    events = await trail(world, incident_id)
    assert [(event.phase, event.outcome) for event in events] == TRAIL
    for event in events:
        assert (event.actor, event.target, event.environment) == ("service/automation", TARGET, "demo")
        assert (event.decision_id, event.execution_id) == (decision.decision_id, execution.execution_id)
        assert event.rule_set_version == 1
        assert event.policy_set_version == 1


async def test_the_trail_of_a_restart_carries_the_senders_trace(world: World) -> None:
    """The trace id of the webhook is found in intent and outcome of the restart it led to."""
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    await world.break_down("checkout")
    header = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    signal_id = await world.accepted("alertmanager", alertmanager(now()), header)
    _, incident_id = await world.recorded(signal_id)
    await world.reaches(incident_id, Incident.STATE_RESOLVED)
    assert {event.trace_id for event in await trail(world, incident_id)} == {trace_id}


async def test_an_alert_after_the_repair(world: World) -> None:
    """The same firing again is a duplicate of the resolved incident; a later one opens a new incident."""
    started = now()
    _, first = await world.recorded(await world.accepted("alertmanager", alertmanager(started)))
    await world.reaches(first, Incident.STATE_RESOLVED)
    again = await world.recorded(await world.accepted("alertmanager", alertmanager(started)))
    assert again == ("DUPLICATE", first)
    assert (await world.incident(first)).state == Incident.STATE_RESOLVED
    disposition, second = await world.recorded(await world.accepted("alertmanager", alertmanager(now())))
    assert disposition == "OPENED"
    assert second != first
    await world.reaches(second, Incident.STATE_RESOLVED)


async def test_a_healthy_workload_is_left_alone(world: World) -> None:
    """When the health check passes there is nothing to restart, and that is what the record says."""
    starts = world.workloads["checkout"].start_count()
    _, incident_id = await world.recorded(await world.accepted("alertmanager", alertmanager(now())))
    incident = await world.reaches(incident_id, Incident.STATE_RESOLVED)
    decision = (await world.decisions(incident_id))[0]
    execution = await world.execution(decision.execution_id)
    states = {step.step_id: Step.State.Name(step.state) for step in execution.steps}
    assert states == {
        "check": "STATE_SUCCEEDED",
        "restart": "STATE_SKIPPED",
        "verify": "STATE_SUCCEEDED",
        "notify": "STATE_SKIPPED",
    }
    assert incident.decision_id == decision.decision_id
    assert world.workloads["checkout"].start_count() == starts


async def test_the_log_proves_itself(world: World) -> None:
    """The exported log verifies offline against the checkpoints that audit keeps outside the database."""
    await world.stubs.audit.GetCheckpoint(audit_service_pb2.GetCheckpointRequest())
    events: list[audit_service_pb2.ExportedEvent] = []
    async for page in world.stubs.audit.ExportEvents(audit_service_pb2.ExportEventsRequest()):
        events += page.events
    pem = await asyncio.to_thread((world.mesh.pki / "log.key").read_bytes)
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, Ed25519PrivateKey)
    checkpoints = chain.read_checkpoints(world.mesh.state / "audit" / "checkpoints.jsonl", key.public_key())
    report = chain.verify(events, checkpoints, datetime.now(UTC))
    assert list(report.findings) == []
    assert report.covered > 0
    assert report.events == report.head
