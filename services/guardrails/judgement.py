"""What a judgement is made of: what was asked, what was read, what holds, what was found."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID

from opsmesh.guardrails.v1 import guardrails_service_pb2 as pb
from services.guardrails import action as actions
from services.guardrails import checks, convert
from services.guardrails.action import Action
from services.guardrails.approvals.rules import Approval, State, Terms
from services.guardrails.checks import Finding, Incident
from services.guardrails.domain import Case, PolicySet, Ruling, Verdict
from services.guardrails.store import Key, Moment
from services.guardrails.surroundings import PeerTrouble


@dataclass(frozen=True, slots=True)
class Asked:
    """An action as somebody proposes it; `binding` is False for a preview, which needs no lock."""

    method: str
    payload: bytes | str
    caller: str
    context: pb.ActionContext
    binding: bool = True


@dataclass(frozen=True, slots=True)
class Look:
    """What other services said; a trouble is kept until it is known whether it matters."""

    precondition: Mapping[str, str] = field(default_factory=dict)
    incident: Incident | None = None
    no_precondition: PeerTrouble | None = None
    no_incident: PeerTrouble | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """One judgement with everything it rests on."""

    asked: Asked
    action: Action
    case: Case
    look: Look
    policy: PolicySet
    moment: Moment
    ruling: Ruling
    risk_detail: str
    findings: tuple[Finding, ...]
    # When a grant is over whatever else holds, and the runs above its run.
    latest: datetime | None = None
    ancestors: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        """Return what it is bound to."""
        return Key(self.asked.caller, self.action.method, UUID(self.action.request_id), self.action.digest)

    @property
    def approved(self) -> Approval | None:
        """Return the approval that makes this action go ahead, with enough answers for today's policy."""
        approval = self.moment.approval
        if approval is None or self.terms is None or approval.state is not State.APPROVED:
            return None
        return approval if self.terms.met(approval.votes) else None

    @property
    def terms(self) -> Terms | None:
        """Return who must approve; None when policy asks nobody."""
        return checks.terms_of(self.ruling, self.case)

    @property
    def conclusion(self) -> tuple[Verdict, str]:
        """Return the verdict and the reason of the first failed check."""
        verdict, reason = checks.conclude(self.findings, self.ruling)
        return (Verdict.ALLOW if verdict is Verdict.REQUIRE_APPROVAL and self.approved else verdict), reason

    def unasked(self) -> "Judged":
        """Return the same judgement as if no approval had ever been asked for."""
        made = replace(self, moment=replace(self.moment, approval=None))
        return made.but(checks.check_policy(self.case, self.policy, self.ruling, None, self.moment.now))

    def but(self, finding: Finding) -> "Judged":
        """Return the same judgement with one check's finding replaced."""
        return replace(self, findings=tuple(finding if one.name == finding.name else one for one in self.findings))

    def message(self) -> pb.Judgement:
        """Return it as it goes out."""
        verdict, reason = self.conclusion
        return convert.to_judgement(
            verdict,
            reason,
            self.findings,
            method=self.action.method,
            policy_set_version=self.policy.version,
            case=self.case,
            risk_detail=self.risk_detail,
            rule_id=self.ruling.rule_id,
            digest=self.action.digest,
            request_json=actions.rendered(self.action.message),
            precondition=self.look.precondition,
        )
