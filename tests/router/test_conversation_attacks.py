"""Attempts to say something in somebody else's name, to say yes to something else, or to say it too often."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from opsmesh.router.v1 import conversation_service_pb2 as pb
from opsmesh.router.v1 import decision_service_pb2, identity_pb2
from services.mesh.errors import BootError
from services.mesh.retention import Retention
from services.router.conversations import domain, tokens
from services.router.conversations.store import too_old
from tests.mesh.world import World
from tests.router.talk import Scene, chat_incident, delegate, eventually, respond, scene_of, trigger
from tests.router.test_conversations import refused
from tests.stores import Database

Decision = decision_service_pb2.Decision
CHECKOUT = "svc:demo/checkout"
RESTART = trigger("restart-workload", CHECKOUT)


@pytest.fixture
async def scene(world: World, postgres: Database) -> AsyncIterator[Scene]:
    """Give a router among its peers, the operator, and a model that always wants to restart."""
    async with scene_of(world, postgres) as made:
        made.square.models.answer = lambda _: RESTART
        yield made


async def _is(found: object) -> bool:
    """Say whether there is anything."""
    return bool(found)


async def test_another_persons_conversation_is_not_there(scene: Scene) -> None:
    """Reading, listing, saying and answering are all the same NOT_FOUND, and change nothing."""
    turn = await scene.operator.say("restart checkout")
    async with scene.square.talking(scene.router, "approver") as approver:
        assert await refused(approver.conversation(turn.conversation_id)) == "NOT_FOUND"
        assert await refused(approver.messages(turn.conversation_id)) == "NOT_FOUND"
        assert await refused(approver.say("yes", turn.conversation_id)) == "NOT_FOUND"
        assert await refused(approver.answer(turn.reply.question.question_id, "yes")) == "NOT_FOUND"
    assert await refused(scene.operator.conversation(str(uuid.uuid4()))) == "NOT_FOUND"
    assert await scene.counts() == (0, 0, 0, 0)
    assert len(await scene.operator.messages(turn.conversation_id)) == 2


async def test_a_request_id_of_somebody_else_is_no_way_in(scene: Scene) -> None:
    """The same request id from another certificate is refused, whatever it says."""
    request_id = str(uuid.uuid4())
    await scene.operator.say("restart checkout", request_id=request_id)
    async with scene.square.talking(scene.router, "approver") as approver:
        assert await refused(approver.say("restart checkout", request_id=request_id)) == "REQUEST_ID_REUSED"


async def test_a_service_says_nothing(scene: Scene) -> None:
    """Conversations are for people: no certificate of a service has the permission."""
    async with scene.square.talking(scene.router, "agents") as agents:
        assert await refused(agents.say("restart checkout")) == "PERMISSION_DENIED"
    async with scene.square.talking(scene.router, "automation") as automation:
        assert await refused(automation.answer(str(uuid.uuid4()), "yes")) == "PERMISSION_DENIED"


async def test_a_yes_after_the_plan_changed_is_worth_nothing(scene: Scene) -> None:
    """The playbook was published anew between question and yes: nothing is handed in, and the question is gone."""
    turn = await scene.operator.say("restart checkout")
    playbook = scene.square.playbooks.versions["restart-workload"]
    playbook.version, playbook.digest = 2, "c" * 64
    yes = await scene.operator.say("yes", turn.conversation_id)
    assert "version 2 now" in yes.reply.text
    assert await refused(scene.operator.answer(turn.reply.question.question_id, "yes")) == "QUESTION_CLOSED"
    playbook.version, playbook.digest = 1, "a" * 64
    assert "Nothing is open" in (await scene.operator.say("yes", turn.conversation_id)).reply.text
    assert await scene.counts() == (0, 0, 0, 0)


async def test_a_template_that_got_more_tools_is_another_plan(scene: Scene) -> None:
    """The same for an agent, answered through AnswerQuestion."""
    scene.square.models.answer = lambda _: delegate("take-action", "restart it", CHECKOUT)
    turn = await scene.operator.say("get it going again")
    scene.square.templates.versions["take-action"].digest = "d" * 64
    assert await refused(scene.operator.answer(turn.reply.question.question_id, "yes")) == "QUESTION_CLOSED"
    assert await scene.counts() == (0, 0, 0, 0)


async def test_a_yes_while_nobody_knows_the_playbooks_is_worth_nothing(scene: Scene) -> None:
    """What was shown cannot be compared with what there is: say it again."""
    turn = await scene.operator.say("restart checkout")
    scene.square.playbooks.down = True
    yes = await scene.operator.say("yes", turn.conversation_id)
    assert "automation does not answer" in yes.reply.text
    assert await scene.counts() == (0, 0, 0, 0)


async def test_a_late_yes_is_none(scene: Scene) -> None:
    """After a quarter of an hour the world that was asked about is gone."""
    turn = await scene.operator.say("restart checkout")
    await scene.router.pool.execute("UPDATE questions SET create_time = now() - interval '16 minutes'")
    yes = await scene.operator.say("yes", turn.conversation_id)
    assert "Nothing is open" in yes.reply.text
    assert await refused(scene.operator.answer(turn.reply.question.question_id, "yes")) == "QUESTION_CLOSED"
    assert await scene.counts() == (0, 0, 0, 0)


async def test_a_used_yes_is_used(scene: Scene) -> None:
    """Neither another yes, nor another answer, nor the same words in another conversation start it again."""
    turn = await scene.operator.say("restart checkout")
    await scene.operator.say("yes", turn.conversation_id)
    await scene.operator.say("yes", turn.conversation_id)
    await scene.operator.say("yes")
    assert await refused(scene.operator.answer(turn.reply.question.question_id, "yes")) == "QUESTION_CLOSED"
    assert (await scene.counts())[0] == 1
    assert scene.square.incidents.submissions == 1


async def test_two_ways_to_say_yes_at_once_are_one(scene: Scene) -> None:
    """SendMessage and AnswerQuestion race; one signal."""
    turn = await scene.operator.say("restart checkout")
    question = turn.reply.question.question_id
    await asyncio.gather(
        scene.operator.say("yes", turn.conversation_id),
        scene.operator.answer(question, "yes"),
        scene.operator.answer(question, "yes"),
        return_exceptions=True,
    )
    assert (await scene.counts())[0] == 1
    assert (await scene.counts())[3] == 1


async def test_a_yes_never_answers_what_was_asked_after_it(scene: Scene) -> None:
    """While a model still thinks about the first message, a yes is said: what comes of the first asks nothing."""
    scene.square.models.open.clear()
    first = await scene.operator.say("help")
    thinking = asyncio.create_task(scene.operator.say("restart checkout", first.conversation_id))
    await eventually(lambda: _is(scene.square.models.requests), "the question to the model")
    yes = await scene.operator.say("yes", first.conversation_id)
    assert "Nothing is open" in yes.reply.text
    scene.square.models.open.set()
    turn = await thinking
    assert "You went on meanwhile" in turn.reply.text
    assert not turn.reply.HasField("question")
    assert not (await scene.operator.conversation(first.conversation_id)).HasField("question")
    assert await scene.counts() == (0, 0, 0, 0)


async def test_one_person_does_not_take_all_places(scene: Scene) -> None:
    """While two models think for one person, a third message is put off, and somebody else is heard."""
    scene.square.models.answer = lambda _: respond("fine")
    scene.square.models.open.clear()
    thinking = [asyncio.create_task(scene.operator.say("how is checkout?")) for _ in range(2)]
    await eventually(lambda: _is(len(scene.square.models.requests) == 2), "two questions to the model")
    assert "still thinking" in (await scene.operator.say("and payments?")).reply.text
    async with scene.square.talking(scene.router, "approver") as approver:
        other = asyncio.create_task(approver.say("how is checkout?"))
        await eventually(lambda: _is(len(scene.square.models.requests) == 3), "the question of another person")
        scene.square.models.open.set()
        assert (await other).reply.text == "fine"
    assert {(await one).reply.text for one in thinking} == {"fine"}


async def test_an_incident_that_only_looks_like_a_wish_gets_none(scene: Scene) -> None:
    """Labels without a confirmed wish, of a wish that waits, with another digest, or for other targets: a person."""
    turn = await scene.operator.say("restart checkout")
    forged = {
        "message_id": turn.accepted.message_id,
        "conversation_id": turn.conversation_id,
        "message_digest": tokens.message_digest(uuid.UUID(turn.accepted.message_id), "restart checkout").hex(),
        "person": "human/operator",
        "title": "restart checkout",
        "targets": [CHECKOUT],
    }
    scene.square.incidents.router = None
    waiting = asyncio.create_task(scene.operator.say("yes", turn.conversation_id))
    await eventually(lambda: _is(scene.square.incidents.deliveries), "the delivery")
    [body] = scene.square.incidents.bodies
    attempts = [
        forged,
        {**forged, "message_id": str(uuid.uuid4())},
        {**forged, "message_id": "x", "message_digest": "zz"},
        {**body, "message_digest": "00" * 32},
        {**body, "conversation_id": str(uuid.uuid4())},
        {**body, "targets": ["svc:production/payments"]},
        {**body, "targets": [CHECKOUT, "svc:production/payments"]},
        {**body, "targets": []},
    ]
    for attempt in attempts:
        [decision] = await scene.router.decide(chat_incident(attempt))
        assert decision.state == Decision.STATE_AWAITING_MODEL, attempt
        assert decision.outcome == Decision.OUTCOME_UNSPECIFIED
    [real] = await scene.router.decide(chat_incident(body))
    assert real.outcome == Decision.OUTCOME_TRIGGER_AUTOMATION
    await waiting
    assert len(scene.square.automation.of(real.decision_id, "restart-workload")) <= 1


async def test_an_old_confirmation_is_not_carried_out(scene: Scene) -> None:
    """A wish that could not be handed in for too long is dropped, also when ingest is back."""
    turn = await scene.operator.say("restart checkout")
    scene.square.incidents.down = True
    await scene.operator.say("yes", turn.conversation_id)
    await scene.router.pool.execute("UPDATE wishes SET confirm_time = now() - interval '11 minutes', due_time = now()")
    scene.square.incidents.down = False
    await eventually(
        lambda: scene.router.pool.fetchval("SELECT true FROM wishes WHERE state = 'DROPPED'"), "the end of the wish"
    )
    assert (await scene.counts())[0] == 0


async def test_a_token_of_another_key_or_text_is_no_proof() -> None:
    """The signature holds for exactly these bytes, under the router's key, with the words for identities in front."""
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    conversation, message = uuid.uuid4(), uuid.uuid4()
    digest = tokens.message_digest(message, "yes")
    assert digest != tokens.message_digest(message, "no")
    assert digest != tokens.message_digest(uuid.uuid4(), "yes")
    now = datetime.now(UTC)
    signed = identity_pb2.SignedIdentity.FromString(
        tokens.Minter(key).mint("human/operator", conversation, digest, now)
    )
    key.public_key().verify(signed.signature, tokens.CONTEXT + signed.identity)
    for bad in (signed.identity, b"opsmesh-grant\0" + signed.identity, tokens.CONTEXT + signed.identity + b"\0"):
        with pytest.raises(InvalidSignature):
            key.public_key().verify(signed.signature, bad)
    with pytest.raises(InvalidSignature):
        other.public_key().verify(signed.signature, tokens.CONTEXT + signed.identity)
    assert tokens.Minter(key).mint("human/operator", conversation, digest, now) == signed.SerializeToString()


