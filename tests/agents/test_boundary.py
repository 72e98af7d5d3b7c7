"""What the boundary promises whoever asks: once, within budgets, by whichever model can, and always on record."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from opsmesh.agents.v1 import model_service_pb2 as pb
from opsmesh.audit.v1 import audit_service_pb2 as audit_pb
from services.agents.providers.hosted import warm
from services.local.files import free_port
from services.mesh.errors import Refusal, from_rpc_error
from tests.agents import fakes
from tests.agents.house import INCIDENT, House, ask, living, role, user
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


async def test_the_same_request_is_paid_for_once(
    ground: tuple[World, Database, Path], provider: fakes.Provider
) -> None:
    """The same id gets the stored answer, with other content it is refused; audit learns figures, not texts."""
    async with living(*ground, {"roles": {"routing": role(provider.api_base)}}) as house:
        request = ask()
        first = await house.stub.Generate(request)
        assert await house.stub.Generate(request) == first
        assert len(provider.requests) == 1
        other = ask(request_id=request.request_id, system="Something else.")
        assert (await refused(house, other)).name == "REQUEST_ID_REUSED"
        event = await asyncio.wait_for(house.audit.events.get(), 10)
        assert (event.actor, event.incident_id) == ("service/router", INCIDENT)
        assert event.outcome == audit_pb.AuditEvent.OUTCOME_SUCCEEDED
        assert event.details["input_tokens"] == "11"
        assert event.details["requester"] == "alertmanager"
        assert "checkout" not in str(event)
        (row,) = await house.rows("SELECT * FROM agents.model_calls")
        assert (row["state"], row["requester"], row["caller"]) == ("SUCCEEDED", "alertmanager", "service/router")


async def test_a_request_is_answered_once_at_a_time(
    ground: tuple[World, Database, Path], provider: fakes.Provider
) -> None:
    """While one asks, the same id is refused; when its caller has gone, what it reserved stays spent until swept."""
    provider.will(fakes.hang())
    async with living(*ground, {"roles": {"routing": role(provider.api_base)}}) as house:
        request = ask()
        first = asyncio.ensure_future(house.stub.Generate(request))
        await provider.asked.wait()
        assert (await refused(house, request)).name == "GENERATION_IN_FLIGHT"
        first.cancel()
        await house.ledger.sweep()
        (row,) = await house.rows("SELECT state, input_tokens + output_tokens AS tokens FROM agents.model_calls")
        assert row["state"] == "RUNNING"
        await house.rows("UPDATE agents.model_calls SET deadline = now() - interval '1 s' RETURNING 1")
        provider.will(fakes.answer(fakes.completion("again")))
        assert (await house.stub.Generate(request)).text == "again"
        states = await house.rows("SELECT state FROM agents.model_calls ORDER BY start_time")
        assert [one["state"] for one in states] == ["UNKNOWN", "SUCCEEDED"]
        (spent,) = await house.rows("SELECT tokens FROM agents.spending WHERE scope = 'INCIDENT'")
        assert spent["tokens"] == row["tokens"] + 18


async def test_a_fallback_answers_when_the_first_cannot(
    ground: tuple[World, Database, Path], provider: fakes.Provider
) -> None:
    """A provider that is not there costs a moment; the answer says who gave it, the list who is missing."""
    gone = role(f"http://127.0.0.1:{free_port()}/v1", model="openai/big", fallbacks=[role(provider.api_base)])
    async with living(*ground, {"roles": {"routing": gone}, "budgets": WIDE}) as house:
        for _ in range(2):
            made = await house.stub.Generate(ask())
            assert (made.model, made.fallback_index, made.text) == ("openai/tiny", 1, "all is well")
        listed = await house.stub.ListModels(pb.ListModelsRequest())
        assert not listed.automation_only
        assert [one.fallback_index for one in listed.models] == [0, 1]
        assert listed.models[0].breaker_state == pb.Model.BREAKER_STATE_OPEN
        assert listed.models[0].HasField("retry_time")
        assert listed.models[0].last_failure == "it cannot be reached"
        assert listed.models[1].breaker_state == pb.Model.BREAKER_STATE_CLOSED


async def test_a_lie_is_not_waited_out_for_a_fallback_that_is_gone(
    ground: tuple[World, Database, Path], provider: fakes.Provider
) -> None:
    """What the role's own model said cannot be used: that is what the caller learns, not to ask and pay for ever."""
    provider.will(fakes.answer(fakes.completion("I restarted everything.")))
    gone = role(f"http://127.0.0.1:{free_port()}/v1", model="openai/big")
    lying = role(provider.api_base, fallbacks=[gone])
    request = ask(tools=("look",), tool_use=pb.GenerateRequest.TOOL_USE_REQUIRED)
    async with living(*ground, {"roles": {"routing": lying}, "budgets": WIDE}) as house:
        assert (await refused(house, request)).name == "MODEL_REPLY_INVALID"
    away = role(str(gone["api_base"]), model="openai/big", fallbacks=[role(provider.api_base)])
    async with living(*ground, {"roles": {"routing": away}, "budgets": WIDE}) as house:
        assert (await refused(house, request)).name == "MODEL_UNAVAILABLE"


