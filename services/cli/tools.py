"""`opsmesh tools`: what can be done, and doing it by hand: lock, authorise, call, release."""

import json
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

import typer
from google.protobuf import json_format
from google.protobuf.message import Message
from rich.text import Text

from opsmesh.gateway.v1 import catalog_service_pb2 as gateway
from opsmesh.gateway.v1 import catalog_service_pb2_grpc as gateway_grpc
from opsmesh.guardrails.v1 import guardrails_service_pb2 as guardrails
from opsmesh.guardrails.v1 import guardrails_service_pb2_grpc as guardrails_grpc
from opsmesh.guardrails.v1 import target_lock_service_pb2 as locks
from opsmesh.guardrails.v1 import target_lock_service_pb2_grpc as locks_grpc
from opsmesh.policy.v1 import policy_pb2
from services.cli.command import Limit, PageToken, RequestId, command, group, typed
from services.cli.output import Column, cell, console, error_console, print_json, show_list, word
from services.cli.session import RefusedError, Session, UsageError, pages
from services.mesh import policy
from services.mesh.tools import Tool, find_tool

app = group("What can be done, and doing it by hand.")

GRANT: Final = "opsmesh-grant-bin"
# The caller waits longer than the tool may take: the answer of a tool at its limit still arrives.
MARGIN_SECONDS: Final = 5.0

COLUMNS: list[Column] = [
    ("tool", lambda one: one.tool.rpartition("/")[2]),
    ("access", lambda one: cell(one.policy, "access")),
    ("risk", lambda one: cell(one.policy, "risk")),
    ("arguments", lambda one: ", ".join(_arguments(one.tool))),
    ("what it does", lambda one: one.policy.tool.summary),
    ("family", lambda one: one.tool.split(".")[2]),
]


@command(app, "list")
async def list_tools(session: Session, limit: Limit = 200, page_token: PageToken = "") -> None:
    """List the tools the gateway serves."""
    stub = gateway_grpc.CatalogServiceStub(session.channel("gateway"))
    request = gateway.ListToolsRequest(page_token=page_token)
    show_list(session, await pages(stub.ListTools, request, "tools", limit), "tools", COLUMNS)


def _arguments(name: str) -> list[str]:
    """Return the request fields that a person gives; nothing for a tool newer than this command."""
    try:
        method = policy.find_method(name)
    except ImportError:
        method = None
    return [one.name for one in method.input_type.fields if one.name != "request_id"] if method else []


@command(app, "call")
async def call_tool(
    session: Session,
    tool: Annotated[str, typer.Argument(help="Full name, or the bare RPC name where it is unique.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Request fields as key=value, or JSON.")] = None,
    json_request: Annotated[str, typer.Option("--json-request", help="The request as proto3 JSON.")] = "",
    incident: Annotated[str, typer.Option(help="The incident it is for.")] = "",
    preview: Annotated[bool, typer.Option("--preview", help="Only say what policy would say.")] = False,
    request_id: RequestId = "",
) -> None:
    """Call a tool; one that writes is locked, authorised, called and released."""
    chosen = find_tool(tool)
    request = build_request(chosen, arguments or [], json_request, request_id)
    context = guardrails.ActionContext(incident_id=incident)
    if preview:
        asked = guardrails.PreviewActionRequest(
            method=chosen.name, request_json=json_format.MessageToJson(request), context=context
        )
        stub = guardrails_grpc.GuardrailsServiceStub(session.channel("guardrails"))
        answer = await stub.PreviewAction(asked)
        print_json(answer) if session.as_json else _show_judgement(answer.judgement)
        return
    if chosen.policy.access == policy_pb2.ACCESS_READ:
        _show(session, await _call(session, chosen, request.SerializeToString(), ()))
        return
    async with _locked(session, chosen, request):
        grant, content = await _authorise(session, chosen, request, context)
        _show(session, await _call(session, chosen, content, ((GRANT, grant),)))


