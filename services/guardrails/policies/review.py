"""What may be published: names that exist, ids and keys that mean one thing, rules that can decide.

Pure; every finding is a field path of PublishPolicySetRequest and what is wrong there.
"""

from collections.abc import Collection, Iterator
from datetime import date
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
        *_unique("policy_set.effect_caps", "cap_id", [cap.cap_id for cap in policy_set.effect_caps]),
        *_unique("policy_set.change_windows", "name", [window.name for window in policy_set.change_windows]),
        *_names(policy_set, inventory, tools, identities),
        *(times := list(_times(policy_set))),
        *_approvals(policy_set),
        *_releases(policy_set, identities),
        *_agents(policy_set, tools),
        # What cannot be read as a rule cannot be compared with others.
        *(() if times else (*_impossible(policy_set, inventory), *_unreachable(policy_set))),
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
        named = {window.name for window in policy_set.change_windows}
        for field in ("during_change_windows", "outside_change_windows"):
            yield from _unknown(f"{path}.{field}", getattr(match, field), named, "is not in change_windows")
    for index, cap in enumerate(policy_set.effect_caps):
        path = f"policy_set.effect_caps[{index}]"
        methods = [convert.tool_name(name) for name in cap.methods]
        yield from _unknown(f"{path}.methods", methods, tools, "is no tool, or not unique: see opsmesh tools list")
        yield from _unknown(f"{path}.environments", cap.environments, environments, "is in no inventory entry")
        yield from _unknown(f"{path}.targets", cap.targets, targets, "is not in the inventory")
        if cap.scope == policies_pb2.EffectCap.SCOPE_TARGET and cap.targets_per_hour:
            yield f"{path}.targets_per_hour", "says nothing where each target is counted by itself"


def _agents(policy_set: policies_pb2.PolicySet, tools: Collection[str]) -> Iterator[Problem]:
    """Find allowances of agents for tools or templates that nothing bears, and what is said twice."""
    yield from _unique("policy_set.agents", "template_id", [one.template_id for one in policy_set.agents])
    templates = {one.template_id for one in policy_set.agents}
    for index, one in enumerate(policy_set.agents):
        path = f"policy_set.agents[{index}]"
        names = [convert.tool_name(name) for name in one.tools]
        yield from _unknown(f"{path}.tools", names, tools, "is no tool, or not unique: see opsmesh tools list")
        for number, name in enumerate(names):
            if name in names[:number]:
                yield f"{path}.tools[{number}]", f"{name} is given twice"
        yield from _unknown(f"{path}.child_templates", one.child_templates, templates, "is no template named in agents")


def _times(policy_set: policies_pb2.PolicySet) -> Iterator[Problem]:
    """Find zones and dates that are none: such a rule could not be judged by."""
    windows = [
        (f"policy_set.rules[{index}].match.time_windows[{number}]", window)
        for index, rule in enumerate(policy_set.rules)
        for number, window in enumerate(rule.match.time_windows)
    ] + [
        (f"policy_set.change_windows[{index}].time_windows[{number}]", window)
        for index, one in enumerate(policy_set.change_windows)
        for number, window in enumerate(one.time_windows)
    ]
    for path, window in windows:
        if not _is_zone(window.zone):
            yield f"{path}.zone", f"{window.zone} is no IANA time zone"
        dates = [(field, getattr(window, field)) for field in ("first_date", "last_date")]
        wrong = [(field, day) for field, day in dates if day and not _is_date(day)]
        for field, day in wrong:
            yield f"{path}.{field}", f"{day} is no day of the calendar"
        if not wrong and window.first_date and window.last_date and window.last_date < window.first_date:
            yield f"{path}.last_date", f"{window.last_date} is before {window.first_date}: the window never opens"


def _is_date(text: str) -> bool:
    """Say whether there is such a day."""
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _releases(policy_set: policies_pb2.PolicySet, identities: Collection[str]) -> Iterator[Problem]:
    """Find a kill that could never be released, because there are not so many people."""
    people = sum(1 for identity in identities if identity.startswith("human/"))
    for field in ("everything", "others"):
        needed = getattr(policy_set.kill_release, field)
        if needed > people:
            yield f"policy_set.kill_release.{field}", f"{needed} people are needed, and only {people} are known"


def _impossible(policy_set: policies_pb2.PolicySet, inventory: inventory_pb2.Inventory) -> Iterator[Problem]:
    """Find rules whose own conditions exclude each other."""
    known = domain.PolicySet(entries=tuple(convert.to_entry(entry) for entry in inventory.entries))
    most = max((len(known.affected(target)) for target in known.dependents), default=min(1, len(known.entries)))
    for index, rule in enumerate(policy_set.rules):
        match, path = rule.match, f"policy_set.rules[{index}].match"
        for number, name in enumerate(match.outside_change_windows):
            if set(match.during_change_windows) == {name}:
                yield f"{path}.outside_change_windows[{number}]", f"never applies: it must also be during {name}"
        if match.min_affected_targets > most:
            words = f"never applies: no target of the inventory affects more than {most}"
            yield f"{path}.min_affected_targets", words


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
    windows = convert.to_windows(policy_set)
    rules = [convert.to_rule(rule, windows) for rule in policy_set.rules]
    strongest = sorted(rules, key=lambda rule: -rule.verdict)
    for index, rule in enumerate(rules):
        above = (one for one in strongest if one.verdict > rule.verdict and one.match.covers(rule.match))
        winner: domain.Rule | None = next(above, None)
        if winner:
            words = f"never decides: {winner.rule_id} matches all of it and {winner.verdict.name} is stronger"
            yield f"policy_set.rules[{index}].verdict", words
