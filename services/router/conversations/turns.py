"""A turn: something was said, and exactly one reply comes of it.

Keywords first, without a model. Then the answer to the question that is open, read strictly. Everything else is put to
a model, whose outcome is a wish at most: what could change something is asked back, and only a yes hands it in.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Final

import grpc
import grpc.aio

from opsmesh.agents.v1 import model_service_pb2
from opsmesh.router.v1 import outcome_pb2
from services.mesh import intents
from services.mesh.identities import Identities
from services.mesh.models import outcomes
from services.mesh.models.cleaning import characters
from services.mesh.models.untrusted import Marks
from services.mesh.postgres import Pool
from services.router.conversations import domain, messages, plans
from services.router.conversations.confirming import Confirming, Event, Progress
from services.router.conversations.domain import Message, Question, Reply
from services.router.conversations.store import ConversationStore, old
from services.router.conversations.views import Views, context
from services.router.conversations.wishes import Kept, Read, Wishes
from services.router.reasoning import prompts
from services.router.reasoning.reasoner import Case, ModelsAway, Reasoned, Reasoner

HISTORY: Final = 20
# Models asked at once for conversations, whoever talks.
TURNS_MAX: Final = 8
# Of one person; the other places are for others, however long a model takes.
PERSON_TURNS_MAX: Final = 2
AWAY: Final = (
    "No model can be asked now, so I only understand keywords: status, approve, reject, answer, kill, help, yes, no."
)
NO_QUESTION: Final = "Nothing is open that this could answer. Say what you wish; help says what works without a model."
WENT_ON: Final = "You went on meanwhile, so I ask and start nothing for this one. Say it again if you still wish it."
BUSY: Final = "I am still thinking about what you said elsewhere. Nothing was done; say it again in a moment."
NOT_UNDERSTOOD: Final = "I did not understand it. Nothing was done."
ANSWERS: Final = frozenset({"yes", "y", "no", "n", "true", "false"})


@dataclass(frozen=True, slots=True)
class Said:
    """Something that was said by a person: the message, its keyword if it is one, the question it found open."""

    person: str
    message: Message
    keyword: intents.Keyword | None
    question: Question | None


@dataclass(frozen=True, slots=True)
class Sense:
    """What a turn knows the world through."""

    views: Views
    reasoner: Reasoner
    identities: Identities


class Turns:
    """Makes the one reply to each message."""

    def __init__(
        self, pool: Pool, store: ConversationStore, wishes: Wishes, confirming: Confirming, sense: Sense
    ) -> None:
        self._pool = pool
        self._store = store
        self._wishes = wishes
        self._confirming = confirming
        self._sense = sense
        self._places = asyncio.Semaphore(TURNS_MAX)
        self._thinking: Counter[str] = Counter()

    async def take(self, said: Said) -> AsyncIterator[Event]:
        """Yield what is done, then the reply; a reply that was made before is returned as it is."""
        if known := await self._store.replied(said.message.message_id):
            yield known
            return
        async for event in self._turn(said):
            yield event

    async def _turn(self, said: Said) -> AsyncIterator[Event]:
        """Yield what a message means, in this order: a keyword, an answer, or whatever a model makes of it."""
        message = said.message
        if said.keyword is not None:
            yield await self._say(said, await self._keyword(said.keyword, said.question))
            return
        if kept := await self._wishes.confirmed_by(message.message_id):
            # A yes that was heard before the stream broke: what it began is gone on with.
            async for event in self._confirming.carry_out(kept, message):
                yield event
            return
        if (question := said.question) is not None and (answer := _answer(question, message.text)) is not None:
            if await self._wishes.read(question.question_id) is not None:
                async for event in self._confirming.answer(message, question, answer):
                    yield event
                return
            # A model's own question: what it asked for is in the conversation now.
            await self._confirming.withdraw(question, message.message_id, "answered")
        elif message.text.strip().casefold() in ANSWERS:
            yield await self._say(said, Reply(NO_QUESTION))
            return
        async for event in self._ask(said):
            yield event

    async def _ask(self, said: Said) -> AsyncIterator[Event]:
        """Yield what a model makes of a message."""
        if self._thinking[said.person] >= PERSON_TURNS_MAX:
            yield await self._say(said, Reply(BUSY))
            return
        yield Progress("asking a model what this means")
        self._thinking[said.person] += 1
        try:
            async with self._places:
                thought = await self._think(said)
        finally:
            self._thinking[said.person] -= 1
            # Only who thinks now is kept in mind.
            self._thinking += Counter()
        if isinstance(thought, Message):
            yield thought
            return
        kept, recorded = thought
        async for event in self._confirming.carry_out(kept, said.message, recorded=recorded):
            yield event

    async def _keyword(self, keyword: intents.Keyword, question: Question | None) -> Reply:
        """Return the reply to a keyword; what it means is done by the person's own client."""
        match keyword:
            case intents.Help():
                text = intents.HELP
            case intents.Status():
                text = await self._sense.views.status()
            case intents.Usage():
                return Reply(f"Nothing was done. {keyword.text}")
            case intents.Order():
                intent = messages.intent_of(keyword).SerializeToString()
                return Reply(f"Your client does this with your certificate: {keyword.words}", intent=intent)
        if question is not None:
            asked = outcome_pb2.AskHuman.FromString(question.ask)
            text += f"\n\nStill open: {asked.question}"
        return Reply(text)

    async def _think(self, said: Said) -> Message | tuple[Kept, bool]:
        """Put a message to a model, and make of its outcome what it may be: a reply, or a wish that only reads."""
        known, incidents = await asyncio.gather(self._sense.views.catalogue(), self._sense.views.incidents())
        before = await self._store.history(said.message, HISTORY)
        marks = Marks()
        case = Case(
            key=said.message.message_id,
            prompt_id=prompts.CONVERSATION,
            attribution=model_service_pb2.Attribution(
                conversation_id=str(said.message.conversation_id), person=said.person
            ),
            context=context(known, incidents, said.message.text, marks),
            marks=marks,
            history=tuple((one.speaker.lower(), one.text) for one in [*before, said.message]),
        )
        try:
            reasoned = await self._sense.reasoner.decide(case)
        except (ModelsAway, grpc.aio.AioRpcError):
            return await self._say(said, Reply(AWAY))
        if reasoned.chosen is None:
            return await self._say(said, Reply(NOT_UNDERSTOOD, recorded=reasoned.recorded))
        return await self._outcome(said, reasoned, reasoned.chosen.outcome, known)

    async def _outcome(
        self, said: Said, reasoned: Reasoned, outcome: outcome_pb2.ModelOutcome, known: plans.Catalogue
    ) -> Message | tuple[Kept, bool]:
        """Say, ask, or show what a wish would mean."""
        match outcome.WhichOneof("detail"):
            case "respond":
                text = characters(outcome.respond.text).strip() or "(nothing to say)"
                seen = [characters(one) for one in outcome.respond.references]
                reply = Reply(text + "".join(f"\n  see: {one}" for one in seen), "RESPOND")
            case "ask_human":
                ask = outcome.ask_human
                wanted = "".join(f"\n  - {characters(one)}" for one in ask.choice.options)
                reply = Reply(f"{characters(ask.question)}{wanted}", "ASK_HUMAN", asks=ask.SerializeToString())
            case "trigger_automation" | "delegate_agent":
                return await self._wish(said, reasoned, outcome, known)
            case _:
                reply = Reply(NOT_UNDERSTOOD)
        return await self._say(said, replace(reply, recorded=reasoned.recorded))

    async def _wish(
        self, said: Said, reasoned: Reasoned, outcome: outcome_pb2.ModelOutcome, known: plans.Catalogue
    ) -> Message | tuple[Kept, bool]:
        """Ask back about a wish that could change something; one that only reads is confirmed by being said."""
        made = plans.plan(outcome, known)
        kind = "TRIGGER_AUTOMATION" if outcome.HasField("trigger_automation") else "DELEGATE_AGENT"
        reply = Reply("", kind, recorded=reasoned.recorded)
        if isinstance(made, str):
            return await self._say(said, replace(reply, text=f"Nothing was done: {made}."))
        permission = plans.STARTS[made.outcome]
        if not self._sense.identities.allows(said.person, permission):
            why = f"Nothing was done: {said.person} may not start {made.what}: it lacks {permission}."
            return await self._say(said, replace(reply, text=why))
        async with self._pool.acquire() as connection, connection.transaction():
            newest = await self._store.newest(connection, said.message.conversation_id)
            if newest != said.message.number:
                return await self._store.reply(connection, said.message, replace(reply, text=WENT_ON))
            subject = domain.title(characters(said.message.text)) or "a wish"
            read = Read(outcome.SerializeToString(), reasoned.recorded, subject)
            kept = await self._wishes.keep(connection, (said.message, said.person), made, read)
            if kept and not made.asks:
                kept = await self._wishes.confirm(connection, said.message.message_id, said.message)
                if kept is not None:
                    return kept, reasoned.recorded
            ask = outcome_pb2.AskHuman(question=plans.question(made), yes_no=outcome_pb2.YesNo())
            text = f"{plans.explain(made)}\n{ask.question} (yes or no)"
            return await self._store.reply(
                connection, said.message, replace(reply, text=text, asks=ask.SerializeToString())
            )

    async def _say(self, said: Said, reply: Reply) -> Message:
        """Keep a reply; a question is only opened when nothing was said since, so that an answer can only mean it."""
        async with self._pool.acquire() as connection, connection.transaction():
            newest = await self._store.newest(connection, said.message.conversation_id)
            if reply.asks and newest != said.message.number:
                reply = replace(reply, text=WENT_ON, asks=b"")
            return await self._store.reply(connection, said.message, reply)


def _answer(question: Question, text: str) -> outcome_pb2.HumanAnswer | None:
    """Return what a text answers to a question; None when it is no answer."""
    found = outcomes.read_answer(outcome_pb2.AskHuman.FromString(question.ask), text)
    return None if isinstance(found, str) else found


def withdraws(question: Question, text: str, keyword: intents.Keyword | None) -> bool:
    """Say whether a message takes the question that is open off the table."""
    return keyword is None and (old(question) or _answer(question, text) is None)