async def test_a_model_that_hangs_leaves_time_for_the_next(
    ground: tuple[World, Database, Path], provider: fakes.Provider
) -> None:
    """Within the caller's deadline the fallback still answers; what the first may have used is counted."""
    await warm()
    provider.will(fakes.hang())
    async with fakes.providing() as second:
        first = role(provider.api_base, fallbacks=[role(second.api_base)])
        async with living(*ground, {"roles": {"routing": first}}) as house:
            made = await house.stub.Generate(ask(), timeout=10.0)
            assert (made.text, made.fallback_index, made.attempt_count) == ("all is well", 1, 2)
            states = await house.rows("SELECT state FROM agents.model_calls ORDER BY start_time")
            assert [one["state"] for one in states] == ["UNKNOWN", "SUCCEEDED"]


async def test_a_failure_is_on_record_too(ground: tuple[World, Database, Path], provider: fakes.Provider) -> None:
    """Audit learns that nobody answered, and why."""
    provider.will(fakes.refuse("401 No"))
    async with living(*ground, {"roles": {"routing": role(provider.api_base)}}) as house:
        await refused(house, ask())
        event = await asyncio.wait_for(house.audit.events.get(), 10)
        assert (event.outcome, event.reason) == (audit_pb.AuditEvent.OUTCOME_FAILED, "MODEL_REFUSED")
        assert event.details["failure"] == "openai/tiny: it answers 401"


@pytest.mark.parametrize("scope", ["incident", "day", "requester"])
async def test_a_budget_is_never_passed(
    ground: tuple[World, Database, Path], provider: fakes.Provider, scope: str
) -> None:
    """Twenty at once get what fits and no more; the rest are told which budget, and nobody is asked for them."""
    budgets = WIDE | {scope: {"tokens": 1500, "cost_micros": 10**9}}
    async with living(*ground, {"roles": {"routing": role(provider.api_base)}, "budgets": budgets}) as house:
        provider.will(fakes.answer(fakes.completion("hm", usage=(100, 50))))
        requests = [ask() for _ in range(20)]
        answers = await asyncio.gather(*(house.stub.Generate(one) for one in requests), return_exceptions=True)
        good = [one for one in answers if isinstance(one, pb.GenerateResponse)]
        bad = [from_rpc_error(one) for one in answers if isinstance(one, grpc.aio.AioRpcError)]
        assert 1 <= len(good) <= 10
        assert {one.name for one in bad if one} == {"BUDGET_EXHAUSTED"}
        assert {one.metadata["scope"] for one in bad if one} == {scope}
        assert len(provider.requests) == len(good)
        request = pb.ListModelsRequest(incident_id=INCIDENT, requester="alertmanager")
        listed = await house.stub.ListModels(request)
        left = {pb.Budget.Scope.Name(one.scope): one.tokens_left for one in listed.budgets}
        assert left[f"SCOPE_{scope.upper()}"] == 1500 - 150 * len(good)


