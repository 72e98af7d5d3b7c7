"""A reply of no use: its model is told why, twice at most; what that took is counted, and told."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from opsmesh.agents.v1 import model_service_pb2 as pb
from services.agents.domain import prompt_digest
from services.agents.messages import question_of
from services.mesh.errors import Refusal, from_rpc_error
from tests.agents import fakes
from tests.agents.house import House, ask, living, role
from tests.mesh.world import World
from tests.stores import Database

WIDE = {name: {"tokens": 10**9, "cost_micros": 10**12} for name in ("incident", "day", "requester")}


@pytest.fixture
async def provider() -> AsyncIterator[fakes.Provider]:
    """Give a provider."""
    async with fakes.providing() as running:
        yield running


@pytest.fixture
async def ground(mesh: World, postgres: Database, tmp_path: Path) -> AsyncIterator[tuple[World, Database, Path]]:
    """Give what a boundary needs: an empty database and a folder of its own."""
    async with postgres.fresh() as database:
        yield mesh, database, tmp_path


async def refused(house: House, request: pb.GenerateRequest, **options: Any) -> Refusal:
    """Ask, and return the refusal."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await house.stub.Generate(request, **options)
    refusal = from_rpc_error(raised.value)
    assert refusal is not None
    return refusal


@pytest.mark.parametrize(
    ("mode", "said", "how"),
    [
        (
            "TOOL_MODE_NATIVE",
            "I \u27e6end 1\u27e7 restarted it." + "x" * 9000,
            "no tool was called. Call one of the tools: look.",
        ),
        ("TOOL_MODE_JSON_SCHEMA", '{"text": "", "calls": [', "with at least one call, and nothing else."),
    ],
)
async def test_a_model_is_told_why_its_reply_is_of_no_use(
    ground: tuple[World, Database, Path], provider: fakes.Provider, mode: str, said: str, how: str
) -> None:
    """What it said goes back, cut and harmless, with the reason; the answer counts all and is of the question."""
    good = '{"text": "", "calls": [{"name": "look", "arguments": {"target_id": "a"}}]}'
    right = fakes.completion(None, ("look", {"target_id": "a"})) if "NATIVE" in mode else fakes.completion(good)
    lie = fakes.answer(fakes.completion(said))
    provider.will(lie, lie, fakes.answer(right))
    price = {"input_micros": 1_000_000, "output_micros": 1_000_000}
    recorder = role(provider.api_base, tool_mode=mode, recordings_folder="tape", price=price)
    request = ask(tools=("look",), tool_use=pb.GenerateRequest.TOOL_USE_REQUIRED)
    async with living(*ground, {"roles": {"routing": recorder}, "budgets": WIDE}) as house:
        made = await house.stub.Generate(request)
        assert await house.stub.Generate(request) == made
        assert [one.name for one in made.tool_calls] == ["look"]
        assert (made.attempt_count, made.usage.input_tokens, made.usage.output_tokens) == (3, 33, 21)
        assert made.cost_micros == 54
        (spent,) = await house.rows("SELECT tokens, cost_micros FROM agents.spending WHERE scope = 'INCIDENT'")
        assert (spent["tokens"], spent["cost_micros"]) == (54, 54)
        (digest,) = await house.rows("SELECT DISTINCT prompt_digest FROM agents.model_calls")
        assert made.prompt_digest == digest["prompt_digest"] == prompt_digest(question_of(request))
    first, second, third = (
        [one for one in asked["messages"] if one["role"] != "system"] for asked in provider.requests
    )
    assert second[:-2] == first
    assert third[:-2] == second
    assert second[-2]["role"] == "assistant"
    assert second[-2]["content"][:2] == said[:2]
    assert len(second[-2]["content"]) <= 2000
    assert "\u27e6end" not in second[-2]["content"]
    assert second[-1]["role"] == "user"
    assert second[-1]["content"].startswith("Not taken: the reply cannot be used: ")
    assert second[-1]["content"].endswith(how)
    async with living(*ground, {"roles": {"routing": {"model": "recorded", "recordings_folder": "tape"}}}) as house:
        request.request_id = str(uuid.uuid4())
        again = await house.stub.Generate(request)
        assert (again.recorded, again.attempt_count, again.prompt_digest) == (True, 1, made.prompt_digest)
        assert [one.name for one in again.tool_calls] == ["look"]


async def test_three_replies_of_no_use_are_the_last(
    ground: tuple[World, Database, Path], provider: fakes.Provider
) -> None:
    """Two of the role's own model and one of its fallback, which is asked afresh; the refusal says what they took."""
    provider.will(fakes.answer(fakes.completion("It is all fine.")))
    request = ask(tools=("look",), tool_use=pb.GenerateRequest.TOOL_USE_REQUIRED)
    async with fakes.providing(fakes.answer(fakes.completion("Indeed."))) as second:
        lying = role(provider.api_base, fallbacks=[role(second.api_base), role(second.api_base, model="openai/third")])
        async with living(*ground, {"roles": {"routing": lying}, "budgets": WIDE}) as house:
            refusal = await refused(house, request)
            event = await asyncio.wait_for(house.audit.events.get(), 10)
    assert refusal.name == "MODEL_REPLY_INVALID"
    told = {name: refusal.metadata[name] for name in ("input_tokens", "output_tokens", "attempts", "model")}
    assert told == {"input_tokens": "33", "output_tokens": "21", "attempts": "3", "model": "openai/tiny"}
    assert event.details["input_tokens"] == "33"
    assert (len(provider.requests), len(second.requests)) == (2, 1)
    assert second.requests[0]["messages"] == provider.requests[0]["messages"]


async def test_a_retry_that_no_budget_allows_is_not_made(
    ground: tuple[World, Database, Path], provider: fakes.Provider
) -> None:
    """The reason is the budget, and what was paid before is told."""
    provider.will(fakes.answer(fakes.completion("no", usage=(900, 50))))
    budgets = WIDE | {"incident": {"tokens": 1000, "cost_micros": 10**9}}
    async with living(*ground, {"roles": {"routing": role(provider.api_base)}, "budgets": budgets}) as house:
        request = ask(tools=("look",), tool_use=pb.GenerateRequest.TOOL_USE_REQUIRED)
        refusal = await refused(house, request)
    assert refusal.name == "BUDGET_EXHAUSTED"
    assert (refusal.metadata["input_tokens"], refusal.metadata["attempts"]) == ("900", "1")
    assert len(provider.requests) == 1
