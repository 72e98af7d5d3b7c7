"""ConversationService: proto in, proto out."""

import uuid
from collections.abc import AsyncIterator
from typing import Any, Final, Protocol

from opsmesh.router.v1 import conversation_service_pb2 as pb
from opsmesh.router.v1 import conversation_service_pb2_grpc as rpc
from opsmesh.router.v1 import decision_service_pb2, outcome_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.mesh import intents, paging
from services.mesh.call import current
from services.mesh.errors import Refusal
from services.mesh.models import outcomes
from services.mesh.postgres import Connection
from services.mesh.writes import Subject, Writes
from services.router.conversations import domain, messages
from services.router.conversations.confirming import Confirming, Decided, Event, Progress, closed
from services.router.conversations.store import ConversationStore, missing
from services.router.conversations.turns import Said, Turns, withdraws

WENT_ON: Final = "the conversation went on"
# AnswerQuestion answers soon: what comes of a wish is seen in the conversation.
FOLLOW_SECONDS: Final = 1.0


class Questions(Protocol):
    """The questions of decisions, as services.router.reasoning keeps them."""

    async def ask_of(self, decision_id: uuid.UUID) -> outcome_pb2.AskHuman | None:
        """Return the question of a decision; None when it asked none."""

    async def answer(
        self, connection: Connection, decision_id: uuid.UUID, answer: outcome_pb2.HumanAnswer, answerer: str
    ) -> decision_service_pb2.Decision:
        """Close a decision by the answer to its question; refuses when it is not open."""


