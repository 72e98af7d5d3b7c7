"""Hand-written peers of the router's reasoning: a model that answers as a test says, agents, guardrails, tools."""
# ruff: noqa: N802  the names are those of the IDL

import asyncio
import json
import time
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any

from opsmesh.agents.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    model_service_pb2,
    template_service_pb2,
    template_service_pb2_grpc,
)
from opsmesh.config.v1 import inventory_pb2, policies_pb2, templates_pb2
from opsmesh.guardrails.v1 import (
    guardrails_service_pb2,
    guardrails_service_pb2_grpc,
    policy_service_pb2,
    policy_service_pb2_grpc,
)
from opsmesh.tools.change.v1 import change_tool_service_pb2, change_tool_service_pb2_grpc
from opsmesh.tools.runbook.v1 import runbook_tool_service_pb2, runbook_tool_service_pb2_grpc
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.call import current
from services.mesh.errors import Refusal
from services.mesh.tool_caller import GRANT_KEY
from tests.router import fakes

Run = agent_service_pb2.Run
Request = model_service_pb2.GenerateRequest
Response = model_service_pb2.GenerateResponse
Reply = Callable[[Request], Response]
TARGET = "svc:demo/checkout"
GRANT = b"a read grant"
READS = (
    "opsmesh.tools.runbook.v1.RunbookToolService/SearchRunbooks",
    "opsmesh.tools.runbook.v1.RunbookToolService/ReadRunbook",
    "opsmesh.tools.change.v1.ChangeToolService/ListChanges",
)


def call(arguments: Any, name: str = "decide", call_id: str = "") -> model_service_pb2.ToolCall:
    """Return a call of a tool."""
    said = arguments if isinstance(arguments, str) else json.dumps(arguments, separators=(",", ":"))
    return model_service_pb2.ToolCall(call_id=call_id or uuid.uuid4().hex, name=name, arguments_json=said)


def reply(*calls: model_service_pb2.ToolCall) -> Response:
    """Return a reply that cost something."""
    made = Response(
        tool_calls=calls,
        finish=Response.FINISH_TOOL_CALLS,
        usage=model_service_pb2.Usage(input_tokens=900, output_tokens=50),
        cost_micros=440,
        model="openai/tiny",
        provider="here",
        prompt_digest="ab" * 32,
        attempt_count=1,
    )
    made.latency_duration.FromMilliseconds(120)
    return made


def says(detail: dict[str, Any], confidence: float = 0.8, reason: str = "it looks like it") -> Response:
    """Return a reply with one outcome."""
    return reply(call({"confidence": confidence, "reason": reason, "detail": detail}))


RESTART = {"trigger_automation": {"playbook_id": "restart-workload"}}
DIAGNOSE = {"delegate_agent": {"template_id": "diagnose-repair", "target_ids": [TARGET], "goal": "find out why"}}
SEARCH = {
    "gather_context": {"reads": [{"tool": "runbook_SearchRunbooks", "arguments": json.dumps({"query": "checkout"})}]}
}
ASK = {"ask_human": {"question": "Is a migration planned?", "answer": {"yes_no": {}}}}
RESPOND = {"respond": {"text": "Nothing is wrong.", "references": ["runbook:checkout-down"]}}


