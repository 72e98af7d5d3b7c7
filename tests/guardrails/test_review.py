"""What may be published and what may not, with the field path of each mistake."""

from typing import Any

import pytest

from opsmesh.config.v1 import inventory_pb2, policies_pb2
from services.guardrails.policies import review
from services.local.publish import read_policies
from services.mesh import policy
from services.mesh.config import load_yaml
from services.mesh.identities import Identities
from services.mesh.tools import find_tool, tools
from tests.guardrails.world import Rule, inventory, rule
from tests.mesh.world import ROOT

PEOPLE = Identities.load(ROOT / "deploy" / "identities.yaml").names


def look(rules: list[Rule], entries: list[inventory_pb2.InventoryEntry] | None = None, **more: Any) -> dict[str, str]:
    """Return the mistakes by field path."""
    documents = policies_pb2.PolicySet(rules=rules, **more)
    places = inventory() if entries is None else inventory_pb2.Inventory(entries=entries)
    return dict(review.problems(documents, places, tools(), PEOPLE))


def entry(target_id: str, **more: Any) -> inventory_pb2.InventoryEntry:
    """Return an inventory entry."""
    return inventory_pb2.InventoryEntry(target_id=target_id, kind="service", environment="demo", **more)


@pytest.mark.parametrize("folder", ["deploy", "deploy/demo"])
def test_what_ships_may_be_published(folder: str) -> None:
    """The shipped configuration and the demo's are valid and free of mistakes."""
    if folder == "deploy":
        rules, places = read_policies(ROOT / folder)
    else:
        rules = load_yaml(ROOT / folder / "policies.yaml", policies_pb2.PolicySet)
        places = load_yaml(ROOT / folder / "inventory.yaml", inventory_pb2.Inventory)
    assert review.problems(rules, places, tools(), PEOPLE) == []
    assert policy.violations(rules) == policy.violations(places) == []


@pytest.mark.parametrize(
    ("match", "path"),
    [
        ({"methods": ["RestartWorkload", "RestartWorklod"]}, "methods[1]"),
        ({"environments": ["prod"]}, "environments[0]"),
        ({"regions": ["moon"]}, "regions[0]"),
        ({"targets": ["svc:demo/chekout"]}, "targets[0]"),
        ({"callers": ["human/nobody"]}, "callers[0]"),
        ({"time_windows": [{"start": "09:00", "end": "17:00", "zone": "Europe/Bärlin"}]}, "time_windows[0].zone"),
        ({"time_windows": [{"start": "09:00", "end": "17:00", "zone": "../../etc/passwd"}]}, "time_windows[0].zone"),
    ],
)
def test_names_that_nothing_bears_are_refused(match: dict[str, Any], path: str) -> None:
    """An unknown tool, environment, region, target, caller or zone is named with its place."""
    assert list(look([rule("ok", "ALLOW"), rule("typo", "DENY", **match)])) == [f"policy_set.rules[1].match.{path}"]


def test_ids_and_keys_mean_one_thing() -> None:
    """Rule ids, channels, target ids and keys given twice, and dependencies on nothing, are refused."""
    cap = policies_pb2.NoticeCap(channel="ops", per_hour=1)
    found = look(
        [rule("same", "ALLOW"), rule("same", "ALLOW")],
        [
            entry("svc:demo/a", keys=["a", "svc:demo/a"], depends_on=["svc:demo/b"]),
            entry("svc:demo/b", keys=["a", "svc:demo/a"], depends_on=["svc:demo/b", "svc:demo/c"]),
            entry("svc:demo/a"),
        ],
        notice_caps=[cap, cap],
    )
    assert set(found) == {
        "policy_set.rules[1].rule_id",
        "policy_set.notice_caps[1].channel",
        "inventory.entries[2].target_id",
        "inventory.entries[1].keys[0]",
        "inventory.entries[1].keys[1]",
        "inventory.entries[1].depends_on[0]",
        "inventory.entries[1].depends_on[1]",
    }


def test_approvals_must_be_asked_for_and_described() -> None:
    """REQUIRE_APPROVAL without its needs, needs without it, and a group given twice are refused."""
    bare = rule("bare", "REQUIRE_APPROVAL")
    bare.ClearField("approval")
    stray = rule("stray", "ALLOW", environments=["demo"])
    stray.approval.approvers = 1
    twice = rule("twice", "REQUIRE_APPROVAL", regions=["local"])
    twice.approval.groups.extend(["dba", "dba"])
    assert set(look([bare, stray, twice])) >= {
        "policy_set.rules[0].approval",
        "policy_set.rules[1].approval",
        "policy_set.rules[2].approval.groups[1]",
    }


def test_a_rule_that_can_never_decide_is_refused() -> None:
    """An ALLOW below an OBSERVE that matches everything it does is refused; below a narrower one it is not."""
    allow = rule("on", "ALLOW", environments=["demo"], access=["ACCESS_WRITE"])
    assert list(look([rule("see", "OBSERVE", access=["ACCESS_WRITE"]), allow])) == ["policy_set.rules[1].verdict"]
    assert look([rule("see", "OBSERVE", environments=["production"]), allow]) == {}
    office = [{"start": "09:00", "end": "17:00", "zone": "UTC"}]
    assert look([rule("see", "OBSERVE", time_windows=office), allow]) == {}


def test_what_agents_may_call_is_known() -> None:
    """Unknown tools, a tool or template given twice, and child templates that are not named are refused."""
    found = look(
        [rule("all", "ALLOW")],
        agents=[
            {"template_id": "fix", "tools": ["RestartWorkload", "RestartWorklod"], "child_templates": ["look", "gone"]},
            {"template_id": "look", "tools": ["CheckHealth", find_tool("CheckHealth").name]},
            {"template_id": "fix"},
        ],
    )
    assert set(found) == {
        "policy_set.agents[0].tools[1]",
        "policy_set.agents[0].child_templates[1]",
        "policy_set.agents[1].tools[1]",
        "policy_set.agents[2].template_id",
    }
