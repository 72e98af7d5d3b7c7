"""What publish finds in a playbook, and where."""

from pathlib import Path

import pytest

from services.automation.checking import check
from services.local.publish import read_playbooks
from tests.automation.playbooks import ALL, playbook

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"

GOOD = """
playbook_id: p
title: t
steps:
  - step_id: look
    tool: CheckHealth
    arguments: {target_id: {from: "incident.targets[0]"}}
  - step_id: find
    tool: SearchRunbooks
    when: [{path: steps.look.healthy, equals: false}]
    arguments: {query: {from: incident.rule_name}}
  - step_id: act
    tool: RestartWorkload
    arguments: {target_id: {from: "incident.targets[0]"}, reason: {from: incident.title}}
    compensation: {tool: RestartWorkload, arguments: {target_id: {from: "incident.targets[0]"}}}
  - step_id: prove
    tool: CheckHealth
    arguments: {target_id: {from: "incident.targets[0]"}}
    expect: [{path: healthy, equals: true}, {path: status_code, equals: 200}]
  - step_id: tell
    tool: SendNotice
    arguments: {channel: {literal: ops}, kind: {literal: KIND_REPAIRED}, title: {from: incident.title}}
failure_step:
  step_id: sorry
  tool: SendNotice
  arguments: {channel: {literal: ops}, kind: {literal: 3}, title: {from: incident.severity}}
proof_step_id: prove
"""
TARGET = '{target_id: {from: "incident.targets[0]"}}'
NOTICE = "{channel: {literal: ops}, kind: {literal: KIND_REPAIRED}, title: {from: incident.title}}"


def test_good() -> None:
    """A good playbook has no mistakes; nor have those that ship, nor those of the tests."""
    assert check(playbook(GOOD)) == []
    shipped = read_playbooks(DEPLOY)
    assert len(shipped) >= 3
    for one in [*shipped, *ALL]:
        assert check(one) == []


