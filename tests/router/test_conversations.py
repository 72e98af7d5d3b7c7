"""Conversations over real mTLS and a real database: what is said, asked, answered, and handed in once."""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from opsmesh.automation.v1 import automation_service_pb2
from opsmesh.config.v1 import rules_pb2
from opsmesh.router.v1 import decision_service_pb2, identity_pb2
from services.mesh.client import refusal_of
from tests.mesh.world import World
from tests.router.house import incident
from tests.router.talk import Scene, ask, chat_incident, delegate, eventually, respond, scene_of, trigger
from tests.stores import Database

Decision = decision_service_pb2.Decision
CHECKOUT = "svc:demo/checkout"


@pytest.fixture
async def scene(world: World, postgres: Database) -> AsyncIterator[Scene]:
    """Give a router among its peers, and the operator."""
    async with scene_of(world, postgres) as made:
        yield made


async def refused(call: object) -> str:
    """Return the reason of a refusal."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call  # type: ignore[misc]  # any awaitable
    refusal = refusal_of(raised.value)
    assert refusal is not None, raised.value
    return refusal.name


async def test_keywords_work_with_every_model_down(scene: Scene) -> None:
    """Help and status are answered, kept, and shown again; any other word is told which keywords work."""
    helped = await scene.operator.say("help")
    assert "approve APPROVAL DIGEST" in helped.reply.text
    status = await scene.operator.say("status", helped.conversation_id)
    assert "No incident is open." in status.reply.text
    assert "none can be asked" in status.reply.text
    assert scene.square.models.requests == []
    wish = await scene.operator.say("restart checkout", helped.conversation_id)
    assert "only understand keywords: status, approve, reject, answer, kill" in wish.reply.text
    said = await scene.operator.messages(helped.conversation_id, size=1)
    assert [one.number for one in said] == [1, 2, 3, 4, 5, 6]
    assert (await scene.operator.conversation(helped.conversation_id)).message_count == 6


async def test_an_order_is_for_the_persons_own_client(scene: Scene) -> None:
    """The router says what to call; it calls nothing, whoever it is."""
    turn = await scene.operator.say("kill target svc:production/payments --reason it burns")
    [intent] = turn.intents
    assert intent.method == "opsmesh.guardrails.v1.KillSwitchService/Engage"
    assert intent.command == "opsmesh kill engage --target svc:production/payments --reason 'it burns'"
    assert "it burns" in intent.request_json


async def test_a_question_is_answered_in_words(scene: Scene) -> None:
    """A model's answer is a reply that says it was replayed, and nothing else comes of it."""
    scene.square.models.answer = lambda _: respond("Twice, because its memory was \u202efull.\x1b[31m")
    turn = await scene.operator.say("why did kubernetes restart twice?")
    assert turn.reply.text == "Twice, because its memory was full."
    assert turn.reply.recorded
    assert turn.reply.outcome == Decision.OUTCOME_RESPOND
    assert await scene.counts() == (0, 0, 0, 0)


async def test_a_wish_is_asked_back_and_a_yes_hands_it_in_once(scene: Scene) -> None:
    """The plan names playbook, target and what it could change; the yes becomes one incident decided exactly so."""
    scene.square.models.answer = lambda _: trigger("restart-workload", CHECKOUT)
    turn = await scene.operator.say("restart checkout in demo please")
    question = turn.reply.question.ask
    assert question.WhichOneof("answer") == "yes_no"
    assert "restart-workload (version 1) on svc:demo/checkout" in question.question
    assert "RestartWorkload" in question.question
    assert await scene.counts() == (0, 0, 0, 0)
    yes = await scene.operator.say("yes", turn.conversation_id)
    [decision] = [one.decision for one in yes.events if one.HasField("decision")]
    assert decision.outcome == Decision.OUTCOME_TRIGGER_AUTOMATION
    assert decision.playbook_id == "restart-workload"
    assert decision.conversation_id == turn.conversation_id
    assert "human/operator confirmed it" in decision.reason
    assert "replayed from a file" in decision.reason
    assert yes.reply.incident_id == decision.incident_id
    await scene.router.until(decision.decision_id, lambda one: one.execution_id)
    assert await scene.counts() == (1, 1, 1, 1)
    [body] = scene.square.incidents.bodies
    assert body["targets"] == [CHECKOUT]
    assert body["person"] == "human/operator"
    assert body["message_id"] == yes.accepted.message_id


