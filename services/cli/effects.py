"""`opsmesh effects`: what was done, once each."""

import uuid
from typing import Annotated

import typer

from opsmesh.gateway.v1 import effect_service_pb2 as gateway
from opsmesh.gateway.v1 import effect_service_pb2_grpc as gateway_grpc
from services.cli.command import Limit, PageToken, RequestId, command, group
from services.cli.output import Column, show_list, show_one
from services.cli.session import Session, UsageError, pages
from services.mesh.tools import find_tool

app = group("What was done, once each.")

COLUMNS: list[Column] = [
    ("tool", lambda one: one.method.rpartition("/")[2]),
    ("request", "request_id"),
    ("state", "state"),
    ("target", "target_id"),
    ("caller", "caller"),
    ("started", "start_time"),
    ("ended", "end_time"),
    ("detail", lambda one: f"{one.reason} {one.detail}".strip()),
]


@command(app, "list")
async def list_effects(
    session: Session,
    target: Annotated[str, typer.Option(help="Only this target.")] = "",
    execution: Annotated[str, typer.Option(help="Only this execution.")] = "",
    unknown: Annotated[bool, typer.Option("--unknown", help="Only those that a person must settle.")] = False,
    limit: Limit = 50,
    page_token: PageToken = "",
) -> None:
    """List effects, newest first."""
    request = gateway.ListEffectsRequest(
        page_token=page_token,
        target_id=target,
        execution_id=execution,
        state=gateway.Effect.STATE_UNKNOWN if unknown else gateway.Effect.STATE_UNSPECIFIED,
    )
    stub = gateway_grpc.EffectServiceStub(session.channel("gateway"))
    show_list(session, await pages(stub.ListEffects, request, "effects", limit), "effects", COLUMNS)


@command(app, "settle")
async def settle_effect(
    session: Session,
    tool: str,
    effect_request_id: str,
    outcome: Annotated[str, typer.Option("--as-outcome", help="succeeded or failed.")],
    reason: Annotated[str, typer.Option(help="How you know.")],
    request_id: RequestId = "",
) -> None:
    """Say how an UNKNOWN effect ended."""
    states = {"succeeded": gateway.Effect.STATE_SUCCEEDED, "failed": gateway.Effect.STATE_FAILED}
    if outcome not in states:
        raise UsageError("--as-outcome is succeeded or failed")
    request = gateway.SettleEffectRequest(
        request_id=request_id or str(uuid.uuid4()),
        method=find_tool(tool).name,
        effect_request_id=effect_request_id,
        state=states[outcome],
        reason=reason,
    )
    stub = gateway_grpc.EffectServiceStub(session.channel("gateway"))
    show_one(session, (await stub.SettleEffect(request)).effect, COLUMNS)
