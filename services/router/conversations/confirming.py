"""Answers to questions: of two at once one has answered, and a yes is worth what was shown, nothing else."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from opsmesh.router.v1 import decision_service_pb2, outcome_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal
from services.mesh.postgres import Connection, Pool
from services.router.conversations import domain, plans
from services.router.conversations.domain import Message, Question, Reply, WishState
from services.router.conversations.plans import Catalogue
from services.router.conversations.store import ConversationStore, old
from services.router.conversations.wishes import Kept, Wishes

# How long a yes is followed until its incident is decided; it goes on without anybody looking.
FOLLOW_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 0.2
TOO_OLD: Final = f"it was asked more than {int(domain.QUESTION_AGE.total_seconds() // 60)} minutes ago: say it again"
ANSWERED: Final = "it was answered or withdrawn before"


@dataclass(frozen=True, slots=True)
class Progress:
    """What is being done, for people to see."""

    text: str


@dataclass(frozen=True, slots=True)
class Decided:
    """The decision about the incident that came of it."""

    decision: decision_service_pb2.Decision


Event = Progress | Decided | Message
Decisions = Callable[[uuid.UUID], Awaitable[decision_service_pb2.Decision | None]]


class Confirming:
    """Closes questions of conversations, and hands in what a yes confirms.

    `catalogue` says what exists now; `decided` returns the decision on the first revision of an incident.
    """

    def __init__(
        self,
        pool: Pool,
        store: ConversationStore,
        wishes: Wishes,
        catalogue: Callable[[], Awaitable[Catalogue]],
        decided: Decisions,
    ) -> None:
        self._pool = pool
        self._store = store
        self._wishes = wishes
        self._catalogue = catalogue
        self._decided = decided

    async def objection(self, question: Question) -> str:
        """Return why a yes to this question would mean nothing any more; empty when it would."""
        if old(question):
            return TOO_OLD
        kept = await self._wishes.read(question.question_id)
        return plans.changed(kept.plan, await self._catalogue()) if kept else ""

    async def settle(
        self, connection: Connection, question: Question, by: Message, answer: outcome_pb2.HumanAnswer
    ) -> Kept | None:
        """Close a question by its answer in the caller's transaction; return the wish that is confirmed by it.

        Refuses QUESTION_CLOSED when somebody was faster.
        """
        yes = answer.WhichOneof("value") == "yes" and answer.yes
        kept = await self._wishes.confirm(connection, question.question_id, by) if yes else None
        said = f"answered: {_said(answer)}"
        if not await self._store.close(connection, question.question_id, by.message_id, said, answered=True):
            raise closed(question.question_id, ANSWERED)
        return kept

    async def withdraw(self, question: Question, by: uuid.UUID, why: str) -> None:
        """Take a question off the table, and the wish with it."""
        async with self._pool.acquire() as connection, connection.transaction():
            await self._store.close(connection, question.question_id, by, why, answered=False)

    async def answer(self, by: Message, question: Question, answer: outcome_pb2.HumanAnswer) -> AsyncIterator[Event]:
        """Answer the question about a wish with a message; yields what is done, then the reply."""
        kept = await self._wishes.confirmed_by(by.message_id)
        if kept is None and answer.yes and (objection := await self.objection(question)):
            await self.withdraw(question, by.message_id, objection)
            yield await self.say(by, Reply(f"Nothing was done: {objection}."))
            return
        if kept is None:
            try:
                async with self._pool.acquire() as connection, connection.transaction():
                    kept = await self.settle(connection, question, by, answer)
            except Refusal as refusal:
                if refusal.reason != error_reason_pb2.ERROR_REASON_QUESTION_CLOSED:
                    raise
                # The same message may have been heard by another stream of the same request.
                kept = await self._wishes.confirmed_by(by.message_id)
                if kept is None:
                    yield await self.say(by, Reply(f"Nothing was done: {ANSWERED}."))
                    return
        if kept is None:
            yield await self.say(by, Reply("Nothing is done."))
            return
        async for event in self.carry_out(kept, by):
            yield event

    async def carry_out(
        self, kept: Kept, by: Message, *, seconds: float = FOLLOW_SECONDS, recorded: bool = False
    ) -> AsyncIterator[Event]:
        """Hand in a confirmed wish and follow it for a while; the reply says how far it came. Twice is once."""
        why = ""
        if kept.state is WishState.CONFIRMED:
            yield Progress(f"handing in: {kept.plan.what}")
            why = await self._wishes.hand_in(kept)
        decision = None if why else await self._decision(kept.wish_id, seconds)
        if decision is not None:
            yield Decided(decision)
        incident = decision.incident_id if decision is not None else ""
        outcome = "UNSPECIFIED" if kept.plan.asks else kept.plan.outcome
        yield await self.say(by, Reply(_done(kept, why, incident), outcome, incident_id=incident, recorded=recorded))

    async def heard(self, by: uuid.UUID, seconds: float) -> None:
        """Do what an answer means, and say so in the conversation; an answer that has its reply is over."""
        message = await self._store.message(by)
        if message is None or await self._store.replied(by) is not None:
            return
        kept = await self._wishes.confirmed_by(by)
        if kept is None:
            await self.say(message, Reply("Nothing is done."))
            return
        async for _ in self.carry_out(kept, message, seconds=seconds):
            pass

    async def say(self, to: Message, reply: Reply) -> Message:
        """Keep a reply."""
        async with self._pool.acquire() as connection, connection.transaction():
            return await self._store.reply(connection, to, reply)

    async def _decision(self, wish_id: uuid.UUID, seconds: float) -> decision_service_pb2.Decision | None:
        """Return the decision about the incident that a wish became, waiting for a moment."""
        for _ in range(int(seconds / LOOK_SECONDS)):
            kept = await self._wishes.read(wish_id)
            if kept is None or kept.state is WishState.DROPPED:
                return None
            if kept.incident_id is not None and (found := await self._decided(kept.incident_id)):
                return found
            await asyncio.sleep(LOOK_SECONDS)
        return None


def closed(question_id: uuid.UUID, why: str) -> Refusal:
    """Return the refusal of an answer that comes too late."""
    return Refusal(error_reason_pb2.ERROR_REASON_QUESTION_CLOSED, question_id=str(question_id), why=why)


def _said(answer: outcome_pb2.HumanAnswer) -> str:
    """Return an answer in a word or two, for the record."""
    if answer.WhichOneof("value") == "yes":
        return "yes" if answer.yes else "no"
    return str(getattr(answer, answer.WhichOneof("value") or "text"))[:200]


def _done(kept: Kept, why: str, incident: str) -> str:
    """Return what is said about a wish that was confirmed."""
    begun = f"You said yes to {kept.plan.what}" if kept.plan.asks else f"{plans.explain(kept.plan)}\nIt only reads"
    if why:
        return f"{begun}, but {why}."
    where = f"it is incident {incident}" if incident else "its incident follows"
    return f"{begun}: handed in, {where}. What it may do is decided by policy and approvals."
