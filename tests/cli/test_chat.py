"""`opsmesh chat`: what is said reaches the router; an order is carried out only when the words themselves say it."""

import asyncio
import json
import os
import pty
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from opsmesh.guardrails.v1 import approval_service_pb2 as approvals
from opsmesh.guardrails.v1.approval_service_pb2_grpc import add_ApprovalServiceServicer_to_server
from opsmesh.guardrails.v1.kill_switch_service_pb2_grpc import add_KillSwitchServiceServicer_to_server
from opsmesh.router.v1 import conversation_service_pb2 as pb
from opsmesh.router.v1 import conversation_service_pb2_grpc as rpc
from opsmesh.router.v1 import outcome_pb2
from services.mesh import intents
from services.mesh.call import current
from services.router.conversations import messages
from tests.cli import guarded_fakes
from tests.cli.mesh import run
from tests.mesh.world import ROOT, World

ID, DIGEST = "0b7a3f6e-8f0c-4a44-9c64-5f2f4a0c9d11", "0123456789ab"


class Conversations(rpc.ConversationServiceServicer):
    """Answers every message; `lies` is an order it adds to whatever is said."""

    def __init__(self) -> None:
        self.said: list[tuple[str, pb.SendMessageRequest]] = []
        self.lies: intents.Order | None = None

    async def SendMessage(  # noqa: N802  the IDL's
        self, request: pb.SendMessageRequest, _: Any
    ) -> AsyncIterator[pb.SendMessageResponse]:
        """Answer as the router does."""
        self.said.append((current().identity, request))
        conversation = request.conversation_id or str(uuid.uuid4())
        yield pb.SendMessageResponse(
            conversation_id=conversation, accepted=pb.ConversationMessage(number=1, text=request.text)
        )
        yield pb.SendMessageResponse(conversation_id=conversation, progress="asking a model what this means")
        reply = pb.ConversationMessage(number=2, text=f"heard: {request.text}\x1b[31m", recorded=True)
        if "restart" in request.text:
            reply.question.question_id = str(uuid.uuid4())
            reply.question.ask.CopyFrom(outcome_pb2.AskHuman(question="Shall I?", yes_no=outcome_pb2.YesNo()))
        yield pb.SendMessageResponse(conversation_id=conversation, reply=reply)
        order = self.lies or intents.read(request.text)
        if isinstance(order, intents.Order):
            yield pb.SendMessageResponse(conversation_id=conversation, intent=messages.intent_of(order))

    async def AnswerQuestion(self, _: Any, __: Any) -> pb.AnswerQuestionResponse:  # noqa: N802  the IDL's
        """Answer nothing: not asked by the command."""
        return pb.AnswerQuestionResponse()

    async def GetConversation(self, _: Any, __: Any) -> pb.GetConversationResponse:  # noqa: N802  the IDL's
        """Answer nothing: not asked by the command."""
        return pb.GetConversationResponse()

    async def ListMessages(self, _: Any, __: Any) -> pb.ListMessagesResponse:  # noqa: N802  the IDL's
        """Answer nothing: not asked by the command."""
        return pb.ListMessagesResponse()


@dataclass
class Talk:
    """A router and guardrails, and the state folder that leads to them."""

    state: Path
    router: Conversations = field(default_factory=Conversations)
    kills: guarded_fakes.KillSwitch = field(default_factory=guarded_fakes.KillSwitch)
    approvals: guarded_fakes.Approvals = field(default_factory=guarded_fakes.Approvals)


@pytest.fixture
async def talk(tmp_path: Path) -> AsyncIterator[Talk]:
    """Run a router and guardrails."""
    world, made = World(tmp_path), Talk(tmp_path)
    services: dict[str, list[tuple[Any, Any]]] = {
        "router": [(rpc.add_ConversationServiceServicer_to_server, made.router)],
        "guardrails": [
            (add_KillSwitchServiceServicer_to_server, made.kills),
            (add_ApprovalServiceServicer_to_server, made.approvals),
        ],
    }
    async with AsyncExitStack() as stack:
        ports = {}
        for name, servicers in services.items():
            server = await stack.enter_async_context(world.serving(name, servicers))
            ports[name] = f"127.0.0.1:{server.port}"
        people = ("operator", "approver")
        leafs = {one: {"cert": str(world.pki / f"{one}.pem"), "key": str(world.pki / f"{one}.key")} for one in people}
        endpoints = {"services": ports, "tls": {"ca": str(world.pki / "ca.pem"), **leafs}, "webhooks": {}}
        (tmp_path / "endpoints.json").write_text(json.dumps(endpoints))
        yield made


async def test_one_message(talk: Talk) -> None:
    """It is said by the person named, what comes of it is shown without control characters, and how to go on."""
    done = await run("chat", "restart checkout", "--as", "approver", "--state", str(talk.state))
    assert done.code == 0, done.err
    [(person, request)] = talk.router.said
    assert (person, request.text) == ("human/approver", "restart checkout")
    assert "heard: restart checkout\ufffd[31m (replayed from a file: no model was asked)" in done.out
    assert "NEXT: opsmesh chat MESSAGE --conversation " in done.out


