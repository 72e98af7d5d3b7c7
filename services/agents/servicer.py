"""ModelService: asks models through the boundary, and says which there are."""
# ruff: noqa: N802  the names are those of the IDL

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final

from opsmesh.agents.v1 import model_service_pb2, model_service_pb2_grpc
from services.agents.boundary import Boundary
from services.agents.breaker import State
from services.agents.domain import Endpoint
from services.agents.messages import BREAKERS
from services.agents.store import DAY, INCIDENT, REQUESTER, Ledger, Left

pb = model_service_pb2
SCOPES: Final = {
    DAY: pb.Budget.SCOPE_DAY,
    INCIDENT: pb.Budget.SCOPE_INCIDENT,
    REQUESTER: pb.Budget.SCOPE_REQUESTER,
}


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    """The model boundary as a service."""

    def __init__(self, boundary: Boundary, ledger: Ledger) -> None:
        self._boundary = boundary
        self._ledger = ledger
        self._asking: set[asyncio.Task[pb.GenerateResponse]] = set()

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:
        """Let the model of a role answer; a caller that dies meanwhile finds the answer when it asks again."""
        del context
        asking = asyncio.ensure_future(self._boundary.generate(request))
        self._asking.add(asking)
        asking.add_done_callback(self._asked)
        return await asyncio.shield(asking)

    def _asked(self, asking: "asyncio.Task[pb.GenerateResponse]") -> None:
        """Let go of what has ended; whoever waits for it has its refusal."""
        self._asking.discard(asking)
        if not asking.cancelled():
            asking.exception()

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        """List the roles, their models and what is left; no model to ask now is automation only, and why."""
        del context
        left = await self._ledger.left(request.incident_id, request.requester)
        alone = why_alone(self._boundary, left)
        response = pb.ListModelsResponse(automation_only=bool(alone), automation_only_reason=alone[:512])
        for role, endpoints in self._boundary.models.roles.items():
            response.models.extend(self._model(role, index, one) for index, one in enumerate(endpoints))
        response.budgets.extend(_budget(one) for one in left)
        return response

    def _model(self, role: str, index: int, endpoint: Endpoint) -> pb.Model:
        """Return one model and how its provider does."""
        breaker = self._boundary.breakers[endpoint.provider]
        model = pb.Model(
            role=role,
            model=endpoint.model,
            provider=endpoint.provider,
            fallback_index=index,
            breaker_state=BREAKERS[breaker.state],
            last_failure=breaker.last_failure[:300],
            recorded=bool(endpoint.replays),
            recording=bool(endpoint.records),
        )
        if breaker.state is State.OPEN:
            model.retry_time.FromNanoseconds(int((time.time() + breaker.seconds_left) * 1e9))
        return model


def why_alone(boundary: Boundary, left: Sequence[Left]) -> str:
    """Return why no model can be asked now; empty when one can."""
    roles = boundary.models.roles
    if not roles:
        return "no model is configured: see deploy/models.yaml"
    for one in left:
        if not one.tokens or (one.limit.cost_micros and not one.cost_micros):
            return f"the model budget of {one.scope.lower()} {one.subject} is used up".replace("  ", " ")
    if any(boundary.available(endpoint) for endpoints in roles.values() for endpoint in endpoints):
        return ""
    names = sorted({endpoint.provider for endpoints in roles.values() for endpoint in endpoints})
    said = "; ".join(f"{name}: {boundary.breakers[name].last_failure}" for name in names)
    return f"every provider failed and is left alone for a while: {said}"


def _budget(left: Left) -> pb.Budget:
    """Return one budget."""
    return pb.Budget(
        scope=SCOPES[left.scope],
        subject=left.subject,
        token_limit=left.limit.tokens,
        tokens_left=left.tokens,
        cost_limit_micros=left.limit.cost_micros,
        cost_left_micros=left.cost_micros,
    )
