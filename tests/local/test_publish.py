"""What a first `up` publishes of agents, and what later ones only tell."""

from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from opsmesh.agents.v1 import template_service_pb2 as pb
from opsmesh.config.v1 import policies_pb2, templates_pb2
from services.local.publish import allowances, in_order, publish_templates, read_policies, read_templates
from tests.agents.api_house import Api, living
from tests.mesh.world import ROOT, World
from tests.stores import Database

SHIPPED = {"diagnose-repair", "escalate", "take-action"}


def named(template_id: str, *children: str) -> templates_pb2.AgentTemplate:
    """Return a template that names children."""
    return templates_pb2.AgentTemplate(
        template_id=template_id, child_templates=children, max_depth=1 if children else 0
    )


def order(templates: Iterable[templates_pb2.AgentTemplate]) -> list[tuple[str, list[str]]]:
    """Return ids and children in order."""
    return [(one.template_id, list(one.child_templates)) for one in templates]


def test_children_come_first() -> None:
    """Whoever names a child comes after it; itself and what is published already do not count."""
    templates = [named("a", "b", "a"), named("b", "c", "old"), named("c")]
    assert order(in_order(templates, ["old"])) == [("c", []), ("b", ["c", "old"]), ("a", ["b", "a"])]


def test_a_loop_is_cut_once() -> None:
    """Of a loop one comes first without the child that is not there yet, and at last as it is."""
    templates = [named("a", "b"), named("b", "a")]
    assert order(in_order(templates)) == [("a", []), ("b", ["a"]), ("a", ["b"])]
    assert next(in_order(templates)).max_depth == 0
    assert order(in_order(templates, ["a", "b"])) == [("a", ["b"]), ("b", ["a"])]


def test_policies_get_what_templates_name() -> None:
    """Every shipped template may call its own tools and start its own children; what policies name stays."""
    policy_set, _ = read_policies(ROOT / "deploy")
    added = {one.template_id: one for one in policy_set.agents}
    assert set(added) == SHIPPED
    assert "RestartWorkload" in added["diagnose-repair"].tools
    assert list(added["diagnose-repair"].child_templates) == ["take-action", "escalate"]
    own = policies_pb2.PolicySet(agents=[policies_pb2.AgentAllowance(template_id="escalate", tools=["SendNotice"])])
    templates = read_templates(ROOT / "deploy")
    assert [one.template_id for one in allowances(own, templates)] == ["diagnose-repair", "take-action"]


def test_a_configuration_may_have_no_templates(tmp_path: Path) -> None:
    """A folder without agents/ has none."""
    assert list(read_templates(tmp_path)) == []


@pytest.fixture
async def api(tmp_path: Path, postgres: Database) -> AsyncIterator[Api]:
    """Serve agents on a database of its own."""
    async with postgres.fresh() as database, living(World(tmp_path), database) as api:
        yield api


async def test_first_up_publishes_and_later_ones_tell(api: Api, tmp_path: Path) -> None:
    """Published versions stay; a file that differs and a tool that changed are told, loops are published whole."""
    async with api.world.channel(api.server, "operator") as channel:
        config = tmp_path / "config"
        (config / "agents").mkdir(parents=True)
        for path in (ROOT / "deploy" / "agents").glob("*.yaml"):
            (config / "agents" / path.name).write_text(path.read_text())
        take = config / "agents" / "take-action.yaml"
        take.write_text(take.read_text() + "child_templates: [diagnose-repair]\n")
        take.write_text(take.read_text().replace("max_depth: 0", "max_depth: 1"))
        assert await publish_templates(lambda _: channel, config) == []
        stub = await api.templates()
        found = (await stub.ListTemplates(pb.ListTemplatesRequest())).templates
        assert {one.template_id for one in found} == SHIPPED
        assert {len(one.template.child_templates) for one in found} == {0, 1, 2}
        assert await publish_templates(lambda _: channel, config) == []
        take.write_text(take.read_text().replace("max_steps: 16", "max_steps: 17"))
        (drift,) = await publish_templates(lambda _: channel, config)
        assert drift.startswith("template take-action: the files differ from version 1, which stays active")
        await api.sql("UPDATE agents.templates SET pins[1] = repeat('0', 64) WHERE template_id = 'escalate'")
        told = await publish_templates(lambda _: channel, config)
        assert [one.partition(":")[0] for one in told] == ["template escalate", "template take-action"]
        assert "disabled, for these tools changed since it was published" in told[0]
