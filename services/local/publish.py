"""Publish the configuration of a folder on a mesh that has none yet; afterwards only say where the files differ.

Published versions are the truth: a file never overrides them, it is published by a person (`opsmesh rules publish`).
"""

import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import grpc

from opsmesh.automation.v1 import playbook_service_pb2, playbook_service_pb2_grpc
from opsmesh.config.v1 import inventory_pb2, playbooks_pb2, policies_pb2, rules_pb2
from opsmesh.guardrails.v1 import policy_service_pb2, policy_service_pb2_grpc
from opsmesh.router.v1 import rule_service_pb2, rule_service_pb2_grpc
from services.mesh.config import load_all, load_yaml

DEADLINE = 20.0


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
    """Return all policies below CONFIG as one policy set, and the inventory. Raises ConfigError with file and line."""
    merged = policies_pb2.PolicySet()
    for file in load_all(config / "policies", policies_pb2.PolicySet).values():
        merged.MergeFrom(file)
    return merged, load_yaml(config / "inventory.yaml", inventory_pb2.Inventory)


def read_playbooks(config: Path) -> Sequence[playbooks_pb2.Playbook]:
    """Return the playbooks below CONFIG. Raises ConfigError with file and line."""
    return list(load_all(config / "playbooks", playbooks_pb2.Playbook).values())


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
    return [f"{name}: the files differ from version {current.version}, which stays active; publish them: {command}"]