def test_a_key_that_is_none_is_a_boot_error(world: World) -> None:
    """A missing file, and a key of another kind, name the variable and the mend."""
    for path in (world.folder / "none", world.pki / "router.key"):
        with pytest.raises(BootError, match="OPSMESH_IDENTITY_KEY_FILE"):
            tokens.Minter.load(path)


async def test_conversations_are_bounded(scene: Scene) -> None:
    """A full conversation takes no more, and one person begins only so many in an hour; texts have a largest size."""
    scene.square.models.answer = lambda _: respond("fine")
    turn = await scene.operator.say("help")
    await scene.router.pool.execute("UPDATE conversations SET message_count = $1", domain.MESSAGES_MAX)
    assert await refused(scene.operator.say("help", turn.conversation_id)) == "CONFLICT"
    assert await refused(scene.operator.say("x" * 4001)) == "INVALID_ARGUMENT"
    await scene.router.pool.execute(
        "INSERT INTO conversations (conversation_id, person) SELECT gen_random_uuid(), 'human/operator' "
        "FROM generate_series(1, $1)",
        domain.CONVERSATIONS_PER_HOUR,
    )
    assert await refused(scene.operator.say("help")) == "CAP_EXCEEDED"
    async with scene.square.talking(scene.router, "approver") as approver:
        await approver.say("help")


