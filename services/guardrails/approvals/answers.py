"""What a person's answer does to an approval: each function works in the caller's transaction, on a locked row."""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from opsmesh.guardrails.v1 import guardrails_service_pb2 as pb
from opsmesh.type.v1 import error_reason_pb2
from services.guardrails.approvals import store
from services.guardrails.approvals.rules import VOTES_MAX, Answer, Approval, State, shortened
from services.guardrails.approvals.store import End, Question
from services.guardrails.checks import HUMAN
from services.mesh.errors import Refusal
from services.mesh.postgres import Connection

COMMENT_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Said:
    """What a person sends: who it is, in which groups, about which bytes, and why."""

    person: str
    groups: frozenset[str]
    digest: str
    comment: str = ""


def requesters(approval: Approval) -> tuple[str, ...]:
    """Return everybody who may not approve: who asked, for whom, and who changed what is asked."""
    context = pb.ActionContext.FromString(approval.context)
    named = (approval.requester, context.on_behalf_of, *approval.amenders)
    return tuple(dict.fromkeys(name for name in named if name))


async def approve(connection: Connection, approval_id: UUID, said: Said) -> Approval:
    """Count a yes; APPROVED once it is enough. Refuses who may not, what is over, and other bytes."""
    approval = await seen(connection, approval_id, said.digest)
    # A service that was given the permission by mistake is still nobody who can be asked.
    if said.person in requesters(approval) or not said.person.startswith(HUMAN):
        reason = error_reason_pb2.ERROR_REASON_APPROVER_IS_REQUESTER
        raise Refusal(reason, person=said.person, approval_id=str(approval_id))
    still(approval)
    if len(approval.votes) >= VOTES_MAX - 1:
        raise Refusal(error_reason_pb2.ERROR_REASON_OVERLOADED, limit=f"{VOTES_MAX - 1} approvals of one action")
    approval = await _answer(connection, approval, said, Answer.APPROVE)
    if approval.terms.met(approval.votes) and not await store.approve(connection, approval_id):
        raise closed(await seen(connection, approval_id, said.digest))
    return await seen(connection, approval_id, said.digest)


async def reject(connection: Connection, approval_id: UUID, said: Said) -> Approval:
    """Take a no: it is the end of the approval, whoever says it."""
    approval = await seen(connection, approval_id, said.digest)
    still(approval)
    approval = await _answer(connection, approval, said, Answer.REJECT)
    why = f": {shortened(said.comment, COMMENT_MAX)}" if said.comment else ""
    if not await store.close(
        connection, approval, End(State.REJECTED, "APPROVAL_REJECTED", f"{said.person} said no{why}")
    ):
        raise closed(await seen(connection, approval_id, said.digest))
    return await seen(connection, approval_id, said.digest)


async def amend(connection: Connection, approval_id: UUID, said: Said, question: Question) -> Approval:
    """Put another question in the place of a pending one; returns the new approval."""
    approval = await seen(connection, approval_id, said.digest)
    still(approval)
    made = await store.ask(connection, question)
    if made is None:
        state = "asked for with these arguments before"
        raise Refusal(error_reason_pb2.ERROR_REASON_CONFLICT, resource="approval", id=str(approval_id), state=state)
    if not await store.close(connection, approval, End(State.AMENDED, "APPROVAL_VOID", f"amended by {said.person}")):
        raise closed(await seen(connection, approval_id, said.digest))
    await store.supersede(connection, approval_id, made)
    return await known(connection, made)


async def known(connection: Connection, approval_id: UUID) -> Approval:
    """Lock and return an approval, or refuse."""
    approval = await store.locked(connection, approval_id)
    if approval is None:
        raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="approval", id=str(approval_id))
    return approval


async def seen(connection: Connection, approval_id: UUID, digest: str) -> Approval:
    """Lock and return an approval whose bytes a person names, or refuse."""
    approval = await known(connection, approval_id)
    if not approval.names(digest):
        reason = error_reason_pb2.ERROR_REASON_APPROVAL_DIGEST_MISMATCH
        raise Refusal(reason, given=digest[:12], approval_id=str(approval_id))
    return approval


def still(approval: Approval) -> None:
    """Refuse when an approval waits for no answer any more."""
    if approval.state is not State.PENDING:
        raise closed(approval)


def closed(approval: Approval) -> Refusal:
    """Return the refusal of an answer that comes too late."""
    yes = ", ".join(approval.yes)
    why = approval.close_detail or (f"approved by {yes}" if yes else "it changed in between")
    return Refusal(
        error_reason_pb2.ERROR_REASON_APPROVAL_CLOSED,
        approval_id=str(approval.approval_id),
        state=approval.state.value,
        why=why,
    )


async def _answer(connection: Connection, approval: Approval, said: Said, answer: Answer) -> Approval:
    """Keep one answer, or refuse a second one of the same person; returns the approval with it."""
    about = {"groups": said.groups, "comment": said.comment}
    if not await store.vote(connection, approval.approval_id, said.person, answer, about):
        reason = error_reason_pb2.ERROR_REASON_ALREADY_ANSWERED
        raise Refusal(reason, person=said.person, approval_id=str(approval.approval_id))
    return await known(connection, approval.approval_id)
