"""What guardrails reads at other services before it judges: the state an effect relies on, and the incident."""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

import grpc
import grpc.aio

from opsmesh.gateway.v1 import effect_service_pb2 as effect_pb
from opsmesh.gateway.v1 import effect_service_pb2_grpc as effect_rpc
from opsmesh.ingest.v1 import ingest_service_pb2 as ingest_pb
from opsmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_rpc
from opsmesh.type.v1 import error_reason_pb2
from services.guardrails.checks import Incident
from services.mesh import policy, precondition
from services.mesh.client import refusal_of
from services.mesh.errors import Refusal
from services.mesh.tools import Tool

# How old what is known of an incident may be, in seconds.
INCIDENT_SECONDS: Final = 2.0
INCIDENTS_MAX: Final = 1024
INCIDENT_READ_SECONDS: Final = 3.0
EFFECT_READ_SECONDS: Final = 3.0
VALUE_MAX: Final = 256
OVER: Final = frozenset({ingest_pb.Incident.STATE_RESOLVED, ingest_pb.Incident.STATE_STALE})
# A peer that is away now may be back at the next try; every other answer is final.
PASSING: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
)


class PeerTrouble(Exception):  # noqa: N818  it becomes the finding of a check
    """A peer did not tell; `passing` says whether asking again may help."""

    def __init__(self, refusal: Refusal, *, passing: bool) -> None:
        self.refusal = refusal
        self.passing = passing
        super().__init__(str(refusal))


class Surroundings(Protocol):
    """The reads that a judgement rests on; both raise PeerTrouble."""

    async def precondition(self, tool: Tool, target_id: str) -> Mapping[str, str]:
        """Return the fields that must not change before the act, as text; empty for tools without them."""

    async def incident(self, incident_id: str) -> Incident | None:
        """Return an incident, or None when there is none of that id."""

    async def begun(self, method: str, request_id: str) -> bool:
        """Say whether the gateway has begun the effect of a request, whatever became of it."""


class Mesh:
    """Reads at the gateway and at ingest; `clock` is monotonic, in seconds."""

    def __init__(
        self, gateway: grpc.aio.Channel, ingest: grpc.aio.Channel, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._gateway = gateway
        self._effects = effect_rpc.EffectServiceStub(gateway)
        self._ingest = ingest_rpc.IngestServiceStub(ingest)
        self._clock = clock
        self._reads: dict[str, Callable[..., Awaitable[Any]]] = {}
        self._incidents: OrderedDict[str, tuple[float, Incident]] = OrderedDict()

    async def precondition(self, tool: Tool, target_id: str) -> Mapping[str, str]:
        """Call the tool's precondition read at the gateway."""
        read = precondition.read_of(tool, target_id)
        if read is None:
            return {}
        reader, request = read
        if reader.name not in self._reads:
            self._reads[reader.name] = self._gateway.unary_unary(
                f"/{reader.name}",
                request_serializer=reader.request_class.SerializeToString,
                response_deserializer=reader.response_class.FromString,
            )
        try:
            response = await self._reads[reader.name](request, timeout=policy.seconds(reader.spec.timeout_duration))
        except grpc.aio.AioRpcError as error:
            raise trouble(error, "the gateway") from None
        found = precondition.snapshot(response, tool.spec.precondition_fields)
        if any(len(value) > VALUE_MAX for value in found.values()):
            too_long = Refusal(error_reason_pb2.ERROR_REASON_INVALID_ARGUMENT)
            raise PeerTrouble(too_long, passing=False)
        return found

    async def incident(self, incident_id: str) -> Incident | None:
        """Ask ingest, or remember what it said less than two seconds ago."""
        known = self._incidents.get(incident_id)
        if known and self._clock() - known[0] < INCIDENT_SECONDS:
            return known[1]
        asked = self._clock()
        request = ingest_pb.GetIncidentRequest(incident_id=incident_id)
        try:
            answer = await self._ingest.GetIncident(request, timeout=INCIDENT_READ_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise trouble(error, "ingest") from None
        found = Incident(
            incident_id=incident_id,
            is_open=answer.incident.state not in OVER,
            targets=frozenset(target.target_id for target in answer.incident.targets if target.in_inventory),
            source=answer.incident.source,
            labels=dict(answer.incident.labels),
        )
        self._incidents[incident_id] = (asked, found)
        self._incidents.move_to_end(incident_id)
        while len(self._incidents) > INCIDENTS_MAX:
            self._incidents.popitem(last=False)
        return found

    async def begun(self, method: str, request_id: str) -> bool:
        """Ask the gateway's own table of effects."""
        request = effect_pb.GetEffectRequest(method=method, request_id=request_id)
        try:
            answer = await self._effects.GetEffect(request, timeout=EFFECT_READ_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return False
            raise trouble(error, "the gateway") from None
        return bool(answer.effect.state != effect_pb.Effect.STATE_NOT_STARTED)


def trouble(error: grpc.aio.AioRpcError, peer: str) -> PeerTrouble:
    """Return why a peer did not tell: its own refusal, or its silence."""
    refusal = refusal_of(error)
    if refusal is None:
        refusal = Refusal(error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE, store=peer)
    return PeerTrouble(refusal, passing=error.code() in PASSING)