@pytest.mark.parametrize(
    ("old", "new", "field", "words"),
    [
        ("tool: CheckHealth", "tool: CheckHealt", "steps[0].tool", "no tool"),
        ("step_id: find", "step_id: look", "steps[1].step_id", "earlier step"),
        (TARGET, "{target: {literal: x}}", 'steps[0].arguments["target"]', "takes: target_id"),
        (TARGET, "{}", "steps[0].arguments", "target_id is missing"),
        (TARGET, "{target_id: {literal: 'svc:demo/x'}}", 'steps[0].arguments["target_id"]', "from the incident only"),
        (TARGET, "{target_id: {from: incident.title}}", 'steps[0].arguments["target_id"].from', "incident only"),
        (
            TARGET,
            '{target_id: {from: "incident.targets[0].raw_key"}}',
            'steps[0].arguments["target_id"].from',
            "incident only",
        ),
        (
            NOTICE,
            NOTICE.replace("{from: incident.title}", "{from: execution.requester}"),
            'steps[4].arguments["title"].from',
            "gives: note",
        ),
        (
            NOTICE,
            NOTICE.replace("{from: incident.title}", "{from: incident.title, also: incident.titel}"),
            'steps[4].arguments["title"].also',
            "the incident gives",
        ),
        (
            NOTICE,
            NOTICE.replace("{literal: ops}", "{from: execution.note}"),
            'steps[4].arguments["channel"].from',
            "text from outside",
        ),
        (
            TARGET,
            '{target_id: {from: "incident.targets[0]", also: execution.note}}',
            'steps[0].arguments["target_id"].also',
            "no free text",
        ),
        ("steps.look.healthy", "execution.note", "steps[1].when[0].path", "text from outside"),
        (NOTICE, NOTICE.replace("ops", "-x"), 'steps[4].arguments["channel"].literal', "pattern"),
        (NOTICE, NOTICE.replace("ops", "[a]"), 'steps[4].arguments["channel"].literal', "string"),
        (NOTICE, NOTICE.replace("KIND_REPAIRED", "KIND_NONE"), 'steps[4].arguments["kind"].literal', "KIND_NONE"),
        (NOTICE, NOTICE.replace("KIND_REPAIRED", "KIND_UNSPECIFIED"), 'steps[4].arguments["kind"].literal', "in list"),
        (
            NOTICE,
            NOTICE.replace("{literal: ops}", "{from: 'incident.labels[\"team\"]'}"),
            'steps[4].arguments["channel"].from',
            "text from outside",
        ),
        (
            NOTICE,
            NOTICE.replace("{literal: KIND_REPAIRED}", "{from: incident.severity}"),
            'steps[4].arguments["kind"].from',
            "Severity does not fit into Kind",
        ),
        (
            NOTICE,
            NOTICE.replace("{from: incident.title}", "{from: steps.find.hits}"),
            'steps[4].arguments["title"].from',
            "is a list",
        ),
        (
            NOTICE,
            NOTICE.replace("{from: incident.title}", '{from: "steps.find.hits[0].runbook.title"}'),
            'steps[4].arguments["title"].from',
            "may be skipped",
        ),
        (
            NOTICE,
            NOTICE.replace("{from: incident.title}", "{from: steps.later.x}"),
            'steps[4].arguments["title"].from',
            "no earlier step",
        ),
        (
            NOTICE,
            NOTICE.replace("{from: incident.title}", "{from: steps.prove.helthy}"),
            'steps[4].arguments["title"].from',
            "it has: healthy",
        ),
        (
            NOTICE,
            NOTICE.replace("ops},", "ops}, request_id: {literal: x},"),
            'steps[4].arguments["request_id"]',
            "takes: channel",
        ),
        ("{from: incident.rule_name}", "{literal: ''}", 'steps[1].arguments["query"].literal', "at least 1"),
        ("steps.look.healthy", "steps.look.detail", "steps[1].when[0].path", "text from outside"),
        (
            "steps.look.healthy, equals: false",
            "steps.look.healthy, equals: 5",
            "steps[1].when[0].equals",
            "true or false",
        ),
        ("steps.look.healthy", "steps.act.state", "steps[1].when[0].path", "no earlier step"),
        ("path: healthy", "path: steps.prove.healthy", "steps[3].expect[0].path", "no field 'steps'"),
        ("equals: 200", "equals: many", "steps[3].expect[1].equals", "status_code"),
        ("proof_step_id: prove", "proof_step_id: look", "proof_step_id", "expects nothing"),
        ("proof_step_id: prove", "proof_step_id: gone", "proof_step_id", "no step"),
        ("proof_step_id: prove", "proof_step_id: act", "proof_step_id", "is no read"),
        ("step_id: sorry", "step_id: tell", "failure_step.step_id", "name of a step"),
        (
            "{from: incident.severity}",
            "{from: steps.look.detail}",
            'failure_step.arguments["title"].from',
            "those are: none",
        ),
        (
            "compensation: {tool: RestartWorkload",
            "compensation: {tool: Undo",
            "steps[2].compensation.tool",
            "no tool",
        ),
        (
            "step_id: act",
            f"step_id: a{'c' * 61}t",
            "steps[2].step_id",
            "too long",
        ),
        (
            "    tool: SendNotice",
            "    tool: SendNotice\n    timeout_duration: 60s",
            "steps[4].timeout_duration",
            "20 s",
        ),
    ],
)
def test_mistakes(old: str, new: str, field: str, words: str) -> None:
    """A mistake is told with the path of its field and in words that say what would be right."""
    assert old in GOOD
    found = check(playbook(GOOD.replace(old, new, 1)))
    assert [one.description for one in found if one.field == field and words in one.description], found


def test_proof_before_the_last_change() -> None:
    """A proof that something changes after it proves nothing."""
    moved = playbook(GOOD)
    moved.proof_step_id = "look"
    moved.steps[0].expect.add().CopyFrom(moved.steps[3].expect[0])
    (found,) = check(moved)
    assert (found.field, found.description) == ("proof_step_id", "step act changes something after the proof")
