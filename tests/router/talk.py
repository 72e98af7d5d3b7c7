"""A router that talks: peers with a small world in it, a model that answers as told, and people with certificates."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from opsmesh.agents.v1 import (
    model_service_pb2,
    model_service_pb2_grpc,
    template_service_pb2,
    template_service_pb2_grpc,
)
from opsmesh.automation.v1 import automation_service_pb2_grpc, playbook_service_pb2, playbook_service_pb2_grpc
from opsmesh.config.v1 import inventory_pb2, playbooks_pb2, templates_pb2
from opsmesh.guardrails.v1 import (
    kill_switch_service_pb2_grpc,
    policy_service_pb2,
    policy_service_pb2_grpc,
)
from opsmesh.ingest.v1 import ingest_service_pb2
from opsmesh.router.v1 import conversation_service_pb2 as pb
from opsmesh.router.v1 import conversation_service_pb2_grpc as rpc
from opsmesh.router.v1 import decision_service_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.local.waiting import until
from services.mesh.config import load_yaml
from services.mesh.errors import Refusal
from tests.mesh.world import ROOT, World
from tests.router import fakes
from tests.router.house import Router, Town, incident
from tests.stores import Database

TARGETS = {
    "svc:demo/checkout": ("demo", "local"),
    "svc:production/payments": ("production", "eu-west-1"),
    "cdn:production/edge": ("production", "eu-west-1"),
}
Answer = Callable[[str], dict[str, Any]]


def trigger(playbook: str, *targets: str) -> dict[str, Any]:
    """Return the arguments of a model that wants a playbook."""
    detail = {"trigger_automation": {"playbook_id": playbook, "target_ids": list(targets)}}
    return {"confidence": 0.99, "reason": "they asked for it", "detail": detail}


def delegate(template: str, goal: str, *targets: str) -> dict[str, Any]:
    """Return the arguments of a model that wants an agent."""
    detail = {"delegate_agent": {"template_id": template, "target_ids": list(targets), "goal": goal}}
    return {"confidence": 0.9, "reason": "it must be looked into", "detail": detail}


def respond(text: str) -> dict[str, Any]:
    """Return the arguments of a model that has something to say."""
    return {"confidence": 0.9, "reason": "a question", "detail": {"respond": {"text": text}}}


def ask(question: str, **answer: Any) -> dict[str, Any]:
    """Return the arguments of a model that asks."""
    detail = {"ask_human": {"question": question, "answer": answer or {"text": {}}}}
    return {"confidence": 0.5, "reason": "not clear", "detail": detail}


class Models(fakes.FakeModels):
    """A model that answers with what `answer` makes of the last thing that was said; None: it cannot be asked."""

    def __init__(self, answer: Answer | None = None) -> None:
        super().__init__()
        self.answer = answer
        self.requests: list[model_service_pb2.GenerateRequest] = []

    async def ListModels(self, _: Any, __: Any) -> model_service_pb2.ListModelsResponse:  # noqa: N802  the IDL's
        """Say whether it can be asked."""
        return model_service_pb2.ListModelsResponse(
            automation_only=self.answer is None, automation_only_reason="no provider" if self.answer is None else ""
        )

    async def Generate(  # noqa: N802  the IDL's
        self, request: model_service_pb2.GenerateRequest, context: Any
    ) -> model_service_pb2.GenerateResponse:
        """Answer as told."""
        self.requests.append(request)
        await self.open.wait()
        if self.answer is None:
            return await super().Generate(request, context)
        arguments = json.dumps(self.answer(request.messages[0].text))
        call = model_service_pb2.ToolCall(call_id="c1", name="decide", arguments_json=arguments)
        return model_service_pb2.GenerateResponse(tool_calls=[call], recorded=True, model="gullible")


class Playbooks(playbook_service_pb2_grpc.PlaybookServiceServicer):
    """Has the playbooks that ship, one that only reads, and those that a test adds."""

    def __init__(self) -> None:
        found = [
            load_yaml(path, playbooks_pb2.Playbook) for path in sorted((ROOT / "deploy" / "playbooks").glob("*.yaml"))
        ]
        look = playbooks_pb2.Playbook(playbook_id="look", title="Look at its health")
        step = look.steps.add(step_id="check", tool="CheckHealth")
        setattr(step.arguments["target_id"], "from", "incident.targets[0]")
        self.versions = {
            one.playbook_id: playbook_service_pb2.PlaybookVersion(
                playbook_id=one.playbook_id, version=1, active=True, digest="a" * 64, playbook=one
            )
            for one in [*found, look]
        }
        self.down = False

    async def ListPlaybooks(self, _: Any, __: Any) -> playbook_service_pb2.ListPlaybooksResponse:  # noqa: N802
        """List."""
        if self.down:
            raise Refusal(error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE, store="PostgreSQL")
        return playbook_service_pb2.ListPlaybooksResponse(playbooks=self.versions.values())

    async def PublishPlaybook(self, _: Any, __: Any) -> playbook_service_pb2.PublishPlaybookResponse:  # noqa: N802
        """Answer nothing: not asked by the router."""
        return playbook_service_pb2.PublishPlaybookResponse()

    async def GetPlaybook(self, _: Any, __: Any) -> playbook_service_pb2.GetPlaybookResponse:  # noqa: N802
        """Answer nothing: not asked by the router."""
        return playbook_service_pb2.GetPlaybookResponse()


class Templates(template_service_pb2_grpc.TemplateServiceServicer):
    """Has the templates that ship, and one that only reads."""

    def __init__(self) -> None:
        found = [
            load_yaml(path, templates_pb2.AgentTemplate) for path in sorted((ROOT / "deploy" / "agents").glob("*.yaml"))
        ]
        look = templates_pb2.AgentTemplate(template_id="investigate", title="Only looks", role="r", tools=["GetHealth"])
        look.tools[:] = ["CheckHealth"]
        self.versions = {
            one.template_id: template_service_pb2.TemplateVersion(
                template_id=one.template_id, version=1, active=True, digest="b" * 64, template=one
            )
            for one in [*found, look]
        }

    async def ListTemplates(self, _: Any, __: Any) -> template_service_pb2.ListTemplatesResponse:  # noqa: N802
        """List."""
        return template_service_pb2.ListTemplatesResponse(templates=self.versions.values())

    async def GetTemplate(self, _: Any, __: Any) -> template_service_pb2.GetTemplateResponse:  # noqa: N802
        """Answer nothing: not asked by the router."""
        return template_service_pb2.GetTemplateResponse()

    async def PublishTemplate(self, _: Any, __: Any) -> template_service_pb2.PublishTemplateResponse:  # noqa: N802
        """Answer nothing: not asked by the router."""
        return template_service_pb2.PublishTemplateResponse()


class Policies(policy_service_pb2_grpc.PolicyServiceServicer):
    """Has an inventory."""

    async def GetPolicySet(self, _: Any, __: Any) -> policy_service_pb2.GetPolicySetResponse:  # noqa: N802
        """Answer with the inventory."""
        entries = [
            inventory_pb2.InventoryEntry(target_id=name, kind="service", environment=environment, region=region)
            for name, (environment, region) in TARGETS.items()
        ]
        answer = policy_service_pb2.GetPolicySetResponse()
        answer.policy_set.inventory.entries.extend(entries)
        return answer

    async def ListPolicySets(self, _: Any, __: Any) -> policy_service_pb2.ListPolicySetsResponse:  # noqa: N802
        """Answer nothing: not asked by the router."""
        return policy_service_pb2.ListPolicySetsResponse()

    async def PublishPolicySet(self, _: Any, __: Any) -> policy_service_pb2.PublishPolicySetResponse:  # noqa: N802
        """Answer nothing: not asked by the router."""
        return policy_service_pb2.PublishPolicySetResponse()


class Ingest(fakes.FakeIngest):
    """Keeps what is handed in, once per delivery id, and has `router` decide it; refuses while `down`."""

    def __init__(self) -> None:
        super().__init__()
        self.deliveries: dict[str, ingest_service_pb2.Delivery] = {}
        self.submissions = 0
        self.down = False
        self.router: Router | None = None
        self.decisions: list[decision_service_pb2.Decision] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def SubmitSignals(  # type: ignore[override]  # noqa: N802  the other takes no notice of it
        self, request: Any, _: Any
    ) -> ingest_service_pb2.SubmitSignalsResponse:
        """Keep."""
        if self.down:
            raise Refusal(error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE, store="Valkey")
        results = []
        self.submissions += 1
        for one in request.deliveries:
            if one.delivery_id not in self.deliveries and self.router is not None:
                task = asyncio.create_task(self._decide(json.loads(one.body)))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            known = self.deliveries.setdefault(one.delivery_id, one)
            assert known.body == one.body
            results.append(
                ingest_service_pb2.DeliveryResult(
                    delivery_id=one.delivery_id,
                    state=ingest_service_pb2.DeliveryResult.STATE_ACCEPTED,
                    signal_ids=[str(uuid.uuid5(uuid.UUID(one.delivery_id), "0"))],
                )
            )
        return ingest_service_pb2.SubmitSignalsResponse(results=results)

    async def decided(self) -> list[decision_service_pb2.Decision]:
        """Return what the router has decided, once it has answered: a person may hear of it a moment earlier."""
        await asyncio.gather(*self._tasks)
        return self.decisions

    async def _decide(self, body: dict[str, Any]) -> None:
        """Do with a signal what ingest does with it."""
        assert self.router is not None
        self.decisions += await self.router.decide(chat_incident(body))

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """Return what was handed in."""
        return [json.loads(one.body) for one in self.deliveries.values()]


def chat_incident(body: dict[str, Any], **changes: Any) -> ingest_service_pb2.Incident:
    """Return the incident that ingest makes of a wish."""
    names = ("message_id", "conversation_id", "message_digest", "person")
    made = incident(source="chat", title=body["title"], labels={name: body[name] for name in names})
    del made.targets[:]
    for one in body["targets"]:
        environment, region = TARGETS[one]
        made.targets.add(target_id=one, environment=environment, region=region, in_inventory=True)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@dataclass
class Square(Town):
    """A town whose peers have something to talk about."""

    models: Models = field(default_factory=Models)
    incidents: Ingest = field(default_factory=Ingest)
    playbooks: Playbooks = field(default_factory=Playbooks)
    templates: Templates = field(default_factory=Templates)
    policies: Policies = field(default_factory=Policies)

    def serve_automation(self) -> Any:
        """Run automation."""
        servicers: list[tuple[Any, Any]] = [
            (automation_service_pb2_grpc.add_AutomationServiceServicer_to_server, self.automation),
            (playbook_service_pb2_grpc.add_PlaybookServiceServicer_to_server, self.playbooks),
        ]
        return self.world.serving("automation", servicers, settings={"listen": f"127.0.0.1:{self.automation_port}"})

    def serve_agents(self) -> Any:
        """Run agents."""
        servicers: list[tuple[Any, Any]] = [
            (model_service_pb2_grpc.add_ModelServiceServicer_to_server, self.models),
            (template_service_pb2_grpc.add_TemplateServiceServicer_to_server, self.templates),
        ]
        return self.world.serving("agents", servicers, settings={"listen": f"127.0.0.1:{self.agents_port}"})

    def serve_guardrails(self) -> Any:
        """Run guardrails."""
        servicers: list[tuple[Any, Any]] = [
            (kill_switch_service_pb2_grpc.add_KillSwitchServiceServicer_to_server, self.kills),
            (policy_service_pb2_grpc.add_PolicyServiceServicer_to_server, self.policies),
        ]
        return self.world.serving("guardrails", servicers, settings={"listen": f"127.0.0.1:{self.guardrails_port}"})

    @asynccontextmanager
    async def talking(self, router: Router, name: str = "operator") -> AsyncIterator["Person"]:
        """Give a person at the router."""
        async with self.world.channel(router.server, name) as channel:
            yield Person(rpc.ConversationServiceStub(channel))


async def eventually(holds: Callable[[], Awaitable[object]], what: str) -> None:
    """Wait until something holds; fail after a minute."""

    async def probe() -> None:
        if not await holds():
            raise LookupError

    await until(probe, what, 60, LookupError, pause=0.02)


@dataclass
class Scene:
    """A router among its peers, and a person."""

    square: Square
    router: Router
    operator: "Person"

    async def counts(self) -> tuple[int, int, int, int]:
        """Return signals handed in, executions started, decisions, and wishes that were confirmed."""
        decisions = await self.router.pool.fetchval("SELECT count(*) FROM decisions")
        confirmed = await self.router.pool.fetchval(
            "SELECT count(*) FROM wishes WHERE state IN ('CONFIRMED', 'HANDED_IN')"
        )
        return len(self.square.incidents.deliveries), len(self.square.automation.started), decisions, confirmed


@asynccontextmanager
async def scene_of(world: World, postgres: Database, models: Models | None = None) -> AsyncIterator[Scene]:
    """Run a router among its peers."""
    async with postgres.fresh() as database:
        square = Square(world, database, models=models or Models())
        async with (
            square.serve_automation(),
            square.serve_agents(),
            square.serve_audit(),
            square.serve_guardrails(),
            square.serve_ingest(),
            square.router() as router,
            square.talking(router) as operator,
        ):
            square.incidents.router = router
            yield Scene(square, router, operator)


@dataclass
class Turn:
    """What came of a message."""

    events: list[pb.SendMessageResponse]

    @property
    def conversation_id(self) -> str:
        """Return the conversation."""
        return self.events[0].conversation_id

    @property
    def accepted(self) -> pb.ConversationMessage:
        """Return the message as it was kept."""
        return self.events[0].accepted

    @property
    def reply(self) -> pb.ConversationMessage:
        """Return the one reply."""
        [found] = [one.reply for one in self.events if one.HasField("reply")]
        return found

    @property
    def intents(self) -> list[pb.Intent]:
        """Return what the client shall call."""
        return [one.intent for one in self.events if one.HasField("intent")]


class Person:
    """Somebody who talks."""

    def __init__(self, stub: Any) -> None:
        self.stub = stub

    async def say(self, text: str, conversation_id: str = "", request_id: str = "") -> Turn:
        """Say something, and hear all that comes of it."""
        request = pb.SendMessageRequest(
            request_id=request_id or str(uuid.uuid4()), conversation_id=conversation_id, text=text
        )
        return Turn([one async for one in self.stub.SendMessage(request)])

    async def answer(self, question_id: str, text: str, request_id: str = "") -> pb.AnswerQuestionResponse:
        """Answer a question."""
        request = pb.AnswerQuestionRequest(
            request_id=request_id or str(uuid.uuid4()), question_id=question_id, text=text
        )
        answer: pb.AnswerQuestionResponse = await self.stub.AnswerQuestion(request)
        return answer

    async def conversation(self, conversation_id: str) -> pb.Conversation:
        """Read a conversation."""
        answer = await self.stub.GetConversation(pb.GetConversationRequest(conversation_id=conversation_id))
        found: pb.Conversation = answer.conversation
        return found

    async def messages(self, conversation_id: str, size: int = 0) -> list[pb.ConversationMessage]:
        """Read all messages, page by page."""
        found: list[pb.ConversationMessage] = []
        token = ""
        while True:
            request = pb.ListMessagesRequest(conversation_id=conversation_id, page_size=size, page_token=token)
            answer = await self.stub.ListMessages(request)
            found += answer.messages
            token = answer.next_page_token
            if not token:
                return found
