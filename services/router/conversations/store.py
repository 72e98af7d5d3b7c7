"""Conversations in PostgreSQL: who says something takes the row of the conversation first, so order is one.

Every change is a single-row compare-and-set under that row's lock: of two that answer a question, one has answered it.
"""

import uuid
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final, Protocol

import asyncpg

from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal
from services.mesh.postgres import Connection, Pool
from services.mesh.retention import TooOld
from services.router.conversations import domain
from services.router.conversations.domain import Conversation, Message, Question, Reply, Speaker

QUESTION: Final = (
    "question_id, conversation_id, ask, state = 'OPEN' AS open, detail, closed_by, create_time, "
    "clock_timestamp() - create_time AS age"
)
MESSAGE: Final = (
    "message_id, conversation_id, number, speaker, text, reply_to, outcome, question_id, incident_id, recorded, "
    "intent, create_time"
)
BEGUN: Final = """
SELECT count(*) FROM conversations WHERE person = $1 AND create_time > clock_timestamp() - interval '1 hour'
"""
BEGIN: Final = "INSERT INTO conversations (conversation_id, person) VALUES ($1, $2) ON CONFLICT DO NOTHING"
TAKE: Final = """
UPDATE conversations SET message_count = message_count + 1, update_time = clock_timestamp()
WHERE conversation_id = $1 AND person = $2 RETURNING message_count
"""
SAY: Final = f"""
INSERT INTO messages (message_id, conversation_id, number, speaker, text, reply_to, outcome, question_id, incident_id,
                      recorded, intent)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
RETURNING {MESSAGE}
"""  # noqa: S608  constants only
OPEN_QUESTION: Final = f"SELECT {QUESTION} FROM questions WHERE conversation_id = $1 AND state = 'OPEN'"  # noqa: S608
# Of two that close it, one does.
CLOSE: Final = f"""
UPDATE questions SET state = $2, closed_by = $3, detail = $4 WHERE question_id = $1 AND state = 'OPEN'
RETURNING {QUESTION}
"""  # noqa: S608  constants only
DROP: Final = "UPDATE wishes SET state = 'DROPPED', detail = $2 WHERE wish_id = $1 AND state = 'ASKED'"
ASK: Final = f"""
INSERT INTO questions (question_id, conversation_id, ask) VALUES ($1, $2, $3) RETURNING {QUESTION}
"""  # noqa: S608  constants only
REPLY: Final = f"SELECT {MESSAGE} FROM messages WHERE reply_to = $1"  # noqa: S608  constants only
BY_ID: Final = f"SELECT {MESSAGE} FROM messages WHERE message_id = $1"  # noqa: S608  constants only
PAGE: Final = f"""
SELECT {MESSAGE} FROM messages WHERE conversation_id = $1 AND number > $2 ORDER BY number LIMIT $3
"""  # noqa: S608  constants only
LAST: Final = f"""
SELECT {MESSAGE} FROM messages WHERE conversation_id = $1 AND number < $2 ORDER BY number DESC LIMIT $3
"""  # noqa: S608  constants only
QUESTIONS: Final = f"SELECT {QUESTION} FROM questions WHERE question_id = ANY($1::uuid[])"  # noqa: S608
NEWEST: Final = """
SELECT coalesce(max(number), 0) FROM messages WHERE conversation_id = $1 AND speaker = 'PERSON'
"""
CONVERSATION: Final = """
SELECT conversation_id, person, message_count, create_time, update_time FROM conversations
WHERE conversation_id = $1 AND person = $2
"""


def too_old(days: int) -> TooOld:
    """Return the conversations in which nothing was said for `days`; messages, questions and wishes go with them."""
    return TooOld(
        "conversations",
        "update_time < now() - $1::interval AND NOT EXISTS (SELECT FROM wishes WHERE "
        "wishes.conversation_id = conversations.conversation_id AND wishes.state = 'CONFIRMED')",
        days,
    )