class ScriptedModels(fakes.FakeModels):
    """Has no model until `replies` are set: the next one answers, the last one for ever.

    A reply is kept by request_id, as the real boundary does; `paid` are the requests that asked a model. While `open`
    is not set every call hangs; `away` refuses, and `answering` holds replies back after they were paid for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answering = asyncio.Event()
        self.answering.set()
        self.generated = asyncio.Event()
        self.replies: deque[Response | Refusal | Reply] = deque()
        self.away: Refusal | None = None
        self.exhausted: set[str] = set()
        self.asked: list[Request] = []
        self.paid: list[tuple[float, Request]] = []
        self.kept: dict[str, tuple[bytes, Response]] = {}
        self.listed = 0

    def will(self, *replies: "Response | Refusal | Reply") -> None:
        """Set what it says from now on."""
        self.replies = deque(replies)

    async def ListModels(  # type: ignore[override]  # gRPC passes both by their place
        self, request: Any, _: Any
    ) -> model_service_pb2.ListModelsResponse:
        """Say whether there is one."""
        self.entered.set()
        self.listed += 1
        await self.open.wait()
        alone = not self.replies or self.away is not None or request.incident_id in self.exhausted
        reason = "the model budget of incident is used up" if request.incident_id in self.exhausted else ""
        return model_service_pb2.ListModelsResponse(automation_only=alone, automation_only_reason=reason)

    async def Generate(self, request: Request, _: Any) -> Response:
        """Answer, once per request_id."""
        await self.open.wait()
        self.asked.append(request)
        content = request.SerializeToString(deterministic=True)
        if request.request_id in self.kept:
            known, response = self.kept[request.request_id]
            if known != content:
                raise Refusal(error_reason_pb2.ERROR_REASON_REQUEST_ID_REUSED, request_id=request.request_id)
            return response
        if self.away:
            raise self.away
        if not self.replies:
            detail = "no model is configured for it"
            raise Refusal(error_reason_pb2.ERROR_REASON_MODEL_UNAVAILABLE, role=request.role, detail=detail)
        self.paid.append((time.monotonic(), request))
        following = self.replies.popleft() if len(self.replies) > 1 else self.replies[0]
        if isinstance(following, Refusal):
            raise following
        response = following if isinstance(following, Response) else following(request)
        self.kept[request.request_id] = (content, response)
        self.generated.set()
        await self.answering.wait()
        return response

    @property
    def prompts(self) -> list[str]:
        """Return all that the model was told, by call."""
        return ["\n".join([request.system, *(one.text for one in request.messages)]) for _, request in self.paid]


class FakeAgents(agent_service_pb2_grpc.AgentServiceServicer):
    """Starts runs once per request_id; `refusal` refuses, `lost` answers are lost after the work was done."""

    def __init__(self) -> None:
        self.refusal: Refusal | None = None
        self.lost = 0
        self.requests: list[agent_service_pb2.StartRunRequest] = []
        self.runs: dict[str, Run] = {}
        self.contents: dict[str, bytes] = {}

    async def StartRun(self, request: agent_service_pb2.StartRunRequest, _: Any) -> agent_service_pb2.StartRunResponse:
        """Start, or answer again."""
        self.requests.append(request)
        if self.refusal:
            raise self.refusal
        content = request.SerializeToString(deterministic=True)
        if self.contents.setdefault(request.request_id, content) != content:
            raise Refusal(error_reason_pb2.ERROR_REASON_REQUEST_ID_REUSED, request_id=request.request_id)
        if request.request_id not in self.runs:
            self.runs[request.request_id] = Run(
                run_id=str(uuid.uuid4()),
                template_id=request.template_id,
                decision_id=request.decision_id,
                target_ids=request.target_ids,
                state=Run.STATE_PENDING,
            )
        if self.lost:
            self.lost -= 1
            raise Refusal(error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE, store="PostgreSQL")
        return agent_service_pb2.StartRunResponse(run=self.runs[request.request_id])

    async def GetRun(self, request: agent_service_pb2.GetRunRequest, _: Any) -> agent_service_pb2.GetRunResponse:
        """Read."""
        for run in self.runs.values():
            if run.run_id == request.run_id:
                return agent_service_pb2.GetRunResponse(run=run)
        raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="run", id=request.run_id)

    async def ListRuns(self, _: Any, __: Any) -> agent_service_pb2.ListRunsResponse:
        """Answer nothing: not asked by the router."""
        return agent_service_pb2.ListRunsResponse()

    async def CancelRun(self, _: Any, __: Any) -> agent_service_pb2.CancelRunResponse:
        """Answer nothing: not asked by the router."""
        return agent_service_pb2.CancelRunResponse()


class FakeTemplates(template_service_pb2_grpc.TemplateServiceServicer):
    """Has the templates in `names`; those in `changed` are disabled."""

    def __init__(self) -> None:
        self.names = ["diagnose-repair", "escalate"]
        self.changed: set[str] = set()

    async def ListTemplates(self, _: Any, __: Any) -> template_service_pb2.ListTemplatesResponse:
        """List."""
        return template_service_pb2.ListTemplatesResponse(
            templates=[
                template_service_pb2.TemplateVersion(
                    template_id=name,
                    version=1,
                    template=templates_pb2.AgentTemplate(template_id=name, title=f"does {name}"),
                    changed_tools=["workload_RestartWorkload"] if name in self.changed else [],
                )
                for name in self.names
            ]
        )

    async def GetTemplate(self, _: Any, __: Any) -> template_service_pb2.GetTemplateResponse:
        """Refuse: not asked by the router."""
        raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="template", id="")

    async def PublishTemplate(self, _: Any, __: Any) -> template_service_pb2.PublishTemplateResponse:
        """Refuse: not asked by the router."""
        raise Refusal(error_reason_pb2.ERROR_REASON_TEMPLATE_INVALID)


class FakeGuardrails(guardrails_service_pb2_grpc.GuardrailsServiceServicer):
    """Mints read grants; refuses everything else, as the real one does for the router."""

    def __init__(self) -> None:
        self.reads: list[guardrails_service_pb2.AuthorizeReadsRequest] = []
        self.actions = 0

    async def AuthorizeReads(
        self, request: guardrails_service_pb2.AuthorizeReadsRequest, _: Any
    ) -> guardrails_service_pb2.AuthorizeReadsResponse:
        """Mint."""
        self.reads.append(request)
        made = guardrails_service_pb2.AuthorizeReadsResponse(grant=GRANT, methods=READS, target_ids=[TARGET])
        made.expire_time.FromSeconds(int(time.time()) + 300)
        return made

    async def AuthorizeAction(self, _: Any, __: Any) -> guardrails_service_pb2.AuthorizeActionResponse:
        """Count, and refuse: the router may never."""
        self.actions += 1
        raise Refusal(error_reason_pb2.ERROR_REASON_PERMISSION_DENIED, identity="service/router", permission="x")

    async def PreviewAction(self, _: Any, __: Any) -> guardrails_service_pb2.PreviewActionResponse:
        """Answer nothing: not asked by the router."""
        return guardrails_service_pb2.PreviewActionResponse()

    async def RegisterRun(self, _: Any, __: Any) -> guardrails_service_pb2.RegisterRunResponse:
        """Answer nothing: not asked by the router."""
        return guardrails_service_pb2.RegisterRunResponse()

    async def EndRun(self, _: Any, __: Any) -> guardrails_service_pb2.EndRunResponse:
        """Answer nothing: not asked by the router."""
        return guardrails_service_pb2.EndRunResponse()


class FakePolicies(policy_service_pb2_grpc.PolicyServiceServicer):
    """Has a policy set with an inventory; hangs while `open` is not set."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()

    async def GetPolicySet(self, _: Any, __: Any) -> policy_service_pb2.GetPolicySetResponse:
        """Show."""
        await self.open.wait()
        rule = policies_pb2.PolicyRule(rule_id="demo-writes", match=policies_pb2.PolicyMatch(environments=["demo"]))
        entry = inventory_pb2.InventoryEntry(target_id=TARGET, kind="service", environment="demo", owners=["shop"])
        return policy_service_pb2.GetPolicySetResponse(
            policy_set=policy_service_pb2.PolicySetVersion(
                version=4,
                policy_set=policies_pb2.PolicySet(rules=[rule]),
                inventory=inventory_pb2.Inventory(entries=[entry]),
            )
        )

    async def ListPolicySets(self, _: Any, __: Any) -> policy_service_pb2.ListPolicySetsResponse:
        """Answer nothing: not asked by the router."""
        return policy_service_pb2.ListPolicySetsResponse()

    async def PublishPolicySet(self, _: Any, __: Any) -> policy_service_pb2.PublishPolicySetResponse:
        """Refuse: not asked by the router."""
        raise Refusal(error_reason_pb2.ERROR_REASON_POLICY_SET_INVALID)