async def test_money_is_a_budget_too(ground: tuple[World, Database, Path], provider: fakes.Provider) -> None:
    """A call is made only when the most it can cost still fits; a budget of 0 is automation-only mode, with why."""
    priced = role(provider.api_base, price={"output_micros": 10_000_000})
    budgets = {"day": {"cost_micros": 1500}}
    async with living(*ground, {"roles": {"routing": priced}, "budgets": budgets}) as house:
        provider.will(fakes.answer(fakes.completion("hm", usage=(10, 60))))
        assert (await house.stub.Generate(ask())).cost_micros == 600
        refusal = await refused(house, ask())
        assert (refusal.name, refusal.code) == ("BUDGET_EXHAUSTED", grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert refusal.metadata["left"].endswith("and 900 micros are left")
    async with living(*ground, {"roles": {"routing": priced}, "budgets": {"day": {"tokens": 0}}}) as house:
        listed = await house.stub.ListModels(pb.ListModelsRequest())
        assert listed.automation_only
        assert listed.automation_only_reason == "the model budget of day is used up"


async def test_a_model_without_tools_gets_them_in_a_schema(
    ground: tuple[World, Database, Path], provider: fakes.Provider
) -> None:
    """Offered in the instructions, called through the answer's JSON schema, looked at like any other call."""
    plain = role(provider.api_base, tool_mode="TOOL_MODE_JSON_SCHEMA")
    async with living(*ground, {"roles": {"routing": plain}}) as house:
        calls = '[{"name": "GetWorkload", "arguments": {"target_id": "a"}}, {"name": "Nope", "arguments": {}}]'
        provider.will(
            fakes.answer(fakes.completion("I think I should call a tool.")),
            fakes.answer(fakes.completion('{"text": "let me see", "calls": ' + calls + "}")),
        )
        made = await house.stub.Generate(ask(tools=("GetWorkload",)))
        assert made.text == "let me see"
        assert [(one.name, one.arguments_json) for one in made.tool_calls] == [("GetWorkload", '{"target_id":"a"}')]
        assert [one.name for one in made.dropped_calls] == ["Nope"]
        sent = provider.requests[0]
        assert "tools" not in sent
        assert "GetWorkload" in sent["messages"][0]["content"]
        schema = sent["response_format"]["json_schema"]["schema"]
        assert schema["properties"]["calls"]["items"]["anyOf"][0]["properties"]["name"] == {"const": "GetWorkload"}
        turn = pb.Message(role=pb.Message.ROLE_ASSISTANT, text="let me see", tool_calls=made.tool_calls)
        result = pb.Message(role=pb.Message.ROLE_TOOL, call_id=made.tool_calls[0].call_id, text="broken")
        provider.will(fakes.answer(fakes.completion('{"text": "it is broken", "calls": []}')))
        assert (await house.stub.Generate(ask(user("go"), turn, result, tools=("GetWorkload",)))).text == "it is broken"
        assert [one["role"] for one in provider.requests[-1]["messages"]] == ["system", "user", "assistant", "user"]


async def test_what_is_recorded_is_replayed_under_other_ids(
    ground: tuple[World, Database, Path], provider: fakes.Provider
) -> None:
    """An exchange is written while a model is asked, and answers the same question about another incident later."""
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    call = ("GetWorkload", {"target_id": first})
    recorder = role(provider.api_base, recordings_folder="tape")
    async with living(*ground, {"roles": {"routing": recorder}}) as house:
        provider.will(fakes.answer(fakes.completion(f"look at {first}", call)))
        made = await house.stub.Generate(
            ask(user(f"2026-11-21T10:00:00Z incident {first} is open"), tools=("GetWorkload",))
        )
        assert (made.recording, made.recorded) == (True, False)
    async with living(*ground, {"roles": {"routing": {"model": "recorded", "recordings_folder": "tape"}}}) as house:
        request = ask(user(f"2026-11-22T11:30:00Z incident {second} is open"), tools=("GetWorkload",))
        made = await house.stub.Generate(request)
        assert (made.recorded, made.model, made.text) == (True, "recorded", f"look at {second}")
        assert made.tool_calls[0].arguments_json == f'{{"target_id":"{second}"}}'
        listed = await house.stub.ListModels(pb.ListModelsRequest())
        assert listed.models[0].recorded
        assert (await refused(house, ask(user("something new")))).name == "MODEL_REFUSED"
    assert len(provider.requests) == 1


async def test_a_recording_does_not_know_how_tools_were_offered(
    ground: tuple[World, Database, Path], provider: fakes.Provider
) -> None:
    """What was recorded of a model without tool calling is replayed like any other."""
    recorder = role(provider.api_base, recordings_folder="tape", tool_mode="TOOL_MODE_JSON_SCHEMA")
    request = ask(tools=("GetWorkload",))
    async with living(*ground, {"roles": {"routing": recorder}}) as house:
        calls = '{"text": "", "calls": [{"name": "GetWorkload", "arguments": {"target_id": "a"}}]}'
        provider.will(fakes.answer(fakes.completion(calls)))
        first = await house.stub.Generate(request)
    async with living(*ground, {"roles": {"routing": {"model": "recorded", "recordings_folder": "tape"}}}) as house:
        request.request_id = str(uuid.uuid4())
        again = await house.stub.Generate(request)
        assert again.recorded
        assert [one.name for one in again.tool_calls] == [one.name for one in first.tool_calls] == ["GetWorkload"]


async def test_a_hand_written_exchange_may_name_times(ground: tuple[World, Database, Path]) -> None:
    """`<now>` and `<now-900s>` become moments that lie as far apart, in UTC."""
    models = {"roles": {"routing": {"model": "recorded", "recordings_folder": "tape"}}}
    (ground[2] / "tape").mkdir(exist_ok=True)
    (ground[2] / "tape" / "times.yaml").write_text(
        'exchanges: [{turn: -1, contains: [when], text: "<now-900s> <now>"}]'
    )
    async with living(*ground, models) as house:
        said = (await house.stub.Generate(ask(user("when was it")))).text
    before, after = (datetime.fromisoformat(one) for one in said.split())
    assert after - before == timedelta(minutes=15)
    assert abs(datetime.now(UTC) - after) < timedelta(hours=1)


async def test_an_exchange_may_be_written_by_hand(ground: tuple[World, Database, Path]) -> None:
    """By role, turn and texts of the conversation; the first that fits."""
    tape = ground[2] / "tape"
    tape.mkdir()
    (tape / "story.yaml").write_text(
        """
exchanges:
  - role: routing
    contains: [checkout]
    tool_calls: [{name: GetWorkload, arguments_json: '{"target_id":"svc:demo/checkout"}'}]
  - role: routing
    turn: 1
    contains: [checkout, STOPPED]
    text: it is stopped
  - turn: -1
    text: I do not know
"""
    )
    async with living(*ground, {"roles": {"routing": {"model": "recorded", "recordings_folder": "tape"}}}) as house:
        made = await house.stub.Generate(ask(tools=("GetWorkload",)))
        turn = pb.Message(role=pb.Message.ROLE_ASSISTANT, tool_calls=made.tool_calls)
        result = pb.Message(role=pb.Message.ROLE_TOOL, call_id=made.tool_calls[0].call_id, text="state: STOPPED")
        request = ask(user("checkout is down"), turn, result, tools=("GetWorkload",))
        assert (await house.stub.Generate(request)).text == "it is stopped"
        assert (await house.stub.Generate(ask(user("what is up?")))).text == "I do not know"


async def test_without_a_model_there_is_automation_only(ground: tuple[World, Database, Path]) -> None:
    """No roles: ListModels says so and why; a role nobody configured is MODEL_UNAVAILABLE, which gRPC never repeats."""
    async with living(*ground, {}) as house:
        listed = await house.stub.ListModels(pb.ListModelsRequest())
        assert listed.automation_only
        assert listed.automation_only_reason == "no model is configured: see deploy/models.yaml"
        refusal = await refused(house, ask())
        assert (refusal.name, refusal.code) == ("MODEL_UNAVAILABLE", grpc.StatusCode.ABORTED)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"tools": [], "tool_use": pb.GenerateRequest.TOOL_USE_REQUIRED}, "tool_use"),
        ({"response_json_schema": "[]"}, "response_json_schema"),
        ({"messages": [pb.Message(role=pb.Message.ROLE_ASSISTANT, text="hm")]}, "messages"),
        ({"messages": [pb.Message(role=pb.Message.ROLE_TOOL, call_id="x", text="hm")]}, "messages[0].call_id"),
        ({"tools": ("A", "A")}, "tools"),
        ({"attribution": pb.Attribution(incident_id=INCIDENT)}, "attribution.requester"),
        ({"attribution": pb.Attribution(person="human/operator")}, "attribution"),
    ],
)
async def test_a_question_that_makes_no_sense_is_not_asked(
    ground: tuple[World, Database, Path], provider: fakes.Provider, changes: dict[str, Any], field: str
) -> None:
    """The violation names the field; nobody is asked and nothing counted."""
    async with living(*ground, {"roles": {"routing": role(provider.api_base)}}) as house:
        refusal = await refused(house, ask(**changes))
        assert refusal.name == "INVALID_ARGUMENT"
        assert field in [one.field for one in refusal.violations]
        assert provider.requests == []
