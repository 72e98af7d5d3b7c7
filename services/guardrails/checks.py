"""The named checks of an action, pure: safety, policy and sanity; syntax is the parser's (services.guardrails.action).

Reasons are values of ErrorReason without prefix; their facts fill the reason's text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from services.guardrails.approvals.rules import Approval, State, Terms
from services.guardrails.approvals.rules import terms as terms_for
from services.guardrails.approvals.rules import told as diff_words
from services.guardrails.domain import Access, Case, Need, PolicySet, Ruling, Verdict

HUMAN: Final = "human/"
# The source of incidents that somebody asked for in a conversation.
CHAT: Final = "chat"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one of the four checks found: a sentence when it passed, a reason and its facts when it did not.

    `passing` says that it failed only because a peer is away, which asking again may mend.
    """

    name: str
    passed: bool
    detail: str = ""
    reason: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    passing: bool = False


def failed(name: str, reason: str, detail: str = "", **facts: str) -> Finding:
    """Return the finding of a check that did not pass; without `detail` the reason's own text is told."""
    return Finding(name, passed=False, reason=reason, detail=detail, facts=facts)


@dataclass(frozen=True, slots=True)
class Lock:
    """A row of the lock table as of now; `held` says whether it is in force."""

    holder: str
    fence: int
    held: bool
    expire_time: datetime


def check_safety(
    case: Case, policy: PolicySet, lock: Lock | None, holder: str, precondition: Mapping[str, str], *, binding: bool
) -> Finding:
    """Return whether the target is known and, when the judgement is binding, locked by whoever wants to act on it."""
    if not case.target_id:
        return Finding("safety", passed=True, detail="this tool has no target")
    if case.target_id not in policy.inventory:
        lines = inventory_lines(case.target_id)
        return failed("safety", "TARGET_UNKNOWN", target=case.target_id, lines=lines)
    read = ", ".join(f"{name}={value}" for name, value in sorted(precondition.items())) or "nothing to keep"
    if case.access in {Access.READ, Access.INFORM}:
        return Finding("safety", passed=True, detail=f"{case.target_id} is in the inventory; no lock is needed")
    mine = bool(holder) and lock is not None and lock.held and lock.holder == holder
    if not binding:
        words = "held by the caller" if mine else f"held by {lock.holder}" if lock and lock.held else "free"
        return Finding("safety", passed=True, detail=f"{case.target_id} is known, its lock is {words}; state: {read}")
    if not mine or lock is None:
        who = holder or f"{case.caller} without an execution"
        return failed("safety", "LOCK_REQUIRED", holder=who, target=case.target_id)
    return Finding("safety", passed=True, detail=f"{case.target_id} is locked with fence {lock.fence}; state: {read}")


def check_policy(case: Case, policy: PolicySet, ruling: Ruling, approval: Approval | None, now: datetime) -> Finding:
    """Return what the policy set and the approval of exactly these bytes say, in words."""
    if not policy.version:
        return failed("policy", "NO_POLICY_SET")
    if ruling.verdict is Verdict.DENY:
        words = f"rule {ruling.rule_id}" if ruling.rule_id else "no rule of the policy set matches"
        words += f" ({ruling.description})" if ruling.description else ""
        target = case.target_id or case.channel or "(no target)"
        return failed("policy", "POLICY_DENIED", method=case.method, target=target, rule=words)
    words = f"rule {ruling.rule_id} of version {policy.version} says {ruling.verdict.name}"
    if ruling.unproved:
        words += " (nobody is proved to have asked in the chat: one approver more than it says)"
    if ruling.verdict is Verdict.OBSERVE:
        return Finding("policy", passed=True, detail=words)
    if approval and (over := check_approval(case, ruling, approval, now)):
        return over
    terms = terms_of(ruling, case)
    if terms:
        groups = f", each of {', '.join(sorted(terms.groups))} among them" if terms.groups else ""
        words += f": {terms.people} must approve{groups}"
    if terms and approval and approval.state is State.APPROVED and terms.met(approval.votes):
        words += f"; approved by {', '.join(approval.yes)}"
    return Finding("policy", passed=True, detail=words)


def terms_of(ruling: Ruling, case: Case) -> Terms | None:
    """Return who must approve by a ruling; None when it asks nobody."""
    return terms_for(ruling.need or Need(), case.risk) if ruling.verdict is Verdict.REQUIRE_APPROVAL else None


