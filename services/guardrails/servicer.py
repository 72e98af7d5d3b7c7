"""GuardrailsService: proto in, proto out."""
# ruff: noqa: N802  the names are those of the IDL

from typing import Any

from opsmesh.guardrails.v1 import guardrails_service_pb2 as pb
from opsmesh.guardrails.v1 import guardrails_service_pb2_grpc as rpc
from services.guardrails.authority import Authority
from services.guardrails.checks import HUMAN
from services.guardrails.judgement import Asked
from services.guardrails.runs.reads import Reads
from services.guardrails.runs.registry import Registry
from services.mesh.call import current


class GuardrailsServicer(rpc.GuardrailsServiceServicer):
    """Judges every action before it happens."""

    def __init__(self, authority: Authority, registry: Registry, reads: Reads) -> None:
        self._authority = authority
        self._registry = registry
        self._reads = reads

    async def AuthorizeAction(self, request: pb.AuthorizeActionRequest, _: Any) -> pb.AuthorizeActionResponse:
        """Judge, and mint a grant where policy allows it."""
        caller = current().identity
        payload = request.request if request.HasField("request") else request.request_json
        return await self._authority.authorize(
            Asked(request.method, payload, caller, context_of(request.context, caller))
        )

    async def RegisterRun(self, request: pb.RegisterRunRequest, _: Any) -> pb.RegisterRunResponse:
        """Bind a run once and for ever."""
        return await self._registry.register(request)

    async def EndRun(self, request: pb.EndRunRequest, _: Any) -> pb.EndRunResponse:
        """End a run."""
        return await self._registry.end(request)

    async def AuthorizeReads(self, request: pb.AuthorizeReadsRequest, _: Any) -> pb.AuthorizeReadsResponse:
        """Mint a read grant."""
        return await self._reads.authorize(request)

    async def PreviewAction(self, request: pb.PreviewActionRequest, _: Any) -> pb.PreviewActionResponse:
        """Judge, for the caller or as if another had asked, and change nothing."""
        caller = request.caller or current().identity
        context = context_of(request.context, caller)
        asked = Asked(request.method, request.request_json, caller, context, binding=False)
        return pb.PreviewActionResponse(judgement=await self._authority.preview(asked))


def context_of(context: pb.ActionContext, caller: str) -> pb.ActionContext:
    """Return what a caller may say about where an action comes from: a person acts in no execution's name."""
    if caller.startswith(HUMAN):
        return pb.ActionContext(incident_id=context.incident_id)
    return context