async def test_the_token_says_who_confirmed_what(scene: Scene) -> None:
    """The execution is started with an identity signed by the router's key, for the message that confirmed."""
    scene.square.models.answer = lambda _: trigger("restart-workload", CHECKOUT)
    turn = await scene.operator.say("restart checkout in demo please")
    yes = await scene.operator.say("yes", turn.conversation_id)
    [decision] = await scene.square.incidents.decided()
    await scene.router.until(decision.decision_id, lambda one: one.execution_id)
    [(_, request)] = scene.square.automation.started
    assert isinstance(request, automation_service_pb2.StartExecutionRequest)
    signed = identity_pb2.SignedIdentity.FromString(request.identity_token)
    key = load_pem_public_key((scene.square.world.pki / "identity.pub").read_bytes())
    key.verify(signed.signature, b"opsmesh-identity\0" + signed.identity)  # type: ignore[union-attr, call-arg]
    identity = identity_pb2.Identity.FromString(signed.identity)
    assert identity.person == "human/operator"
    assert identity.conversation_id == turn.conversation_id
    assert identity.message_digest == hashlib.sha256(f"{yes.accepted.message_id}\0yes".encode()).digest()
    assert identity.message_digest.hex() == scene.square.incidents.bodies[0]["message_digest"]
    assert identity.expire_time.seconds - identity.issue_time.seconds == 3600


async def test_a_no_ends_it(scene: Scene) -> None:
    """Nothing is handed in, and a yes after it answers nothing."""
    scene.square.models.answer = lambda _: trigger("restart-workload", CHECKOUT)
    turn = await scene.operator.say("restart checkout")
    await scene.operator.say("no", turn.conversation_id)
    late = await scene.operator.say("yes", turn.conversation_id)
    assert "Nothing is open" in late.reply.text
    assert await refused(scene.operator.answer(turn.reply.question.question_id, "yes")) == "QUESTION_CLOSED"
    assert await scene.counts() == (0, 0, 0, 0)


async def test_anything_else_withdraws_the_question(scene: Scene) -> None:
    """A yes counts only as the next thing that is said; a keyword in between leaves the question open, and says so."""
    scene.square.models.answer = lambda text: (
        respond("It restarts it.") if "what would" in text else trigger("restart-workload", CHECKOUT)
    )
    turn = await scene.operator.say("restart checkout")
    status = await scene.operator.say("status", turn.conversation_id)
    assert "Still open: Shall I start playbook restart-workload" in status.reply.text
    await scene.operator.say("what would that do?", turn.conversation_id)
    late = await scene.operator.say("yes", turn.conversation_id)
    assert "Nothing is open" in late.reply.text
    assert await scene.counts() == (0, 0, 0, 0)


async def test_what_only_reads_starts_at_once(scene: Scene) -> None:
    """A template whose tools all read, by the IDL's word, needs no yes."""
    scene.square.models.answer = lambda _: delegate("investigate", "look why it is slow", CHECKOUT)
    turn = await scene.operator.say("look why checkout is slow")
    assert not turn.reply.HasField("question")
    assert turn.reply.recorded
    assert "It only reads" in turn.reply.text
    [decision] = await scene.square.incidents.decided()
    assert decision.outcome == Decision.OUTCOME_DELEGATE_AGENT
    assert decision.template_id == "investigate"


