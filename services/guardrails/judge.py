"""Judges one action at one moment: what other services say, what holds, what policy says. Errors are DENY."""

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

import structlog

from services.guardrails import checks, convert, domain
from services.guardrails.action import Action
from services.guardrails.approvals import asking
from services.guardrails.approvals.rules import Approval
from services.guardrails.checks import Finding, Incident, failed
from services.guardrails.domain import Access, Case, PolicySet, Ruling, Verdict
from services.guardrails.judgement import Asked, Judged, Look
from services.guardrails.kills import store as kill_store
from services.guardrails.kills.store import Standing
from services.guardrails.origin import Origin, Origins, Scene
from services.guardrails.policies.store import Policies
from services.guardrails.store import Key, Moment, Session
from services.guardrails.surroundings import PeerTrouble, Surroundings
from services.mesh import kills
from services.mesh.errors import Refusal
from services.mesh.identities import Identities

# What a caller hears when a peer is away: ask again this soon, in seconds.
RETRY_SECONDS: Final = 1.0
log = structlog.get_logger("opsmesh.guardrails.judge")


@dataclass(frozen=True, slots=True)
class Proposal:
    """An action as somebody proposes it, read, with what other services say about it."""

    asked: Asked
    action: Action
    look: Look


class Judge:
    """Applies the four checks; changes nothing."""

    def __init__(
        self, policies: Policies, surroundings: Surroundings, identities: Identities, origins: Origins
    ) -> None:
        self._policies = policies
        self._surroundings = surroundings
        self._identities = identities
        self._origins = origins

    async def look(self, asked: Asked, action: Action) -> Proposal:
        """Ask the other services at the same time."""
        precondition, incident = await asyncio.gather(
            self._surroundings.precondition(action.tool, action.target_id),
            self._incident(asked.context.incident_id),
            return_exceptions=True,
        )
        for found in (precondition, incident):
            if isinstance(found, BaseException) and not isinstance(found, PeerTrouble):
                raise found
        seen = Look(
            precondition=precondition if isinstance(precondition, Mapping) else {},
            incident=incident if isinstance(incident, Incident) else None,
            no_precondition=precondition if isinstance(precondition, PeerTrouble) else None,
            no_incident=incident if isinstance(incident, PeerTrouble) else None,
        )
        return Proposal(asked, action, seen)

    async def _incident(self, incident_id: str) -> Incident | None:
        """Return the incident of an action that names one."""
        return await self._surroundings.incident(incident_id) if incident_id else None

    async def judge(self, session: Session, proposal: Proposal) -> Judged:
        """Apply the checks to what holds at this moment."""
        asked, action, look = proposal.asked, proposal.action, proposal.look
        key = Key(asked.caller, action.method, UUID(action.request_id), action.digest)
        moment = await session.moment(action.target_id, key)
        policy = await self._policies.at(moment.policy_set_version, session.connection)
        scene = Scene(asked, action, policy, look.incident, moment.now)
        origin = await self._origins.of(session.connection, scene)
        # From here on only what is believed of it.
        asked = replace(asked, context=origin.context)
        entry = policy.inventory.get(action.target_id)
        method_risk = domain.Risk(action.tool.policy.risk)
        risk, risk_detail = domain.derive_risk(action.tool.rpc, method_risk, entry, action.blasts)
        case = Case(
            method=action.method,
            access=action.access,
            risk=risk,
            caller=asked.caller,
            target_id=action.target_id,
            environment=entry.environment if entry else "",
            region=entry.region if entry else "",
            channel=action.channel,
            playbook_id=asked.context.playbook_id,
            affected=policy.affected(action.target_id),
        )
        standing = await _standing(session, origin, case, moment.approval)
        if moment.approval and standing.voids:
            moment = replace(moment, approval=asking.voided(moment.approval, standing.voids))
        if moment.approval:
            moment = replace(moment, approval=asking.elsewhere(moment.approval, asked))
        ruling, policy_finding = self._rule(case, policy, moment, action, origin)
        safety = origin.over(
            checks.check_safety(case, policy, moment.lock, origin.holder, look.precondition, binding=asked.binding)
        )
        if standing.stops:
            facts = {"kill_id": standing.stops.kill_id, "scope": kills.words(standing.stops.scope)}
            safety = failed("safety", "KILLED", **facts)
        if safety.passed and look.no_precondition:
            safety = _troubled("safety", look.no_precondition)
        sanity = (
            _troubled("sanity", look.no_incident)
            if look.no_incident
            else checks.check_sanity(case, policy, asked.context.incident_id, look.incident)
        )
        readable = Finding("syntax", passed=True, detail=f"a valid {action.message.DESCRIPTOR.full_name}")
        return Judged(
            asked=asked,
            action=action,
            case=case,
            look=look,
            policy=policy,
            moment=moment,
            ruling=ruling,
            risk_detail=risk_detail,
            findings=(readable, safety, origin.over(policy_finding), origin.over(sanity)),
            latest=origin.latest,
            ancestors=origin.path,
        )

    def _rule(
        self, case: Case, policy: PolicySet, moment: Moment, action: Action, origin: Origin
    ) -> tuple[Ruling, Finding]:
        """Return what policy says; whatever goes wrong while it is asked is DENY."""
        permission = action.tool.policy.permission
        if not self._identities.allows(case.caller, permission):
            facts = {"identity": case.caller, "method": case.method, "permission": permission}
            return Ruling(Verdict.DENY), Finding("policy", passed=False, reason="PERMISSION_DENIED", facts=facts)
        try:
            ruling = domain.rule_on(policy, case, moment.now)
            if origin.unproved:
                ruling = checks.one_more(ruling, case)
            return ruling, checks.check_policy(case, policy, ruling, moment.approval, moment.now)
        except Exception:
            error_id = secrets.token_hex(8)
            log.exception("policy could not be asked", error_id=error_id, method=case.method)
            denied = failed("policy", "INTERNAL", service="guardrails", error_id=error_id)
            return Ruling(Verdict.DENY), denied

    async def begun(self, judged: Judged) -> bool:
        """Say whether a changed state may be the action's own doing: a lost answer must not ask people again."""
        if judged.approved is None or judged.approved.execute_time is None:
            return False
        try:
            return await self._surroundings.begun(judged.action.method, judged.action.request_id)
        except PeerTrouble as trouble:
            raise trouble.refusal from None


