"""The gateway's own services: the catalog of tools, and the effects with their settlement by a person."""

import uuid
from datetime import datetime
from typing import Any, Final

from opsmesh.gateway.v1 import (
    catalog_service_pb2,
    catalog_service_pb2_grpc,
    effect_service_pb2,
    effect_service_pb2_grpc,
)
from opsmesh.type.v1 import error_reason_pb2
from services.gateway import catalog, domain
from services.gateway.domain import Effect, Ending, Key, State
from services.gateway.resolver import Resolver
from services.gateway.store import EffectStore, Filter, settle
from services.gateway.tools.toolbox import Toolbox
from services.mesh import paging
from services.mesh.call import current
from services.mesh.errors import Refusal
from services.mesh.postgres import Connection
from services.mesh.writes import Subject, Writes

STATE_PREFIX: Final = "STATE_"


class CatalogServicer(catalog_service_pb2_grpc.CatalogServiceServicer):
    """Says what tools there are."""

    def __init__(self, toolbox: Toolbox) -> None:
        self._tools = [catalog.describe(tool) for tool in toolbox.tools()]

    async def ListTools(  # noqa: N802
        self, request: catalog_service_pb2.ListToolsRequest, _context: Any
    ) -> catalog_service_pb2.ListToolsResponse:
        """List the tools by name."""
        position, size = paging.read_token(request, str), paging.page_size(request.page_size)
        left = [one for one in self._tools if position is None or one.tool > position[0]]
        more = paging.write_token(request, left[size - 1].tool) if len(left) > size else ""
        return catalog_service_pb2.ListToolsResponse(tools=left[:size], next_page_token=more)


class EffectServicer(effect_service_pb2_grpc.EffectServiceServicer):
    """Reads and settles effects."""

    def __init__(self, store: EffectStore, resolver: Resolver, writes: Writes) -> None:
        self._store = store
        self._resolver = resolver
        self._writes = writes

    async def GetEffect(  # noqa: N802
        self, request: effect_service_pb2.GetEffectRequest, _context: Any
    ) -> effect_service_pb2.GetEffectResponse:
        """Read one effect; one past its deadline is resolved first."""
        key = Key(request.method, uuid.UUID(request.request_id))
        await self._resolver.resolve(key)
        return effect_service_pb2.GetEffectResponse(effect=to_proto(existing(await self._store.read(key), key)))

    async def ListEffects(  # noqa: N802
        self, request: effect_service_pb2.ListEffectsRequest, _context: Any
    ) -> effect_service_pb2.ListEffectsResponse:
        """List effects, newest first."""
        position, size = paging.read_token(request, datetime, str, uuid.UUID), paging.page_size(request.page_size)
        state = State(_state_name(request.state)) if request.state else None
        found = await self._store.page(Filter(state, request.target_id, request.execution_id, position), size + 1)
        more = ""
        if len(found) > size:
            last = found[size - 1]
            more = paging.write_token(request, last.start_time, last.key.method, last.key.request_id)
        effects = [to_proto(effect) for effect in found[:size]]
        return effect_service_pb2.ListEffectsResponse(effects=effects, next_page_token=more)

    async def SettleEffect(  # noqa: N802
        self, request: effect_service_pb2.SettleEffectRequest, _context: Any
    ) -> effect_service_pb2.SettleEffectResponse:
        """Write how a person says an UNKNOWN effect ended."""
        key = Key(request.method, uuid.UUID(request.effect_request_id))
        effect = existing(await self._store.read(key), key)
        reason = domain.plain(request.reason, domain.DETAIL_MAX)
        subject = Subject(
            target=effect.target_id,
            environment=effect.environment,
            incident_id=effect.incident_id,
            execution_id=effect.execution_id,
            step_id=effect.step_id,
            detail={
                "effect_method": key.method,
                "effect_request_id": str(key.request_id),
                "effect": _state_name(request.state),
                "reason": reason,
            },
        )
        settler = current().identity
        ending = settled(State(_state_name(request.state)), f"settled by {settler}: {reason}")

        async def change(connection: Connection) -> effect_service_pb2.SettleEffectResponse:
            changed, was_unknown = await settle(connection, key, ending, settler)
            found = existing(changed, key)
            if not was_unknown:
                raise Refusal(
                    error_reason_pb2.ERROR_REASON_CONFLICT,
                    resource="effect",
                    id=str(key.request_id),
                    state=found.state.value,
                )
            return effect_service_pb2.SettleEffectResponse(effect=to_proto(found))

        return await self._writes.once(request, effect_service_pb2.SettleEffectResponse, change, subject)


def settled(state: State, detail: str) -> Ending:
    """Return what a person says as an ending."""
    return domain.failed(detail) if state is State.FAILED else domain.succeeded(b"", detail[: domain.DETAIL_MAX])


def existing(effect: Effect | None, key: Key) -> Effect:
    """Return the effect, or refuse with NOT_FOUND."""
    if effect is None:
        raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="effect", id=str(key.request_id))
    return effect


def to_proto(effect: Effect) -> effect_service_pb2.Effect:
    """Return an effect as the IDL says it."""
    message = effect_service_pb2.Effect(
        method=effect.key.method,
        request_id=str(effect.key.request_id),
        state=effect_service_pb2.Effect.State.Value(STATE_PREFIX + effect.state.value),
        caller=effect.caller,
        target_id=effect.target_id,
        environment=effect.environment,
        fence=effect.fence,
        incident_id=effect.incident_id,
        execution_id=effect.execution_id,
        step_id=effect.step_id,
        reason=effect.reason,
        detail=effect.detail,
        settler=effect.settler,
    )
    message.start_time.FromDatetime(effect.start_time)
    message.deadline_time.FromDatetime(effect.deadline_time)
    if effect.end_time:
        message.end_time.FromDatetime(effect.end_time)
    return message


def _state_name(state: "effect_service_pb2.Effect.State.ValueType") -> str:
    """Return the name of a state without its prefix."""
    return effect_service_pb2.Effect.State.Name(state).removeprefix(STATE_PREFIX)
