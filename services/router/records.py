"""What audit learns of decisions."""

import uuid

from opsmesh.audit.v1 import audit_service_pb2
from services.mesh.writes import Event, Subject, event
from services.router.domain import Brake, Decision, Snapshot


def decided(snapshot: Snapshot, decision: Decision) -> audit_service_pb2.AuditEvent:
    """Return the record of a decision; the same decision has the same event_id."""
    subject = Subject(
        target=snapshot.facts.get("target", ""),
        environment=snapshot.facts.get("environment", ""),
        region=snapshot.facts.get("region", ""),
        incident_id=str(decision.incident_id),
        decision_id=str(decision.decision_id),
        rule_set_version=decision.rule_set_version,
        detail=_detail(decision),
    )
    event_id = uuid.uuid5(decision.decision_id, "record")
    return event(Event.PHASE_RECORD, Event.OUTCOME_SUCCEEDED, subject, event_id=event_id)


def made(decision: Decision) -> audit_service_pb2.AuditEvent:
    """Return the record of what was decided later about what no rule knew; figures and names, no text of a model."""
    event_id = uuid.uuid5(decision.decision_id, "record/made")
    return event(Event.PHASE_RECORD, Event.OUTCOME_SUCCEEDED, subject_of(decision), event_id=event_id)


def subject_of(decision: Decision) -> Subject:
    """Return what a later write on a decision is about."""
    return Subject(
        incident_id=str(decision.incident_id),
        decision_id=str(decision.decision_id),
        rule_set_version=decision.rule_set_version,
        detail=_detail(decision),
    )


def _detail(decision: Decision) -> dict[str, str]:
    detail = {
        "outcome": str(decision.outcome),
        "state": str(decision.state),
        "result": str(decision.result),
        "revision": str(decision.revision),
        "rule_id": decision.rule_id,
        "playbook_id": decision.playbook_id,
        "template_id": decision.template_id,
        "conversation_id": decision.order.conversation_id,
        "cause_execution_id": decision.order.cause,
        "model_call_count": str(decision.model_call_count or ""),
        "brake": "" if decision.brake is Brake.UNSPECIFIED else str(decision.brake),
    }
    return {name: value for name, value in detail.items() if value}
