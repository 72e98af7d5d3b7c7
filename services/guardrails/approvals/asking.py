"""Asks people: one approval for exactly these bytes, in step with policy, asked anew once when the state changed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from opsmesh.audit.v1 import audit_service_pb2
from opsmesh.guardrails.v1 import guardrails_service_pb2 as pb
from opsmesh.guardrails.v1 import kill_switch_service_pb2 as kill_pb
from services.guardrails.approvals import store as approvals
from services.guardrails.approvals.rules import Approval, Change, State, differences, terms, told
from services.guardrails.approvals.store import End, Question
from services.guardrails.domain import Need
from services.guardrails.judgement import Asked, Judged
from services.guardrails.store import Session
from services.mesh import kills
from services.mesh.postgres import Connection

Record = audit_service_pb2.AuditEvent
# What people are shown about where an action comes from: an approval is for that, and for nobody else.
BINDING: Final = ("incident_id", "execution_id", "run_id", "playbook_id", "on_behalf_of")


def question(judged: Judged) -> Question:
    """Return what people are asked about a judgement."""
    need, context = judged.ruling.need or Need(), judged.asked.context
    return Question(
        requester=judged.key.caller,
        method=judged.key.method,
        request_id=judged.key.request_id,
        digest=judged.key.digest,
        incident_id=context.incident_id,
        request=judged.action.wire,
        judgement=judged.message().SerializeToString(),
        context=context.SerializeToString(),
        terms=terms(need, judged.case.risk),
        answer_seconds=need.ttl.total_seconds(),
        execute_seconds=need.execute_ttl.total_seconds(),
        kill_epoch=judged.moment.kill_epoch,
        environment=judged.case.environment,
        target_id=judged.case.target_id,
        playbook_id=context.playbook_id,
        execution_id=context.execution_id,
        run_id=context.run_id,
    )


def drift(approval: Approval, judged: Judged) -> tuple[Change, ...]:
    """Return what differs between the state that people saw and the state of this moment."""
    return differences(snapshot(approval), judged.look.precondition)


def as_approved(approval: Approval, judged: Judged) -> Judged:
    """Return a judgement with the state that people saw: the gateway still refuses to act on any other."""
    return replace(judged, look=replace(judged.look, precondition=snapshot(approval)))


def snapshot(approval: Approval) -> Mapping[str, str]:
    """Return the state that people saw."""
    return dict(pb.Judgement.FromString(approval.judgement).precondition)


async def ask(session: Session, judged: Judged, event: Record) -> Approval:
    """Make the approval of these bytes, or find it and bring it in step with today's policy; recorded with it."""
    connection, asked = session.connection, question(judged)
    async with connection.transaction():
        made = None if judged.moment.approval else await approvals.ask(connection, asked)
        key = judged.key
        found = await approvals.newest(connection, key.caller, key.method, key.request_id, key.digest)
        if found is None:
            raise LookupError("an approval has vanished")
        if made is None:
            found = await _in_step(connection, found, asked)
        await session.record(event)
    return found


async def _in_step(connection: Connection, found: Approval, asked: Question) -> Approval:
    """Bind an open approval to what policy needs today; answers that are enough are enough at once."""
    if found.terms == asked.terms or not found.open:
        return found
    fresh = await approvals.locked(connection, found.approval_id) or found
    if not fresh.open:
        return fresh
    await approvals.rebind(connection, fresh.approval_id, asked.terms, asked.answer_seconds, asked.execute_seconds)
    if asked.terms.met(fresh.votes):
        await approvals.approve(connection, fresh.approval_id)
    return await approvals.read(connection, fresh.approval_id) or fresh


async def void(connection: Connection, approval: Approval, changes: Sequence[Change]) -> bool:
    """End an approval because what people saw holds no more; False when something else ended it."""
    where = approval.target_id or "what it relies on"
    detail = f"the state of {where} changed: {told(changes)}"
    fresh = await approvals.locked(connection, approval.approval_id)
    return (
        fresh is not None
        and fresh.state is State.APPROVED
        and await approvals.close(connection, fresh, End(State.VOID, "STATE_CHANGED", detail, changes))
    )


async def renew(connection: Connection, old: Approval, asked: Question) -> Approval:
    """Ask once more about the same bytes, in the transaction that ended the old approval."""
    made = await approvals.ask(connection, asked)
    if made is not None:
        await approvals.supersede(connection, old.approval_id, made)
    found = await approvals.newest(connection, old.requester, old.method, old.request_id, old.digest)
    if found is None:
        raise LookupError("an approval has vanished")
    return found


def elsewhere(approval: Approval, asked: Asked) -> Approval:
    """Return an open approval as it counts for whoever asks in another context than people were shown: not at all."""
    shown = pb.ActionContext.FromString(approval.context)
    other = [name for name in BINDING if getattr(shown, name) != getattr(asked.context, name)]
    if not approval.open or not other or not asked.binding:
        return approval
    why = f"people were asked about another {other[0]}: {getattr(shown, other[0]) or '(none)'}"
    return replace(approval, state=State.VOID, close_reason="APPROVAL_VOID", close_detail=why)


def voided(approval: Approval, kill: kill_pb.LeasedKill) -> Approval:
    """Return an open approval as the kill that was engaged after it was asked for leaves it, released or not."""
    if not approval.open:
        return approval
    why = f"kill {kill.kill_id} ({kills.words(kill.scope)}) was engaged after it was asked for"
    return replace(approval, state=State.VOID, close_reason="KILLED", close_detail=why)
