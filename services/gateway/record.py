"""What the gateway tells audit: an acknowledged intent before each effect, its outcome after it."""

from dataclasses import dataclass
from typing import Final, Protocol

import grpc
import structlog

from opsmesh.audit.v1 import audit_service_pb2 as pb
from opsmesh.audit.v1 import audit_service_pb2_grpc as rpc
from opsmesh.guardrails.v1 import grant_pb2
from opsmesh.policy.v1 import policy_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.gateway.domain import DETAIL_MAX, Effect, Ending, Key, State, intent_id, outcome_id
from services.mesh.errors import Refusal

INTENT_SECONDS: Final = 5.0
WRITER: Final = "service/gateway"
# Every intent ends as done, failed or unknown: what was refused after it did not happen, so it failed.
OUTCOMES: Final = {
    State.SUCCEEDED: pb.AuditEvent.OUTCOME_SUCCEEDED,
    State.FAILED: pb.AuditEvent.OUTCOME_FAILED,
    State.UNKNOWN: pb.AuditEvent.OUTCOME_UNKNOWN,
    State.NOT_STARTED: pb.AuditEvent.OUTCOME_FAILED,
}
log = structlog.get_logger("opsmesh.gateway.record")


@dataclass(frozen=True, slots=True)
class Try:
    """One try of an effect, as audit knows it."""

    key: Key
    tries: int
    caller: str
    digest: bytes
    trace_id: str
    grant: grant_pb2.Grant

    @classmethod
    def of(cls, effect: Effect) -> "Try":
        """Return the try that an effect's row stands for."""
        grant = grant_pb2.Grant.FromString(effect.authority)
        return cls(effect.key, effect.tries, effect.caller, effect.digest, effect.trace_id, grant)

    def intent(self) -> pb.AuditEvent:
        """Return the event that must be acknowledged before the act."""
        return self._event(str(intent_id(self.key, self.tries)), pb.AuditEvent.PHASE_INTENT)

    def outcome(self, ending: Ending) -> pb.AuditEvent:
        """Return the event that ends the intent."""
        event = self._event(str(outcome_id(self.key, self.tries)), pb.AuditEvent.PHASE_OUTCOME)
        return _ended(event, ending)

    def record(self, ending: Ending) -> pb.AuditEvent:
        """Return the single event of a tool that needs no intent."""
        event = self._event(str(intent_id(self.key, self.tries)), pb.AuditEvent.PHASE_RECORD)
        return _ended(event, ending)

    def _event(self, event_id: str, phase: "pb.AuditEvent.Phase.ValueType") -> pb.AuditEvent:
        """Return what every event of this try says."""
        grant = self.grant
        event = pb.AuditEvent(
            event_id=event_id,
            phase=phase,
            actor=self.caller,
            on_behalf_of=grant.on_behalf_of,
            action=self.key.method,
            target=grant.target_id,
            environment=grant.environment,
            region=grant.region,
            incident_id=grant.incident_id,
            decision_id=grant.decision_id,
            execution_id=grant.execution_id,
            step_id=grant.step_id,
            rule_set_version=grant.rule_set_version,
            policy_set_version=grant.policy_set_version,
            request_id=str(self.key.request_id),
            request_digest=self.digest.hex(),
            trace_id=self.trace_id,
            details={
                "grant_id": grant.grant_id,
                "approval_id": grant.approval_id,
                "risk": policy_pb2.Risk.Name(grant.risk),
                "fence": str(grant.fence),
                "try": str(self.tries),
            },
        )
        for name, value in grant.precondition.items():
            event.details[f"precondition.{name}"[:64]] = value
        event.event_time.GetCurrentTime()
        return event


def _ended(event: pb.AuditEvent, ending: Ending) -> pb.AuditEvent:
    """Add how it ended to an event."""
    event.outcome = OUTCOMES[ending.state]
    event.reason = ending.reason
    event.details["effect"] = ending.state.value
    if ending.detail:
        event.details["detail"] = ending.detail[:DETAIL_MAX]
    return event


class AuditPort(Protocol):
    """What the gateway needs of audit."""

    async def append(self, event: pb.AuditEvent) -> None:
        """Return once the event is durable; refuse with AUDIT_UNAVAILABLE otherwise."""

    async def exists(self, event_id: str) -> bool:
        """Say whether audit holds an event of the gateway's; refuse with AUDIT_UNAVAILABLE when it does not answer."""


class MeshAudit:
    """Audit over the mesh."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = rpc.AuditServiceStub(channel)

    async def append(self, event: pb.AuditEvent) -> None:
        """Return once the event is durable."""
        try:
            await self._stub.AppendEvents(pb.AppendEventsRequest(events=[event]), timeout=INTENT_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise _unavailable(error) from error

    async def exists(self, event_id: str) -> bool:
        """Say whether audit holds an event of ours: ids can be guessed, the log names the writer."""
        try:
            answer = await self._stub.GetEvent(pb.GetEventRequest(event_id=event_id), timeout=INTENT_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return False
            raise _unavailable(error) from error
        return answer.event.writer == WRITER


def _unavailable(error: grpc.aio.AioRpcError) -> Refusal:
    """Return the refusal for an audit log that did not acknowledge."""
    log.warning("audit did not acknowledge", code=error.code().name, details=error.details())
    return Refusal(error_reason_pb2.ERROR_REASON_AUDIT_UNAVAILABLE, retry_after=1.0)
