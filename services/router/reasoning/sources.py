"""What the mesh knows for a decision: rules, policies, playbooks, templates, inventory, runbooks, changes."""

import json
from collections.abc import Callable, Sequence
from typing import Final

from opsmesh.agents.v1 import template_service_pb2, template_service_pb2_grpc
from opsmesh.automation.v1 import playbook_service_pb2, playbook_service_pb2_grpc
from opsmesh.config.v1 import inventory_pb2, policies_pb2
from opsmesh.guardrails.v1 import policy_service_pb2, policy_service_pb2_grpc
from opsmesh.ingest.v1 import ingest_service_pb2
from opsmesh.tools.change.v1 import change_tool_service_pb2
from opsmesh.tools.runbook.v1 import runbook_tool_service_pb2
from services.mesh.models.showing import Limits, show
from services.mesh.models.untrusted import Marks
from services.router.messages import facts_of
from services.router.reasoning.context import About, Told
from services.router.rules import Index

PAGE: Final = 100
PAGES_MAX: Final = 3
RULES_MAX: Final = 30
LINE: Final = 300
TARGETS_MAX: Final = 8
CHANGES_OF: Final = 2
QUERY_MAX: Final = 200
SIGNALS: Final = 5
# Tells people, and repairs nothing; the router starts it by itself.
NOT_OFFERED: Final = frozenset({"notify-person"})
SMALL: Final = Limits(text=500, total=6_000, items=20)
INCIDENT: Final = Limits(text=2000, total=12_000, items=40)


class IncidentSource:
    """The incident itself, with its newest signals; its targets that are in the inventory may be chosen."""

    name = "incident"

    async def tell(self, about: About, marks: Marks) -> Told:
        """See Source."""
        if about.incident is None:
            return Told("")
        shown = show(about.incident, marks, INCIDENT).text
        signals = [show(one, marks, SMALL).text for one in about.signals[:SIGNALS]]
        text = "\n".join([shown, f"newest signals ({len(signals)} of {len(about.signals)}):", *signals])
        return Told(text, f"revision {about.incident.revision}", targets=targets_of(about.incident))


class RulesSource:
    """The active rules that come first, and why they do not match."""

    name = "rules"

    def __init__(self, index: Callable[[], Index]) -> None:
        self._index = index

    async def tell(self, about: About, marks: Marks) -> Told:
        """See Source."""
        index = self._index()
        if about.incident is None or not index.version:
            return Told("(no rule set is published)" if not index.version else "", f"version {index.version}")
        found = index.explain(facts_of(about.incident))
        lines = [f"- {rule}: {marks.span('rules', why, LINE)}" for rule, why in found.not_matched[:RULES_MAX]]
        head = f"Rule set {index.version}; no rule decides this revision. Why the first of them do not match:"
        return Told("\n".join([head, *lines]), f"version {index.version}")


class PoliciesSource:
    """The policies of the environments that the incident's targets are in."""

    name = "policies"

    def __init__(self, policies: "policy_service_pb2_grpc.PolicyServiceAsyncStub") -> None:
        self._policies = policies

    async def tell(self, about: About, marks: Marks) -> Told:
        """See Source."""
        version = await _policy_set(self._policies)
        where = {one.environment for one in about.incident.targets if one.in_inventory} if about.incident else set()
        rules = [one for one in version.policy_set.rules if _applies(one, where)]
        shown = show(policies_pb2.PolicySet(rules=rules), marks, SMALL).text
        return Told(shown, f"version {version.version}, {len(rules)} of {len(version.policy_set.rules)} rules")


class InventorySource:
    """What the targets are, and what they and others depend on; in a conversation, all of them."""

    name = "inventory"

    def __init__(self, policies: "policy_service_pb2_grpc.PolicyServiceAsyncStub") -> None:
        self._policies = policies

    async def tell(self, about: About, marks: Marks) -> Told:
        """See Source."""
        inventory = (await _policy_set(self._policies)).inventory
        if about.incident is None:
            names = tuple(one.target_id for one in inventory.entries)
            return Told(show(inventory, marks, INCIDENT).text, f"{len(names)} targets", targets=names)
        own = set(targets_of(about.incident))
        near = {name for one in inventory.entries if one.target_id in own for name in one.depends_on}
        chosen = [one for one in inventory.entries if one.target_id in own | near or own.intersection(one.depends_on)]
        return Told(show(inventory_pb2.Inventory(entries=chosen), marks, SMALL).text, f"{len(chosen)} targets")


