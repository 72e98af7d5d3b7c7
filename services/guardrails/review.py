"""What may be published: names that exist, ids and keys that mean one thing, rules that can decide.

Pure; every finding is a field path of PublishPolicySetRequest and what is wrong there.
"""

from collections.abc import Collection, Iterator
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from opsmesh.config.v1 import inventory_pb2, policies_pb2
from services.guardrails import convert, domain

Problem = tuple[str, str]


def problems(
    policy_set: policies_pb2.PolicySet,
    inventory: inventory_pb2.Inventory,
    tools: Collection[str],
    identities: Collection[str],
) -> list[Problem]:
    """Return (field path, what is wrong) of everything that must not be published; empty when it may."""
    return [
        *_inventory(inventory),
        *_unique("policy_set.rules", "rule_id", [rule.rule_id for rule in policy_set.rules]),
        *_unique("policy_set.notice_caps", "channel", [cap.channel for cap in policy_set.notice_caps]),
        *_names(policy_set, inventory, tools, identities),
        *_approvals(policy_set),
        *_unreachable(policy_set),
    ]


def _inventory(inventory: inventory_pb2.Inventory) -> Iterator[Problem]:
    """Find ids and keys that mean two entries, and dependencies on nothing."""
    owners: dict[str, str] = {}
    known = {entry.target_id for entry in inventory.entries}
    for index, entry in enumerate(inventory.entries):
        path = f"inventory.entries[{index}]"
        if entry.target_id in owners:
            yield f"{path}.target_id", f"{entry.target_id} is claimed by {owners[entry.target_id]}, too"
        owners.setdefault(entry.target_id, path)
    for index, entry in enumerate(inventory.entries):
        path = f"inventory.entries[{index}]"
        for number, key in enumerate(entry.keys):
            if owners.setdefault(key, path) != path:
                yield f"{path}.keys[{number}]", f"{key} is claimed by {owners[key]}, too"
        for number, target in enumerate(entry.depends_on):
            if target not in known or target == entry.target_id:
                yield f"{path}.depends_on[{number}]", f"{target} is no other entry of the inventory"


def _unique(path: str, field: str, values: list[str]) -> Iterator[Problem]:
    """Find values given twice."""
    first: dict[str, int] = {}
    for index, value in enumerate(values):
        if first.setdefault(value, index) != index:
            yield f"{path}[{index}].{field}", f"{value} is {path}[{first[value]}], too"


def _names(
    policy_set: policies_pb2.PolicySet,
    inventory: inventory_pb2.Inventory,
    tools: Collection[str],
    identities: Collection[str],
) -> Iterator[Problem]:
    """Find names that nothing bears: a rule that never matches because of a typo protects nobody."""
    environments = {entry.environment for entry in inventory.entries}
    regions = {entry.region for entry in inventory.entries}
    targets = {entry.target_id for entry in inventory.entries}
    for index, rule in enumerate(policy_set.rules):
        match, path = rule.match, f"policy_set.rules[{index}].match"
        methods = [convert.tool_name(name) for name in match.methods]
        yield from _unknown(f"{path}.methods", methods, tools, "is no tool, or not unique: see opsmesh tools list")
        yield from _unknown(f"{path}.environments", match.environments, environments, "is in no inventory entry")
        yield from _unknown(f"{path}.regions", match.regions, regions, "is in no inventory entry")
        yield from _unknown(f"{path}.targets", match.targets, targets, "is not in the inventory")
        yield from _unknown(f"{path}.callers", match.callers, identities, "is not in deploy/identities.yaml")
        for number, window in enumerate(match.time_windows):
            if not _is_zone(window.zone):
                yield f"{path}.time_windows[{number}].zone", f"{window.zone} is no IANA time zone"


def _unknown(path: str, names: Collection[str], known: Collection[str], words: str) -> Iterator[Problem]:
    """Find names that are not known."""
    for number, name in enumerate(names):
        if name not in known:
            yield f"{path}[{number}]", f"{name} {words}"


def _is_zone(name: str) -> bool:
    """Say whether there is such a time zone."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def _approvals(policy_set: policies_pb2.PolicySet) -> Iterator[Problem]:
    """Find approvals that nobody asks for, and demands for one that do not say whose."""
    for index, rule in enumerate(policy_set.rules):
        path = f"policy_set.rules[{index}].approval"
        asks = rule.verdict == policies_pb2.PolicyRule.VERDICT_REQUIRE_APPROVAL
        if asks and not rule.HasField("approval"):
            yield path, "VERDICT_REQUIRE_APPROVAL needs it: say how many must approve"
        if not asks and rule.HasField("approval"):
            yield path, "only VERDICT_REQUIRE_APPROVAL asks for one"
        groups = list(rule.approval.groups)
        for number, group in enumerate(groups):
            if group in groups[:number]:
                yield f"{path}.groups[{number}]", f"{group} is given twice"


def _unreachable(policy_set: policies_pb2.PolicySet) -> Iterator[Problem]:
    """Find rules that can never decide, because a stronger one matches whatever they match."""
    rules = [convert.to_rule(rule) for rule in policy_set.rules]
    strongest = sorted(rules, key=lambda rule: -rule.verdict)
    for index, rule in enumerate(rules):
        above = (one for one in strongest if one.verdict > rule.verdict and one.match.covers(rule.match))
        winner: domain.Rule | None = next(above, None)
        if winner:
            words = f"never decides: {winner.rule_id} matches all of it and {winner.verdict.name} is stronger"
            yield f"policy_set.rules[{index}].verdict", words
