"""Answers of people: typed, one wins, and the incident goes on from what was answered."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import grpc.aio
import pytest

from opsmesh.config.v1 import rules_pb2
from opsmesh.router.v1 import conversation_service_pb2, conversation_service_pb2_grpc, outcome_pb2
from services.mesh.errors import from_rpc_error
from tests.mesh.world import World
from tests.router import minds
from tests.router.house import Decision, checkout_rules, rule
from tests.router.minds import says
from tests.router.village import Scene, living, made, unknown
from tests.stores import Database

Request = conversation_service_pb2.AnswerQuestionRequest
Response = conversation_service_pb2.AnswerQuestionResponse


@pytest.fixture
async def scene(world: World, postgres: Database) -> AsyncIterator[Scene]:
    """Give a router among its peers."""
    async with postgres.fresh() as database, living(world, database) as running:
        yield running


async def answer(scene: Scene, question_id: str, text: str, request_id: str = "") -> Response:
    """Answer as the operator."""
    stub = conversation_service_pb2_grpc.ConversationServiceStub(scene.router.operator)
    request = Request(request_id=request_id or str(uuid.uuid4()), question_id=question_id, text=text)
    found: Response = await stub.AnswerQuestion(request)
    return found


async def refused(scene: Scene, question_id: str, text: str) -> tuple[str, str]:
    """Answer, and return the reason of the refusal and its words."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await answer(scene, question_id, text)
    refusal = from_rpc_error(raised.value)
    assert refusal is not None
    return refusal.name, str(refusal)


async def asked(scene: Scene) -> Decision:
    """Return a decision of a model that asks yes or no."""
    scene.village.models.will(says(minds.ASK))
    decision = await scene.village.decide(scene.router)
    return await scene.router.until(decision.decision_id, made)


async def test_an_answer_closes_the_decision_and_informs_the_next(scene: Scene) -> None:
    """ANSWERED, with the answer and who gave it; the next revision's model is told both."""
    decision = await asked(scene)
    given = await answer(scene, decision.decision_id, "Yes")
    assert given.answer == outcome_pb2.HumanAnswer(yes=True)
    closed = await scene.router.decision(decision.decision_id)
    assert (closed.state, closed.result) == (Decision.STATE_CLOSED, Decision.RESULT_ANSWERED)
    assert (closed.answer.yes, closed.answerer) == (True, "human/operator")
    scene.village.models.will(says(minds.RESTART))
    following = await scene.village.decide(scene.router, unknown(2, decision.incident_id))
    await scene.router.until(following.decision_id, lambda one: one.execution_id)
    history = scene.village.models.prompts[-1].split("## history")[1].split("## ")[0]
    assert "Is a migration planned?" in history
    assert '"yes": true' in history


async def test_the_notice_says_what_is_asked_and_how_it_is_answered(scene: Scene) -> None:
    """What starts the notice holds the command, the model's question and the type of the answer."""
    decision = await asked(scene)
    told = await scene.router.until(decision.decision_id, lambda one: one.notice_execution_id)
    (request,) = scene.village.automation.requests
    command = f"opsmesh decisions answer {told.decision_id} TEXT"
    assert request.note == f"Answer with `{command}`: Is a migration planned? (yes or no)"


async def test_an_answer_has_the_type_that_was_asked_for(scene: Scene) -> None:
    """Anything else is refused with what is wanted, and the question stays open."""
    decision = await asked(scene)
    name, words = await refused(scene, decision.decision_id, "maybe later")
    assert (name, "yes or no" in words) == ("ANSWER_INVALID", True)
    assert (await scene.router.decision(decision.decision_id)).state == Decision.STATE_DECIDED


async def test_one_answer_wins(scene: Scene) -> None:
    """Of ten at once one is taken, the others are told who was first; the same request again gets the stored answer."""
    decision = await asked(scene)
    request_id = str(uuid.uuid4())
    answers = await asyncio.gather(
        answer(scene, decision.decision_id, "no", request_id),
        *[answer(scene, decision.decision_id, "yes") for _ in range(9)],
        return_exceptions=True,
    )
    taken = [one for one in answers if isinstance(one, Response)]
    assert len(taken) == 1
    name, words = await refused(scene, decision.decision_id, "yes")
    assert (name, "human/operator answered it" in words) == ("QUESTION_CLOSED", True)
    if isinstance(answers[0], Response):
        assert await answer(scene, decision.decision_id, "no", request_id) == answers[0]


async def test_the_question_of_a_rule_takes_words_and_the_rule_does_not_ask_again(scene: Scene) -> None:
    """A rule's question is free text; once it is answered its rule does not match the incident's later revisions."""
    await scene.router.publish(checkout_rules(rule("New", ask_human=rules_pb2.AskHuman(question="is it planned?"))))
    decision = await scene.village.decide(scene.router)
    assert decision.question.question == "is it planned?"
    assert decision.question.WhichOneof("answer") == "text"
    again = await scene.village.decide(scene.router, unknown(2, decision.incident_id))
    assert again.rule_id == "new"
    given = await answer(scene, again.decision_id, "no, restart it")
    assert given.answer.text == "no, restart it"
    scene.village.models.will(says(minds.RESTART))
    following = await scene.village.decide(scene.router, unknown(3, decision.incident_id))
    assert following.rule_id == ""
    await scene.router.until(following.decision_id, lambda one: one.execution_id)
    assert "no, restart it" in scene.village.models.prompts[-1]


async def test_what_asks_nothing_takes_no_answer(scene: Scene) -> None:
    """An unknown question, a decision that asks nothing, and one that was superseded take none."""
    assert (await refused(scene, str(uuid.uuid4()), "yes"))[0] == "NOT_FOUND"
    decision = await asked(scene)
    await scene.village.decide(scene.router, unknown(2, decision.incident_id))
    name, words = await refused(scene, decision.decision_id, "yes")
    assert (name, "SUPERSEDED" in words) == ("QUESTION_CLOSED", True)


async def test_an_answer_is_on_record(scene: Scene) -> None:
    """Audit learns who answered which question, through the outbox."""
    decision = await asked(scene)
    await answer(scene, decision.decision_id, "no")

    def found() -> list[str]:
        return [one.actor for one in scene.village.audit.appended if one.action.endswith("AnswerQuestion")]

    await scene.router.until(decision.decision_id, lambda _: found())
    assert found() == ["human/operator"]
