"""Conversations over real mTLS and a real database."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from tests.mesh.world import World
from tests.router.house import Router
from tests.router.talk import Person, Square
from tests.stores import Database


@dataclass
class Scene:
    """A router among its peers, and a person."""

    square: Square
    router: Router
    operator: Person


@pytest.fixture
async def scene(world: World, postgres: Database) -> AsyncIterator[Scene]:
    """Give a router among its peers, and the operator."""
    async with postgres.fresh() as database:
        square = Square(world, database)
        async with (
            square.serve_automation(),
            square.serve_agents(),
            square.serve_audit(),
            square.serve_guardrails(),
            square.serve_ingest(),
            square.router() as router,
            square.talking(router) as operator,
        ):
            yield Scene(square, router, operator)


async def test_keywords_work_with_every_model_down(scene: Scene) -> None:
    """Help and status are answered, kept, and shown again."""
    helped = await scene.operator.say("help")
    assert "approve APPROVAL DIGEST" in helped.reply.text
    status = await scene.operator.say("status", helped.conversation_id)
    assert "No incident is open." in status.reply.text
    assert "none can be asked" in status.reply.text
    said = await scene.operator.messages(helped.conversation_id, size=1)
    assert [one.number for one in said] == [1, 2, 3, 4]
    assert (await scene.operator.conversation(helped.conversation_id)).message_count == 4
    assert scene.square.models.requests == []
