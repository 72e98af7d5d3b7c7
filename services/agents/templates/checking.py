"""What is wrong with a template, found before it is published, and what a published one pins: held against the IDL."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Final

from google.protobuf.descriptor import FieldDescriptor

from opsmesh.config.v1 import templates_pb2
from opsmesh.policy.v1 import policy_pb2
from services.mesh import policy
from services.mesh.errors import FieldViolation, Refusal
from services.mesh.models.tool_schema import NotOfferedError, Offer, catalogue, changed, offer
from services.mesh.tools import Tool, find_tool, tools

MODEL_ROLE: Final = "agent"
# A run that asks its model only once can report, and do nothing.
STEPS_USEFUL: Final = 3


def check(template: templates_pb2.AgentTemplate, published: Iterable[str] = ()) -> list[FieldViolation]:
    """Return every mistake of a template with its field path; `published` are the templates there are."""
    return [*_tools(template), *_children(template, frozenset(published)), *_proof(template)]


def warnings(
    template: templates_pb2.AgentTemplate, roles: Iterable[str], incident_tokens: int, incident_micros: int
) -> list[str]:
    """Return what is allowed but hardly meant; `roles` have a model, `incident_*` is what one incident may spend."""
    known = sorted(roles)
    role = model_role(template)
    found = []
    if role not in known:
        found.append(
            f"no model has the role {role} (models.yaml has: {', '.join(known) or 'none'}): its runs will wait"
        )
    if template.max_depth and not template.child_templates:
        found.append(f"max_depth is {template.max_depth}, but it names no child_templates: it starts no runs")
    if template.max_steps < STEPS_USEFUL:
        found.append(f"max_steps is {template.max_steps}: asking the model, a tool, and its report are {STEPS_USEFUL}")
    if template.token_budget > incident_tokens:
        found.append(
            f"token_budget is more than the {incident_tokens} tokens that one incident may use: that ends runs"
        )
    if template.cost_budget_micros > incident_micros:
        found.append(
            f"cost_budget_micros is more than the {incident_micros} that one incident may cost: that ends runs"
        )
    return found


def model_role(template: templates_pb2.AgentTemplate) -> str:
    """Return the role of models.yaml that reasons for runs of a template."""
    return template.model_role or MODEL_ROLE


def tools_of(template: templates_pb2.AgentTemplate) -> list[Tool]:
    """Return the tools that are there now, in the template's order; one that is gone is left out (`changed_tools`)."""
    found = (_tool(name) for name in template.tools)
    return [tool for tool in found if isinstance(tool, Tool)]


def pins_of(template: templates_pb2.AgentTemplate) -> dict[str, str]:
    """Return tool, as a model calls it, to digest: what a checked template pins."""
    return {name: one.digest for name, one in sorted(catalogue(tools_of(template)).items())}


def digest_of(content: bytes, pins: Mapping[str, str]) -> str:
    """Return the digest of a version: SHA-256, hex, of its serialisation and its pins."""
    plain = json.dumps(dict(sorted(pins.items())), separators=(",", ":")).encode()
    return hashlib.sha256(hashlib.sha256(content).digest() + plain).hexdigest()


def changed_tools(pins: Mapping[str, str]) -> tuple[str, ...]:
    """Return the pinned tools that have changed since or are gone; any of them disables the template."""
    return changed(pins, running())


@cache
def running() -> Mapping[str, Offer]:
    """Return every tool of the running IDL that a model can be offered, by the name it calls it."""
    found: dict[str, Offer] = {}
    for tool in tools().values():
        try:
            one = offer(tool)
        except NotOfferedError:
            # It is no template's: publishing one refuses it.
            continue
        found[one.name] = one
    return MappingProxyType(found)


def _tools(template: templates_pb2.AgentTemplate) -> Iterator[FieldViolation]:
    """Find tools that do not exist, come twice, or that no model can be offered."""
    seen: dict[str, str] = {}
    for index, name in enumerate(template.tools):
        where = f"tools[{index}]"
        tool = _tool(name)
        if isinstance(tool, str):
            yield FieldViolation(where, tool)
            continue
        if tool.name in seen:
            yield FieldViolation(where, f"{name} is {seen[tool.name]}, too")
        seen.setdefault(tool.name, where)
        try:
            offer(tool)
        except NotOfferedError as error:
            yield FieldViolation(where, f"no model can be offered {name}: {error}")


def _children(template: templates_pb2.AgentTemplate, published: frozenset[str]) -> Iterator[FieldViolation]:
    """Find child templates that do not exist; loops are fine, for depth bounds every path."""
    if template.child_templates and not template.max_depth:
        yield FieldViolation("child_templates", "max_depth is 0: its runs start none")
    for index, name in enumerate(template.child_templates):
        if name != template.template_id and name not in published:
            yield FieldViolation(
                f"child_templates[{index}]", f"no template {name} is published: opsmesh templates list"
            )


def _proof(template: templates_pb2.AgentTemplate) -> Iterator[FieldViolation]:
    """Find proofs that prove nothing: of no read, of no target, or with a field that is no yes or no."""
    if not template.HasField("proof"):
        return
    tool = _tool(template.proof.tool)
    if isinstance(tool, str):
        yield FieldViolation("proof.tool", tool)
        return
    if tool.policy.access != policy_pb2.ACCESS_READ:
        yield FieldViolation("proof.tool", f"{tool.rpc} is no read: it cannot prove anything")
    if tool not in tools_of(template):
        yield FieldViolation("proof.tool", f"{tool.rpc} is not among the tools of the template")
    target = tool.spec.target_field
    needed = {one.field.partition(".")[0].partition("[")[0] for one in policy.violations(tool.request_class())}
    if not target or needed - {target}:
        yield FieldViolation("proof.tool", f"{tool.rpc} is not asked about one target and nothing else")
    field = tool.response_class.DESCRIPTOR.fields_by_name.get(template.proof.field)
    if field is None or field.type != FieldDescriptor.TYPE_BOOL or field.is_repeated:
        fields = tool.response_class.DESCRIPTOR.fields
        plain = [one.name for one in fields if one.type == FieldDescriptor.TYPE_BOOL and not one.is_repeated]
        known = ", ".join(plain) or "none"
        yield FieldViolation("proof.field", f"{tool.rpc} answers no yes or no of that name; it has: {known}")


def _tool(name: str) -> Tool | str:
    """Return a tool, or why there is none."""
    try:
        return find_tool(name)
    except Refusal:
        return f"there is no tool {name!r}, or the name is not unique; list them: opsmesh tools list"
