"""What a wish would mean: one playbook or template, its targets, and what it could change. Pure and deterministic.

Whether the person is asked first follows from the IDL's access of the tools that the playbook's steps or the template
name: never from a model's words. What is not known, could change something.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from opsmesh.agents.v1 import template_service_pb2
from opsmesh.automation.v1 import playbook_service_pb2
from opsmesh.config.v1 import inventory_pb2, playbooks_pb2
from opsmesh.policy.v1 import policy_pb2
from opsmesh.router.v1 import outcome_pb2
from services.mesh import policy
from services.mesh.errors import Refusal
from services.mesh.models.cleaning import characters
from services.mesh.tools import find_tool
from services.router.domain import Outcome

QUESTION_MAX: Final = 500
TARGETS_MAX: Final = 8
# Levels of child templates that a run can reach (guardrails bounds every path to four runs).
DEPTH_MAX: Final = 4
STARTS: Final[Mapping[Outcome, str]] = {
    Outcome.TRIGGER_AUTOMATION: "automation.executions.start",
    Outcome.DELEGATE_AGENT: "agents.runs.start",
}
Playbooks = Mapping[str, playbook_service_pb2.PlaybookVersion]
Templates = Mapping[str, template_service_pb2.TemplateVersion]
Inventory = Mapping[str, inventory_pb2.InventoryEntry]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What exists now; None for what could not be read."""

    playbooks: Playbooks | None = None
    templates: Templates | None = None
    inventory: Inventory | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """One thing that would be done. `changes` and `tells` are bare names of tools; `digest` pins what was shown."""

    outcome: Outcome
    name: str
    version: int
    digest: str
    target_ids: tuple[str, ...]
    goal: str
    title: str
    changes: tuple[str, ...]
    tells: tuple[str, ...]
    environments: tuple[str, ...]

    @property
    def asks(self) -> bool:
        """Say whether the person is asked before anything is handed in."""
        return bool(self.changes or self.tells)

    @property
    def what(self) -> str:
        """Return what is started, on what, in words."""
        kind = "playbook" if self.outcome is Outcome.TRIGGER_AUTOMATION else "an agent of template"
        where = ", ".join(self.target_ids) or "no target"
        return f"{kind} {self.name} (version {self.version}) on {where}"


def plan(outcome: outcome_pb2.ModelOutcome, known: Catalogue) -> Plan | str:
    """Return what an outcome of a model would mean, or why it can mean nothing: in words for the person."""
    if outcome.WhichOneof("detail") == "trigger_automation":
        trigger = outcome.trigger_automation
        return _playbook(trigger.playbook_id, tuple(trigger.target_ids), known)
    agent = outcome.delegate_agent
    return _template(agent.template_id, tuple(agent.target_ids), agent.goal, known)


def again(kept: Plan, known: Catalogue) -> Plan | str:
    """Return the plan as it would be now: whoever said yes said it to `kept`."""
    if kept.outcome is Outcome.TRIGGER_AUTOMATION:
        return _playbook(kept.name, kept.target_ids, known)
    return _template(kept.name, kept.target_ids, kept.goal, known)


def changed(kept: Plan, known: Catalogue) -> str:
    """Return why a plan is not any more what it was when the person was asked; empty while it is."""
    now = again(kept, known)
    if isinstance(now, str):
        return now
    if (now.version, now.digest) != (kept.version, kept.digest):
        return f"{now.name} is version {now.version} now, and I had asked about version {kept.version}"
    if now.environments != kept.environments:
        return "the inventory says other things about its targets now"
    return ""


def question(made: Plan) -> str:
    """Return what the person is asked: what would be started, and what it could do, by the IDL."""
    parts = []
    if made.changes:
        parts.append(f"it could change things ({', '.join(made.changes)})")
    if made.tells:
        parts.append(f"it could tell people ({', '.join(made.tells)})")
    text = f"Shall I start {made.what}? It runs under policy and approvals; {' and '.join(parts)}."
    return text if len(text) <= QUESTION_MAX else f"{text[: QUESTION_MAX - 3]}..."


def explain(made: Plan) -> str:
    """Return the plan for the person, before it is asked about or started."""
    lines = [f"I would start {made.what}: {made.title}."]
    if made.environments:
        lines.append(f"Environment: {', '.join(made.environments)}.")
    if made.goal:
        lines.append(f"Its goal, in the model's words: {made.goal}")
    return "\n".join(lines)


