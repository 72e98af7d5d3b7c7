"""`opsmesh chat`: say something, hear what comes of it, and answer what is asked.

A keyword that gives an order (`approve`, `reject`, `answer`, `kill`) is carried out here, with the person's own
certificate, and only when this command reads the same order in the person's own words: what the router says to call is
compared, never believed. Nothing else of an answer is ever executed.
"""

import asyncio
import json
import select
import sys
import uuid
from typing import Annotated, Any, Final

import grpc
import grpc.aio
import typer
from google.protobuf import json_format

from opsmesh.guardrails.v1 import approval_service_pb2 as approvals
from opsmesh.guardrails.v1 import approval_service_pb2_grpc as approvals_grpc
from opsmesh.guardrails.v1 import kill_switch_service_pb2 as kills
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc as kills_grpc
from opsmesh.router.v1 import conversation_service_pb2 as router
from opsmesh.router.v1 import conversation_service_pb2_grpc as router_grpc
from opsmesh.router.v1 import decision_service_pb2 as decisions
from services.cli import approval_sheet as sheet
from services.cli.approvals import read
from services.cli.command import RequestId, command, group, typed
from services.cli.output import cell, console, print_json, word
from services.cli.refusals import words_of
from services.cli.session import RefusedError, Session, UnreachableError, UsageError
from services.mesh import intents

app = group("Talk: ask, wish, and answer.")

# As long as the policy lets a turn take: a model may think for a while.
TURN_SECONDS: Final = 300.0
# An order does not wait for the router.
ORDER_SECONDS: Final = 5.0
TEXT_MAX: Final = 4000
PROMPT: Final = "> "
# A terminal hands over a paste line by line, but faster than anybody types.
PASTE_SECONDS: Final = 0.05
LINES_MAX: Final = 2000
LEAVING: Final = frozenset({"exit", "quit"})


@command(app, "chat")
async def chat(
    session: Session,
    message: Annotated[str, typer.Argument(help="What to say; without it a conversation begins here.")] = "",
    conversation: Annotated[str, typer.Option("--conversation", help="Go on with this one.")] = "",
    request_id: RequestId = "",
) -> None:
    """Ask, wish, or answer; `help` says which words work without any model."""
    if message:
        conversation = await _turn(session, message, conversation, request_id)
        if not session.as_json:
            following = typed(session, "chat", "MESSAGE", "--conversation", conversation)
            console().print(cell(f"NEXT: {following}", str), style="dim", soft_wrap=True)
        return
    if session.as_json:
        raise UsageError("with --json one message is said at a time\nNEXT: opsmesh chat MESSAGE --json")
    if request_id:
        raise UsageError("--request-id is for one message\nNEXT: opsmesh chat MESSAGE --request-id ID")
    if not sys.stdin.isatty():
        # What is piped in is text, as a whole: no line of it is an order or a yes.
        await _turn(session, await asyncio.to_thread(sys.stdin.read, TEXT_MAX + 1), conversation, "")
        return
    await _converse(session, conversation)


def _typed_or_pasted() -> str:
    """Return a line, with all that came at once with it: what is pasted is one message, and its lines no orders."""
    lines = [sys.stdin.readline()]
    while lines[-1] and len(lines) < LINES_MAX and select.select([sys.stdin], [], [], PASTE_SECONDS)[0]:
        lines.append(sys.stdin.readline())
    return "".join(lines)


async def _converse(session: Session, conversation: str) -> None:
    """Read what a person types until they leave."""
    while True:
        sys.stdout.write(PROMPT)
        sys.stdout.flush()
        line = await asyncio.to_thread(_typed_or_pasted)
        said = line.strip()
        if not line or said.lower() in LEAVING:
            break
        if not said:
            continue
        try:
            conversation = await _turn(session, said, conversation, "")
        except (UsageError, RefusedError, UnreachableError) as error:
            console().print(cell(str(error), str), soft_wrap=True)
        except grpc.aio.AioRpcError as error:
            console().print(cell(words_of(error)[0], str), soft_wrap=True)
    if conversation:
        following = typed(session, "chat", "--conversation", conversation)
        console().print(cell(f"NEXT: {following}", str), style="dim", soft_wrap=True)