def build_request(tool: Tool, arguments: list[str], text: str, request_id: str) -> Message:
    """Return the request from key=value pairs or JSON, with a request_id. Raises UsageError that names the field."""
    fields = tool.request_class.DESCRIPTOR.fields_by_name
    values: dict[str, Any] = {}
    if not text and arguments and arguments[0].startswith("{"):
        text, *arguments = arguments
    if text:
        try:
            values = json.loads(text)
        except ValueError as error:
            raise UsageError(f"the request is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise UsageError("the request must be a JSON object of its fields")
    values |= field_values(tool, arguments)
    if "request_id" in fields and (request_id or not values.get("request_id")):
        values["request_id"] = request_id or str(uuid.uuid4())
    message = tool.request_class()
    try:
        json_format.ParseDict(values, message)
    except json_format.ParseError as error:
        raise UsageError(f"{error}\nNEXT: {tool.rpc} takes {', '.join(fields)}") from None
    return message


def field_values(tool: Tool, arguments: list[str]) -> dict[str, Any]:
    """Return the request fields that key=value pairs name, as JSON has them. Raises UsageError for any other word."""
    fields = tool.request_class.DESCRIPTOR.fields_by_name
    values: dict[str, Any] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        field = fields.get(name)
        if not equals or field is None:
            raise UsageError(f"{argument!r} is no key=value\nNEXT: {tool.rpc} takes {', '.join(fields)}")
        values[name] = _typed(field, value)
    return values


def _typed(field: Any, value: str) -> Any:
    """Return a value as JSON has it: texts and enum words as they are, everything else as JSON reads it."""
    if not field.is_repeated and field.type in (field.TYPE_STRING, field.TYPE_ENUM, field.TYPE_BYTES):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value  # ParseDict then names the field and what it wants


@asynccontextmanager
async def _locked(session: Session, tool: Tool, request: Message) -> AsyncIterator[None]:
    """Hold the target's lock as a person; tools that only inform, or have no target, need none."""
    target = getattr(request, tool.spec.target_field) if tool.spec.target_field else ""
    if not target or tool.policy.access == policy_pb2.ACCESS_INFORM:
        yield
        return
    stub = locks_grpc.TargetLockServiceStub(session.channel("guardrails"))
    asked = locks.AcquireLockRequest(request_id=str(uuid.uuid4()), target_id=target)
    asked.ttl_duration.seconds = min(60, int(policy.seconds(tool.spec.timeout_duration) + 2 * MARGIN_SECONDS))
    lock = (await stub.AcquireLock(asked)).lock
    try:
        yield
    finally:
        await stub.ReleaseLock(
            locks.ReleaseLockRequest(request_id=str(uuid.uuid4()), target_id=target, fence=lock.fence)
        )


async def _authorise(
    session: Session, tool: Tool, request: Message, context: guardrails.ActionContext
) -> tuple[bytes, bytes]:
    """Return the grant and the bytes it is for. Raises RefusedError with the four checks when there is none."""
    stub = guardrails_grpc.GuardrailsServiceStub(session.channel("guardrails"))
    answer = await stub.AuthorizeAction(
        guardrails.AuthorizeActionRequest(method=tool.name, request=request.SerializeToString(), context=context)
    )
    judgement = answer.judgement
    if answer.grant:
        return answer.grant, answer.request
    if session.as_json:
        print_json(answer)
    elif judgement.checks:
        _show_judgement(judgement)
    verdict = word(guardrails.Verdict.DESCRIPTOR, judgement.verdict)
    show = typed(session, "approvals", "show", answer.approval_id)
    steps = {
        guardrails.VERDICT_REQUIRE_APPROVAL: (
            f"a person must approve it; approval {answer.approval_id} is pending",
            f"{show}\nTHEN: once another person has approved it: {_again(session, tool, request, context)}",
        ),
        guardrails.VERDICT_OBSERVE: (
            "policy only observes: this would have happened",
            "turn the environment on in deploy/policies, then: opsmesh policies publish",
        ),
    }
    what, following = steps.get(judgement.verdict, (judgement.reason or "policy denies it", "opsmesh policies list"))
    where = f"{tool.name} on {judgement.target_id or 'no target'}, policy set {judgement.policy_set_version}"
    rule = f", rule {judgement.policy_rule_id}" if judgement.policy_rule_id else ""
    raise RefusedError(f"{verdict}: {what}\nWHERE: {where}{rule}\nNEXT: {following}")


def _again(session: Session, tool: Tool, request: Message, context: guardrails.ActionContext) -> str:
    """Return the command that makes exactly this call again: an approval is for these bytes, request id included."""
    content = json_format.MessageToDict(request, preserving_proto_field_name=True)
    incident = ("--incident", context.incident_id) if context.incident_id else ()
    return typed(session, "tools", "call", tool.rpc, json.dumps(content, ensure_ascii=False), *incident)


def _show_judgement(judgement: guardrails.Judgement) -> None:
    """Tell a person on stderr what the four checks said."""
    out = error_console()
    verdict = word(guardrails.Verdict.DESCRIPTOR, judgement.verdict)
    risk = word(policy_pb2.Risk.DESCRIPTOR, judgement.risk)
    out.print(Text(f"{verdict}, risk {risk}: {judgement.target_id} in {judgement.environment or 'no environment'}"))
    for check in judgement.checks:
        mark = "passed" if check.passed else "FAILED"
        out.print(Text(f"  {check.name:<8} {mark}  {check.detail}"))


async def _call(session: Session, tool: Tool, content: bytes, metadata: tuple[tuple[str, bytes], ...]) -> Message:
    """Send exactly these bytes to the gateway."""
    call = session.channel("gateway").unary_unary(
        f"/{tool.name}", request_serializer=bytes, response_deserializer=tool.response_class.FromString
    )
    timeout = policy.seconds(tool.policy.max_duration)
    answer: Message = await call(content, timeout=timeout, metadata=metadata)
    return answer


def _show(session: Session, answer: Message) -> None:
    """Show a tool's answer."""
    if session.as_json:
        print_json(answer)
        return
    content = json_format.MessageToDict(
        answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    for name, value in content.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if "\n" in shown:
            sys.stdout.write(f"{name}:\n")
            console().print(cell(shown, str))
        else:
            console().print(Text(f"{name}: "), cell(shown, str), sep="")
