"""ApprovalService: proto in, proto out."""
# ruff: noqa: N802  the names are those of the IDL

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from opsmesh.guardrails.v1 import approval_service_pb2 as pb
from opsmesh.guardrails.v1 import approval_service_pb2_grpc as rpc
from opsmesh.guardrails.v1 import guardrails_service_pb2 as judging
from opsmesh.type.v1 import error_reason_pb2
from services.guardrails.approvals import amending, answers
from services.guardrails.approvals.answers import Said
from services.guardrails.approvals.board import ApprovalBoard
from services.guardrails.approvals.expiry import subject_of
from services.guardrails.approvals.rules import Approval, State
from services.guardrails.approvals.store import ApprovalStore
from services.guardrails.authority import Authority
from services.guardrails.convert import timestamp
from services.mesh import paging
from services.mesh.call import current
from services.mesh.errors import Refusal
from services.mesh.identities import Identities
from services.mesh.postgres import Connection
from services.mesh.writes import Writes

# As many digits of a digest as people compare.
SHORT: Final = 12


class ApprovalServicer(rpc.ApprovalServiceServicer):
    """Shows approvals and takes the answers of people."""

    def __init__(
        self,
        store: ApprovalStore,
        board: ApprovalBoard,
        writes: Writes,
        *,
        identities: Identities,
        authority: Authority,
    ) -> None:
        self._store = store
        self._board = board
        self._writes = writes
        self._identities = identities
        self._authority = authority

    async def GetApproval(self, request: pb.GetApprovalRequest, _: Any) -> pb.GetApprovalResponse:
        """Read one approval."""
        return pb.GetApprovalResponse(approval=to_message(await self._known(request.approval_id)))

    async def ListApprovals(self, request: pb.ListApprovalsRequest, _: Any) -> pb.ListApprovalsResponse:
        """List approvals, newest first."""
        size = paging.page_size(request.page_size)
        after = paging.read_token(request, datetime, UUID)
        state = State(pb.Approval.State.Name(request.state).removeprefix("STATE_")) if request.state else None
        found = await self._store.page(state, request.incident_id, (after[0], after[1]) if after else None, size + 1)
        page = found[:size]
        token = paging.write_token(request, page[-1].create_time, page[-1].approval_id) if len(found) > size else ""
        return pb.ListApprovalsResponse(approvals=[to_message(one) for one in page], next_page_token=token)

    async def WatchApprovals(
        self, request: pb.WatchApprovalsRequest, _: Any
    ) -> AsyncIterator[pb.WatchApprovalsResponse]:
        """Send those that wait, then each change."""
        async for approval in self._board.follow(request.incident_id):
            yield pb.WatchApprovalsResponse(approval=to_message(approval) if approval else None)

    async def Approve(self, request: pb.ApproveRequest, _: Any) -> pb.ApproveResponse:
        """Say yes to exactly the bytes of a digest."""
        said = self._said(request)

        async def change(connection: Connection) -> pb.ApproveResponse:
            made = await answers.approve(connection, UUID(request.approval_id), said)
            return pb.ApproveResponse(approval=to_message(made))

        subject = subject_of(await self._known(request.approval_id), named_digest=said.digest)
        response = await self._writes.once(request, pb.ApproveResponse, change, subject)
        self._board.changed()
        return response

    async def Reject(self, request: pb.RejectRequest, _: Any) -> pb.RejectResponse:
        """Say no."""
        said = self._said(request)

        async def change(connection: Connection) -> pb.RejectResponse:
            made = await answers.reject(connection, UUID(request.approval_id), said)
            return pb.RejectResponse(approval=to_message(made))

        subject = subject_of(await self._known(request.approval_id), named_digest=said.digest)
        response = await self._writes.once(request, pb.RejectResponse, change, subject)
        self._board.changed()
        return response

    async def Amend(self, request: pb.AmendRequest, _: Any) -> pb.AmendResponse:
        """Replace a pending approval."""
        said, old = self._said(request), await self._known(request.approval_id)
        proposal = await amending.propose(self._authority, old, request.request_json)

        async def change(connection: Connection) -> pb.AmendResponse:
            made = await amending.amend(connection, self._authority, old, proposal, said)
            return pb.AmendResponse(approval=to_message(made))

        response = await self._writes.once(request, pb.AmendResponse, change, subject_of(old, named_digest=said.digest))
        self._board.changed()
        return response

    def _said(self, request: pb.ApproveRequest | pb.RejectRequest | pb.AmendRequest) -> Said:
        """Return what the calling person says."""
        person = current().identity
        return Said(person, self._identities.groups(person), request.request_digest, request.comment)

    async def _known(self, approval_id: str) -> Approval:
        """Return an approval, or refuse."""
        approval = await self._store.read(UUID(approval_id))
        if approval is None:
            raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="approval", id=approval_id)
        return approval


def to_message(approval: Approval) -> pb.Approval:
    """Return an approval as a message."""
    made = pb.Approval(
        approval_id=str(approval.approval_id),
        state=pb.Approval.State.Value(f"STATE_{approval.state.value}"),
        method=approval.method,
        request_digest=approval.digest.hex(),
        short_digest=approval.digest.hex()[:SHORT],
        judgement=judging.Judgement.FromString(approval.judgement),
        requester=approval.requester,
        requesters=answers.requesters(approval),
        context=judging.ActionContext.FromString(approval.context),
        create_time=timestamp(approval.create_time),
        expire_time=timestamp(approval.expire_time),
        update_time=timestamp(approval.update_time),
        request_id=str(approval.request_id),
        request=approval.request,
        approvers_needed=approval.terms.people,
        groups_needed=sorted(approval.terms.groups),
        close_reason=approval.close_reason,
        close_detail=approval.close_detail,
        amends_approval_id=str(approval.amends_approval_id or ""),
        superseded_by=str(approval.superseded_by or ""),
        renewal=approval.renewal,
        changes=[pb.FieldChange(field=one.field, before=one.before, after=one.after) for one in approval.changes],
    )
    if approval.execute_before_time:
        made.execute_before_time.CopyFrom(timestamp(approval.execute_before_time))
    if approval.execute_time:
        made.execute_time.CopyFrom(timestamp(approval.execute_time))
    for vote in approval.votes:
        made.votes.add(
            person=vote.person,
            answer=pb.Vote.Answer.Value(f"ANSWER_{vote.answer.value}"),
            groups=sorted(vote.groups),
            comment=vote.comment,
            vote_time=timestamp(vote.vote_time),
        )
    return made
