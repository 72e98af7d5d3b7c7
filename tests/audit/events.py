"""Audit events for tests."""

import uuid
from datetime import UTC, datetime

from opsmesh.audit.v1 import audit_service_pb2 as audit


def event(event_id: str = "", *, incident_id: str = "", phase: int = 1, note: str = "") -> audit.AuditEvent:
    """Return an event as a writer sends it; its time has nanoseconds, which no column holds."""
    made = audit.AuditEvent(
        event_id=event_id or str(uuid.uuid4()),
        phase=audit.AuditEvent.Phase.ValueType(phase),
        actor="human/operator",
        action="opsmesh.tools.workload.v1.WorkloadToolService/RestartWorkload",
        target="svc:demo/checkout",
        environment="demo",
        region="local",
        incident_id=incident_id,
        request_id=str(uuid.uuid4()),
        details={"note": note, "fence": "12"} if note else {},
    )
    made.event_time.FromDatetime(datetime.now(UTC))
    made.event_time.nanos += 7
    return made


def events(count: int) -> list[audit.AuditEvent]:
    """Return several."""
    return [event(note=str(number)) for number in range(count)]
