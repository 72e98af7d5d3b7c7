"""A router among peers that a decision can be reasoned about with: a scripted model, agents, policies, tools."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from opsmesh.agents.v1 import agent_service_pb2_grpc, model_service_pb2_grpc, template_service_pb2_grpc
from opsmesh.guardrails.v1 import (
    guardrails_service_pb2_grpc,
    kill_switch_service_pb2_grpc,
    policy_service_pb2_grpc,
)
from opsmesh.tools.change.v1 import change_tool_service_pb2_grpc
from opsmesh.tools.runbook.v1 import runbook_tool_service_pb2_grpc
from tests.mesh.world import World
from tests.router.house import Decision, Incident, Router, Town, incident
from tests.router.minds import (
    FakeAgents,
    FakeChanges,
    FakeGuardrails,
    FakePolicies,
    FakeRunbooks,
    FakeTemplates,
    ScriptedModels,
)
from tests.stores import Database


@dataclass
class Village(Town):
    """The peers of the router's reasoning."""

    models: ScriptedModels = field(default_factory=ScriptedModels)
    agents: FakeAgents = field(default_factory=FakeAgents)
    templates: FakeTemplates = field(default_factory=FakeTemplates)
    guardrails: FakeGuardrails = field(default_factory=FakeGuardrails)
    policies: FakePolicies = field(default_factory=FakePolicies)
    runbooks: FakeRunbooks = field(default_factory=FakeRunbooks)

    def serve_agents(self) -> Any:
        """Run agents."""
        servicers: list[tuple[Any, Any]] = [
            (model_service_pb2_grpc.add_ModelServiceServicer_to_server, self.models),
            (agent_service_pb2_grpc.add_AgentServiceServicer_to_server, self.agents),
            (template_service_pb2_grpc.add_TemplateServiceServicer_to_server, self.templates),
        ]
        return self.world.serving("agents", servicers, settings={"listen": f"127.0.0.1:{self.agents_port}"})

    def serve_guardrails(self) -> Any:
        """Run guardrails."""
        servicers: list[tuple[Any, Any]] = [
            (kill_switch_service_pb2_grpc.add_KillSwitchServiceServicer_to_server, self.kills),
            (guardrails_service_pb2_grpc.add_GuardrailsServiceServicer_to_server, self.guardrails),
            (policy_service_pb2_grpc.add_PolicyServiceServicer_to_server, self.policies),
        ]
        return self.world.serving("guardrails", servicers, settings={"listen": f"127.0.0.1:{self.guardrails_port}"})

    def serve_gateway(self) -> Any:
        """Run the gateway, with the tools that a routing model may read with."""
        servicers: list[tuple[Any, Any]] = [
            (runbook_tool_service_pb2_grpc.add_RunbookToolServiceServicer_to_server, self.runbooks),
            (change_tool_service_pb2_grpc.add_ChangeToolServiceServicer_to_server, FakeChanges()),
        ]
        return self.world.serving("gateway", servicers, settings={"listen": f"127.0.0.1:{self.gateway_port}"})

    @asynccontextmanager
    async def peers(self) -> AsyncIterator[None]:
        """Run everybody but the router and agents."""
        async with (
            self.serve_automation(),
            self.serve_audit(),
            self.serve_guardrails(),
            self.serve_ingest(),
            self.serve_gateway(),
        ):
            yield

    async def decide(self, router: Router, made: Incident | None = None) -> Decision:
        """Have an incident decided that no rule knows, and that ingest shows."""
        made = made or unknown()
        self.incidents.incidents[made.incident_id] = made
        (decision,) = await router.decide(made)
        return decision


@dataclass
class Scene:
    """A router among all of its peers."""

    village: Village
    router: Router


@asynccontextmanager
async def living(world: World, database: Database) -> AsyncIterator[Scene]:
    """Run a router among all of its peers."""
    village = Village(world, database)
    async with village.peers(), village.serve_agents(), village.router() as router:
        yield Scene(village, router)


def unknown(revision: int = 1, incident_id: str = "", **changes: Any) -> Incident:
    """Return an incident that no rule knows."""
    return incident(revision, incident_id, **{"labels": {"alertname": "New"}} | changes)


def made(decision: Decision) -> bool:
    """Say whether a decision has its outcome."""
    return decision.state != Decision.STATE_AWAITING_MODEL