async def test_find_out_and_fix_it_works_as_a_plan(scene: Scene) -> None:
    """Diagnose, then the known fix: one agent of diagnose-repair on the right target, asked first, one wish."""
    goal = "Find out why response times spiked in EU; if the CDN is the cause again, apply the known fix."
    scene.square.models.answer = lambda _: delegate("diagnose-repair", goal, "cdn:production/edge")
    turn = await scene.operator.say("Check why response times spiked in EU and fix it if it's the CDN again")
    assert "diagnose-repair (version 1) on cdn:production/edge" in turn.reply.text
    assert goal in turn.reply.text
    assert "RestartWorkload" in turn.reply.question.ask.question
    yes = await scene.operator.say("yes", turn.conversation_id)
    assert yes.reply.incident_id
    [decision] = await scene.square.incidents.decided()
    assert decision.template_id == "diagnose-repair"
    [body] = scene.square.incidents.bodies
    assert (body["targets"], body["description"]) == (["cdn:production/edge"], goal)
    row = await scene.router.pool.fetchrow("SELECT goal, target_ids FROM decisions")
    assert row is not None
    assert (row["goal"], row["target_ids"]) == (goal, ["cdn:production/edge"])


async def test_a_models_own_question_goes_on_with_its_answer(scene: Scene) -> None:
    """What is answered is part of the conversation that the model reads next; a yes to it alone starts nothing."""
    answers = [ask("Which one?", choice={"options": ["demo", "production"]}), trigger("restart-workload", CHECKOUT)]
    scene.square.models.answer = lambda _: answers.pop(0)
    turn = await scene.operator.say("restart checkout")
    assert turn.reply.question.ask.WhichOneof("answer") == "choice"
    second = await scene.operator.say("demo", turn.conversation_id)
    assert second.reply.question.ask.WhichOneof("answer") == "yes_no"
    assert "Which one?" in scene.square.models.requests[-1].messages[0].text
    assert await scene.counts() == (0, 0, 0, 0)


async def test_the_same_request_is_the_same_message(scene: Scene) -> None:
    """Sent again, a wish has the same conversation, message and question; a yes sent again hands in nothing more."""
    scene.square.models.answer = lambda _: trigger("restart-workload", CHECKOUT)
    request_id = str(uuid.uuid4())
    one = await scene.operator.say("restart checkout", request_id=request_id)
    two = await scene.operator.say("restart checkout", request_id=request_id)
    assert one.accepted == two.accepted
    assert one.reply == two.reply
    yes_id = str(uuid.uuid4())
    yes = await scene.operator.say("yes", one.conversation_id, yes_id)
    same = await scene.operator.say("yes", one.conversation_id, yes_id)
    assert yes.reply == same.reply
    assert (await scene.counts())[0] == 1
    other = scene.operator.say("no", one.conversation_id, yes_id)
    assert await refused(other) == "REQUEST_ID_REUSED"


async def test_of_two_yes_at_once_one_counts(scene: Scene) -> None:
    """One message confirms, the other finds nothing open; one wish, one signal."""
    scene.square.models.answer = lambda _: trigger("restart-workload", CHECKOUT)
    turn = await scene.operator.say("restart checkout")
    said = await asyncio.gather(
        *(scene.operator.say("yes", turn.conversation_id) for _ in range(4)),
        return_exceptions=True,
    )
    assert [one for one in said if isinstance(one, BaseException)] == []
    assert (await scene.counts())[0] == 1
    assert sum("handed in" in one.reply.text for one in said if not isinstance(one, BaseException)) == 1


async def test_ingest_down_is_not_a_lost_wish(scene: Scene) -> None:
    """A confirmed wish is handed in later, once, by itself."""
    scene.square.models.answer = lambda _: trigger("restart-workload", CHECKOUT)
    turn = await scene.operator.say("restart checkout")
    scene.square.incidents.down = True
    yes = await scene.operator.say("yes", turn.conversation_id)
    assert "tried again" in yes.reply.text
    scene.square.incidents.down = False
    await scene.router.pool.execute("UPDATE wishes SET due_time = now()")

    async def handed_in() -> bool:
        return (await scene.counts())[0] == 1

    await eventually(handed_in, "the wish")
    decided = [one.decision_id for one in await scene.square.incidents.decided()]
    assert len(decided) <= 1


