"""A caller that dies while a model answers has paid already: asked again under the same id, it gets that answer."""

import asyncio
from pathlib import Path

from tests.agents import fakes
from tests.agents.house import ask, living, role
from tests.mesh.world import World
from tests.stores import Database


async def test_the_answer_outlives_its_caller(mesh: World, postgres: Database, tmp_path: Path) -> None:
    """The call goes on although nobody waits; the provider is asked once, and the next try gets its answer."""
    release = asyncio.Event()
    paid = fakes.answer(fakes.completion("it was the CDN"))

    async def slow(writer: asyncio.StreamWriter) -> None:
        await release.wait()
        await paid(writer)

    async with postgres.fresh() as database, fakes.providing(slow) as provider:
        async with living(mesh, database, tmp_path, {"roles": {"routing": role(provider.api_base)}}) as house:
            request = ask()
            first = asyncio.ensure_future(house.stub.Generate(request))
            await provider.asked.wait()
            first.cancel()
            release.set()
            event = await asyncio.wait_for(house.audit.events.get(), 20)
            assert event.details["output_tokens"] == "7"
            assert (await house.stub.Generate(request)).text == "it was the CDN"
        assert len(provider.requests) == 1
