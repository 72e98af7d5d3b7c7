"""Models of any provider, through litellm: the one file that imports it, and only when a model is asked.

The import takes seconds and 185 MB, so it happens in a thread; its price table would come from the network, so the one
in the package is taken. Retries, fallbacks and limits are ours: the library's own are off.
"""

import asyncio
import logging
import os
import threading
from typing import Any, Final

from services.agents.domain import (
    TEXT_BYTES_MAX,
    Endpoint,
    Finish,
    Message,
    Question,
    RawReply,
    Speaker,
    ToolCall,
    Usage,
    output_limit,
)
from services.agents.providers import Kind, ProviderError, Why
from services.agents.providers.bounded import BoundedTransport, Seen, current
from services.agents.strict_json import read_object

OK: Final = 200
TOO_MANY: Final = 429
# Another try may help although it is the caller's side of 500.
TRANSIENT: Final = frozenset({408, 409, 425, TOO_MANY})
FAULT_OF_KEY: Final = frozenset({401, 402, 403})
FINISHES: Final = {
    "stop": Finish.STOP,
    "tool_calls": Finish.TOOL_CALLS,
    "function_call": Finish.TOOL_CALLS,
    "length": Finish.LENGTH,
    "content_filter": Finish.FILTERED,
}
# Servers without keys are asked with this one: client libraries insist on one.
NO_KEY: Final = "none"
# A reply that carries more calls than this is cut; each of the rest is looked at.
RAW_CALLS_MAX: Final = 128
_setting_up = threading.Lock()
_library: list[Any] = []


def _load() -> Any:
    """Import the library once and take everything from it that we do ourselves; runs in a thread."""
    with _setting_up:
        if not _library:
            os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
            import litellm  # noqa: PLC0415  see the module's first words

            handler: Any = litellm.module_level_aclient.__class__
            # Every asynchronous client of every provider is made with this transport.
            handler.create_async_transport = staticmethod(lambda **_: BoundedTransport())
            handler.create_httpx_proxy_mounts = staticmethod(lambda *_, **__: {})
            litellm.suppress_debug_info = True
            litellm.telemetry = False
            litellm.drop_params = True
            litellm.disable_aiohttp_transport = True
            # It logs prompts and provider errors, in which a key may stand.
            for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "openai", "httpx"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
            _library.append(litellm)
    return _library[0]


async def warm() -> None:
    """Import the library now, if it is not there yet: its seconds are nobody's time to answer."""
    if not _library:
        await asyncio.to_thread(_load)


class Hosted:
    """Asks a model over HTTP."""

    async def generate(self, endpoint: Endpoint, question: Question) -> RawReply:
        """Answer; raises ProviderError."""
        await warm()
        seen = Seen()
        token = current.set(seen)
        try:
            response = await _library[0].acompletion(**arguments(endpoint, question))
        except Exception as error:  # noqa: BLE001  the library raises what each provider's client raises
            raise failure(seen, error) from None
        finally:
            current.reset(token)
        try:
            return read(response)
        except (AttributeError, IndexError, TypeError, ValueError):
            raise unreadable("it is no chat completion") from None


def arguments(endpoint: Endpoint, question: Question) -> dict[str, Any]:
    """Return the library's arguments for a question."""
    found: dict[str, Any] = {
        "model": endpoint.model,
        "messages": [{"role": "system", "content": question.system}] if question.system else [],
        "max_tokens": output_limit(question, endpoint),
        "temperature": 0,
        "timeout": endpoint.seconds,
        "num_retries": 0,
        "max_retries": 0,
        "caching": False,
        # Tools are ours to call; and without its optional package the library fails on any tool at all (1.106).
        "_skip_mcp_handler": True,
    }
    found["messages"] += [_message(one) for one in question.conversation]
    if endpoint.api_base:
        found["api_base"] = endpoint.api_base
    if endpoint.api_key or endpoint.api_base:
        # Without either, the provider has credentials of another kind, which its client finds.
        found["api_key"] = endpoint.api_key or NO_KEY
    if question.tools:
        found["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": read_object(tool.schema),
                },
            }
            for tool in question.tools
        ]
        found["tool_choice"] = "required" if question.must_call else "auto"
    if question.response_schema:
        schema = {"name": "answer", "schema": read_object(question.response_schema)}
        found["response_format"] = {"type": "json_schema", "json_schema": schema}
    return found