class PlaybooksSource:
    """The published playbooks."""

    name = "playbooks"

    def __init__(self, playbooks: "playbook_service_pb2_grpc.PlaybookServiceAsyncStub") -> None:
        self._playbooks = playbooks

    async def tell(self, about: About, marks: Marks) -> Told:
        """See Source."""
        del about
        found: list[playbook_service_pb2.PlaybookVersion] = []
        token = ""
        for _ in range(PAGES_MAX):
            request = playbook_service_pb2.ListPlaybooksRequest(page_size=PAGE, page_token=token)
            answer = await self._playbooks.ListPlaybooks(request)
            found += [one for one in answer.playbooks if one.playbook_id not in NOT_OFFERED]
            token = answer.next_page_token
            if not token:
                break
        lines = [
            f"- {one.playbook_id}: {marks.span('Playbook', _words(one.playbook.title, one.playbook.description), LINE)}"
            f" steps: {', '.join(step.tool for step in one.playbook.steps)[:LINE]}"
            for one in found
        ]
        more = " (there are more)" if token else ""
        return Told("\n".join(lines) or "(none)", f"{len(found)}{more}", playbooks=tuple(o.playbook_id for o in found))


class TemplatesSource:
    """The published templates of agents; a disabled one is not offered."""

    name = "templates"

    def __init__(self, templates: "template_service_pb2_grpc.TemplateServiceAsyncStub") -> None:
        self._templates = templates

    async def tell(self, about: About, marks: Marks) -> Told:
        """See Source."""
        del about
        found = await enabled_templates(self._templates)
        lines = [
            f"- {one.template_id}: {marks.span('AgentTemplate', _words(one.template.title, one.template.description))}"
            f" tools: {', '.join(one.template.tools)[:LINE]}"
            for one in found
        ]
        return Told("\n".join(lines) or "(none)", str(len(found)), templates=tuple(one.template_id for one in found))


class ReadsSource:
    """The tools that a model may ask to be read with, and what their arguments look like."""

    name = "reads"

    async def tell(self, about: About, marks: Marks) -> Told:
        """See Source."""
        del marks
        if about.reads is None:
            return Told("(none)", "no reads without an incident")
        offers = await about.reads.offers()
        lines = [
            f"- {one.name}: {one.description} arguments: {json.dumps(dict(one.schema), separators=(',', ':'))}"
            for one in offers.values()
        ]
        return Told("\n".join(lines), f"{len(offers)} tools", reads=offers)


class RunbooksSource:
    """What the runbooks say about words of the incident."""

    name = "runbooks"

    async def tell(self, about: About, marks: Marks) -> Told:
        """See Source."""
        if about.reads is None or about.incident is None:
            return Told("")
        words = " ".join([about.incident.labels.get("alertname", ""), about.incident.title]).strip()
        request = runbook_tool_service_pb2.SearchRunbooksRequest(query=words[:QUERY_MAX] or "incident", max_results=5)
        answer = await about.reads.call("SearchRunbooks", request)
        return Told(show(answer, marks, SMALL).text)


class ChangesSource:
    """What was deployed or configured on the targets lately."""

    name = "changes"

    async def tell(self, about: About, marks: Marks) -> Told:
        """See Source."""
        if about.reads is None or about.incident is None:
            return Told("")
        told = []
        for target in targets_of(about.incident)[:CHANGES_OF]:
            request = change_tool_service_pb2.ListChangesRequest(target_id=target, page_size=10)
            answer = await about.reads.call("opsmesh.tools.change.v1.ChangeToolService/ListChanges", request)
            told.append(f"{target}: {show(answer, marks, SMALL).text}")
        return Told("\n".join(told) or "(no target in the inventory)")


async def enabled_templates(
    templates: "template_service_pb2_grpc.TemplateServiceAsyncStub",
) -> Sequence[template_service_pb2.TemplateVersion]:
    """Return the active templates whose tools are what they were when they were published."""
    answer = await templates.ListTemplates(template_service_pb2.ListTemplatesRequest(page_size=PAGE))
    return [one for one in answer.templates if not one.changed_tools]


def targets_of(incident: ingest_service_pb2.Incident) -> tuple[str, ...]:
    """Return the targets that something can be done about: what the inventory knows."""
    return tuple(one.target_id for one in incident.targets if one.in_inventory)[:TARGETS_MAX]


async def _policy_set(
    policies: "policy_service_pb2_grpc.PolicyServiceAsyncStub",
) -> policy_service_pb2.PolicySetVersion:
    return (await policies.GetPolicySet(policy_service_pb2.GetPolicySetRequest())).policy_set


def _applies(rule: policies_pb2.PolicyRule, where: set[str]) -> bool:
    """Say whether a policy may be about one of these environments."""
    named = set(rule.match.environments)
    return not named or not where or bool(named & where)


def _words(*texts: str) -> str:
    return ". ".join(text for text in texts if text)
