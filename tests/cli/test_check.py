"""`opsmesh check`: every mistake in any file is told with file, line and field."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from services.cli.check import cross_check, read
from services.cli.places import line_of
from tests.cli.mesh import run
from tests.mesh.world import ROOT


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Give a copy of the configuration that ships."""
    folder = tmp_path / "config"
    shutil.copytree(ROOT / "deploy", folder, ignore=shutil.ignore_patterns("demo"))
    return folder


def mistakes(config: Path) -> list[str]:
    """Return what is wrong, with paths relative to the folder."""
    found = read(config)
    cross_check(found)
    return [str(one).replace(f"{config}/", "") for one in found.problems]


def test_what_ships_has_no_mistakes() -> None:
    """The shipped configuration passes its own check."""
    assert mistakes(ROOT / "deploy") == []


def edit(path: Path, old: str, new: str) -> int:
    """Replace a text in a file; return the line it stands on."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return text[: text.index(old)].count("\n") + 1


CASES: list[tuple[str, str, str, str]] = [
    ("agents/take-action.yaml", "- RestartWorkload", "- RestartWorkloads", "RestartWorkloads"),
    ("agents/take-action.yaml", "field: healthy", "field: status_code", "it has: healthy"),
    ("agents/take-action.yaml", "max_steps: 16", "max_steps: 0", "max_steps"),
    ("agents/take-action.yaml", "template_id: take-action", "template_id: escalate", "is the template of"),
    ("agents/diagnose-repair.yaml", "child_templates: [take-action", "child_templates: [take-acton", "is in agents/"),
    ("policies/default.yaml", "notice_caps:", "agents: [{template_id: nobody}]\nnotice_caps:", "no template nobody"),
    ("rules/checkout.yaml", "    priority: 100", "    prioritty: 100", "unknown field"),
    ("rules/checkout.yaml", "    priority: 100", "    priority: -1", "rules[0].priority"),
    ("rules/checkout.yaml", "rule_id: watchdog", "rule_id: checkout-down", "checkout-down"),
    ("rules/checkout.yaml", "playbook_id: restart-workload", "playbook_id: restart-everything", "no playbook"),
    ("policies/default.yaml", "VERDICT_OBSERVE", "VERDICT_OBSERVED", "VERDICT_OBSERVED"),
    ("playbooks/restart-workload.yaml", "tool: RestartWorkload", "tool: RestartWorkloads", "RestartWorkloads"),
    ("playbooks/restart-workload.yaml", "playbook_id: restart-workload", "playbook_id: notify-person", "notify-person"),
    ("identities.yaml", "permissions: [ingest.signals.submit]", "permissions: [ingest.signals.sent]", "no method asks"),
    ("identities.yaml", "identity: service/router", "identity: service/bridge", "service/bridge"),
    ("identities.yaml", "identity: service/router", "identity: service/ruoter", "no service is called ruoter"),
    ("sources.yaml", "source: alertmanager", "source: alertmanagr", "no parser is called alertmanagr"),
    ("sources.yaml", "source: alertmanager", "source: chat", "chat is the router's own"),
    ("backends.yaml", "runbook_folder: runbooks", "runbook_folder: runboks", "there is no folder"),
    ("policies/default.yaml", "channel: ops", "channel: opss", "no channel opss"),
    ("correlation.yaml", "rules: []", "rules: [{rule_id: a, by: [pod]}]", "pod is no field of an alert"),
    ("correlation.yaml", "otherwise: {}", "otherwise: {max_alert: 1}", "unknown field"),
    ("models.yaml", "budgets:", "roles: {routing: {model: recorded, recordings_folder: tape}}\nbudgets:", "no folder"),
    ("models.yaml", "budgets:", "roles: {routing: {model: openai/a, timeout: 90}}\nbudgets:", "timeout"),
    (
        "rules/checkout.yaml",
        "      environment: demo",
        "      enviroment: demo",
        "enviroment is no field of an incident",
    ),
]


@pytest.mark.parametrize(("file", "old", "new", "says"), CASES)
def test_a_mistake_is_found_where_it_is(config: Path, file: str, old: str, new: str, says: str) -> None:
    """A typo, a broken bound, an unknown name and a repeated id each name file and line."""
    line = edit(config / file, old, new)
    found = [one for one in mistakes(config) if one.startswith(f"{file}:{line}: ")]
    assert found, mistakes(config)
    assert any(says in one for one in found)


REMOVALS: list[Callable[[Path], object]] = [
    lambda config: (config / "sources.yaml").unlink(),
    lambda config: (config / "inventroy.yaml").write_text("entries: []\n"),
    lambda config: (config / "rules" / "more.yml").write_text("rules: []\n"),
    lambda config: (config / "rules" / "more.yaml").write_text("rules: [\n"),
    lambda config: (config / "rules" / "more.yaml").write_bytes(b"\xff\xfe"),
    lambda config: (config / "rules" / "more.yaml").write_text("- a list\n"),
]


@pytest.mark.parametrize("change", REMOVALS)
def test_files_that_are_missing_misnamed_or_unreadable_are_found(
    config: Path, change: Callable[[Path], object]
) -> None:
    """A file that nobody would read, or that cannot be read, is a mistake and no crash."""
    change(config)
    assert mistakes(config)


def test_a_rule_without_its_playbook_in_another_file_is_found(config: Path) -> None:
    """Rules of several files are judged as the one set that is published, each told at its own place."""
    text = (config / "rules" / "checkout.yaml").read_text().partition("\ntests:")[0]
    (config / "rules" / "copy.yaml").write_text(text)
    found = mistakes(config)
    assert found
    assert all(one.startswith("rules/copy.yaml:") for one in found)


def test_an_example_that_fails_is_found(config: Path) -> None:
    """The examples beside the rules are run offline, too."""
    edit(config / "rules" / "checkout.yaml", "values: [critical, error]", "values: [error]")
    assert any("checkout in demo is restarted" in one for one in mistakes(config))


def test_a_backend_of_an_unknown_target_is_found(config: Path) -> None:
    """A workload that the inventory does not know could never be acted on."""
    entry = "entries:\n  - {target_id: svc:demo/checkout, kind: service, environment: demo}\n"
    (config / "inventory.yaml").write_text(entry)
    backend = "{server_url: 'unix:///s', program: checkout}"
    workload = f"  - {{target_id: svc:demo/chekout, health_url: 'http://h', supervisord: {backend}}}\n"
    (config / "backends.yaml").write_text(
        f"workloads:\n{workload}channels:\n  - {{channel: ops, inbox: {{path: i}}}}\n"
    )
    assert [one for one in mistakes(config) if one.startswith("backends.yaml:2: workloads[0].target_id")]


async def test_a_models_file_elsewhere_is_checked_too(config: Path, tmp_path: Path) -> None:
    """`--models` checks the file that `up --models` takes, beside the configuration's own."""
    models = tmp_path / "mine.yaml"
    models.write_text("roles:\n  routing: {model: recorded, recordings_folder: tape}\n")
    done = await run("check", "--config", str(config), "--models", str(models))
    assert done.code == 1
    assert f"{models}:2: roles.routing.recordings_folder: there is no folder" in done.out
    assert (await run("check", "--config", str(config), "--models", str(tmp_path / "none.yaml"))).code == 2


