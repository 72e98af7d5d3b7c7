"""Publish the configuration of a folder on a mesh that has none yet; afterwards only say where the files differ.

Published versions are the truth: a file never overrides them, it is published by a person (`opsmesh rules publish`).
"""

import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import grpc

from opsmesh.agents.v1 import template_service_pb2, template_service_pb2_grpc
from opsmesh.automation.v1 import playbook_service_pb2, playbook_service_pb2_grpc
from opsmesh.config.v1 import inventory_pb2, playbooks_pb2, policies_pb2, rules_pb2, templates_pb2
from opsmesh.guardrails.v1 import policy_service_pb2, policy_service_pb2_grpc
from opsmesh.router.v1 import rule_service_pb2, rule_service_pb2_grpc
from services.mesh.config import load_all, load_yaml

DEADLINE = 20.0
TEMPLATES_MAX = 1000


class Version(Protocol):
    """What the three kinds of published versions have in common."""

    @property
    def version(self) -> int:
        """From 1; 0 when nothing is published."""

    @property
    def digest(self) -> str:
        """SHA-256 of the content, hex."""


def read_rules(config: Path) -> rules_pb2.RuleSet:
    """Return all rules below CONFIG as one rule set. Raises ConfigError with file and line."""
    files = load_all(config / "rules", rules_pb2.RuleFile)
    return rules_pb2.RuleSet(rules=[rule for file in files.values() for rule in file.rules])


def read_policies(config: Path) -> tuple[policies_pb2.PolicySet, inventory_pb2.Inventory]:
    """Return all policies below CONFIG as one policy set, and the inventory. Raises ConfigError with file and line.

    What agents may call is said there, too: a template that the policies do not name may call what its file names.
    """
    merged = policies_pb2.PolicySet()
    for file in load_all(config / "policies", policies_pb2.PolicySet).values():
        merged.MergeFrom(file)
    merged.agents.extend(allowances(merged, read_templates(config)))
    return merged, load_yaml(config / "inventory.yaml", inventory_pb2.Inventory)


def read_playbooks(config: Path) -> Sequence[playbooks_pb2.Playbook]:
    """Return the playbooks below CONFIG. Raises ConfigError with file and line."""
    return list(load_all(config / "playbooks", playbooks_pb2.Playbook).values())


def allowances(
    policy_set: policies_pb2.PolicySet, templates: Sequence[templates_pb2.AgentTemplate]
) -> list[policies_pb2.AgentAllowance]:
    """Return what is to be added to a policy set: what its files name of each template that it does not name itself."""
    named = {one.template_id for one in policy_set.agents}
    return [
        policies_pb2.AgentAllowance(template_id=one.template_id, tools=one.tools, child_templates=one.child_templates)
        for one in sorted(templates, key=lambda one: one.template_id)
        if one.template_id not in named
    ]


def read_templates(config: Path) -> Sequence[templates_pb2.AgentTemplate]:
    """Return the templates of agents below CONFIG, none without that folder. Raises ConfigError with file and line."""
    folder = config / "agents"
    return list(load_all(folder, templates_pb2.AgentTemplate).values()) if folder.is_dir() else []


def in_order(
    templates: Sequence[templates_pb2.AgentTemplate], published: Iterable[str] = ()
) -> Iterator[templates_pb2.AgentTemplate]:
    """Yield templates so that each child is there before who names it.

    Of a loop one comes twice: first without the children that are not PUBLISHED yet, at last as it is.
    """
    waiting = {one.template_id: one for one in templates}
    known, cut = set(published), []
    while waiting:
        missing = {
            name: [child for child in one.child_templates if child in waiting and child not in {name, *known}]
            for name, one in waiting.items()
        }
        name = min(missing, key=lambda one: (len(missing[one]), one))
        whole = waiting.pop(name)
        known.add(name)
        if missing[name]:
            first = templates_pb2.AgentTemplate()
            first.CopyFrom(whole)
            del first.child_templates[:]
            first.child_templates.extend(one for one in whole.child_templates if one not in missing[name])
            first.max_depth = whole.max_depth if first.child_templates else 0
            cut.append(whole)
            yield first
        else:
            yield whole
    yield from cut