class ConversationStore(Protocol):
    """Where conversations live. What is not this person's is not there."""

    async def accept(
        self, connection: Connection, person: str, message: tuple[uuid.UUID, uuid.UUID, str], *, begins: bool
    ) -> tuple[Message, Question | None]:
        """Keep what a person says, as (message, conversation, text); return it, and the question that is open.

        The connection's transaction holds the conversation until it ends.
        """

    async def close(
        self, connection: Connection, question: uuid.UUID, by: uuid.UUID, detail: str, *, answered: bool
    ) -> Question | None:
        """Close an open question; a wish that is not confirmed by it is dropped. None when it was closed before."""

    async def reply(self, connection: Connection, to: Message, reply: Reply) -> Message:
        """Say something to a message; once: what was said to it before is returned."""

    async def newest(self, connection: Connection, conversation: uuid.UUID) -> int:
        """Return the number of the last thing that the person said, and keep the conversation until the end."""

    async def replied(self, message_id: uuid.UUID) -> Message | None:
        """Return what was said to a message."""

    async def message(self, message_id: uuid.UUID) -> Message | None:
        """Return a message."""

    async def question(self, question_id: uuid.UUID, person: str) -> Question | None:
        """Return a question of a conversation of this person."""

    async def conversation(self, conversation_id: uuid.UUID, person: str) -> Conversation | None:
        """Return a conversation of this person."""

    async def page(self, conversation_id: uuid.UUID, after: int, limit: int) -> list[Message]:
        """Return messages, oldest first."""

    async def history(self, before: Message, limit: int) -> list[Message]:
        """Return the last messages before one, oldest first."""