async def test_answers_are_read_strictly(scene: Scene) -> None:
    """AnswerQuestion takes yes and no and nothing that resembles them; its answer names the signal that follows."""
    scene.square.models.answer = lambda _: trigger("restart-workload", CHECKOUT)
    turn = await scene.operator.say("restart checkout")
    question = turn.reply.question.question_id
    assert (await scene.operator.conversation(turn.conversation_id)).question.question_id == question
    assert await refused(scene.operator.answer(question, "sure, why not")) == "ANSWER_INVALID"
    request_id = str(uuid.uuid4())
    answer = await scene.operator.answer(question, "yes", request_id)
    assert answer.answer.yes
    [delivery] = scene.square.incidents.deliveries
    assert answer.signal_id == str(uuid.uuid5(uuid.UUID(delivery), "0"))
    assert await scene.operator.answer(question, "yes", request_id) == answer
    assert await refused(scene.operator.answer(question, "yes")) == "QUESTION_CLOSED"
    assert (await scene.counts())[0] == 1
    said = await scene.operator.messages(turn.conversation_id)
    assert [one.text for one in said][2] == "yes"


async def test_a_wish_nobody_may_start_is_none(scene: Scene) -> None:
    """Somebody whose certificate may start no playbook cannot wish for one."""
    scene.square.models.answer = lambda _: trigger("restart-workload", CHECKOUT)
    async with scene.square.talking(scene.router, "approver") as approver:
        turn = await approver.say("restart checkout")
    assert "may not start" in turn.reply.text
    assert "automation.executions.start" in turn.reply.text
    assert not turn.reply.HasField("question")


@pytest.mark.parametrize(
    "wish",
    [
        trigger("restart-workload", "svc:production/unknown"),
        trigger("restart-workload", CHECKOUT, "svc:production/payments"),
        trigger("restart-workload"),
    ],
    ids=["unknown target", "two targets", "no target"],
)
async def test_a_wish_that_cannot_be_is_not_asked_about(scene: Scene, wish: dict[str, object]) -> None:
    """A target that the inventory does not have, more than one, or none: nothing to say yes to."""
    scene.square.models.answer = lambda _: wish
    turn = await scene.operator.say("restart it")
    assert turn.reply.text.startswith("Nothing was done")
    assert not turn.reply.HasField("question")
    assert await scene.counts() == (0, 0, 0, 0)


async def test_a_second_incident_gets_nothing_of_a_wish(scene: Scene) -> None:
    """The first incident that shows a message has its wish; another one with the same labels waits for a person."""
    scene.square.models.answer = lambda _: trigger("restart-workload", CHECKOUT)
    turn = await scene.operator.say("restart checkout")
    await scene.operator.say("yes", turn.conversation_id)
    [body] = scene.square.incidents.bodies
    [second] = await scene.router.decide(chat_incident(body))
    assert second.state == Decision.STATE_AWAITING_MODEL
    assert "no confirmed wish" in second.reason


async def test_a_decisions_question_is_answered_by_anybody_who_may(scene: Scene) -> None:
    """AnswerQuestion closes a decision that asks; what nobody asked is not found."""
    rule = rules_pb2.RuleSet(
        rules=[
            rules_pb2.Rule(
                rule_id="ask",
                priority=1,
                match=rules_pb2.RuleMatch(equals={"labels.alertname": "CheckoutDown"}),
                ask_human=rules_pb2.AskHuman(question="Is a migration planned?"),
            )
        ]
    )
    await scene.router.publish(rule)
    [decision] = await scene.router.decide(incident())
    assert decision.outcome == Decision.OUTCOME_ASK_HUMAN
    async with scene.square.talking(scene.router, "approver") as approver:
        status = await approver.say("status")
        assert f"{decision.decision_id} asks: Is a migration planned?" in status.reply.text
        [intent] = (await approver.say(f"answer {decision.decision_id} yes, until noon")).intents
        assert intent.method == "opsmesh.router.v1.ConversationService/AnswerQuestion"
        answer = await approver.answer(decision.decision_id, "yes, until noon")
    assert answer.decision.result == Decision.RESULT_ANSWERED
    assert answer.decision.answerer == "human/approver"
    assert await refused(scene.operator.answer(decision.decision_id, "no")) == "QUESTION_CLOSED"
    assert await refused(scene.operator.answer(str(uuid.uuid4()), "no")) == "NOT_FOUND"
