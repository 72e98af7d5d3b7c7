"""Answers of people to the questions of decisions: typed, one answer wins, and the incident goes on from there."""

import uuid
from typing import Final

from opsmesh.router.v1 import decision_service_pb2, outcome_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal
from services.mesh.models import outcomes
from services.mesh.postgres import Connection, Pool
from services.mesh.writes import Subject
from services.router.domain import Decision, Outcome, State
from services.router.messages import decision_message, question_of
from services.router.records import subject_of
from services.router.rows import COLUMNS, decision_of

READ: Final = f"SELECT {COLUMNS} FROM decisions WHERE decision_id = $1"  # noqa: S608  constants only
# The state decides who was first: a second answer, or a newer revision, finds it closed.
ANSWER: Final = f"""
UPDATE decisions
SET state = 'CLOSED', result = 'ANSWERED', stage = 'NONE', answer = $2, answerer = $3, close_time = clock_timestamp()
WHERE decision_id = $1 AND state = 'DECIDED' AND outcome = 'ASK_HUMAN'
RETURNING {COLUMNS}
"""  # noqa: S608  constants only


class DecisionQuestions:
    """The questions that decisions put to people."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def ask_of(self, decision_id: uuid.UUID) -> outcome_pb2.AskHuman | None:
        """Return the question of a decision; None when there is no such decision, or it asks nothing."""
        row = await self._pool.fetchrow(READ, decision_id)
        return question_of(decision_of(row)) if row else None

    async def subject(self, decision_id: uuid.UUID) -> Subject:
        """Return what an answer is about, for its audit event."""
        row = await self._pool.fetchrow(READ, decision_id)
        return subject_of(decision_of(row)) if row else Subject(decision_id=str(decision_id))

    async def answer(
        self, connection: Connection, decision_id: uuid.UUID, answer: outcome_pb2.HumanAnswer, answerer: str
    ) -> decision_service_pb2.Decision:
        """Close a decision by the answer to its question, in the caller's transaction.

        Refuses ANSWER_INVALID when it is not of the type that was asked for, QUESTION_CLOSED when somebody was first.
        """
        row = await connection.fetchrow(READ, decision_id)
        found = decision_of(row) if row else None
        question = question_of(found) if found else None
        if found is None or question is None:
            raise closed(decision_id, "it asks nothing")
        if wrong := outcomes.answer_error(question, answer):
            raise Refusal(error_reason_pb2.ERROR_REASON_ANSWER_INVALID, question_id=str(decision_id), why=wrong)
        row = await connection.fetchrow(ANSWER, decision_id, answer.SerializeToString(), answerer[:128])
        if row is None:
            raise closed(decision_id, await self._why(connection, decision_id, found))
        return decision_message(decision_of(row))

    async def _why(self, connection: Connection, decision_id: uuid.UUID, before: Decision) -> str:
        """Return why a question is not open any more."""
        row = await connection.fetchrow(READ, decision_id)
        now = decision_of(row) if row else before
        if now.answerer:
            return f"{now.answerer} answered it"
        if now.state is State.CLOSED:
            return f"its decision ended {now.result}"
        return "it was not asked yet" if now.outcome is not Outcome.ASK_HUMAN else "its decision changed meanwhile"


def closed(decision_id: uuid.UUID, why: str) -> Refusal:
    """Return the refusal of an answer that nobody waits for."""
    return Refusal(error_reason_pb2.ERROR_REASON_QUESTION_CLOSED, question_id=str(decision_id), why=why)