class ConversationServicer(rpc.ConversationServiceServicer):
    """Talks with people; whose certificate it was is who said it."""

    def __init__(
        self,
        store: ConversationStore,
        writes: Writes,
        turns: Turns,
        confirming: Confirming,
        questions: Questions,
    ) -> None:
        self._store = store
        self._writes = writes
        self._turns = turns
        self._confirming = confirming
        self._questions = questions

    async def SendMessage(  # noqa: N802  the IDL's name
        self, request: pb.SendMessageRequest, _context: Any
    ) -> AsyncIterator[pb.SendMessageResponse]:
        """Keep what is said, then do what it means; the same request again goes on where it was."""
        person, begins = current().identity, not request.conversation_id
        message_id = domain.message_id(person, request.request_id)
        conversation = (
            domain.conversation_id(person, request.request_id) if begins else uuid.UUID(request.conversation_id)
        )
        said: list[Said] = []

        async def change(connection: Any) -> pb.SendMessageResponse:
            said.append(await self._accept(connection, person, (message_id, conversation, request.text), begins=begins))
            return pb.SendMessageResponse(
                conversation_id=str(conversation), accepted=messages.message_of(said[0].message)
            )

        subject = Subject(detail={"conversation_id": str(conversation), "message_id": str(message_id)})
        yield await self._writes.once(request, pb.SendMessageResponse, change, subject)
        async for event in self._turns.take(said[0] if said else await self._again(person, message_id)):
            for response in _responses(event):
                response.conversation_id = str(conversation)
                yield response

    async def AnswerQuestion(  # noqa: N802  the IDL's name
        self, request: pb.AnswerQuestionRequest, _context: Any
    ) -> pb.AnswerQuestionResponse:
        """Answer a question of a conversation of one's own, or of a decision."""
        person, question_id = current().identity, uuid.UUID(request.question_id)
        question = await self._store.question(question_id, person)
        if question is None:
            return await self._of_decision(request, question_id, person)
        answer = _read(request, outcome_pb2.AskHuman.FromString(question.ask))
        by = domain.message_id(person, request.request_id)
        heard = await self._store.message(by)
        if heard is None and answer.yes and (objection := await self._confirming.objection(question)):
            await self._confirming.withdraw(question, by, objection)
            raise closed(question_id, objection)

        async def change(connection: Any) -> pb.AnswerQuestionResponse:
            if not question.open:
                raise closed(question_id, question.detail)
            message = (by, question.conversation_id, _words(answer))
            found, _ = await self._store.accept(connection, person, message, begins=False)
            kept = await self._confirming.settle(connection, question, found, answer)
            return pb.AnswerQuestionResponse(
                answer=answer, signal_id=str(domain.signal_id(kept.wish_id)) if kept else ""
            )

        subject = Subject(detail={"conversation_id": str(question.conversation_id), "question_id": str(question_id)})
        response = await self._writes.once(request, pb.AnswerQuestionResponse, change, subject)
        await self._confirming.heard(by, FOLLOW_SECONDS)
        return response

    async def GetConversation(  # noqa: N802  the IDL's name
        self, request: pb.GetConversationRequest, _context: Any
    ) -> pb.GetConversationResponse:
        """Read a conversation of one's own."""
        wanted = uuid.UUID(request.conversation_id)
        found = await self._store.conversation(wanted, current().identity)
        if found is None:
            raise missing(wanted)
        return pb.GetConversationResponse(conversation=messages.conversation_of(found))

    async def ListMessages(  # noqa: N802  the IDL's name
        self, request: pb.ListMessagesRequest, _context: Any
    ) -> pb.ListMessagesResponse:
        """List the messages of a conversation of one's own, oldest first."""
        wanted = uuid.UUID(request.conversation_id)
        if await self._store.conversation(wanted, current().identity) is None:
            raise missing(wanted)
        size = paging.page_size(request.page_size)
        (after,) = paging.read_token(request, int) or (0,)
        found = await self._store.page(wanted, after, size + 1)
        return pb.ListMessagesResponse(
            messages=map(messages.message_of, found[:size]),
            next_page_token=paging.write_token(request, found[size - 1].number) if len(found) > size else "",
        )

    async def _accept(
        self, connection: Connection, person: str, message: tuple[uuid.UUID, uuid.UUID, str], *, begins: bool
    ) -> Said:
        """Keep what is said; what is no answer to the question that is open withdraws it, in the same transaction."""
        keyword = intents.read(message[2])
        found, question = await self._store.accept(connection, person, message, begins=begins)
        if question is not None and withdraws(question, message[2], keyword):
            await self._store.close(connection, question.question_id, message[0], WENT_ON, answered=False)
            question = None
        return Said(person, found, keyword, question)

    async def _again(self, person: str, message_id: uuid.UUID) -> Said:
        """Return what was said before under this request; its reply may be missing."""
        found = await self._store.message(message_id)
        if found is None:
            raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="message", id=str(message_id), list="chat")
        conversation = await self._store.conversation(found.conversation_id, person)
        question = conversation.question if conversation else None
        if question is not None and question.create_time >= found.create_time:
            # Asked after it was said: it cannot have been meant.
            question = None
        return Said(person, found, intents.read(found.text), question)

    async def _of_decision(
        self, request: pb.AnswerQuestionRequest, question_id: uuid.UUID, person: str
    ) -> pb.AnswerQuestionResponse:
        """Answer the question of a decision."""
        ask = await self._questions.ask_of(question_id)
        if ask is None:
            raise Refusal(
                error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="question", id=str(question_id), list="decisions list"
            )
        answer = _read(request, ask)

        async def change(connection: Any) -> pb.AnswerQuestionResponse:
            decision = await self._questions.answer(connection, question_id, answer, person)
            return pb.AnswerQuestionResponse(answer=answer, decision=decision)

        subject = Subject(decision_id=str(question_id), detail={"question_id": str(question_id)})
        return await self._writes.once(request, pb.AnswerQuestionResponse, change, subject)


def _read(request: pb.AnswerQuestionRequest, ask: outcome_pb2.AskHuman) -> outcome_pb2.HumanAnswer:
    """Return the answer to a question; refuses what is none."""
    if request.WhichOneof("given") == "text":
        found = outcomes.read_answer(ask, request.text)
    else:
        found = outcomes.answer_error(ask, request.answer) or request.answer
    if isinstance(found, str):
        raise Refusal(error_reason_pb2.ERROR_REASON_ANSWER_INVALID, question_id=request.question_id, why=found)
    return found


def _words(answer: outcome_pb2.HumanAnswer) -> str:
    """Return an answer as a person would have said it."""
    kind = answer.WhichOneof("value") or "text"
    if kind == "yes":
        return "yes" if answer.yes else "no"
    return f"{answer.number:g}" if kind == "number" else str(getattr(answer, kind))


def _responses(event: Event) -> list[pb.SendMessageResponse]:
    """Return an event as the IDL says it; an intent follows the reply that it belongs to."""
    match event:
        case Progress():
            return [pb.SendMessageResponse(progress=event.text[:512])]
        case Decided():
            return [pb.SendMessageResponse(decision=event.decision)]
    found = [pb.SendMessageResponse(reply=messages.message_of(event))]
    if event.intent:
        found.append(pb.SendMessageResponse(intent=pb.Intent.FromString(event.intent)))
    return found