class FakeRunbooks(runbook_tool_service_pb2_grpc.RunbookToolServiceServicer):
    """Knows one runbook; keeps what it was asked with, and under which grant."""

    def __init__(self) -> None:
        self.queries: list[str] = []
        self.grants: set[str | bytes] = set()

    async def SearchRunbooks(
        self, request: runbook_tool_service_pb2.SearchRunbooksRequest, _: Any
    ) -> runbook_tool_service_pb2.SearchRunbooksResponse:
        """Search."""
        self.queries.append(request.query)
        self.grants.add(current().metadata.get(GRANT_KEY, ""))
        hit = runbook_tool_service_pb2.RunbookHit(line=3, excerpt="restart checkout when its pool is exhausted")
        return runbook_tool_service_pb2.SearchRunbooksResponse(hits=[hit])

    async def ReadRunbook(self, _: Any, __: Any) -> runbook_tool_service_pb2.ReadRunbookResponse:
        """Answer nothing."""
        return runbook_tool_service_pb2.ReadRunbookResponse()

    async def ListRunbooks(self, _: Any, __: Any) -> runbook_tool_service_pb2.ListRunbooksResponse:
        """Answer nothing."""
        return runbook_tool_service_pb2.ListRunbooksResponse()


class FakeChanges(change_tool_service_pb2_grpc.ChangeToolServiceServicer):
    """Knows of no change."""

    async def ListChanges(self, _: Any, __: Any) -> change_tool_service_pb2.ListChangesResponse:
        """Answer nothing."""
        return change_tool_service_pb2.ListChangesResponse()
