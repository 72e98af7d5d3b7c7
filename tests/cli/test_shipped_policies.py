"""The comments of deploy/policies/default.yaml, followed word by word, give policies that may be published."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from opsmesh.config.v1 import inventory_pb2, policies_pb2
from services.guardrails import convert, domain
from services.guardrails.policies import review
from services.mesh import policy
from services.mesh.config import load_yaml
from services.mesh.identities import Identities
from services.mesh.tools import tools
from tests.mesh.world import ROOT

SHIPPED = ROOT / "deploy" / "policies" / "default.yaml"
WRITES = ("production-writes", "production-risky-writes", "production-critical-writes")
STEPS = {
    "environment": (),
    "tool": ("production-other-tools",),
    "target": ("production-other-targets",),
    "caller": ("production-agents",),
    "freeze": ("production-freeze",),
}


def uncommented(text: str, *names: str) -> str:
    """Return TEXT with the `# ` taken off the rules and sections of these names."""
    for name in names:
        indent, opening = ("  ", f"- rule_id: {name}") if f"- rule_id: {name}\n" in text else ("", f"{name}:")
        block = re.search(rf"^{indent}# {opening}$(\n{indent}#   .*)*", text, re.MULTILINE)
        assert block, name
        text = text.replace(block[0], block[0].replace(f"{indent}# ", indent))
    return text


def without(text: str, name: str) -> str:
    """Return TEXT without the rule of this name."""
    return re.sub(rf"^  - rule_id: {name}\n(    .*\n)*", "", text, flags=re.MULTILINE)


def published(folder: Path, text: str) -> policies_pb2.PolicySet:
    """Return the policy set that TEXT is; it may be published."""
    path = folder / "policies.yaml"
    path.write_text(text)
    rules = load_yaml(path, policies_pb2.PolicySet)
    inventory = load_yaml(ROOT / "deploy" / "inventory.yaml", inventory_pb2.Inventory)
    people = Identities.load(ROOT / "deploy" / "identities.yaml").names
    assert review.problems(rules, inventory, tools(), people) == []
    assert policy.violations(rules) == []
    return rules


@pytest.mark.parametrize("step", STEPS)
def test_each_step_may_be_published(tmp_path: Path, step: str) -> None:
    """An environment, and one tool, target or caller of it, are turned on by the lines the file names."""
    text = uncommented(without(SHIPPED.read_text(), "observe-writes"), *WRITES, *STEPS[step])
    if step == "freeze":
        text = uncommented(text, "change_windows")
    found = published(tmp_path, text)
    assert {rule.rule_id for rule in found.rules} >= {*WRITES, *STEPS[step]}


def test_one_playbook_is_turned_on_and_everything_else_stays_observed(tmp_path: Path) -> None:
    """The exception that the file shows lets one playbook through; another one and a person are still observed."""
    text = SHIPPED.read_text().replace("# except_playbooks:", "except_playbooks:")
    found = convert.to_policy_set(1, published(tmp_path, uncommented(text, *WRITES)), inventory_pb2.Inventory())
    case = domain.Case("m/M", domain.Access.WRITE, domain.Risk.LOW, "service/automation", environment="production")
    now = datetime(2026, 11, 21, tzinfo=UTC)
    verdicts = {
        name: domain.rule_on(found, replace(case, playbook_id=name), now).verdict
        for name in ("restart-workload", "another", "")
    }
    observed = domain.Verdict.OBSERVE
    assert verdicts == {"restart-workload": domain.Verdict.ALLOW, "another": observed, "": observed}


def test_everything_that_is_offered_may_be_published(tmp_path: Path) -> None:
    """Windows, caps and releases that the file shows are valid, and so are the demo's policies."""
    text = uncommented(SHIPPED.read_text(), "change_windows", "effect_caps", "kill_release")
    found = published(tmp_path, text)
    assert len(found.effect_caps) == 2
    assert found.kill_release.everything == 2
    demo = load_yaml(ROOT / "deploy" / "demo" / "policies.yaml", policies_pb2.PolicySet)
    assert policy.violations(demo) == []


def test_needs_go_by_risk_and_critical_needs_two_groups_of_people(tmp_path: Path) -> None:
    """Without `approvers` the number goes by risk; the CRITICAL line adds a second person and a group."""
    found = published(tmp_path, uncommented(without(SHIPPED.read_text(), "observe-writes"), *WRITES))
    rules = {rule.rule_id: convert.to_rule(rule) for rule in found.rules}
    assert {rule.verdict for rule in rules.values()} == {domain.Verdict.ALLOW, domain.Verdict.REQUIRE_APPROVAL}
    needs = {rule.rule_id: rule.approval for rule in found.rules}
    assert needs["production-risky-writes"].approvers == 0
    assert (needs["production-critical-writes"].approvers, list(needs["production-critical-writes"].groups)) == (
        2,
        ["leads"],
    )
