"""Does what follows from a judgement: mints, asks people, or refuses, each with its audit record."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from opsmesh.audit.v1 import audit_service_pb2
from opsmesh.guardrails.v1 import guardrails_service_pb2 as pb
from opsmesh.type.v1 import error_reason_pb2
from services.guardrails import action as actions
from services.guardrails import convert
from services.guardrails.action import Action, SyntaxFault
from services.guardrails.approvals import asking
from services.guardrails.approvals import store as approval_store
from services.guardrails.approvals.board import ApprovalBoard
from services.guardrails.approvals.rules import Approval, Change, told
from services.guardrails.checks import failed
from services.guardrails.domain import Access, Verdict
from services.guardrails.grants import Minter
from services.guardrails.judge import Judge, Proposal, refuse_if_passing
from services.guardrails.judgement import Asked, Judged
from services.guardrails.policies import ledger
from services.guardrails.policies.caps import matching
from services.guardrails.policies.ledger import Effect
from services.guardrails.policies.store import Policies
from services.guardrails.store import JudgementStore, Session
from services.mesh.errors import Refusal
from services.mesh.postgres import Connection
from services.mesh.writes import Event, Subject, event

# How often a judgement is made anew because its approval changed while it was made.
ATTEMPTS: Final = 3
OUTCOMES: Final[Mapping[Verdict, "Event.Outcome.ValueType"]] = {
    Verdict.ALLOW: Event.OUTCOME_SUCCEEDED,
    Verdict.OBSERVE: Event.OUTCOME_OBSERVED,
    Verdict.REQUIRE_APPROVAL: Event.OUTCOME_DENIED,
    Verdict.DENY: Event.OUTCOME_DENIED,
}


class Authority:
    """Judges, and acts on the judgement: a grant, an approval, a place in the ledger, an audit record."""

    def __init__(
        self,
        store: JudgementStore,
        policies: Policies,
        judge: Judge,
        minter: Minter,
        board: ApprovalBoard,
    ) -> None:
        self._store = store
        self._policies = policies
        self._judge = judge
        self._minter = minter
        self._board = board

    async def preview(self, asked: Asked) -> pb.Judgement:
        """Judge and change nothing; whether a notice cap has room is known only when it is reserved."""
        try:
            action = actions.read(asked.method, asked.payload)
        except SyntaxFault as fault:
            return self._unreadable(asked, fault)
        proposal = await self._judge.look(asked, action)
        async with self._store.session() as session:
            return (await self._judge.judge(session, proposal)).message()

    async def authorize(self, asked: Asked) -> pb.AuthorizeActionResponse:
        """Judge and do what follows; refuses with UNAVAILABLE when only a peer's absence stands in the way."""
        try:
            action = actions.read(asked.method, asked.payload)
        except SyntaxFault as fault:
            judgement = self._unreadable(asked, fault)
            async with self._store.session() as session:
                await session.record(self._event(asked, judgement, ""))
            return pb.AuthorizeActionResponse(judgement=judgement)
        proposal = await self._judge.look(asked, action)
        async with self._store.session() as session:
            for _ in range(ATTEMPTS):
                judged = await self._judge.judge(session, proposal)
                refuse_if_passing(judged)
                if answer := await self._act(session, judged):
                    return answer
        approval_id = str(judged.moment.approval.approval_id) if judged.moment.approval else ""
        reason = error_reason_pb2.ERROR_REASON_CONFLICT
        raise Refusal(reason, resource="approval", id=approval_id, state="changing at this moment", retry_after=0.5)

    async def look(self, asked: Asked, action: Action) -> Proposal:
        """Ask the other services about an action."""
        return await self._judge.look(asked, action)

    async def judge(self, connection: Connection, proposal: Proposal) -> Judged:
        """Judge in the caller's transaction and change nothing."""
        judged = await self._judge.judge(self._store.within(connection), proposal)
        refuse_if_passing(judged)
        return judged

    async def _act(self, session: Session, judged: Judged) -> pb.AuthorizeActionResponse | None:
        """Do what follows from a judgement; None when its approval changed meanwhile, so that it must be made anew."""
        verdict = judged.conclusion[0]
        if verdict is Verdict.REQUIRE_APPROVAL:
            return await self._ask(session, judged)
        if verdict is Verdict.ALLOW and judged.approved and (changes := asking.drift(judged.approved, judged)):
            if not await self._judge.begun(judged):
                return await self._renew(session, judged, judged.approved, changes)
            judged = asking.as_approved(judged.approved, judged)
        if verdict is Verdict.ALLOW and judged.case.access is Access.INFORM:
            judged = await self._reserve(session, judged)
        return await self._answer(session, judged)

    async def _reserve(self, session: Session, judged: Judged) -> Judged:
        """Take a place in the ledger of the channel, or turn the judgement into CAP_EXCEEDED."""
        channel = judged.case.channel
        if not channel:
            return judged
        cap = judged.policy.cap(channel)
        if await session.reserve(channel, cap, judged.key):
            return judged
        return judged.but(failed("policy", "CAP_EXCEEDED", cap=str(cap), what=f"channel {channel}"))

    async def _ask(self, session: Session, judged: Judged) -> pb.AuthorizeActionResponse:
        """Make or find the approval of exactly these bytes."""
        judgement = judged.message()
        approval = await asking.ask(session, judged, self._event(judged.asked, judgement, judged.action.request_id))
        self._board.changed()
        return _pending(judged, judgement, approval)

    async def _renew(
        self, session: Session, judged: Judged, old: Approval, changes: Sequence[Change]
    ) -> pb.AuthorizeActionResponse | None:
        """End an approval whose snapshot holds no more and ask once anew; the second time refuse."""
        request_id = judged.action.request_id
        async with session.connection.transaction():
            if not await asking.void(session.connection, old, changes):
                return None
            if old.renewal:
                facts = {"target": judged.case.target_id, "diff": told(changes)}
                judgement = judged.but(failed("policy", "STATE_CHANGED", **facts)).message()
                await session.record(self._event(judged.asked, judgement, request_id))
                answer = pb.AuthorizeActionResponse(judgement=judgement, approval_id=str(old.approval_id))
            else:
                anew = replace(
                    asking.question(judged.unasked()),
                    amenders=old.amenders,
                    changes=tuple(changes),
                    amends_approval_id=old.approval_id,
                    renewal=old.renewal + 1,
                )
                approval = await asking.renew(session.connection, old, anew)
                judgement = judged.unasked().message()
                await session.record(self._event(judged.asked, judgement, request_id))
                answer = _pending(judged, judgement, approval)
        self._board.changed()
        return answer

    async def _answer(self, session: Session, judged: Judged) -> pb.AuthorizeActionResponse | None:
        """Answer, with a grant when the verdict is ALLOW; recorded before it leaves."""
        approval = judged.approved
        async with session.connection.transaction():
            judged = await _counted(session, judged)
            judgement = judged.message()
            response = pb.AuthorizeActionResponse(judgement=judgement, request=judged.action.wire)
            asked = judged.moment.approval
            if asked and (judgement.reason.startswith("APPROVAL_") or judgement.reason == "STATE_CHANGED"):
                response.approval_id = str(asked.approval_id)
            if judged.conclusion[0] is Verdict.ALLOW:
                before = await approval_store.use(session.connection, approval.approval_id) if approval else None
                if approval and before is None:
                    return None
                self._grant(response, judged, before)
            await session.record(self._event(judged.asked, judgement, judged.action.request_id))
        if approval:
            self._board.changed()
        return response

    def _grant(self, response: pb.AuthorizeActionResponse, judged: Judged, before: datetime | None) -> None:
        """Mint the grant of an answer; under an approval it ends with the time in which that may be executed."""
        moment, approval = judged.moment, judged.approved
        lock = moment.lock if judged.case.target_id else None
        ends = [when for when in (before, lock.expire_time if lock else None, judged.latest) if when]
        response.grant, expires = self._minter.mint(
            judged.action,
            judged.case,
            judged.asked.context,
            now=moment.now,
            latest=min(ends) if ends else None,
            fence=lock.fence if lock else 0,
            precondition=judged.look.precondition,
            policy_set_version=moment.policy_set_version,
            kill_epoch=moment.kill_epoch,
            approval_id=str(approval.approval_id) if approval else "",
            ancestors=judged.ancestors,
        )
        response.approval_id = str(approval.approval_id) if approval else ""
        response.expire_time.CopyFrom(convert.timestamp(expires))

    def _unreadable(self, asked: Asked, fault: SyntaxFault) -> pb.Judgement:
        """Return the judgement of an action that could not be read."""
        finding = failed("syntax", fault.reason, str(fault))
        version = self._policies.kept.version
        return convert.to_judgement(
            Verdict.DENY, fault.reason, [finding], method=asked.method, policy_set_version=version
        )

    def _event(self, asked: Asked, judgement: pb.Judgement, request_id: str) -> audit_service_pb2.AuditEvent:
        """Return the audit record of a judgement."""
        verdict = Verdict(judgement.verdict)
        pending = "APPROVAL_PENDING" if verdict is Verdict.REQUIRE_APPROVAL else ""
        context = asked.context
        subject = Subject(
            target=judgement.target_id,
            environment=judgement.environment,
            region=judgement.region,
            incident_id=context.incident_id,
            decision_id=context.decision_id,
            execution_id=context.execution_id or context.run_id,
            step_id=context.step_id,
            rule_set_version=context.rule_set_version,
            policy_set_version=judgement.policy_set_version,
            detail={"tool": asked.method, "verdict": verdict.name, "policy_rule_id": judgement.policy_rule_id},
        )
        made = event(Event.PHASE_RECORD, OUTCOMES[verdict], subject, reason=judgement.reason or pending)
        made.request_id, made.request_digest = request_id, judgement.request_digest
        made.on_behalf_of = context.on_behalf_of or made.on_behalf_of
        return made


async def _counted(session: Session, judged: Judged) -> Judged:
    """Take a place in the ledger of effects, or turn the judgement into CAP_EXCEEDED; in the grant's transaction."""
    case, key = judged.case, judged.key
    if judged.conclusion[0] is not Verdict.ALLOW or case.access is Access.INFORM:
        return judged
    caps = matching(judged.policy.effect_caps, case.method, case.target_id, case.environment)
    effect = Effect(case.method, key.request_id, case.target_id, case.environment)
    try:
        over = await ledger.reserve(session.connection, effect, caps)
    except ledger.ReusedError:
        return judged.but(failed("policy", "REQUEST_ID_REUSED", request_id=str(key.request_id)))
    return judged.but(failed("policy", "CAP_EXCEEDED", cap=str(over[0]), what=over[1])) if over else judged


def _pending(judged: Judged, judgement: pb.Judgement, approval: Approval) -> pb.AuthorizeActionResponse:
    """Return the answer to an action that waits for people."""
    return pb.AuthorizeActionResponse(
        judgement=judgement,
        approval_id=str(approval.approval_id),
        expire_time=convert.timestamp(approval.expire_time),
        request=judged.action.wire,
    )
