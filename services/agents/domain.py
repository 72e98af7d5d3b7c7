"""What a model is asked and what it answers, in our own words; pure functions about both."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from services.agents.strict_json import UnreadableError, canonical, read_object

ARGUMENTS_BYTES_MAX: Final = 65_536
CALLS_MAX: Final = 16
DROPPED_MAX: Final = 64
# A model that makes the very same call a fourth time in one conversation goes round in circles.
SAME_CALL_MAX: Final = 3
TEXT_BYTES_MAX: Final = 524_288
# Of one question; the wire's own limit is 4 MiB.
QUESTION_BYTES_MAX: Final = 2_097_152
# A token is rarely shorter than this, so an estimate is rather too high.
BYTES_PER_TOKEN: Final = 3
MILLION: Final = 1_000_000
CALL_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
TOOL_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


class Speaker(Enum):
    """Who says a message."""

    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Finish(Enum):
    """Why a model stopped."""

    STOP = "stop"
    TOOL_CALLS = "tool_calls"
    LENGTH = "length"
    FILTERED = "content_filter"


class Drop(Enum):
    """Why a call in a reply is not handed on."""

    UNKNOWN_TOOL = "no tool of that name was offered"
    BAD_ARGUMENTS = f"the arguments must be one JSON object of at most {ARGUMENTS_BYTES_MAX} bytes"
    TOO_MANY = f"a reply may carry at most {CALLS_MAX} calls"
    REPEATED = f"this very call was made {SAME_CALL_MAX} times already; its answer will not change"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call a model wishes for; `arguments` is JSON text, canonical once it was looked at."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `call_id` and `failed` are a tool's, `tool_calls` the model's."""

    speaker: Speaker
    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    call_id: str = ""
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool on offer; `schema` is the JSON Schema of its arguments as text."""

    name: str
    description: str
    schema: str


@dataclass(frozen=True, slots=True)
class Question:
    """Everything a model is shown."""

    role: str
    system: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    must_call: bool = False
    response_schema: str = ""
    max_output_tokens: int = 0
    # Replies that were of no use, and why: shown to the model, but no part of what is digested or recorded.
    corrections: tuple[Message, ...] = ()

    @property
    def conversation(self) -> tuple[Message, ...]:
        """Return every message that the model is shown."""
        return self.messages + self.corrections


@dataclass(frozen=True, slots=True)
class Attribution:
    """For whom tokens are spent; `caller` is the certificate's identity, the rest is what it says."""

    caller: str
    requester: str
    incident_id: str = ""
    decision_id: str = ""
    run_id: str = ""
    conversation_id: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call; `estimated` when the provider did not say."""

    input_tokens: int
    output_tokens: int
    estimated: bool = False

    @property
    def total(self) -> int:
        """Return both together: what budgets count."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: "Usage") -> "Usage":
        """Return both together; an estimate as soon as one is."""
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            estimated=self.estimated or other.estimated,
        )


@dataclass(frozen=True, slots=True)
class RawReply:
    """What a provider answered, before anything of it is believed."""

    text: str
    tool_calls: tuple[ToolCall, ...]
    finish: Finish
    usage: Usage | None
    recorded: bool = False


@dataclass(frozen=True, slots=True)
class Dropped:
    """A call that is not handed on."""

    call_id: str
    name: str
    reason: Drop


@dataclass(frozen=True, slots=True)
class Reply:
    """What may be handed on of a reply."""

    text: str
    tool_calls: tuple[ToolCall, ...]
    dropped: tuple[Dropped, ...]
    finish: Finish