async def test_events_as_lines_of_json(talk: Talk) -> None:
    """With --json each event is one line, and nothing else is there; the conversation goes on by its id."""
    conversation = str(uuid.uuid4())
    words = ("chat", "hello", "--conversation", conversation, "--request-id", ID, "--json")
    done = await run(*words, "--state", str(talk.state))
    events = [json.loads(line) for line in done.out.splitlines()]
    assert [next(key for key in ("accepted", "progress", "reply") if key in one) for one in events] == [
        "accepted",
        "progress",
        "reply",
    ]
    assert {one["conversation_id"] for one in events} == {conversation}
    [(_, request)] = talk.router.said
    assert (request.request_id, request.conversation_id) == (ID, conversation)


async def test_a_kill_is_engaged_by_the_persons_own_certificate(talk: Talk) -> None:
    """The command shows what it does, and does it at guardrails in the name of the person, not of the router."""
    done = await run(
        "chat", "kill target svc:demo/checkout --reason it burns", "--as", "approver", "--state", str(talk.state)
    )
    assert done.code == 0, done.err
    [kill] = talk.kills.engaged
    assert (kill.scope.target_id, kill.reason, kill.engager) == ("svc:demo/checkout", "it burns", "human/approver")
    assert "as approver: opsmesh kill engage --target svc:demo/checkout --reason 'it burns'" in done.out


async def test_a_stop_does_not_need_the_router(talk: Talk) -> None:
    """With the router gone it is engaged all the same."""
    endpoints = json.loads((talk.state / "endpoints.json").read_text())
    endpoints["services"]["router"] = "127.0.0.1:1"
    (talk.state / "endpoints.json").write_text(json.dumps(endpoints))
    done = await run("chat", "kill all", "--state", str(talk.state))
    assert done.code == 0, done.err
    assert "the router does not answer" in done.out
    assert [kill.scope.everything for kill in talk.kills.engaged] == [True]
    assert (await run("chat", "hello", "--state", str(talk.state))).code == 3


async def test_a_rejection_names_the_bytes(talk: Talk) -> None:
    """The digest of the words goes to guardrails; another one is refused there."""
    talk.approvals.asked.append(approvals.Approval(approval_id=ID, request_digest=DIGEST + "0" * 52))
    done = await run("chat", f"reject {ID} {'f' * 12} no", "--as", "approver", "--state", str(talk.state))
    assert (done.code, "APPROVAL_DIGEST_MISMATCH" in done.err) == (1, True)
    done = await run("chat", f"reject {ID} {DIGEST} no", "--as", "approver", "--state", str(talk.state))
    assert done.code == 0, done.err
    assert talk.approvals.asked[0].state == approvals.Approval.STATE_REJECTED


@pytest.mark.parametrize("said", ["thank you", "please approve", "kill environment demo", f"reject {ID} {DIGEST} no"])
async def test_a_router_that_lies_gets_nothing_called(talk: Talk, said: str) -> None:
    """An order that the person's own words do not give is not carried out, and neither is the one they give."""
    lie = intents.read("kill all")
    assert isinstance(lie, intents.Order)
    talk.router.lies = lie
    done = await run("chat", said, "--state", str(talk.state))
    assert done.code == 1
    assert "your words do not say" in done.err
    assert talk.kills.engaged == []


async def test_what_is_piped_in_is_one_message(talk: Talk) -> None:
    """Lines of a log are text: none of them is an order."""
    log = f"ERROR pool exhausted\nkill all\nreject {ID} {DIGEST} no\nyes\n"
    done = await run("chat", "--state", str(talk.state), stdin=log.encode())
    assert done.code == 0, done.err
    [(_, request)] = talk.router.said
    assert request.text == log
    assert talk.kills.engaged == []


async def test_a_session_at_a_terminal(talk: Talk) -> None:
    """Each line is a message of one conversation; lines that are pasted at once are one message, and no order."""
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "chat", "--state", str(talk.state)),
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200", "TERM": "dumb", "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    typed = ["hello\n", "look at this\nkill all\nyes\n", "kill environment demo\n", "quit\n"]
    shown = await asyncio.to_thread(_type, ours, typed)
    assert await asyncio.wait_for(process.wait(), 30) == 0, shown
    os.close(ours)
    assert [request.text for _, request in talk.router.said] == [
        "hello",
        "look at this\nkill all\nyes",
        typed[2].strip(),
    ]
    assert talk.router.said[1][1].conversation_id == talk.router.said[2][1].conversation_id != ""
    assert [kill.scope.environment for kill in talk.kills.engaged] == ["demo"]


def _type(terminal: int, lines: list[str]) -> str:
    """Type a line at each prompt; return what was shown."""
    shown, waiting = "", list(lines)
    while True:
        try:
            part = os.read(terminal, 65_536)
        except OSError:  # on Linux, the end
            return shown
        if not part:
            return shown
        shown += part.decode()
        if waiting and shown.endswith("> "):
            os.write(terminal, waiting.pop(0).encode())
