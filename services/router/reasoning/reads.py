"""Reads for a decision: through the gateway, under the read grant that guardrails minted for it."""

import asyncio
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import grpc.aio
from google.protobuf.message import Message

from opsmesh.guardrails.v1 import guardrails_service_pb2, guardrails_service_pb2_grpc
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import from_rpc_error
from services.mesh.models.showing import Limits, show
from services.mesh.models.tool_calls import Parsed
from services.mesh.models.tool_schema import Offer, catalogue
from services.mesh.models.untrusted import Marks
from services.mesh.tool_caller import ToolCaller
from services.mesh.tools import Tool, find_tool, tools
from services.router.reasoning.reasoner import Read

CALL_SECONDS: Final = 10.0
# What the clocks of two machines may differ by, and a call may take.
EARLY: Final = 15.0
ANEW: Final = frozenset({error_reason_pb2.ERROR_REASON_GRANT_STALE, error_reason_pb2.ERROR_REASON_GRANT_INVALID})
LIMITS: Final = Limits(text=1500, total=10_000, items=30)


@dataclass(frozen=True, slots=True)
class Granted:
    """A read grant and what it is good for; `until` is on the monotonic clock."""

    grant: bytes
    methods: tuple[str, ...]
    targets: tuple[str, ...]
    until: float


class Gate(Protocol):
    """Who mints, and who calls. Raises grpc.aio.AioRpcError."""

    async def grant(self, decision_id: str, incident_id: str) -> Granted:
        """Return a read grant for a decision on an open incident."""

    async def call(self, tool: Tool, request: Message, grant: bytes) -> Message:
        """Read."""


class MeshGate:
    """Gate on guardrails and the gateway."""

    def __init__(
        self, guardrails: "guardrails_service_pb2_grpc.GuardrailsServiceAsyncStub", gateway: ToolCaller
    ) -> None:
        self._guardrails = guardrails
        self._gateway = gateway

    async def grant(self, decision_id: str, incident_id: str) -> Granted:
        """See Gate."""
        request = guardrails_service_pb2.AuthorizeReadsRequest(decision_id=decision_id, incident_id=incident_id)
        asked = time.monotonic()
        answer = await self._guardrails.AuthorizeReads(request)
        life = answer.expire_time.ToNanoseconds() / 1e9 - time.time()
        return Granted(answer.grant, tuple(answer.methods), tuple(answer.target_ids), asked + life - EARLY)

    async def call(self, tool: Tool, request: Message, grant: bytes) -> Message:
        """See Gate."""
        return await self._gateway.call(tool, request.SerializeToString(), CALL_SECONDS, grant)


class DecisionReads:
    """The reads of one decision; its grant is asked for when it is first needed, and again when it is void."""

    def __init__(self, gate: Gate, decision_id: str, incident_id: str) -> None:
        self._gate = gate
        self._decision_id = decision_id
        self._incident_id = incident_id
        self._lock = asyncio.Lock()
        self._granted: Granted | None = None

    async def granted(self) -> Granted:
        """Return a grant that holds. Raises grpc.aio.AioRpcError."""
        async with self._lock:
            if self._granted is None or self._granted.until < time.monotonic():
                self._granted = await self._gate.grant(self._decision_id, self._incident_id)
            return self._granted

    async def offers(self) -> Mapping[str, Offer]:
        """Return what may be read, as a model is offered it. Raises grpc.aio.AioRpcError."""
        granted = await self.granted()
        known = tools()
        return catalogue((known[name] for name in granted.methods if name in known), targets=granted.targets)

    async def call(self, name: str, request: Message) -> Message:
        """Read with a tool. Raises grpc.aio.AioRpcError."""
        tool = find_tool(name)
        granted = await self.granted()
        try:
            return await self._gate.call(tool, request, granted.grant)
        except grpc.aio.AioRpcError as error:
            refusal = from_rpc_error(error)
            if refusal is None or refusal.reason not in ANEW:
                raise
            # Once: the policies were published again, or the grant ran out on the way.
            self._granted = None
            return await self._gate.call(tool, request, (await self.granted()).grant)

    async def read(self, wanted: Parsed, marks: Marks) -> Read:
        """Do a read that a model asked for; what fails is an answer, too (see Reader)."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                answer = await self.call(wanted.offer.method, wanted.request)
        except TimeoutError:
            return Read("", reason="DEADLINE_EXCEEDED")
        except grpc.aio.AioRpcError as error:
            refusal = from_rpc_error(error)
            return Read("", reason=refusal.name if refusal else error.code().name)
        shown = show(answer, marks, LIMITS).text
        return Read(shown, hashlib.sha256(shown.encode()).hexdigest())