async def test_conversations_are_forgotten(scene: Scene) -> None:
    """After their time they go with all that is in them; one whose confirmed wish is not handed in stays."""
    old = await scene.operator.say("restart checkout")
    kept = await scene.operator.say("restart checkout")
    await scene.router.pool.execute("UPDATE conversations SET update_time = now() - interval '91 days'")
    await scene.router.pool.execute(
        "UPDATE wishes SET state = 'CONFIRMED', confirm_time = now(), due_time = now() + interval '1 hour' "
        "WHERE conversation_id = $1",
        uuid.UUID(kept.conversation_id),
    )
    assert await Retention(scene.router.pool, too_old(90)).forget() == 1
    assert await refused(scene.operator.conversation(old.conversation_id)) == "NOT_FOUND"
    left = [
        await scene.router.pool.fetchval(f"SELECT count(DISTINCT conversation_id) FROM {table}")  # noqa: S608
        for table in ("conversations", "messages", "questions", "wishes")
    ]
    assert left == [1, 1, 1, 1]


async def test_a_turn_that_broke_off_goes_on(scene: Scene) -> None:
    """The client left while the model thought: the same request later gets the one reply."""
    scene.square.models.open.clear()
    request = pb.SendMessageRequest(request_id=str(uuid.uuid4()), text="restart checkout")
    call = scene.operator.stub.SendMessage(request)
    await call.read()
    await eventually(lambda: _is(scene.square.models.requests), "the question to the model")
    call.cancel()
    scene.square.models.open.set()
    turn = await scene.operator.say("restart checkout", request_id=request.request_id)
    assert turn.reply.HasField("question")
    assert [one.number for one in await scene.operator.messages(turn.conversation_id)] == [1, 2]
