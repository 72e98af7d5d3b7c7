"""`opsmesh check`: all configuration against the IDL, offline: every mistake with file, line and field.

What a service refuses at publish is found here by the same pure functions, so that both always say the same.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, TypeVar

import typer
from google.protobuf.message import Message

from opsmesh.config.v1 import (
    backends_pb2,
    correlation_pb2,
    identities_pb2,
    inventory_pb2,
    models_pb2,
    playbooks_pb2,
    policies_pb2,
    rules_pb2,
    sources_pb2,
    templates_pb2,
)
from services.cli.command import REFUSED, command, group
from services.cli.output import console
from services.cli.places import Places, line_of
from services.cli.session import Session, UsageError
from services.local.layout import SERVICES
from services.mesh.config import ConfigError, Problem, load_yaml
from services.mesh.identities import Identities
from services.mesh.tools import tools

app = group("Validate all configuration.")

M = TypeVar("M", bound=Message)
FILES: Final[Mapping[str, type[Message]]] = {
    "identities.yaml": identities_pb2.Identities,
    "sources.yaml": sources_pb2.Sources,
    "inventory.yaml": inventory_pb2.Inventory,
    "backends.yaml": backends_pb2.Backends,
}
# Without them, there is no model, and alerts are joined as ever.
OPTIONAL: Final[Mapping[str, type[Message]]] = {
    "models.yaml": models_pb2.Models,
    "correlation.yaml": correlation_pb2.Correlation,
}
FOLDERS: Final[Mapping[str, type[Message]]] = {
    "rules": rules_pb2.RuleFile,
    "policies": policies_pb2.PolicySet,
    "playbooks": playbooks_pb2.Playbook,
    "agents": templates_pb2.AgentTemplate,
}


@dataclass(slots=True)
class Configuration:
    """What could be read, by file, and what is wrong so far."""

    folder: Path
    messages: dict[Path, Message] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def of(self, kind: type[M]) -> dict[Path, M]:
        """Return the files of one kind."""
        return {path: message for path, message in self.messages.items() if isinstance(message, kind)}

    def add(self, path: Path, where: str, description: str) -> None:
        """Note a mistake at the line of a field path."""
        self.problems.append(Problem(path, line_of(path, where), where, description))


@command(app, "check")
def check(
    session: Session,
    config: Annotated[
        Path | None, typer.Option(help="Folder of the configuration; default: the one the mesh on --state runs with.")
    ] = None,
    models: Annotated[
        Path | None, typer.Option(help="File with the models; default: the one the mesh runs with, or CONFIG's.")
    ] = None,
) -> None:
    """Validate all configuration against the IDL, offline, with file and line."""
    folder, models_file = session.config(config), session.models(models, config)
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder\nNEXT: name the configuration: opsmesh check --config DIR")
    if models_file is not None and not models_file.is_file():
        raise UsageError(f"{models_file} is no file\nNEXT: name the file with the models: opsmesh check --models FILE")
    found = read(folder, models_file)
    cross_check(found)
    problems = sorted(found.problems, key=lambda one: (str(one.file), one.line))
    if session.as_json:
        rows = [
            {"file": str(one.file), "line": one.line, "field": one.field, "description": one.description}
            for one in problems
        ]
        files = sorted(str(path) for path in found.messages)
        sys.stdout.write(json.dumps({"problems": rows, "files": files}, indent=2) + "\n")
    else:
        for one in problems:
            console().print(str(one), markup=False, soft_wrap=True)
        mistakes = f"{len(problems) or 'no'} mistake{'' if len(problems) == 1 else 's'}"
        console().print(f"{mistakes} in {folder} ({len(found.messages)} files could be read)", markup=False)
    if problems:
        raise typer.Exit(REFUSED)


def read(folder: Path, models_file: Path | None = None) -> Configuration:
    """Read every file; a missing one, and one that nobody reads, is a mistake. A models file may be elsewhere, too."""
    found = Configuration(folder)
    for name, kind in FILES.items():
        if (folder / name).exists():
            _load(found, folder / name, kind)
        else:
            found.problems.append(Problem(folder / name, 1, "", "is missing"))
    for name, kind in OPTIONAL.items():
        if (folder / name).exists():
            _load(found, folder / name, kind)
    if models_file is not None:
        _load(found, models_file, models_pb2.Models)
    for name, kind in FOLDERS.items():
        for path in sorted((folder / name).glob("*.yaml")):
            _load(found, path, kind)
    for path in sorted([*folder.glob("*.y*ml"), *(path for name in FOLDERS for path in (folder / name).glob("*.yml"))]):
        if path.name not in {*FILES, *OPTIONAL}:
            known = ", ".join([*FILES, *OPTIONAL, *(f"{name}/*.yaml" for name in FOLDERS)])
            found.problems.append(Problem(path, 1, "", f"nobody reads this file; there are: {known}"))
    return found


def _load(found: Configuration, path: Path, kind: type[Message]) -> None:
    """Read one file."""
    try:
        found.messages[path] = load_yaml(path, kind)
    except ConfigError as error:
        found.problems += error.problems


def cross_check(found: Configuration) -> None:
    """Check what one file says about another, and what bounds cannot say."""
    _identities(found)
    _sources(found)
    _correlation(found)
    _policies(found)
    _channels(found)
    _playbooks(found)
    _templates(found)
    _rules(found)
    _backends(found)
    _models(found)


def _identities(found: Configuration) -> None:
    """Find identities listed twice, services that do not exist, and permissions that no method asks for."""
    for path, message in found.of(identities_pb2.Identities).items():
        unknown = Identities(message).unknown_permissions()
        _unique(found, path, "identities", "identity", [one.identity for one in message.identities])
        for index, one in enumerate(message.identities):
            kind, _, name = one.identity.partition("/")
            if kind == "service" and name not in SERVICES:
                found.add(path, f"identities[{index}].identity", f"no service is called {name}: {', '.join(SERVICES)}")
            for number, permission in enumerate(one.permissions):
                if permission in unknown.get(one.identity, ()):
                    where = f"identities[{index}].permissions[{number}]"
                    found.add(path, where, f"no method asks for {permission}")


def _sources(found: Configuration) -> None:
    """Find sources listed twice, and sources that no parser understands."""
    from services.ingest.parsers import problems  # noqa: PLC0415  see the module's first words
    from services.ingest.signal import CHAT  # noqa: PLC0415  the same

    for path, message in found.of(sources_pb2.Sources).items():
        _unique(found, path, "sources", "source", [one.source for one in message.sources])
        for index, one in enumerate(message.sources):
            if one.source == CHAT:
                found.add(path, f"sources[{index}].source", "chat is the router's own; call it something else")
            for where, description in problems(one):
                found.add(path, f"sources[{index}].{where}", description)


def _correlation(found: Configuration) -> None:
    """Find what ingest would not start with."""
    from services.ingest.correlating import correlation_of  # noqa: PLC0415  see the module's first words
    from services.ingest.correlation import problems  # noqa: PLC0415  the same

    for path, message in found.of(correlation_pb2.Correlation).items():
        for where, description in problems(correlation_of(message).rules):
            found.add(path, where, description)


def _policies(found: Configuration) -> None:
    """Find what guardrails would refuse to publish."""
    from services.guardrails.policies.review import problems  # noqa: PLC0415  see the module's first words
    from services.local.publish import allowances  # noqa: PLC0415  the same, and gRPC

    merged, places = policies_pb2.PolicySet(), Places()
    for path, message in found.of(policies_pb2.PolicySet).items():
        places.add("policy_set.rules", path, "rules", len(message.rules))
        places.add("policy_set.notice_caps", path, "notice_caps", len(message.notice_caps))
        places.add("policy_set.agents", path, "agents", len(message.agents))
        merged.MergeFrom(message)
    templates = found.of(templates_pb2.AgentTemplate)
    files = {one.template_id: path for path, one in templates.items()}
    # Publishing adds these, see services.local.publish.
    for allowance in allowances(merged, list(templates.values())):
        places.add_file("policy_set.agents", files[allowance.template_id])
        merged.agents.append(allowance)
    inventory = inventory_pb2.Inventory()
    for path, listed in found.of(inventory_pb2.Inventory).items():
        places.add("inventory.entries", path, "entries", len(listed.entries))
        inventory.MergeFrom(listed)
    names = [one.identity for listed in found.of(identities_pb2.Identities).values() for one in listed.identities]
    for where, description in problems(merged, inventory, tools(), names):
        place = places.find(where)
        # What is wrong with the tools of a template is told once, by `_templates`.
        if place is None or place[0] not in templates:
            _note(found, places, where, description, found.folder / "policies")


def _channels(found: Configuration) -> None:
    """Find caps of channels that no backend has: the channel they were meant for would have none."""
    channels = _known_channels(found)
    for path, message in found.of(policies_pb2.PolicySet).items():
        for index, cap in enumerate(message.notice_caps):
            if channels and cap.channel not in channels:
                found.add(path, f"notice_caps[{index}].channel", f"backends.yaml has no channel {cap.channel}")


def _known_channels(found: Configuration) -> set[str]:
    return {one.channel for backends in found.of(backends_pb2.Backends).values() for one in backends.channels}


def _playbooks(found: Configuration) -> None:
    """Find what automation would refuse to publish, and channels that no backend has."""
    from services.automation.checking import check as check_playbook  # noqa: PLC0415  see the module's first words

    playbooks = found.of(playbooks_pb2.Playbook)
    first: dict[str, Path] = {}
    channels = _known_channels(found)
    for path, playbook in playbooks.items():
        for violation in check_playbook(playbook):
            found.add(path, violation.field, violation.description)
        if (other := first.setdefault(playbook.playbook_id, path)) != path:
            found.add(path, "playbook_id", f"{playbook.playbook_id} is the playbook of {other.name}, too")
        steps = [(f"steps[{number}]", step) for number, step in enumerate(playbook.steps)]
        for where, step in [*steps, ("failure_step", playbook.failure_step)]:
            channel = step.arguments["channel"].literal.string_value if "channel" in step.arguments else ""
            if channel and channels and channel not in channels:
                found.add(path, f"{where}.arguments.channel", f"backends.yaml has no channel {channel}")


def _templates(found: Configuration) -> None:
    """Find what agents would refuse to publish, and policies about templates that are not there."""
    from services.agents.templates.checking import check as check_template  # noqa: PLC0415  see the module's first words

    templates = found.of(templates_pb2.AgentTemplate)
    names = {one.template_id for one in templates.values()}
    first: dict[str, Path] = {}
    for path, template in templates.items():
        for violation in check_template(template, names):
            description = violation.description.replace("is published: opsmesh templates list", "is in agents/")
            found.add(path, violation.field, description)
        if (other := first.setdefault(template.template_id, path)) != path:
            found.add(path, "template_id", f"{template.template_id} is the template of {other.name}, too")
    for path, policy_set in found.of(policies_pb2.PolicySet).items():
        for index, one in enumerate(policy_set.agents):
            if one.template_id not in names:
                found.add(path, f"agents[{index}].template_id", f"no template {one.template_id} is in agents/")


def _rules(found: Configuration) -> None:
    """Find what the router would refuse to publish, and examples that do not come out as written."""
    from services.router.messages import failing_tests, rules_of  # noqa: PLC0415  see the module's first words
    from services.router.rules import unknown_field, validate  # noqa: PLC0415  the same

    files, places = found.of(rules_pb2.RuleFile), Places()
    merged = rules_pb2.RuleFile()
    for path, message in files.items():
        places.add("rules", path, "rules", len(message.rules))
        merged.MergeFrom(message)
    playbooks = frozenset(one.playbook_id for one in found.of(playbooks_pb2.Playbook).values())
    problems = validate(rules_of(rules_pb2.RuleSet(rules=merged.rules)), playbooks)
    for one in problems:
        description = one.description.replace("is published: opsmesh playbooks list", "is in playbooks/")
        _note(found, places, one.field, description, found.folder / "rules")
    if problems:
        return
    for path, message in files.items():
        for index, test in enumerate(message.tests):
            for key in test.incident:
                if said := unknown_field(key):
                    found.add(path, f'tests[{index}].incident["{key}"]', said)
        beside = rules_pb2.RuleFile(rules=merged.rules, tests=message.tests)
        for description in failing_tests(beside):
            found.add(path, "tests", description)


def _backends(found: Configuration) -> None:
    """Find backends listed twice, those of targets that the inventory does not know, and a folder that is not there."""
    inventory = {one.target_id for listed in found.of(inventory_pb2.Inventory).values() for one in listed.entries}
    for path, message in found.of(backends_pb2.Backends).items():
        _unique(found, path, "workloads", "target_id", [one.target_id for one in message.workloads])
        _unique(found, path, "channels", "channel", [one.channel for one in message.channels])
        if message.runbook_folder and not (path.parent / message.runbook_folder).is_dir():
            found.add(path, "runbook_folder", f"there is no folder {path.parent / message.runbook_folder}")
        for index, one in enumerate(message.workloads):
            if inventory and one.target_id not in inventory:
                where = f"workloads[{index}].target_id"
                found.add(path, where, f"{one.target_id} is not in inventory.yaml: no action on it is ever allowed")


def _models(found: Configuration) -> None:
    """Find what agents would not start with, keys aside, and recordings that cannot be read."""
    from services.agents.models import check as check_models  # noqa: PLC0415  see the module's first words
    from services.agents.models import replayed  # noqa: PLC0415  the same

    for path, message in found.of(models_pb2.Models).items():
        for where, description in check_models(message, path):
            found.add(path, where, description)
        for folder in replayed(message, path):
            for recordings in sorted(folder.glob("*.yaml")):
                _load(found, recordings, models_pb2.RecordedExchanges)


def _unique(found: Configuration, path: Path, listed: str, name: str, values: Iterable[str]) -> None:
    """Note every value that an earlier item has, too."""
    seen: dict[str, int] = {}
    for index, value in enumerate(values):
        if (first := seen.setdefault(value, index)) != index:
            found.add(path, f"{listed}[{index}].{name}", f"{value} is {listed}[{first}], too")


def _note(found: Configuration, places: Places, where: str, description: str, otherwise: Path) -> None:
    """Note a mistake in a merged list at its place."""
    place = places.find(where)
    if place is None:
        found.problems.append(Problem(otherwise, 1, where, description))
    else:
        found.add(*place, description)
