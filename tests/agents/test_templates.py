"""What publish finds in a template, and where; what it pins, and when a pin no longer holds."""

from pathlib import Path

import pytest

from opsmesh.config.v1 import templates_pb2
from services.agents.templates.checking import changed_tools, check, digest_of, pins_of, running, warnings
from services.mesh.config import load_all
from services.mesh.tools import find_tool, tools
from tests.agents.api_house import template

SHIPPED = Path(__file__).resolve().parents[2] / "deploy" / "agents"
PROOF = templates_pb2.Proof


def wrong(made: templates_pb2.AgentTemplate, *published: str) -> dict[str, str]:
    """Return what is wrong by field."""
    return {one.field: one.description for one in check(made, published)}


def changed(**fields: object) -> templates_pb2.AgentTemplate:
    """Return the template of the tests with these fields replaced."""
    made = template()
    for name in fields:
        made.ClearField(name)  # type: ignore[arg-type]  # the names are the test's
    made.MergeFrom(templates_pb2.AgentTemplate(**fields))  # type: ignore[arg-type]  # the same
    return made


CASES = [
    (changed(tools=["CheckHealth", "GetWorkloads"]), "tools[1]", "there is no tool 'GetWorkloads'"),
    (changed(tools=["CheckHealth", find_tool("CheckHealth").name]), "tools[1]", "is tools[0], too"),
    (changed(child_templates=["other"], max_depth=1), "child_templates[0]", "no template other is published"),
    (changed(child_templates=["looker"]), "child_templates", "max_depth is 0"),
    (changed(proof=PROOF(tool="Nothing", field="healthy")), "proof.tool", "there is no tool"),
    (changed(proof=PROOF(tool="RestartWorkload", field="restarted")), "proof.tool", "asked about one target"),
    (changed(proof=PROOF(tool="CheckHealth", field="status_code")), "proof.field", "it has: healthy"),
    (changed(tools=["GetWorkload"]), "proof.tool", "is not among the tools"),
    (
        changed(tools=["SearchLogs"], proof=PROOF(tool="SearchLogs", field="truncated")),
        "proof.tool",
        "about one target and nothing else",
    ),
]


@pytest.mark.parametrize(("made", "field", "said"), CASES)
def test_each_mistake_is_told_at_its_field(made: templates_pb2.AgentTemplate, field: str, said: str) -> None:
    """A template with a mistake is refused, and the mistake is named where it stands."""
    assert said in wrong(made)[field]


def test_a_write_proves_nothing() -> None:
    """The proof is a read: the outcome is observed, not done."""
    made = changed(tools=["RestartWorkload"], proof=PROOF(tool="RestartWorkload", field="healthy"))
    found = [one.description for one in check(made)]
    assert "RestartWorkload is no read: it cannot prove anything" in found


def test_loops_are_fine() -> None:
    """A template may start itself, and one that starts it: depth bounds every path, not the shape of the graph."""
    assert wrong(changed(child_templates=["looker", "other"], max_depth=3), "other") == {}


def test_what_is_hardly_meant_is_a_warning() -> None:
    """A role without a model and a budget above the incident's are told, and published all the same."""
    assert warnings(template(), ["agent"], 1000, 0) == []
    said = " ".join(warnings(changed(model_role="strong", max_steps=2, max_depth=1, cost_budget_micros=9), [], 10, 5))
    for words in (
        "no model has the role strong",
        "max_steps is 2",
        "it starts no runs",
        "the 10 tokens",
        "than the 5 ",
    ):
        assert words in said


def test_what_ships_is_right() -> None:
    """The three shipped templates have no mistakes, and no two of them may do the same."""
    shipped = {one.template_id: one for one in load_all(SHIPPED, templates_pb2.AgentTemplate).values()}
    assert set(shipped) == {"diagnose-repair", "take-action", "escalate"}
    assert [check(one, shipped) for one in shipped.values()] == [[], [], []]
    reads = {name for name, tool in tools().items() if tool.policy.access == 1}
    named = {name: {find_tool(tool).name for tool in one.tools} for name, one in shipped.items()}
    assert reads <= named["diagnose-repair"]
    assert {name.rpartition("/")[2] for name in named["diagnose-repair"] - reads} == {
        "RestartWorkload",
        "SetDesiredCapacity",
    }
    assert {name.rpartition("/")[2] for name in named["escalate"] - reads} == {"SendNotice"}


def test_pins_say_what_a_tool_was() -> None:
    """Pins of the running IDL hold; one of another digest, and one of a tool that is gone, do not."""
    pins = pins_of(template())
    assert set(pins) == {"workload_CheckHealth", "workload_GetWorkload"}
    assert changed_tools(pins) == ()
    assert changed_tools(pins | {"workload_CheckHealth": "0" * 64}) == ("workload_CheckHealth",)
    assert changed_tools(pins | {"workload_Gone": "0" * 64}) == ("workload_Gone",)
    assert set(running()) >= set(pins)


def test_the_digest_is_over_content_and_pins() -> None:
    """The same file with another tool behind it is another version."""
    assert digest_of(b"a", {"x": "1", "y": "2"}) == digest_of(b"a", {"y": "2", "x": "1"})
    assert len({digest_of(b"a", {"x": "1"}), digest_of(b"a", {"x": "2"}), digest_of(b"b", {"x": "1"})}) == 3