def one_more(ruling: Ruling, case: Case) -> Ruling:
    """Return a ruling that asks one person more than policy does; what it refuses or only observes stays so."""
    if ruling.verdict not in {Verdict.ALLOW, Verdict.REQUIRE_APPROVAL}:
        return ruling
    terms = terms_of(ruling, case)
    need = replace(ruling.need or Need(), approvers=(terms.people if terms else 0) + 1)
    return replace(ruling, verdict=Verdict.REQUIRE_APPROVAL, need=need, unproved=True)


def check_approval(case: Case, ruling: Ruling, approval: Approval, now: datetime) -> Finding | None:
    """Return why an approval stands in the way of its action, or None; a no of people outlasts a policy that allows."""
    told = str(approval.approval_id)
    if approval.state is State.REJECTED:
        comment = approval.no.comment if approval.no else ""
        person = approval.no.person if approval.no else "somebody"
        facts = {"person": person, "approval_id": told, "comment": comment or "(no comment)"}
        return failed("policy", "APPROVAL_REJECTED", **facts)
    if approval.state is State.VOID and approval.close_reason == "STATE_CHANGED" and approval.renewal:
        return failed("policy", "STATE_CHANGED", target=case.target_id, diff=diff_words(approval.changes))
    if approval.state in {State.VOID, State.AMENDED}:
        heir = f"; see approval {approval.superseded_by}" if approval.superseded_by else ""
        return failed("policy", "APPROVAL_VOID", approval_id=told, why=approval.close_detail + heir)
    if ruling.verdict is not Verdict.REQUIRE_APPROVAL:
        return None
    late = approval.execute_before_time is not None and approval.execute_before_time <= now
    if approval.state is State.EXPIRED or (approval.state is State.APPROVED and late):
        why = approval.close_detail or "the time to execute it is over"
        return failed("policy", "APPROVAL_EXPIRED", f"approval {told} expired: {why}", approval_id=told)
    return None


@dataclass(frozen=True, slots=True)
class Incident:
    """What ingest says about an incident; `targets` are those in the inventory, `labels` those of its newest signal."""

    incident_id: str
    is_open: bool
    targets: frozenset[str]
    source: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


def check_sanity(case: Case, policy: PolicySet, incident_id: str, incident: Incident | None) -> Finding:
    """Return whether the action belongs to its incident: open, and the target among its targets or what they need."""
    if not incident_id:
        if case.caller.startswith(HUMAN) or case.access is Access.INFORM:
            who = "a person asks" if case.caller.startswith(HUMAN) else "people are told"
            return Finding("sanity", passed=True, detail=f"{who}, without an incident")
        return failed("sanity", "INCIDENT_NOT_OPEN", "a service acts for an incident only, and named none")
    if incident is None or not (incident.is_open or case.access is Access.INFORM):
        return failed("sanity", "INCIDENT_NOT_OPEN", incident_id=incident_id)
    if case.access is Access.INFORM or not case.target_id:
        return Finding("sanity", passed=True, detail=f"incident {incident_id} exists; this tool has no target")
    needed = {one for target in incident.targets if (entry := policy.inventory.get(target)) for one in entry.depends_on}
    if case.target_id not in incident.targets | needed:
        return failed("sanity", "TARGET_NOT_OF_INCIDENT", target=case.target_id, incident_id=incident_id)
    relation = "among its targets" if case.target_id in incident.targets else "what its targets depend on"
    return Finding("sanity", passed=True, detail=f"incident {incident_id} is open, {case.target_id} is {relation}")


def conclude(findings: Sequence[Finding], ruling: Ruling) -> tuple[Verdict, str]:
    """Return the verdict and the reason of the first failed check: one that failed is DENY."""
    first = next((finding for finding in findings if not finding.passed), None)
    return (Verdict.DENY, first.reason) if first else (ruling.verdict, "")


def inventory_lines(target_id: str) -> str:
    """Return the lines that add a target to deploy/inventory.yaml, its environment guessed from the id.

    What is to be done with them is a comment, so that all of it can be pasted.
    """
    scheme, _, rest = target_id.partition(":")
    environment, _, name = rest.partition("/")
    kind = scheme if scheme in {"host", "database"} else "service"
    known = scheme == "svc" and name and environment.islower()
    where = environment if known else "production"
    lines = (f'- target_id: "{target_id}"', f"  kind: {kind}", f"  environment: {where}")
    return "".join(f"\n  {line}" for line in (*lines, "# and then: opsmesh check && opsmesh policies publish"))
