"""Between protobuf messages and the domain."""

from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from types import MappingProxyType
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from opsmesh.config.v1 import inventory_pb2, policies_pb2
from opsmesh.guardrails.v1 import guardrails_service_pb2 as pb
from opsmesh.policy.v1 import policy_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.guardrails import checks, domain
from services.guardrails.policies.caps import EffectCap, Scope
from services.guardrails.policies.windows import ChangeWindow, Window
from services.mesh.errors import PREFIX, Refusal, describe
from services.mesh.tools import find_tool

DETAIL_MAX: Final = 1024
AFFECTED_MAX: Final = 32
CHECKS: Final = ("syntax", "safety", "policy", "sanity")


def tool_name(name: str) -> str:
    """Return the full name of a tool given by either name; an unknown name stays as it is."""
    try:
        return find_tool(name).name
    except Refusal:
        return name


def to_policy_set(
    version: int, policy_set: policies_pb2.PolicySet, inventory: inventory_pb2.Inventory
) -> domain.PolicySet:
    """Return what the domain judges by."""
    windows = to_windows(policy_set)
    return domain.PolicySet(
        version=version,
        rules=tuple(to_rule(rule, windows) for rule in policy_set.rules),
        entries=tuple(to_entry(entry) for entry in inventory.entries),
        caps={cap.channel: cap.per_hour for cap in policy_set.notice_caps},
        effect_caps=tuple(to_cap(cap) for cap in policy_set.effect_caps),
        kill_release=(policy_set.kill_release.everything or 2, policy_set.kill_release.others or 1),
        agents={one.template_id: to_allowance(one) for one in policy_set.agents},
    )


def to_allowance(one: policies_pb2.AgentAllowance) -> domain.Allowance:
    """Return what runs of a template may call, bare tool names made full."""
    return domain.Allowance(frozenset(tool_name(name) for name in one.tools), frozenset(one.child_templates))


def to_windows(policy_set: policies_pb2.PolicySet) -> Mapping[str, tuple[Window, ...]]:
    """Return the change windows by name."""
    return {one.name: tuple(to_window(window) for window in one.time_windows) for one in policy_set.change_windows}


def to_cap(cap: policies_pb2.EffectCap) -> EffectCap:
    """Return a cap of effects, bare tool names made full."""
    return EffectCap(
        cap_id=cap.cap_id,
        scope=Scope(cap.scope),
        effects=cap.effects_per_hour,
        distinct=cap.targets_per_hour,
        environments=frozenset(cap.environments),
        targets=frozenset(cap.targets),
        methods=frozenset(tool_name(name) for name in cap.methods),
    )


def to_rule(
    rule: policies_pb2.PolicyRule, windows: Mapping[str, tuple[Window, ...]] = MappingProxyType({})
) -> domain.Rule:
    """Return a rule, bare tool names made full, and the change windows it names."""
    match = domain.Match(
        methods=frozenset(tool_name(name) for name in rule.match.methods),
        access=frozenset(domain.Access(access) for access in rule.match.access),
        min_risk=domain.Risk(rule.match.min_risk),
        environments=frozenset(rule.match.environments),
        regions=frozenset(rule.match.regions),
        targets=frozenset(rule.match.targets),
        callers=frozenset(rule.match.callers),
        channels=frozenset(rule.match.channels),
        playbooks=frozenset(rule.match.playbooks),
        except_playbooks=frozenset(rule.match.except_playbooks),
        windows=tuple(to_window(window) for window in rule.match.time_windows),
        during=tuple(ChangeWindow(name, windows.get(name, ())) for name in rule.match.during_change_windows),
        outside=tuple(ChangeWindow(name, windows.get(name, ())) for name in rule.match.outside_change_windows),
        min_affected=rule.match.min_affected_targets,
    )
    need = to_need(rule.approval) if rule.HasField("approval") else None
    return domain.Rule(rule.rule_id, domain.Verdict(rule.verdict), match, rule.description, need)


def to_need(need: policies_pb2.ApprovalNeed) -> domain.Need:
    """Return who must approve; a time of 0 means the default."""
    ttl: timedelta = need.ttl_duration.ToTimedelta()
    execute_ttl: timedelta = need.execute_ttl_duration.ToTimedelta()
    times = (ttl or domain.APPROVAL_TTL, execute_ttl or domain.APPROVAL_TTL)
    return domain.Need(need.approvers, frozenset(need.groups), *times)


def to_window(window: policies_pb2.TimeWindow) -> Window:
    """Return a time window; a ValueError when a date is none."""
    start, end = time.fromisoformat(window.start), time.fromisoformat(window.end)
    first, last = (date.fromisoformat(day) if day else None for day in (window.first_date, window.last_date))
    return Window(frozenset(window.days), start, end, window.zone, first, last)


def to_entry(entry: inventory_pb2.InventoryEntry) -> domain.Entry:
    """Return an inventory entry."""
    return domain.Entry(
        target_id=entry.target_id,
        kind=entry.kind,
        environment=entry.environment,
        region=entry.region,
        min_risk=domain.Risk(entry.min_risk),
        keys=tuple(entry.keys),
        depends_on=tuple(entry.depends_on),
    )


def timestamp(when: datetime) -> Timestamp:
    """Return an aware time as a message."""
    made = Timestamp()
    made.FromDatetime(when)
    return made


def reason_value(reason: str) -> "error_reason_pb2.ErrorReason.ValueType":
    """Return the enum value of a reason without prefix."""
    return error_reason_pb2.ErrorReason.Value(PREFIX + reason)


def to_check(finding: checks.Finding) -> pb.Check:
    """Return a finding with its sentence; what failed tells the next step, too."""
    detail = finding.detail
    if not finding.passed and finding.reason and not detail:
        detail = describe(reason_value(finding.reason), finding.facts)
    return pb.Check(name=finding.name, passed=finding.passed, detail=detail[:DETAIL_MAX], reason=finding.reason)


def to_judgement(
    verdict: domain.Verdict,
    reason: str,
    findings: Sequence[checks.Finding],
    *,
    method: str,
    policy_set_version: int,
    case: domain.Case | None = None,
    risk_detail: str = "",
    rule_id: str = "",
    digest: bytes = b"",
    request_json: str = "",
    precondition: Mapping[str, str] | None = None,
) -> pb.Judgement:
    """Return a judgement; checks that could not be made are told as such."""
    made = {finding.name: finding for finding in findings}
    skipped = "not looked at: the action could not be read"
    return pb.Judgement(
        verdict=pb.Verdict.ValueType(verdict),
        reason=reason,
        checks=[to_check(made.get(name, checks.Finding(name, passed=False, detail=skipped))) for name in CHECKS],
        method=method,
        request_digest=digest.hex(),
        target_id=case.target_id if case else "",
        environment=case.environment if case else "",
        region=case.region if case else "",
        risk=policy_pb2.Risk.ValueType(case.risk if case else 0),
        risk_detail=risk_detail,
        policy_set_version=policy_set_version,
        policy_rule_id=rule_id,
        request_json=request_json,
        precondition=precondition or {},
        affected_targets=case.affected[:AFFECTED_MAX] if case else (),
        affected_target_count=len(case.affected) if case else 0,
    )