async def publish(channels: Callable[[str], grpc.aio.Channel], config: Path) -> list[str]:
    """Publish what has no version yet; return a line for each file content that differs from the active version.

    CHANNELS gives the channel of a service by name, as a person who may publish.
    """
    policies = policy_service_pb2_grpc.PolicyServiceStub(channels("guardrails"))
    playbooks = playbook_service_pb2_grpc.PlaybookServiceStub(channels("automation"))
    rules = rule_service_pb2_grpc.RuleServiceStub(channels("router"))
    drift: list[str] = []

    policy_set, inventory = read_policies(config)

    async def publish_policies(validate_only: bool) -> Version:  # noqa: FBT001  the one flag all three publishes share
        request = policy_service_pb2.PublishPolicySetRequest(
            request_id=str(uuid.uuid4()), policy_set=policy_set, inventory=inventory, validate_only=validate_only
        )
        return (await policies.PublishPolicySet(request, timeout=DEADLINE)).policy_set

    async def active_policies() -> Version:
        return (await policies.GetPolicySet(policy_service_pb2.GetPolicySetRequest(), timeout=DEADLINE)).policy_set

    drift += await _settle("policy set", "opsmesh policies publish", publish_policies, active_policies)

    drift += await publish_templates(channels, config)

    # Rules name playbooks, so these come first.
    for playbook in read_playbooks(config):

        async def publish_playbook(validate_only: bool, playbook: playbooks_pb2.Playbook = playbook) -> Version:  # noqa: FBT001  as above
            request = playbook_service_pb2.PublishPlaybookRequest(
                request_id=str(uuid.uuid4()), playbook=playbook, validate_only=validate_only
            )
            return (await playbooks.PublishPlaybook(request, timeout=DEADLINE)).playbook

        async def active_playbook(playbook: playbooks_pb2.Playbook = playbook) -> Version:
            request = playbook_service_pb2.GetPlaybookRequest(playbook_id=playbook.playbook_id)
            return (await playbooks.GetPlaybook(request, timeout=DEADLINE)).playbook

        name = f"playbook {playbook.playbook_id}"
        drift += await _settle(name, "opsmesh playbooks publish", publish_playbook, active_playbook)

    rule_set = read_rules(config)

    async def publish_rules(validate_only: bool) -> Version:  # noqa: FBT001  as above
        request = rule_service_pb2.PublishRuleSetRequest(
            request_id=str(uuid.uuid4()), rule_set=rule_set, validate_only=validate_only
        )
        return (await rules.PublishRuleSet(request, timeout=DEADLINE)).rule_set

    async def active_rules() -> Version:
        return (await rules.GetRuleSet(rule_service_pb2.GetRuleSetRequest(), timeout=DEADLINE)).rule_set

    drift += await _settle("rule set", "opsmesh rules publish", publish_rules, active_rules)
    return drift


async def publish_templates(channels: Callable[[str], grpc.aio.Channel], config: Path) -> list[str]:
    """Publish the templates of agents that have no version yet; return where the files differ from the others."""
    stub = template_service_pb2_grpc.TemplateServiceStub(channels("agents"))
    listed = template_service_pb2.ListTemplatesRequest(page_size=TEMPLATES_MAX)
    active = {one.template_id: one for one in (await stub.ListTemplates(listed, timeout=DEADLINE)).templates}
    drift: list[str] = []
    for template in in_order(read_templates(config), active):
        current = active.get(template.template_id)
        request = template_service_pb2.PublishTemplateRequest(
            request_id=str(uuid.uuid4()), template=template, validate_only=current is not None
        )
        wanted = (await stub.PublishTemplate(request, timeout=DEADLINE)).template
        name, command = f"template {template.template_id}", "opsmesh templates publish"
        if current is not None and current.changed_tools:
            changed = ", ".join(current.changed_tools)
            drift.append(f"{name}: disabled, for these tools changed since it was published: {changed}; {command}")
        elif current is not None and wanted.digest != current.digest:
            drift.append(_differs(name, current, command))
    return drift


async def _settle(
    name: str,
    command: str,
    publish_it: Callable[[bool], Awaitable[Version]],
    active: Callable[[], Awaitable[Version]],
) -> list[str]:
    """Publish NAME when it has no version; else compare the file's digest with the active one's."""
    try:
        current = await active()
    except grpc.aio.AioRpcError as error:
        if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION):
            raise
        await publish_it(False)
        return []
    wanted = await publish_it(True)
    if wanted.digest == current.digest:
        return []
    return [_differs(name, current, command)]


def _differs(name: str, current: Version, command: str) -> str:
    """Say that files differ from the active version."""
    return f"{name}: the files differ from version {current.version}, which stays active; publish them: {command}"
