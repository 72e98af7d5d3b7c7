"""What refusals of automation and agents mean for a decision."""

from typing import Final

import grpc
import grpc.aio

from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import from_rpc_error
from services.router.held import hold
from services.router.work import Step, Work

# Answers that another try cannot change.
REFUSED: Final = frozenset(
    {
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)


def held_by(work: Work, error: grpc.aio.AioRpcError) -> Step | None:
    """Return the step that holds a decision, if a kill (or a missing lease) is why it was not started."""
    refusal = from_rpc_error(error)
    if refusal and refusal.reason == error_reason_pb2.ERROR_REASON_KILLED:
        kill_id, scope = refusal.metadata.get("kill_id", ""), refusal.metadata.get("scope", "")
        return hold(work, kill_id, f"held: kill {kill_id} ({scope}) stops it")
    if refusal and refusal.reason == error_reason_pb2.ERROR_REASON_LEASE_STALE:
        return hold(work, "", "held: no lease was heard from guardrails, so a kill could hold")
    return None


def words(error: grpc.aio.AioRpcError) -> str:
    """Return why a call failed: the peer's refusal, or gRPC's own words."""
    refusal = from_rpc_error(error)
    return str(refusal) if refusal else f"{error.code().name}: {error.details() or 'no details'}"
