"""The conformance suite of providers: a real HTTP server that misbehaves on purpose, through litellm."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from opsmesh.agents.v1 import model_service_pb2 as pb
from services.agents.providers.hosted import warm
from services.mesh.errors import Refusal, from_rpc_error
from tests.agents import fakes
from tests.agents.house import House, ask, living, role, user
from tests.mesh.world import World
from tests.stores import Database

Dropped = pb.DroppedCall


@pytest.fixture
async def provider() -> AsyncIterator[fakes.Provider]:
    """Give a provider."""
    async with fakes.providing() as running:
        yield running


@pytest.fixture
async def house(mesh: World, database: Database, tmp_path: Path, provider: fakes.Provider) -> AsyncIterator[House]:
    """Give a boundary whose role routing asks the provider."""
    (tmp_path / "key").write_text("sk-secret\n")
    (tmp_path / "key").chmod(0o600)
    price = {"input_micros": 1_000_000, "output_micros": 2_000_000}
    roles = {"routing": role(provider.api_base, api_key_file="key", price=price)}
    budgets = {name: {"tokens": 10**9, "cost_micros": 10**12} for name in ("incident", "day", "requester")}
    async with living(mesh, database, tmp_path, {"roles": roles, "budgets": budgets}) as made:
        yield made


async def refused(house: House, request: pb.GenerateRequest, **options: Any) -> Refusal:
    """Ask, and return the refusal."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await house.stub.Generate(request, **options)
    refusal = from_rpc_error(raised.value)
    assert refusal is not None
    return refusal


async def test_an_answer_carries_what_it_took(house: House, provider: fakes.Provider) -> None:
    """Text, usage, cost, model, provider and prompt digest; the key goes in the header, and nowhere else."""
    made = await house.stub.Generate(ask())
    assert (made.text, made.finish) == ("all is well", pb.GenerateResponse.FINISH_STOP)
    assert (made.usage.input_tokens, made.usage.output_tokens, made.usage.estimated) == (11, 7, False)
    assert (made.cost_micros, made.attempt_count, made.recorded) == (25, 1, False)
    assert (made.model, made.provider) == ("openai/tiny", f"http://127.0.0.1:{provider.port}")
    assert len(made.prompt_digest) == 64
    assert provider.headers[0]["authorization"] == "Bearer sk-secret"
    sent = provider.requests[0]
    assert (sent["model"], sent["max_tokens"], sent["temperature"]) == ("tiny", 100, 0)
    assert sent["messages"] == [
        {"role": "system", "content": "You decide."},
        {"role": "user", "content": "checkout is down"},
    ]


async def test_tools_and_their_results_travel(house: House, provider: fakes.Provider) -> None:
    """Calls come back canonical with ids that results may name; a failed result says so to the model."""
    provider.will(fakes.answer(fakes.completion(None, ("GetWorkload", '{ "target_id" : "a" }'))))
    made = await house.stub.Generate(ask(tools=("GetWorkload",)))
    assert made.finish == pb.GenerateResponse.FINISH_TOOL_CALLS
    (call,) = made.tool_calls
    assert (call.name, call.arguments_json) == ("GetWorkload", '{"target_id":"a"}')
    turn = pb.Message(role=pb.Message.ROLE_ASSISTANT, tool_calls=[call])
    result = pb.Message(role=pb.Message.ROLE_TOOL, call_id=call.call_id, text="no such target", failed=True)
    await house.stub.Generate(ask(user("go"), turn, result, tools=("GetWorkload",)))
    sent = provider.requests[-1]["messages"]
    assert sent[2]["tool_calls"][0]["function"] == {"name": "GetWorkload", "arguments": '{"target_id":"a"}'}
    assert sent[3] == {"role": "tool", "tool_call_id": call.call_id, "content": "FAILED: no such target"}
    assert provider.requests[0]["tools"][0]["function"]["name"] == "GetWorkload"