def _message(message: Message) -> dict[str, Any]:
    """Return one message as OpenAI's API has it, which the library takes for all providers."""
    if message.speaker is Speaker.TOOL:
        text = f"FAILED: {message.text}" if message.failed else message.text
        return {"role": "tool", "tool_call_id": message.call_id, "content": text}
    found: dict[str, Any] = {"role": message.speaker.value, "content": message.text or None}
    if message.tool_calls:
        found["tool_calls"] = [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    elif not message.text:
        found["content"] = "(nothing)"
    return found


def read(response: Any) -> RawReply:
    """Return what a completion says; raises what its parts raise when they are not what they should be."""
    choice = response.choices[0]
    text = choice.message.content or ""
    if not isinstance(text, str):
        raise TypeError("the text is no text")
    calls = tuple(
        ToolCall(str(call.id or ""), str(call.function.name or ""), _arguments_text(call.function.arguments))
        for call in (choice.message.tool_calls or ())[:RAW_CALLS_MAX]
    )
    used = getattr(response, "usage", None)
    usage = None
    if used is not None:
        usage = Usage(int(used.prompt_tokens or 0), int(used.completion_tokens or 0))
    finish = FINISHES.get(str(choice.finish_reason), Finish.STOP)
    # Lone surrogates cannot be sent on.
    clean = text.encode("utf-8", "replace")
    if len(clean) > TEXT_BYTES_MAX:
        clean, finish = clean[:TEXT_BYTES_MAX], Finish.LENGTH
    return RawReply(clean.decode("utf-8", "ignore"), calls, finish, usage)


def _arguments_text(value: Any) -> str:
    """Return a call's arguments; none at all is what models say for an empty object."""
    if value is None or value == "":
        return "{}"
    if not isinstance(value, str):
        raise TypeError("arguments must be JSON text")
    return value.encode("utf-8", "replace").decode()


def unreadable(detail: str) -> ProviderError:
    """Return the failure of a reply that cannot be understood; it was paid for all the same."""
    return ProviderError(Kind.UNKNOWN, f"the reply cannot be used: {detail}", Why.UNREADABLE)


def failure(seen: Seen, error: Exception) -> ProviderError:
    """Return what a failed call means; the transport saw more than the library tells."""
    if type(error).__name__ == "ContextWindowExceededError":
        return ProviderError(Kind.PERMANENT, "the conversation is too large", Why.TOO_LARGE, at_fault=False)
    return _broken(seen) or _answered(seen.status, seen.retry_after, type(error).__name__)


def _broken(seen: Seen) -> ProviderError | None:
    """Return the failure of a connection, or of a reply that was not read to its end."""
    if seen.too_large:
        return ProviderError(Kind.PERMANENT, "the reply is larger than it may be, or compressed", Why.UNREADABLE)
    if seen.redirected:
        return ProviderError(Kind.PERMANENT, f"it answers with a redirect ({seen.status})", Why.REFUSED)
    if seen.not_sent:
        return ProviderError(Kind.TRANSIENT, "it cannot be reached")
    if seen.broken:
        return ProviderError(Kind.UNKNOWN, "it did not answer in time" if seen.timed_out else "the reply broke off")
    return None


def _answered(status: int, retry_after: float | None, name: str) -> ProviderError:
    """Return the failure that an HTTP status means; 0 is a call that the library did not even send."""
    if status == OK:
        return unreadable("it is not the JSON of a chat completion")
    if status == 0:
        return ProviderError(Kind.PERMANENT, f"it was not asked ({name})", Why.REFUSED)
    if status in TRANSIENT or status >= 500:  # noqa: PLR2004  HTTP's own border
        return ProviderError(Kind.TRANSIENT, f"it answers {status}", retry_after=retry_after)
    return ProviderError(Kind.PERMANENT, f"it answers {status}", Why.REFUSED, at_fault=status in FAULT_OF_KEY)