@dataclass(frozen=True, slots=True)
class Price:
    """Millionths of a currency per million tokens."""

    input_micros: int = 0
    output_micros: int = 0

    def cost(self, usage: Usage) -> int:
        """Return what `usage` costs in millionths, rounded up: nothing used is free, nothing else is."""
        total = usage.input_tokens * self.input_micros + usage.output_tokens * self.output_micros
        return -(-total // MILLION)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One model as configured. `provider` is where it runs: the unit that fails as a whole, and has a breaker."""

    model: str
    provider: str
    api_base: str = ""
    api_key: str = field(default="", repr=False)
    seconds: float = 30.0
    max_tokens: int = 2048
    price: Price = Price()
    native_tools: bool = True
    replays: str = ""
    records: str = ""


def problems(question: Question) -> list[tuple[str, str]]:
    """Return what is wrong with a question beyond the bounds of its fields: (field, description)."""
    found = []
    if question.tools and question.response_schema:
        found.append(("response_json_schema", "an answer has either tools or a schema"))
    if question.must_call and not question.tools:
        found.append(("tool_use", "there is no tool to call"))
    if size(question) > QUESTION_BYTES_MAX:
        found.append(("messages", f"the question is larger than {QUESTION_BYTES_MAX} bytes"))
    if question.messages[-1].speaker is Speaker.ASSISTANT:
        found.append(("messages", "the last message must be a user's or a tool's"))
    for name, count in Counter(tool.name for tool in question.tools).items():
        if count > 1:
            found.append(("tools", f"{name} is offered {count} times"))
    schemas = [(f"tools[{index}].parameters_json_schema", tool.schema) for index, tool in enumerate(question.tools)]
    if question.response_schema:
        schemas.append(("response_json_schema", question.response_schema))
    for where, text in schemas:
        try:
            read_object(text)
        except UnreadableError as error:
            found.append((where, str(error)))
    return found + _order(question.messages)


def _order(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """Find calls nobody answers and answers nobody asked for: providers refuse both, each in its own words."""
    found, open_calls, seen = [], set[str](), set[str]()
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.speaker is Speaker.TOOL:
            if message.call_id not in open_calls:
                found.append((f"{where}.call_id", "no call of the message before has this id"))
            open_calls.discard(message.call_id)
        else:
            if open_calls:
                found.append((where, f"the calls before it have no result: {', '.join(sorted(open_calls))[:200]}"))
            open_calls = {call.call_id for call in message.tool_calls}
            if message.tool_calls and message.speaker is not Speaker.ASSISTANT:
                found.append((f"{where}.tool_calls", "only the model calls tools"))
            if len(open_calls) < len(message.tool_calls) or open_calls & seen:
                found.append((f"{where}.tool_calls", "a call_id is used twice"))
            seen |= open_calls
    if open_calls:
        found.append(("messages", f"the last calls have no result: {', '.join(sorted(open_calls))[:200]}"))
    return found


def size(question: Question) -> int:
    """Return the bytes of everything a model is shown."""
    texts = [question.system, question.response_schema]
    for message in question.conversation:
        texts += [message.text, *(call.name + call.arguments for call in message.tool_calls)]
    for tool in question.tools:
        texts += [tool.name, tool.description, tool.schema]
    return sum(len(text.encode()) for text in texts)


def expected(question: Question, endpoint: Endpoint) -> Usage:
    """Return what a call may use at most, rather too much: this is reserved before it."""
    overhead = 16 * (len(question.conversation) + len(question.tools) + 2)
    return Usage(size(question) // BYTES_PER_TOKEN + overhead, output_limit(question, endpoint), estimated=True)


def output_limit(question: Question, endpoint: Endpoint) -> int:
    """Return the largest answer in tokens: the smaller of what is wished and what is configured."""
    return min(question.max_output_tokens or endpoint.max_tokens, endpoint.max_tokens)


def counted(question: Question, raw: RawReply) -> Usage:
    """Return the usage of a reply: the provider's word if it makes sense, else an estimate."""
    said = raw.usage
    if said is not None and said.input_tokens > 0 and said.output_tokens >= 0:
        return said
    answer = len(raw.text.encode()) + sum(len(call.name + call.arguments) for call in raw.tool_calls)
    return Usage(size(question) // BYTES_PER_TOKEN + 1, answer // BYTES_PER_TOKEN + 1, estimated=True)


def as_plain(question: Question) -> dict[str, Any]:
    """Return a question as plain values: what is digested, and what people read in a recording."""
    return {
        "role": question.role,
        "system": question.system,
        "messages": [
            {
                "speaker": one.speaker.value,
                "text": one.text,
                "calls": [[call.call_id, call.name, call.arguments] for call in one.tool_calls],
                "call_id": one.call_id,
                "failed": one.failed,
            }
            for one in question.messages
        ],
        "tools": [[tool.name, tool.description, tool.schema] for tool in question.tools],
        "must_call": question.must_call,
        "response_schema": question.response_schema,
        "max_output_tokens": question.max_output_tokens,
    }


def prompt_digest(question: Question) -> str:
    """Return the SHA-256, hex, that names exactly what a model was shown."""
    return hashlib.sha256(canonical(as_plain(question)).encode()).hexdigest()


def sort_calls(question: Question, calls: Sequence[ToolCall]) -> tuple[tuple[ToolCall, ...], tuple[Dropped, ...]]:
    """Part the calls of a reply into those that may be handed on and those that may not; each is in one of the two."""
    offered = {tool.name for tool in question.tools}
    made = Counter((call.name, _comparable(call.arguments)) for one in question.messages for call in one.tool_calls)
    used = {call.call_id for one in question.messages for call in one.tool_calls}
    kept: list[ToolCall] = []
    dropped: list[Dropped] = []
    for index, call in enumerate(calls[: CALLS_MAX + DROPPED_MAX]):
        call_id = call.call_id if CALL_ID.fullmatch(call.call_id) and call.call_id not in used else ""
        call_id = call_id or _fresh(index, used)
        used.add(call_id)
        reason: Drop | None = None
        arguments = ""
        try:
            arguments = canonical(read_object(call.arguments))
        except UnreadableError:
            reason = Drop.BAD_ARGUMENTS
        if call.name not in offered:
            reason = Drop.UNKNOWN_TOOL
        elif reason is None and len(arguments.encode()) > ARGUMENTS_BYTES_MAX:
            reason = Drop.BAD_ARGUMENTS
        elif reason is None and made[call.name, arguments] >= SAME_CALL_MAX:
            reason = Drop.REPEATED
        elif reason is None and len(kept) >= CALLS_MAX:
            reason = Drop.TOO_MANY
        if reason is None:
            made[call.name, arguments] += 1
            kept.append(ToolCall(call_id, call.name, arguments))
        elif len(dropped) < DROPPED_MAX:
            dropped.append(Dropped(call_id, re.sub(r"[^A-Za-z0-9_-]", "_", call.name)[:64], reason))
    return tuple(kept), tuple(dropped)


def _fresh(index: int, used: set[str]) -> str:
    """Return an id that no call of the conversation has."""
    number = len(used) + index
    while f"call-{number}" in used:
        number += 1
    return f"call-{number}"


def _comparable(arguments: str) -> str:
    """Return arguments in their canonical form, as far as they have one."""
    try:
        return canonical(read_object(arguments))
    except UnreadableError:
        return arguments


@dataclass(frozen=True, slots=True)
class Limit:
    """What may be spent: tokens, and money in millionths."""

    tokens: int
    cost_micros: int


@dataclass(frozen=True, slots=True)
class Limits:
    """All budgets: of one incident for ever, of everything and of one requester per day."""

    incident: Limit = Limit(500_000, 5 * MILLION)
    day: Limit = Limit(5_000_000, 50 * MILLION)
    requester: Limit = Limit(2_000_000, 20 * MILLION)


@dataclass(frozen=True, slots=True)
class Models:
    """Each role's models, its own first, and what may be spent."""

    roles: Mapping[str, tuple[Endpoint, ...]] = field(default_factory=dict)
    limits: Limits = Limits()
