"""Ends what nobody answered, or nobody executed, in time: by the database's clock, on record, told to followers."""

from typing import Final

from opsmesh.guardrails.v1 import guardrails_service_pb2 as pb
from services.guardrails.approvals import store as approval_store
from services.guardrails.approvals.board import ApprovalBoard
from services.guardrails.approvals.rules import Approval
from services.mesh.call import working
from services.mesh.postgres import Pool
from services.mesh.writes import Event, Subject, Writes, event

IDENTITY: Final = "service/guardrails"
AUTHORIZE: Final = "opsmesh.guardrails.v1.GuardrailsService/AuthorizeAction"
SECONDS: Final = 10.0


class Expiry:
    """Sweeps; each approval's end and its audit record are one transaction."""

    def __init__(self, pool: Pool, writes: Writes, board: ApprovalBoard) -> None:
        self._pool = pool
        self._writes = writes
        self._board = board

    async def sweep(self) -> None:
        """Turn what is over by the clock into EXPIRED."""
        with working(IDENTITY, AUTHORIZE, SECONDS):
            async with self._pool.acquire() as connection, connection.transaction():
                ended = await approval_store.expire(connection)
                if ended:
                    await self._writes.enqueue(connection, *map(record, ended))
        if ended:
            self._writes.wake()
            self._board.changed()


def record(approval: Approval) -> Event:
    """Return the audit record of an end that no answer and no other call records."""
    made = event(Event.PHASE_RECORD, Event.OUTCOME_DENIED, subject_of(approval), reason=approval.close_reason)
    made.request_id, made.request_digest = str(approval.request_id), approval.digest.hex()
    made.on_behalf_of = pb.ActionContext.FromString(approval.context).on_behalf_of
    return made


def subject_of(approval: Approval, **detail: str) -> Subject:
    """Return what an event about an approval is about, for audit."""
    context = pb.ActionContext.FromString(approval.context)
    ended = {"close_detail": approval.close_detail} if approval.close_detail else {}
    return Subject(
        target=approval.target_id,
        environment=approval.environment,
        region=pb.Judgement.FromString(approval.judgement).region,
        incident_id=context.incident_id,
        decision_id=context.decision_id,
        execution_id=context.execution_id,
        step_id=context.step_id,
        rule_set_version=context.rule_set_version,
        detail={"approval_id": str(approval.approval_id), "tool": approval.method} | ended | detail,
    )
