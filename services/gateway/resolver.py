"""Ends effects whose outcome was lost: no audit intent, then nothing happened; an intent, then the tool is asked."""

import asyncio
from typing import Final

import structlog

from opsmesh.policy.v1 import policy_pb2
from services.gateway.domain import (
    CLAIM_SECONDS,
    RESOLVE_TRIES_MAX,
    Effect,
    Ending,
    Key,
    State,
    intent_id,
    not_started,
    unknown,
)
from services.gateway.record import AuditPort, Try
from services.gateway.store import EffectStore
from services.gateway.tools.toolbox import Toolbox
from services.mesh.call import working
from services.mesh.errors import Refusal

IDENTITY: Final = "service/gateway"
BATCH: Final = 16
ASK_SECONDS: Final = CLAIM_SECONDS / 2
PAUSE_MAX: Final = 30.0
LOST: Final = not_started("", "it ended before its intent was recorded")
log = structlog.get_logger("opsmesh.gateway.resolver")


class Resolver:
    """Resolves one effect at a time; several at once stand in nobody's way."""

    def __init__(self, store: EffectStore, audit: AuditPort, toolbox: Toolbox) -> None:
        self._store = store
        self._audit = audit
        self._toolbox = toolbox

    async def sweep(self) -> None:
        """Worker: resolve what is due."""
        effects = await self._store.claim_due(BATCH)
        if effects:
            await asyncio.gather(*(self._resolve(effect) for effect in effects))

    async def resolve(self, key: Key) -> None:
        """Resolve an effect on demand, unless it is not due or somebody else does."""
        if effect := await self._store.claim(key):
            await self._resolve(effect)

    async def _resolve(self, effect: Effect) -> None:
        """End a claimed effect, or ask again later."""
        with working(IDENTITY, effect.key.method, ASK_SECONDS, request_id=str(effect.key.request_id)):
            try:
                intended = await self._intended(effect)
            except Refusal:
                # Without audit nothing can be said; it comes back by itself, so this is not counted.
                await self._store.postpone(effect.key, effect.tries, 1.0, counted=False)
                return
            ending = LOST if intended is False else await self._ask(effect)
        if ending is None:
            pause = min(PAUSE_MAX, 2.0**effect.resolve_tries)
            await self._store.postpone(effect.key, effect.tries, pause, counted=True)
            return
        attempt, events = Try.of(effect), []
        if intended:
            events.append(attempt.outcome(ending))
        elif ending.state is not State.NOT_STARTED:
            events.append(attempt.record(ending))
        if await self._store.end(effect.key, effect.tries, ending, events):
            found = {"method": effect.key.method, "request_id": str(effect.key.request_id)}
            log.info("resolved", state=ending.state.value, **found)

    async def _intended(self, effect: Effect) -> bool | None:
        """Say whether audit holds the intent of this try; None for tools that need none."""
        served = self._toolbox.get(effect.key.method)
        if served and served.tool.policy.audit != policy_pb2.AUDIT_MODE_INTENT:
            return None
        return await self._audit.exists(str(intent_id(effect.key, effect.tries)))

    async def _ask(self, effect: Effect) -> Ending | None:
        """Ask the tool how it ended; None when it cannot tell yet, UNKNOWN when it was asked often enough."""
        implementation = self._toolbox.get(effect.key.method)
        if implementation is None:
            return unknown("this gateway does not serve the tool any more")
        if implementation.resolve is None:
            return unknown("this tool cannot tell")
        request = implementation.tool.request_class.FromString(effect.request)
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await implementation.resolve(request, Try.of(effect).grant.precondition)
        except Exception as error:  # noqa: BLE001  whatever went wrong: it could not be told
            log.warning("cannot tell how it ended", method=effect.key.method, error=repr(error))
        if effect.resolve_tries + 1 < RESOLVE_TRIES_MAX:
            return None
        return unknown("its backend did not say how it ended")
