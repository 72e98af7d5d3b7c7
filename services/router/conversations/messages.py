"""Conversations as the IDL says them."""

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from opsmesh.router.v1 import conversation_service_pb2 as pb
from opsmesh.router.v1 import decision_service_pb2, outcome_pb2
from services.mesh import intents
from services.router.conversations import domain


def message_of(one: domain.Message) -> pb.ConversationMessage:
    """Return a message."""
    made = pb.ConversationMessage(
        message_id=str(one.message_id),
        number=one.number,
        speaker=pb.ConversationMessage.Speaker.Value(f"SPEAKER_{one.speaker}"),
        text=one.text,
        outcome=decision_service_pb2.Decision.Outcome.Value(f"OUTCOME_{one.outcome}"),
        incident_id=one.incident_id,
        create_time=_time(one.create_time),
        recorded=one.recorded,
    )
    if one.question:
        made.question.CopyFrom(question_of(one.question))
    return made


def question_of(one: domain.Question) -> pb.Question:
    """Return a question."""
    return pb.Question(
        question_id=str(one.question_id),
        ask=outcome_pb2.AskHuman.FromString(one.ask),
        create_time=_time(one.create_time),
    )


def conversation_of(one: domain.Conversation) -> pb.Conversation:
    """Return a conversation."""
    made = pb.Conversation(
        conversation_id=str(one.conversation_id),
        person=one.person,
        message_count=one.message_count,
        create_time=_time(one.create_time),
        update_time=_time(one.update_time),
    )
    if one.question:
        made.question.CopyFrom(question_of(one.question))
    return made


def intent_of(order: intents.Order) -> pb.Intent:
    """Return what the person's own client shall call."""
    return pb.Intent(method=order.method, request_json=order.request_json, command=order.command)


def _time(moment: datetime) -> Timestamp:
    """Return a Timestamp."""
    made = Timestamp()
    made.FromDatetime(moment)
    return made
