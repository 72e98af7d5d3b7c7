"""`opsmesh rules|policies|playbooks|templates publish|list`: versions of what decides and what is done."""

import uuid
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.message import Message

from opsmesh.agents.v1 import template_service_pb2 as templates
from opsmesh.agents.v1 import template_service_pb2_grpc as templates_grpc
from opsmesh.automation.v1 import playbook_service_pb2 as playbooks
from opsmesh.automation.v1 import playbook_service_pb2_grpc as playbooks_grpc
from opsmesh.guardrails.v1 import policy_service_pb2 as policies
from opsmesh.guardrails.v1 import policy_service_pb2_grpc as policies_grpc
from opsmesh.router.v1 import rule_service_pb2 as rules
from opsmesh.router.v1 import rule_service_pb2_grpc as rules_grpc
from services.cli.command import Limit, PageToken, command, group
from services.cli.output import Column, error_console, show_list, show_one
from services.cli.session import Session, pages
from services.local.publish import TEMPLATES_MAX, in_order, read_playbooks, read_policies, read_rules, read_templates

rules_app = group("What is known is answered without a model.")
policies_app = group("What may be done.")
playbooks_app = group("What is done, step by step.")
templates_app = group("What an agent is for, and what it may use.")

Config = Annotated[
    Path | None, typer.Option("--config", help="Folder of the configuration; default: the one the mesh runs with.")
]
ValidateOnly = Annotated[bool, typer.Option("--validate-only", help="Only say whether it would be accepted.")]

VERSION: list[Column] = [
    ("version", "version"),
    ("active", lambda one: "active" if one.active else ""),
    ("published", "publish_time"),
    ("by", "publisher"),
    ("digest", lambda one: one.digest[:12]),
]


def _version(session: Session, message: Message, *first: Column) -> None:
    show_one(session, message, [*first, *VERSION])


@command(rules_app, "publish")
async def publish_rules(session: Session, config: Config = None, validate_only: ValidateOnly = False) -> None:
    """Publish all rules of CONFIG/rules as a new version."""
    request = rules.PublishRuleSetRequest(
        request_id=str(uuid.uuid4()), rule_set=read_rules(session.config(config)), validate_only=validate_only
    )
    stub = rules_grpc.RuleServiceStub(session.channel("router"))
    _version(session, (await stub.PublishRuleSet(request)).rule_set, ("rules", "rule_count"))


@command(rules_app, "list")
async def list_rules(session: Session, limit: Limit = 50, page_token: PageToken = "") -> None:
    """List the versions of the rule set, newest first."""
    stub = rules_grpc.RuleServiceStub(session.channel("router"))
    request = rules.ListRuleSetsRequest(page_token=page_token)
    answer = await pages(stub.ListRuleSets, request, "rule_sets", limit)
    show_list(session, answer, "rule_sets", [*VERSION, ("rules", "rule_count")])


@command(policies_app, "publish")
async def publish_policies(
    session: Session,
    config: Config = None,
    validate_only: ValidateOnly = False,
) -> None:
    """Publish CONFIG/policies and CONFIG/inventory.yaml as a new version."""
    policy_set, inventory = read_policies(session.config(config))
    request = policies.PublishPolicySetRequest(
        request_id=str(uuid.uuid4()), policy_set=policy_set, inventory=inventory, validate_only=validate_only
    )
    stub = policies_grpc.PolicyServiceStub(session.channel("guardrails"))
    _version(session, (await stub.PublishPolicySet(request)).policy_set)


@command(policies_app, "list")
async def list_policies(session: Session, limit: Limit = 50, page_token: PageToken = "") -> None:
    """List the versions of the policy set, newest first."""
    stub = policies_grpc.PolicyServiceStub(session.channel("guardrails"))
    request = policies.ListPolicySetsRequest(page_token=page_token)
    answer = await pages(stub.ListPolicySets, request, "policy_sets", limit)
    show_list(session, answer, "policy_sets", VERSION)


@command(playbooks_app, "publish")
async def publish_playbooks(
    session: Session,
    config: Config = None,
    only: Annotated[str, typer.Option(help="Only this playbook.")] = "",
    validate_only: ValidateOnly = False,
) -> None:
    """Publish the playbooks of CONFIG/playbooks, each as a new version."""
    stub = playbooks_grpc.PlaybookServiceStub(session.channel("automation"))
    published = playbooks.ListPlaybooksResponse()
    for playbook in read_playbooks(session.config(config)):
        if only in ("", playbook.playbook_id):
            request = playbooks.PublishPlaybookRequest(
                request_id=str(uuid.uuid4()), playbook=playbook, validate_only=validate_only
            )
            published.playbooks.append((await stub.PublishPlaybook(request)).playbook)
    show_list(session, published, "playbooks", [("playbook", "playbook_id"), *VERSION])


@command(playbooks_app, "list")
async def list_playbooks(session: Session, limit: Limit = 50, page_token: PageToken = "") -> None:
    """List the active version of every playbook."""
    stub = playbooks_grpc.PlaybookServiceStub(session.channel("automation"))
    request = playbooks.ListPlaybooksRequest(page_token=page_token)
    answer = await pages(stub.ListPlaybooks, request, "playbooks", limit)
    title: Column = ("title", lambda one: one.playbook.title)
    show_list(session, answer, "playbooks", [("playbook", "playbook_id"), title, *VERSION])


def _usable(one: templates.TemplateVersion) -> str:
    """Return whether runs of a template may start, and why not."""
    changed = ", ".join(one.changed_tools)
    return f"disabled, changed since it was published: {changed}" if changed else "enabled"


TEMPLATE: list[Column] = [
    ("template", "template_id"),
    ("title", lambda one: one.template.title),
    ("tools", lambda one: len(one.template.tools)),
    ("state", _usable),
    *VERSION,
]


@command(templates_app, "publish")
async def publish_templates(
    session: Session,
    config: Config = None,
    only: Annotated[str, typer.Option(help="Only this template.")] = "",
    validate_only: ValidateOnly = False,
) -> None:
    """Publish the templates of CONFIG/agents, each as a new version, pinned to its tools as they are now."""
    stub = templates_grpc.TemplateServiceStub(session.channel("agents"))
    chosen = [one for one in read_templates(session.config(config)) if only in ("", one.template_id)]
    active = await stub.ListTemplates(templates.ListTemplatesRequest(page_size=TEMPLATES_MAX))
    done: dict[str, templates.TemplateVersion] = {}
    for template in in_order(chosen, [one.template_id for one in active.templates]):
        request = templates.PublishTemplateRequest(
            request_id=str(uuid.uuid4()), template=template, validate_only=validate_only
        )
        answer = await stub.PublishTemplate(request)
        done[template.template_id] = answer.template
        for warning in answer.warnings:
            error_console().print(f"{template.template_id}: {warning}", markup=False, soft_wrap=True)
    show_list(session, templates.ListTemplatesResponse(templates=done.values()), "templates", TEMPLATE)


@command(templates_app, "list")
async def list_templates(session: Session, limit: Limit = 50, page_token: PageToken = "") -> None:
    """List the active version of every template, and which are disabled."""
    stub = templates_grpc.TemplateServiceStub(session.channel("agents"))
    request = templates.ListTemplatesRequest(page_token=page_token)
    show_list(session, await pages(stub.ListTemplates, request, "templates", limit), "templates", TEMPLATE)