def _playbook(name: str, targets: tuple[str, ...], known: Catalogue) -> Plan | str:
    """Return the plan of a playbook."""
    if known.playbooks is None:
        return "automation does not answer, so I do not know what the playbooks do"
    found = known.playbooks.get(name)
    if found is None:
        return f"there is no playbook {characters(name)}"
    environments = _environments(targets, known)
    if isinstance(environments, str):
        return environments
    # A playbook's arguments name the incident's first target: a second one would be said yes to and never touched.
    if len(targets) > 1:
        return f"playbook {name} works on one target at a time, and this names {len(targets)}"
    if not targets and _needs_target(found.playbook):
        return f"playbook {name} needs a target, and none is named"
    changes, tells = _accesses(_tools_of(found.playbook))
    return Plan(
        Outcome.TRIGGER_AUTOMATION,
        name,
        found.version,
        found.digest,
        targets,
        "",
        characters(found.playbook.title),
        changes,
        tells,
        environments,
    )


def _template(name: str, targets: tuple[str, ...], goal: str, known: Catalogue) -> Plan | str:
    """Return the plan of an agent."""
    if known.templates is None:
        return "agents does not answer, so I do not know what its templates may do"
    found = known.templates.get(name)
    if found is None:
        return f"there is no template {characters(name)}"
    if found.changed_tools:
        return f"template {name} is disabled: tools changed since it was published"
    environments = _environments(targets, known)
    if isinstance(environments, str):
        return environments
    if not targets:
        return f"an agent of template {name} needs a target, and none is named"
    changes, tells = _accesses(_reachable(name, known.templates, DEPTH_MAX))
    return Plan(
        Outcome.DELEGATE_AGENT,
        name,
        found.version,
        found.digest,
        targets,
        characters(goal).strip(),
        characters(found.template.title),
        changes,
        tells,
        environments,
    )


def _environments(targets: Sequence[str], known: Catalogue) -> tuple[str, ...] | str:
    """Return the environments of targets that the inventory has, or why one may not be acted on."""
    if not targets:
        return ()
    if known.inventory is None:
        return "guardrails does not answer, so I do not know which targets there are"
    if len(targets) > TARGETS_MAX:
        return f"this names {len(targets)} targets; at most {TARGETS_MAX}"
    for one in targets:
        if one not in known.inventory:
            return f"target {characters(one)} is not in the inventory"
    return tuple(sorted({known.inventory[one].environment for one in targets}))


def _tools_of(playbook: playbooks_pb2.Playbook) -> list[str]:
    """Return every tool that a playbook names: steps, what undoes them, and what follows a failure."""
    named = [step.tool for step in playbook.steps]
    named += [step.compensation.tool for step in playbook.steps if step.HasField("compensation")]
    if playbook.HasField("failure_step"):
        named.append(playbook.failure_step.tool)
    return named


def _needs_target(playbook: playbooks_pb2.Playbook) -> bool:
    """Say whether a step takes its target from the incident."""
    steps = [*playbook.steps, *([playbook.failure_step] if playbook.HasField("failure_step") else [])]
    arguments = [one for step in steps for one in step.arguments.values()]
    arguments += [one for step in steps for one in step.compensation.arguments.values()]
    return any(getattr(one, "from").startswith("incident.targets") for one in arguments)


def _reachable(name: str, templates: Templates, levels: int) -> list[str]:
    """Return the tools of a template and of every template below it; an unknown child is a tool nobody knows."""
    found = templates.get(name)
    if found is None:
        return [f"template {name}"]
    named = list(found.template.tools)
    if levels > 1:
        for child in found.template.child_templates:
            if child != name:
                named += _reachable(child, templates, levels - 1)
    return named


def _accesses(named: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return, of these tools, those that could change something and those that tell people; reads are neither."""
    changes, tells = [], []
    for one in named:
        try:
            tool = find_tool(one)
        except Refusal:
            changes.append(one)
            continue
        if tool.policy.access == policy_pb2.ACCESS_INFORM:
            tells.append(tool.rpc)
        elif tool.policy.access not in policy.READS:
            changes.append(tool.rpc)
    return tuple(dict.fromkeys(changes)), tuple(dict.fromkeys(tells))