def test_what_publishing_adds_for_agents_is_judged_at_their_files(config: Path) -> None:
    """A template that policies do not name gets its own tools; one that they name keeps what they say."""
    allowed = "agents: [{template_id: take-action, tools: [CheckHealth]}]\nnotice_caps:"
    edit(config / "policies" / "default.yaml", "notice_caps:", allowed)
    assert mistakes(config) == []


def test_lines_of_paths(tmp_path: Path) -> None:
    """A field path leads to the line of its key, its item, or the longest part that is there."""
    file = tmp_path / "x.yaml"
    file.write_text('a:\n  - b: 1\n  - b: 2\n    c:\n      "d.e": 3\n')
    places = {"": 1, "a": 1, "a[1]": 3, "a[1].b": 3, 'a[1].c["d.e"]': 5, "a[1].c.nothing": 4, "a[7]": 1}
    assert {where: line_of(file, where) for where in places} == places


async def test_the_command_prints_file_and_line(config: Path) -> None:
    """Mistakes are told one a line and the exit code is 1; without mistakes it is 0."""
    line = edit(config / "sources.yaml", "sources:", "sorces:")
    done = await run("check", "--config", str(config))
    assert done.code == 1
    assert f"{config}/sources.yaml:{line}: sorces: unknown field" in done.out
    told = await run("check", "--config", str(config), "--json")
    assert told.code == 1
    assert json.loads(told.out)["problems"][0]["line"] == line
    assert (await run("check")).code == 0
    assert (await run("check", "--config", str(config / "nowhere"))).code == 2