@pytest.mark.parametrize(
    ("behaviour", "tries"),
    [
        (fakes.malformed(), 2),
        (fakes.something_else(), 2),
        (fakes.answer(fakes.completion("")), 3),
        (fakes.answer({"choices": []}), 2),
        (fakes.large(), 1),
        (fakes.endless(), 1),
        (fakes.bomb(), 1),
    ],
    ids=["malformed", "no-completion", "empty", "no-choices", "10-MB", "endless", "compressed"],
)
async def test_what_cannot_be_read_is_no_reply(
    house: House, provider: fakes.Provider, behaviour: fakes.Behaviour, tries: int
) -> None:
    """It is refused as such, tried again at most twice, and what it may have cost is counted, and told."""
    provider.will(behaviour)
    request = ask()
    refusal = await refused(house, request)
    assert refusal.name == "MODEL_REPLY_INVALID"
    assert len(provider.requests) == tries
    (spent,) = await house.rows("SELECT min(cost_micros) AS least FROM agents.model_calls WHERE state = 'UNKNOWN'")
    assert spent["least"] > 0
    rows = await house.rows("SELECT request_id, cost_micros FROM agents.model_calls")
    total = sum(one["cost_micros"] for one in rows if str(one["request_id"]) == request.request_id)
    assert (refusal.metadata["attempts"], refusal.metadata["cost_micros"]) == (str(tries), str(total))
    assert refusal.metadata["model"] == "openai/tiny"


@pytest.mark.parametrize(
    ("behaviour", "tries"),
    [(fakes.truncated(), 2), (fakes.hang_up(), 2), (fakes.refuse("503 Busy"), 3), (fakes.refuse("500 Oops"), 3)],
    ids=["truncated", "hang-up", "503", "500"],
)
async def test_what_fails_is_tried_again(
    house: House, provider: fakes.Provider, behaviour: fakes.Behaviour, tries: int
) -> None:
    """A bounded number of times, then MODEL_UNAVAILABLE; another try that works is an answer."""
    provider.will(behaviour)
    assert (await refused(house, ask())).name == "MODEL_UNAVAILABLE"
    assert len(provider.requests) == tries
    house.boundary.breakers[f"http://127.0.0.1:{provider.port}"].succeeded()
    provider.will(behaviour, fakes.answer(fakes.completion("at last")))
    made = await house.stub.Generate(ask())
    assert (made.text, made.attempt_count) == ("at last", 2)


@pytest.mark.parametrize(
    "behaviour",
    [fakes.refuse("401 No", text="bad key sk-secret"), fakes.refuse("400 No"), fakes.refuse("404 No")],
    ids=["401", "400", "404"],
)
async def test_what_is_refused_is_not_repeated(
    house: House, provider: fakes.Provider, behaviour: fakes.Behaviour, capfd: pytest.CaptureFixture[str]
) -> None:
    """MODEL_REFUSED after one try; a provider's own words, in which a key may stand, go nowhere."""
    provider.will(behaviour)
    refusal = await refused(house, ask())
    assert refusal.name == "MODEL_REFUSED"
    assert len(provider.requests) == 1
    assert "sk-secret" not in str(refusal)
    out, err = capfd.readouterr()
    assert "sk-secret" not in out + err


async def test_a_redirect_gets_no_key(house: House, provider: fakes.Provider) -> None:
    """A provider cannot send the request, with its key, to another server."""
    async with fakes.providing() as thief:
        provider.will(fakes.redirect(f"{thief.api_base}/chat/completions"))
        assert (await refused(house, ask())).name == "MODEL_REFUSED"
        assert thief.requests == []


