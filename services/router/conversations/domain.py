"""Conversations as they are kept: pure, standard library only."""

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from services.router.domain import Outcome

# What one conversation holds, and how many one person begins in an hour.
MESSAGES_MAX: Final = 400
CONVERSATIONS_PER_HOUR: Final = 60
REPLY_MAX: Final = 8000
TITLE_MAX: Final = 200
# A yes after this long is none: the world it was asked in is gone.
QUESTION_AGE: Final = timedelta(minutes=15)
# A confirmed wish that could not be handed in for this long is dropped: nobody expects it any more.
WISH_AGE: Final = timedelta(minutes=10)
_SPACE: Final = uuid.UUID("5e2f0f0c-3a64-5d0e-9a52-6d3f7d1d6c11")


class Speaker(StrEnum):
    """Who says it; the words of the IDL without their prefix."""

    PERSON = "PERSON"
    OPSMESH = "OPSMESH"


class WishState(StrEnum):
    """Where a wish stands: asked about, confirmed by the person, an incident, or nothing."""

    ASKED = "ASKED"
    CONFIRMED = "CONFIRMED"
    HANDED_IN = "HANDED_IN"
    DROPPED = "DROPPED"


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a conversation; `ask` is a serialised AskHuman. `open` until it is answered or withdrawn."""

    question_id: uuid.UUID
    conversation_id: uuid.UUID
    ask: bytes
    open: bool
    detail: str
    closed_by: uuid.UUID | None
    create_time: datetime
    age: timedelta


@dataclass(frozen=True, slots=True)
class Message:
    """A message; `intent` is a serialised Intent, `reply_to` the message that it answers."""

    message_id: uuid.UUID
    conversation_id: uuid.UUID
    number: int
    speaker: Speaker
    text: str
    create_time: datetime
    reply_to: uuid.UUID | None = None
    outcome: Outcome | str = Outcome.UNSPECIFIED
    question: Question | None = None
    incident_id: str = ""
    recorded: bool = False
    intent: bytes = b""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation of one person, with the question that is open."""

    conversation_id: uuid.UUID
    person: str
    message_count: int
    create_time: datetime
    update_time: datetime
    question: Question | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What is said to a message, before it has a row. `asks` is a serialised AskHuman: a question to be opened."""

    text: str
    outcome: str = "UNSPECIFIED"
    asks: bytes = b""
    incident_id: str = ""
    recorded: bool = False
    intent: bytes = b""


def message_id(person: str, request_id: str) -> uuid.UUID:
    """Return the id of what a person says under a request id: the same again is the same message."""
    return uuid.uuid5(_SPACE, f"message/{person}/{request_id.lower()}")


def conversation_id(person: str, request_id: str) -> uuid.UUID:
    """Return the id of the conversation that a message begins."""
    return uuid.uuid5(_SPACE, f"conversation/{person}/{request_id.lower()}")


def delivery_id(wish_id: uuid.UUID) -> uuid.UUID:
    """Return the id under which a wish is handed in, however often it is tried."""
    return uuid.uuid5(wish_id, "delivery")


def signal_id(wish_id: uuid.UUID) -> uuid.UUID:
    """Return the id of the signal that a wish becomes, as ingest makes it: of the delivery, and its place there."""
    return uuid.uuid5(delivery_id(wish_id), "0")


def title(text: str) -> str:
    """Return what an incident of these words is called: on one line."""
    said = " ".join(text.split())
    return said if len(said) <= TITLE_MAX else f"{said[: TITLE_MAX - 3]}..."