class PostgresConversations:
    """ConversationStore on asyncpg."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def accept(
        self, connection: Connection, person: str, message: tuple[uuid.UUID, uuid.UUID, str], *, begins: bool
    ) -> tuple[Message, Question | None]:
        """See ConversationStore."""
        message_id, conversation, text = message
        if begins:
            # Counted one after the other, so that the cap holds for a burst, too.
            await connection.execute("SELECT pg_advisory_xact_lock(23, hashtext($1))", person)
            if await connection.fetchval(BEGUN, person) >= domain.CONVERSATIONS_PER_HOUR:
                raise Refusal(
                    error_reason_pb2.ERROR_REASON_CAP_EXCEEDED,
                    cap=str(domain.CONVERSATIONS_PER_HOUR),
                    what=f"conversations begun by {person}",
                )
            await connection.execute(BEGIN, conversation, person)
        number = await connection.fetchval(TAKE, conversation, person)
        if number is None:
            raise missing(conversation)
        if number > domain.MESSAGES_MAX:
            raise Refusal(
                error_reason_pb2.ERROR_REASON_CONFLICT,
                resource="conversation",
                id=str(conversation),
                state=f"full: it has {domain.MESSAGES_MAX} messages, begin a new one",
            )
        row = await connection.fetchrow(
            SAY, message_id, conversation, number, Speaker.PERSON, text, None, "UNSPECIFIED", None, "", False, b""
        )
        open_row = await connection.fetchrow(OPEN_QUESTION, conversation)
        return _message(row), _question(open_row) if open_row else None

    async def close(
        self, connection: Connection, question: uuid.UUID, by: uuid.UUID, detail: str, *, answered: bool
    ) -> Question | None:
        """See ConversationStore."""
        row = await connection.fetchrow(CLOSE, question, "ANSWERED" if answered else "WITHDRAWN", by, detail)
        if row is None:
            return None
        await connection.execute(DROP, question, detail)
        return _question(row)

    async def reply(self, connection: Connection, to: Message, reply: Reply) -> Message:
        """See ConversationStore."""
        # The conversation first: two replies to one message, and whatever is said meanwhile, wait here.
        number = await connection.fetchval(
            "UPDATE conversations SET message_count = message_count + 1, update_time = clock_timestamp() "
            "WHERE conversation_id = $1 RETURNING message_count",
            to.conversation_id,
        )
        if number is None:
            raise missing(to.conversation_id)
        if row := await connection.fetchrow(REPLY, to.message_id):
            await connection.execute(
                "UPDATE conversations SET message_count = message_count - 1 WHERE conversation_id = $1",
                to.conversation_id,
            )
            return await self._whole(_message(row), row["question_id"])
        asked = None
        if reply.asks:
            asked = _question(await connection.fetchrow(ASK, to.message_id, to.conversation_id, reply.asks))
        row = await connection.fetchrow(
            SAY,
            uuid.uuid5(to.message_id, "reply"),
            to.conversation_id,
            number,
            Speaker.OPSMESH,
            reply.text[: domain.REPLY_MAX],
            to.message_id,
            reply.outcome,
            asked.question_id if asked else None,
            reply.incident_id,
            reply.recorded,
            reply.intent,
        )
        return replace(_message(row), question=asked)

    async def newest(self, connection: Connection, conversation: uuid.UUID) -> int:
        """See ConversationStore."""
        await connection.execute("SELECT FROM conversations WHERE conversation_id = $1 FOR UPDATE", conversation)
        return int(await connection.fetchval(NEWEST, conversation))

    async def replied(self, message_id: uuid.UUID) -> Message | None:
        """See ConversationStore."""
        row = await self._pool.fetchrow(REPLY, message_id)
        return await self._whole(_message(row), row["question_id"]) if row else None

    async def message(self, message_id: uuid.UUID) -> Message | None:
        """See ConversationStore."""
        row = await self._pool.fetchrow(BY_ID, message_id)
        return _message(row) if row else None

    async def question(self, question_id: uuid.UUID, person: str) -> Question | None:
        """See ConversationStore."""
        row = await self._pool.fetchrow(
            f"SELECT {QUESTION} FROM questions WHERE question_id = $1 AND EXISTS (SELECT FROM conversations "  # noqa: S608
            "WHERE conversations.conversation_id = questions.conversation_id AND person = $2)",
            question_id,
            person,
        )
        return _question(row) if row else None

    async def conversation(self, conversation_id: uuid.UUID, person: str) -> Conversation | None:
        """See ConversationStore."""
        row = await self._pool.fetchrow(CONVERSATION, conversation_id, person)
        if row is None:
            return None
        asked = await self._pool.fetchrow(OPEN_QUESTION, conversation_id)
        return Conversation(**dict(row), question=_question(asked) if asked else None)

    async def page(self, conversation_id: uuid.UUID, after: int, limit: int) -> list[Message]:
        """See ConversationStore."""
        rows = await self._pool.fetch(PAGE, conversation_id, after, limit)
        found = [row["question_id"] for row in rows if row["question_id"]]
        asked = {row["question_id"]: _question(row) for row in await self._pool.fetch(QUESTIONS, found)}
        return [replace(_message(row), question=asked.get(row["question_id"])) for row in rows]

    async def history(self, before: Message, limit: int) -> list[Message]:
        """See ConversationStore."""
        rows = await self._pool.fetch(LAST, before.conversation_id, before.number, limit)
        return [_message(row) for row in reversed(rows)]

    async def _whole(self, message: Message, question_id: uuid.UUID | None) -> Message:
        """Return a message with its question."""
        if question_id is None:
            return message
        rows = await self._pool.fetch(QUESTIONS, [question_id])
        return replace(message, question=_question(rows[0]) if rows else None)


def missing(conversation: uuid.UUID) -> Refusal:
    """Return what is said about a conversation that is not there, or another person's: the same."""
    return Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="conversation", id=str(conversation), list="chat")


def old(question: Question, age: timedelta = domain.QUESTION_AGE) -> bool:
    """Say whether a question was asked too long ago for an answer to mean anything."""
    return question.age > age


def _question(row: asyncpg.Record | Any) -> Question:
    """Return a row as a question."""
    return Question(**dict(row))


def _message(row: asyncpg.Record | Any) -> Message:
    """Return a row as a message, without its question."""
    known = dict(row)
    known.pop("question_id")
    return Message(**known | {"speaker": Speaker(known["speaker"])})
