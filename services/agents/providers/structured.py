"""Tools for models without tool calling: offered in the instructions, called through a JSON-schema answer.

What comes back is as little believed as a native call: it goes the same way afterwards.
"""

import re
from dataclasses import replace
from typing import Any, Final

from services.agents.domain import (
    CALLS_MAX,
    Endpoint,
    Finish,
    Message,
    Question,
    RawReply,
    Speaker,
    ToolCall,
)
from services.agents.providers import Provider, useless
from services.agents.strict_json import UnreadableError, canonical, read_object

# Some models put their JSON between fences, whatever they are told.
FENCES: Final = re.compile(r"\A\s*```[a-z]*\s*\n(.*)\n\s*```\s*\Z", re.DOTALL)
HOW: Final = """
You may call tools. Answer with one JSON object and nothing else: {"text": "...", "calls": [{"name": TOOL, \
"arguments": {...}}]}. `calls` is empty when you call none. Results come in the next message. The tools:
"""


class Structured:
    """Asks another provider; translates for endpoints that know no tools."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    async def generate(self, endpoint: Endpoint, question: Question) -> RawReply:
        """Answer as the provider does; raises what it raises, and when the answer is not the object asked for."""
        if endpoint.native_tools:
            return await self._provider.generate(endpoint, question)
        raw = await self._provider.generate(endpoint, flatten(question))
        try:
            return unfold(question, raw)
        except UnreadableError as error:
            raise useless(question, raw, f"the answer is {error}") from None


def without_fences(text: str) -> str:
    """Return the text inside one pair of code fences, or the text."""
    found = FENCES.match(text)
    return found.group(1) if found else text


def flatten(question: Question) -> Question:
    """Return the same question for a model that knows only text and a response schema."""
    if not question.tools and not any(one.tool_calls or one.call_id for one in question.messages):
        return question
    if not question.tools:
        return replace(question, messages=tuple(_as_text(one) for one in question.messages))
    lines = [f"- {tool.name}: {tool.description}\n  arguments: {tool.schema}" for tool in question.tools]
    return replace(
        question,
        system=f"{question.system}\n{HOW}" + "\n".join(lines),
        messages=tuple(_as_text(one) for one in question.messages),
        tools=(),
        must_call=False,
        response_schema=canonical(_envelope(question)),
    )


def _as_text(message: Message) -> Message:
    """Return a message with its calls, or the result it is, as text."""
    if message.speaker is Speaker.TOOL:
        result = {"call_id": message.call_id, "failed": message.failed, "result": message.text}
        return Message(Speaker.USER, canonical(result))
    if message.tool_calls:
        calls = [
            {"name": call.name, "arguments": read_object(call.arguments), "call_id": call.call_id}
            for call in message.tool_calls
        ]
        return Message(Speaker.ASSISTANT, canonical({"text": message.text, "calls": calls}))
    return message


def _envelope(question: Question) -> dict[str, Any]:
    """Return the JSON Schema of an answer that may carry calls."""
    one_of = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.name}, "arguments": read_object(tool.schema)},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in question.tools
    ]
    calls: dict[str, Any] = {"type": "array", "items": {"anyOf": one_of}, "maxItems": CALLS_MAX}
    if question.must_call:
        calls["minItems"] = 1
    return {
        "type": "object",
        "properties": {"text": {"type": "string"}, "calls": calls},
        "required": ["text", "calls"],
        "additionalProperties": False,
    }


def unfold(question: Question, raw: RawReply) -> RawReply:
    """Return the reply with the calls that its text carries; UnreadableError when it is not the object asked for."""
    if not question.tools:
        return raw
    found = read_object(without_fences(raw.text))
    text, calls = found.pop("text", ""), found.pop("calls", [])
    if found:
        raise UnreadableError(f"unknown keys in the answer: {', '.join(sorted(found))[:100]}")
    if not isinstance(text, str) or not isinstance(calls, list):
        raise UnreadableError("`text` must be a string and `calls` a list")
    read = tuple(_call(index, one) for index, one in enumerate(calls))
    finish = Finish.TOOL_CALLS if read and raw.finish is Finish.STOP else raw.finish
    return replace(raw, text=text, tool_calls=read, finish=finish)


def _call(index: int, one: Any) -> ToolCall:
    """Return one call; what is wrong with its name or arguments is found where native calls are looked at."""
    if not isinstance(one, dict) or not isinstance(one.get("name"), str):
        raise UnreadableError(f"calls[{index}] must be an object with a name and arguments")
    # An id of the model's own could be one of another call: they are given out here.
    return ToolCall("", one["name"], canonical(one.get("arguments", {})))