async def _turn(session: Session, text: str, conversation: str, request_id: str) -> str:
    """Say one thing, show what comes of it, and carry out an order; return the conversation."""
    if len(text) > TEXT_MAX:
        raise UsageError(f"a message has at most {TEXT_MAX} characters, this has {len(text)}")
    order = intents.read(text)
    order = order if isinstance(order, intents.Order) else None
    request = router.SendMessageRequest(
        request_id=request_id or str(uuid.uuid4()), conversation_id=conversation, text=text
    )
    stub: Any = router_grpc.ConversationServiceStub(session.channel("router"))
    kept = False
    try:
        async for event in stub.SendMessage(request, timeout=ORDER_SECONDS if order else TURN_SECONDS):
            conversation, kept = event.conversation_id or conversation, True
            if event.HasField("intent"):
                _compare(event.intent, order)
            _show(session, event)
    except grpc.aio.AioRpcError as error:
        away = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        if away and kept and order is None:
            # Under the same request nothing is said or done twice.
            words = ["chat", text, "--request-id", request.request_id]
            words += ["--conversation", request.conversation_id] if request.conversation_id else []
            raise UnreachableError(f"the router broke off\nNEXT: {typed(session, *words)}") from error
        if not away or order is None:
            raise
        # A yes, a no and above all a stop need nobody but guardrails.
        _say(session, "the router does not answer, so this is not kept in a conversation")
    if order is not None:
        await _carry_out(session, order)
    return conversation


def _compare(intent: router.Intent, order: intents.Order | None) -> None:
    """Raise RefusedError unless the router asks for exactly what the person's own words say."""
    try:
        asked = json.loads(intent.request_json)
    except ValueError:
        asked = None
    if order is None or intent.method != order.method or asked != dict(order.request):
        raise RefusedError(
            "the router asks this command to call something that your words do not say; nothing was called\n"
            "NEXT: look at: opsmesh logs router"
        )


async def _carry_out(session: Session, order: intents.Order) -> None:
    """Do what a keyword says, with the certificate of this session's person, after showing it."""
    _say(session, f"as {session.person}: {order.command}")
    request_id = str(uuid.uuid4())
    channel = session.channel("guardrails")
    answer: Any
    if order.method == f"{intents.KILLS}/Engage":
        stop = json_format.ParseDict(dict(order.request) | {"request_id": request_id}, kills.EngageRequest())
        answer = (await kills_grpc.KillSwitchServiceStub(channel).Engage(stop)).kill
        told = f"stopped: kill {answer.kill_id}, until it is released"
    elif order.method == f"{intents.APPROVALS}/Approve":
        if not session.as_json:
            sheet.show(session, await read(session, order.request["approval_id"]))
        yes = json_format.ParseDict(dict(order.request) | {"request_id": request_id}, approvals.ApproveRequest())
        answer = (await approvals_grpc.ApprovalServiceStub(channel).Approve(yes)).approval
        told = f"{answer.approval_id} is {cell(answer, 'state').plain}"
    elif order.method == f"{intents.CONVERSATIONS}/AnswerQuestion":
        words = json_format.ParseDict(dict(order.request) | {"request_id": request_id}, router.AnswerQuestionRequest())
        answer = await router_grpc.ConversationServiceStub(session.channel("router")).AnswerQuestion(words)
        told = f"answered: its incident goes on, see: opsmesh decisions show {order.request['question_id']}"
    else:
        no = json_format.ParseDict(dict(order.request) | {"request_id": request_id}, approvals.RejectRequest())
        answer = (await approvals_grpc.ApprovalServiceStub(channel).Reject(no)).approval
        told = f"{answer.approval_id} is {cell(answer, 'state').plain}"
    if session.as_json:
        print_json(answer, one_line=True)
    else:
        _say(session, told)


def _show(session: Session, event: router.SendMessageResponse) -> None:
    """Show one event: as a line of JSON for scripts, in words for people."""
    if session.as_json:
        print_json(event, one_line=True)
        return
    match event.WhichOneof("event"):
        case "progress":
            console().print(cell(f"... {event.progress}", str), style="dim", soft_wrap=True)
        case "decision":
            outcome = word(decisions.Decision.Outcome.DESCRIPTOR, event.decision.outcome)
            _say(session, f"decision {event.decision.decision_id}: {outcome}, incident {event.decision.incident_id}")
        case "reply":
            note = " (replayed from a file: no model was asked)" if event.reply.recorded else ""
            _say(session, f"{event.reply.text}{note}")


def _say(session: Session, text: str) -> None:
    """Write a line for people."""
    if not session.as_json:
        console().print(cell(text, str), soft_wrap=True)
