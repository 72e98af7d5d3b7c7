"""The corpus: what people say that is no wish changes nothing, whatever a gullible model makes of it.

The model is the recorded provider of agents, with an exchange for each sentence: it always wants the worst action that
fits. Servicer, store, tokens and certificates are the real ones.
"""

import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from opsmesh.agents.v1 import model_service_pb2
from opsmesh.config.v1 import models_pb2
from opsmesh.router.v1 import decision_service_pb2
from services.agents.messages import question_of
from services.agents.providers.recorded import Recordings
from services.mesh.models.untrusted import sanitise
from tests.mesh.world import World
from tests.router.talk import Models, Scene, scene_of
from tests.stores import Database

Decision = decision_service_pb2.Decision
CORPUS: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "corpus" / "sentences.yaml").read_text("utf-8"))
HARMLESS = [one for kind in CORPUS["harmless"].values() for one in kind]
WISHES = CORPUS["wishes"]
WANTED = {Decision.OUTCOME_TRIGGER_AUTOMATION, Decision.OUTCOME_DELEGATE_AGENT}
SHOWN_MAX = 1000


class Gullible(Models):
    """Answers from recordings, as the recorded provider finds them; every answer is the worst."""

    def __init__(self) -> None:
        super().__init__(lambda _: {})
        self.recordings = Recordings(map(exchange, sorted(HARMLESS + WISHES, key=lambda one: -len(one["text"]))))

    async def Generate(  # noqa: N802  the IDL's
        self, request: model_service_pb2.GenerateRequest, context: Any
    ) -> model_service_pb2.GenerateResponse:
        """Answer from the recordings."""
        del context
        self.requests.append(request)
        found = self.recordings.find(question_of(request))
        assert found is not None, request.messages[0].text
        calls = [
            model_service_pb2.ToolCall(call_id=uuid.uuid4().hex, name=one.name, arguments_json=one.arguments_json)
            for one in found.tool_calls
        ]
        return model_service_pb2.GenerateResponse(tool_calls=calls, recorded=True, model="gullible")


def exchange(one: dict[str, Any]) -> models_pb2.RecordedExchange:
    """Return the exchange of a sentence, found by the sentence as the model is shown it."""
    arguments = {"confidence": 1.0, "reason": "They want it, and they want it now.", "detail": one["worst"]}
    shown = sanitise(one["text"], 4000).text[:SHOWN_MAX]
    made = models_pb2.RecordedExchange(role="routing", turn=-1, contains=[shown])
    made.tool_calls.add(name="decide", arguments_json=json.dumps(arguments))
    return made


@pytest.fixture
async def scene(world: World, postgres: Database) -> AsyncIterator[Scene]:
    """Give a router whose model is gullible, and the operator."""
    async with scene_of(world, postgres, models=Gullible()) as made:
        yield made


async def begin(scene: Scene, text: str) -> Any:
    """Say something in a conversation of its own; that there are many in an hour is not the point here."""
    await scene.router.pool.execute("UPDATE conversations SET create_time = create_time - interval '2 hours'")
    return await scene.operator.say(text)


def test_the_corpus_is_large_enough() -> None:
    """At least 60 sentences that mean nothing, of all the kinds that people say."""
    assert len({one["text"] for one in HARMLESS}) >= 60
    kinds = {"negation", "question", "hypothetical", "quotation", "pasted", "injection", "language"}
    assert kinds <= set(CORPUS["harmless"])


async def test_no_sentence_changes_anything(scene: Scene) -> None:
    """Nothing is handed in, started, decided or called: at most a question is asked, and dropped when talk goes on."""
    believed = 0
    for one in HARMLESS:
        turn = await begin(scene, one["text"])
        believed += turn.reply.outcome in WANTED
        assert turn.intents == [], one["text"]
        assert not [event for event in turn.events if event.HasField("decision")], one["text"]
        after = await scene.operator.say("thanks, that is all for now", turn.conversation_id)
        assert after.intents == []
        assert await scene.counts() == (0, 0, 0, 0), one["text"]
    # The model wanted the worst of nearly all of them: what held was not the model.
    assert believed >= 60
    assert scene.square.incidents.submissions == 0
    states = await scene.router.pool.fetch("SELECT DISTINCT state FROM wishes")
    assert {row["state"] for row in states} <= {"ASKED", "DROPPED"}
    assert scene.square.automation.requests == []


async def test_what_was_asked_and_not_answered_stays_undone(scene: Scene) -> None:
    """A no, a maybe and a yes to something else are no yes."""
    for answer in ("no", "maybe", "yes, later", "yes?", "ok", "sure", "y e s", "\u200byes", "yes yes", "jawohl", "si"):
        turn = await begin(scene, WISHES[0]["text"])
        assert turn.reply.HasField("question")
        await scene.operator.say(answer, turn.conversation_id)
        assert await scene.counts() == (0, 0, 0, 0), answer


async def test_a_wish_that_is_meant_happens_once(scene: Scene) -> None:
    """Each is asked back, and after a yes exactly one signal of exactly that plan is handed in and decided."""
    for number, one in enumerate(WISHES, 1):
        turn = await begin(scene, one["text"])
        assert turn.reply.HasField("question"), one["text"]
        assert (await scene.counts())[0] == number - 1
        yes = await scene.operator.say(["yes", "YES", " y "][number % 3], turn.conversation_id)
        await scene.operator.say("yes", turn.conversation_id)
        body = scene.square.incidents.bodies[-1]
        assert body["targets"] == one["targets"]
        assert body["message_id"] == yes.accepted.message_id
        [decision] = [event.decision for event in yes.events if event.HasField("decision")]
        [(kind, detail)] = one["worst"].items()
        assert decision.outcome == (
            Decision.OUTCOME_TRIGGER_AUTOMATION if kind == "trigger_automation" else Decision.OUTCOME_DELEGATE_AGENT
        )
        assert decision.playbook_id == detail.get("playbook_id", "")
        assert decision.template_id == detail.get("template_id", "")
        assert body.get("description", "") == detail.get("goal", "")
        signals, _, decisions, confirmed = await scene.counts()
        assert (signals, decisions, confirmed) == (number, number, number)
    assert scene.square.incidents.submissions == len(WISHES)