async def _standing(session: Session, origin: Origin, case: Case, approval: Approval | None) -> Standing:
    """Return what kills say, read after the epoch that a grant will carry; a notice is stopped by none."""
    if case.access is Access.INFORM:
        return Standing()
    context = origin.context
    about = kills.facts(
        environment=case.environment,
        target_id=case.target_id,
        tool=case.method,
        playbook_id=context.playbook_id,
        execution_id=context.execution_id,
        run_id=context.run_id,
    )
    epoch = approval.kill_epoch if approval else None
    # Whoever stops a run means all that it started, too.
    everything = [about, *(kills.facts(run_id=one) for one in origin.path)]
    found = [await kill_store.standing(session.connection, one, epoch) for one in everything]
    stops = next((one.stops for one in found if one.stops), None)
    return Standing(stops, next((one.voids for one in found if one.voids), None))


def _troubled(name: str, trouble: PeerTrouble) -> Finding:
    """Return the finding of a check whose peer did not tell."""
    refusal = trouble.refusal
    return Finding(name, passed=False, reason=refusal.name, facts=refusal.metadata, passing=trouble.passing)


def refuse_if_passing(judged: Judged) -> None:
    """Refuse, instead of a lasting DENY, when all that stands in the way is a peer that is away for now."""
    wrong = [finding for finding in judged.findings if not finding.passed]
    if wrong and all(finding.passing for finding in wrong):
        first = wrong[0]
        raise Refusal(convert.reason_value(first.reason), violations=(), retry_after=RETRY_SECONDS, **dict(first.facts))
