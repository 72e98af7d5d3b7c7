"""What a caller is told about an effect that exists already: the stored answer, the stored refusal, or to come back."""

from datetime import datetime
from uuid import UUID

from google.protobuf.message import Message

from opsmesh.type.v1 import error_reason_pb2
from services.gateway.domain import RETRY_SECONDS, Effect, Key, State
from services.mesh.errors import Refusal
from services.mesh.tools import Tool

REASONS = {
    State.FAILED: error_reason_pb2.ERROR_REASON_EFFECT_FAILED,
    State.UNKNOWN: error_reason_pb2.ERROR_REASON_EFFECT_UNKNOWN,
}


def answer(effect: Effect, tool: Tool) -> Message:
    """Return the answer of a finished effect again, or raise its refusal again."""
    if effect.state is State.SUCCEEDED:
        return tool.response_class.FromString(effect.response or b"")
    raise Refusal(
        REASONS[effect.state],
        method=effect.key.method,
        target=effect.target_id,
        request_id=str(effect.key.request_id),
        detail=effect.detail,
    )


def busy(request_id: UUID, deadline_time: datetime) -> Refusal:
    """Return the refusal for a call while another effect works on its target."""
    return Refusal(
        error_reason_pb2.ERROR_REASON_EFFECT_IN_FLIGHT,
        retry_after=RETRY_SECONDS,
        request_id=str(request_id),
        deadline=deadline_time.isoformat(timespec="milliseconds"),
    )


def in_flight(effect: Effect | None, key: Key) -> Refusal:
    """Return the refusal for an effect that is under way: ask again soon, at the latest after its deadline."""
    deadline = effect.deadline_time.isoformat(timespec="milliseconds") if effect else "its deadline"
    pause = min(RETRY_SECONDS, effect.remaining) if effect and effect.remaining > 0 else RETRY_SECONDS
    return Refusal(
        error_reason_pb2.ERROR_REASON_EFFECT_IN_FLIGHT,
        retry_after=pause,
        request_id=str(key.request_id),
        deadline=deadline,
    )