async def test_a_hang_ends_in_time(house: House, provider: fakes.Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that says nothing costs the caller its deadline, not more, and is told as what it is."""
    # Loading the library is not what is timed here; and on a busy machine the refusal, too, takes its time.
    await warm()
    monkeypatch.setattr("services.agents.boundary.MARGIN", 8.0)
    provider.will(fakes.hang())
    started = time.monotonic()
    refusal = await refused(house, ask(), timeout=10.0)
    assert time.monotonic() - started < 10.0
    assert refusal.name == "MODEL_UNAVAILABLE"
    assert "did not answer within" in refusal.metadata["detail"]


async def test_429_waits_as_long_as_it_is_told(house: House, provider: fakes.Provider) -> None:
    """Not a moment earlier than Retry-After; nothing is counted as spent for it."""
    provider.will(fakes.refuse("429 Slow down", "Retry-After: 1"), fakes.answer(fakes.completion("now")))
    started = time.monotonic()
    made = await house.stub.Generate(ask())
    assert time.monotonic() - started >= 1.0
    assert (made.text, made.attempt_count, made.cost_micros) == ("now", 2, 25)


async def test_429_that_asks_for_too_much_opens_the_breaker(house: House, provider: fakes.Provider) -> None:
    """Whoever says to come back in a minute is left alone for that minute, and the refusal says how long."""
    provider.will(fakes.refuse("429 Slow down", "Retry-After: 60"))
    refusal = await refused(house, ask())
    assert refusal.name == "MODEL_UNAVAILABLE"
    assert refusal.retry_after is not None
    assert 50 < refusal.retry_after <= 60
    assert (await refused(house, ask())).name == "MODEL_UNAVAILABLE"
    assert len(provider.requests) == 1
    listed = await house.stub.ListModels(pb.ListModelsRequest())
    assert listed.automation_only
    assert listed.models[0].breaker_state == pb.Model.BREAKER_STATE_OPEN
    assert "429" in listed.automation_only_reason


async def test_a_dead_provider_is_left_alone(house: House, provider: fakes.Provider) -> None:
    """After five failures in a row nothing is sent any more; the others learn it at once."""
    provider.will(fakes.refuse("503 Busy"))
    for _ in range(3):
        await refused(house, ask())
    assert len(provider.requests) == 5
    assert "its breaker is open" in (await refused(house, ask())).metadata["detail"]
    assert len(provider.requests) == 5


async def test_every_call_of_a_reply_is_kept_or_dropped(house: House, provider: fakes.Provider) -> None:
    """Several calls, a tool nobody offered, arguments that are none, keys twice, more than sixteen: each is told."""
    good = [("GetWorkload", {"target_id": f"t{number}"}) for number in range(17)]
    bad = [("DropDatabase", {}), ("GetWorkload", "not json"), ("GetWorkload", '{"a":1,"a":2}'), ("GetWorkload", "[]")]
    provider.will(fakes.answer(fakes.completion("so be it", *good[:1], *bad, *good[1:])))
    made = await house.stub.Generate(ask(tools=("GetWorkload", "GetHealth")))
    assert [call.arguments_json for call in made.tool_calls] == [f'{{"target_id":"t{n}"}}' for n in range(16)]
    assert [(one.name, one.reason) for one in made.dropped_calls] == [
        ("DropDatabase", Dropped.REASON_UNKNOWN_TOOL),
        ("GetWorkload", Dropped.REASON_BAD_ARGUMENTS),
        ("GetWorkload", Dropped.REASON_BAD_ARGUMENTS),
        ("GetWorkload", Dropped.REASON_BAD_ARGUMENTS),
        ("GetWorkload", Dropped.REASON_TOO_MANY),
    ]
    ids = [one.call_id for one in made.tool_calls] + [one.call_id for one in made.dropped_calls]
    assert len(set(ids)) == len(ids) == 21


async def test_a_tool_call_loop_ends(house: House, provider: fakes.Provider) -> None:
    """A model that makes the very same call for ever is told after the third time that it will not be made again."""
    provider.will(fakes.answer(fakes.completion(None, ("GetWorkload", {"target_id": "a"}))))
    messages = [user("what is wrong?")]
    for _ in range(3):
        made = await house.stub.Generate(ask(*messages, tools=("GetWorkload",)))
        messages.append(pb.Message(role=pb.Message.ROLE_ASSISTANT, tool_calls=made.tool_calls))
        messages += [
            pb.Message(role=pb.Message.ROLE_TOOL, call_id=call.call_id, text="fine") for call in made.tool_calls
        ]
    made = await house.stub.Generate(ask(*messages, tools=("GetWorkload",)))
    assert list(made.tool_calls) == []
    assert [one.reason for one in made.dropped_calls] == [Dropped.REASON_REPEATED]


async def test_usage_that_is_missing_is_counted_here(house: House, provider: fakes.Provider) -> None:
    """A provider that does not say what was used is not free."""
    provider.will(fakes.answer(fakes.completion("hello", usage=None)))
    made = await house.stub.Generate(ask())
    assert made.usage.estimated
    assert made.usage.input_tokens > 0
    assert made.cost_micros > 0


async def test_an_answer_with_a_schema_is_one_object(house: House, provider: fakes.Provider) -> None:
    """It is asked for as such, read strictly, and tried once more when it is not."""
    provider.will(
        fakes.answer(fakes.completion('{"a": 1', finish="length")),
        fakes.answer(fakes.completion('```json\n{"outcome": "respond"}\n```')),
    )
    made = await house.stub.Generate(ask(response_json_schema='{"type":"object"}'))
    assert made.text == '{"outcome":"respond"}'
    assert provider.requests[0]["response_format"]["json_schema"]["schema"] == {"type": "object"}


async def test_a_conversation_that_does_not_fit_is_told(house: House, provider: fakes.Provider) -> None:
    """CONTEXT_TOO_LARGE: the caller shortens it, and the provider is not blamed."""
    text = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."
    provider.will(fakes.refuse("400 Bad Request", text=text))
    assert (await refused(house, ask())).name == "CONTEXT_TOO_LARGE"


@pytest.mark.parametrize("name", ["anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-flash", "ollama_chat/tiny"])
async def test_the_bounds_hold_for_other_kinds_of_providers(
    mesh: World, database: Database, tmp_path: Path, provider: fakes.Provider, name: str
) -> None:
    """Whatever client the library uses for a provider, its replies are bounded, and its keys stay where they are."""
    (tmp_path / "key").write_text("sk-secret\n")
    (tmp_path / "key").chmod(0o600)
    base = f"http://127.0.0.1:{provider.port}"
    written = {"roles": {"routing": {"model": name, "api_base": base, "api_key_file": "key"}}}
    async with living(mesh, database, tmp_path, written) as house, fakes.providing() as thief:
        for behaviour in (fakes.endless(), fakes.bomb(), fakes.large()):
            provider.will(behaviour)
            refusal = await refused(house, ask(tools=("GetWorkload",)))
            assert refusal.name == "MODEL_REPLY_INVALID"
            assert "larger than it may be" in refusal.metadata["detail"]
        provider.will(fakes.redirect(thief.api_base))
        assert (await refused(house, ask())).name == "MODEL_REFUSED"
        assert len(provider.requests) == 4
        assert thief.requests == []


async def test_another_kind_of_provider_answers(
    mesh: World, database: Database, tmp_path: Path, provider: fakes.Provider
) -> None:
    """Anthropic's own format becomes the same answer: text, calls, usage."""
    content = [
        {"type": "text", "text": "let me see"},
        {"type": "tool_use", "id": "toolu_1", "name": "GetWorkload", "input": {"target_id": "a"}},
    ]
    usage = {"input_tokens": 20, "output_tokens": 9}
    message = {"id": "m", "type": "message", "role": "assistant", "model": "c", "content": content, "usage": usage}
    provider.will(fakes.answer(message | {"stop_reason": "tool_use"}))
    base = f"http://127.0.0.1:{provider.port}"
    written = {"roles": {"routing": {"model": "anthropic/claude-sonnet-4-5", "api_base": base}}}
    async with living(mesh, database, tmp_path, written) as house:
        made = await house.stub.Generate(ask(tools=("GetWorkload",)))
        assert (made.text, made.usage.input_tokens, made.usage.output_tokens) == ("let me see", 20, 9)
        assert [(one.call_id, one.arguments_json) for one in made.tool_calls] == [("toolu_1", '{"target_id":"a"}')]
        assert provider.requests[0]["tools"][0]["name"] == "GetWorkload"
