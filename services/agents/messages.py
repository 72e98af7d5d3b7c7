"""Between the IDL's messages and our own words; no decision is made here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from opsmesh.agents.v1 import model_service_pb2 as pb
from services.agents.breaker import State
from services.agents.domain import (
    Attribution,
    Drop,
    Endpoint,
    Finish,
    Message,
    Question,
    Reply,
    Speaker,
    Tool,
    ToolCall,
    Usage,
)

SPEAKERS: Final[Mapping[int, Speaker]] = {
    pb.Message.ROLE_USER: Speaker.USER,
    pb.Message.ROLE_ASSISTANT: Speaker.ASSISTANT,
    pb.Message.ROLE_TOOL: Speaker.TOOL,
}
FINISHES: Final = {
    Finish.STOP: pb.GenerateResponse.FINISH_STOP,
    Finish.TOOL_CALLS: pb.GenerateResponse.FINISH_TOOL_CALLS,
    Finish.LENGTH: pb.GenerateResponse.FINISH_LENGTH,
    Finish.FILTERED: pb.GenerateResponse.FINISH_FILTERED,
}
DROPS: Final = {
    Drop.UNKNOWN_TOOL: pb.DroppedCall.REASON_UNKNOWN_TOOL,
    Drop.BAD_ARGUMENTS: pb.DroppedCall.REASON_BAD_ARGUMENTS,
    Drop.TOO_MANY: pb.DroppedCall.REASON_TOO_MANY,
    Drop.REPEATED: pb.DroppedCall.REASON_REPEATED,
}
BREAKERS: Final = {
    State.CLOSED: pb.Model.BREAKER_STATE_CLOSED,
    State.OPEN: pb.Model.BREAKER_STATE_OPEN,
    State.HALF_OPEN: pb.Model.BREAKER_STATE_HALF_OPEN,
}


@dataclass(frozen=True, slots=True)
class Generation:
    """A reply and what it took."""

    reply: Reply
    usage: Usage
    cost_micros: int
    endpoint: Endpoint
    fallback_index: int
    attempts: int
    seconds: float
    recorded: bool
    prompt_digest: str


def question_of(request: pb.GenerateRequest) -> Question:
    """Return what the model is to be shown."""
    return Question(
        role=request.role,
        system=request.system,
        messages=tuple(
            Message(
                SPEAKERS[one.role],
                one.text,
                tuple(ToolCall(call.call_id, call.name, call.arguments_json) for call in one.tool_calls),
                one.call_id,
                one.failed,
            )
            for one in request.messages
        ),
        tools=tuple(Tool(one.name, one.description, one.parameters_json_schema) for one in request.tools),
        must_call=request.tool_use == pb.GenerateRequest.TOOL_USE_REQUIRED,
        response_schema=request.response_json_schema,
        max_output_tokens=request.max_output_tokens,
    )


def attribution_of(message: pb.Attribution, caller: str) -> Attribution:
    """Return for whom tokens are spent."""
    return Attribution(
        caller=caller,
        requester=message.person or message.sender,
        incident_id=message.incident_id,
        decision_id=message.decision_id,
        run_id=message.run_id,
        conversation_id=message.conversation_id,
    )


def response_of(made: Generation) -> pb.GenerateResponse:
    """Return the answer."""
    response = pb.GenerateResponse(
        text=made.reply.text,
        finish=FINISHES[made.reply.finish],
        usage=pb.Usage(
            input_tokens=made.usage.input_tokens,
            output_tokens=made.usage.output_tokens,
            estimated=made.usage.estimated,
        ),
        cost_micros=made.cost_micros,
        model=made.endpoint.model,
        provider=made.endpoint.provider,
        recorded=made.recorded,
        recording=bool(made.endpoint.records),
        prompt_digest=made.prompt_digest,
        attempt_count=made.attempts,
        fallback_index=made.fallback_index,
    )
    response.latency_duration.FromNanoseconds(int(made.seconds * 1e9))
    for call in made.reply.tool_calls:
        response.tool_calls.add(call_id=call.call_id, name=call.name, arguments_json=call.arguments)
    for one in made.reply.dropped:
        response.dropped_calls.add(
            call_id=one.call_id, name=one.name, reason=DROPS[one.reason], description=one.reason.value
        )
    return response
