"""Fixtures of the command's tests: a small mesh of fakes behind real mTLS, and the command as a process."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from opsmesh.agents.v1.agent_service_pb2_grpc import add_AgentServiceServicer_to_server
from opsmesh.agents.v1.model_service_pb2_grpc import add_ModelServiceServicer_to_server
from opsmesh.agents.v1.template_service_pb2_grpc import add_TemplateServiceServicer_to_server
from opsmesh.audit.v1.audit_service_pb2_grpc import add_AuditServiceServicer_to_server
from opsmesh.automation.v1.automation_service_pb2_grpc import add_AutomationServiceServicer_to_server
from opsmesh.gateway.v1.effect_service_pb2_grpc import add_EffectServiceServicer_to_server
from opsmesh.guardrails.v1.approval_service_pb2_grpc import add_ApprovalServiceServicer_to_server
from opsmesh.guardrails.v1.guardrails_service_pb2_grpc import add_GuardrailsServiceServicer_to_server
from opsmesh.guardrails.v1.kill_switch_service_pb2_grpc import add_KillSwitchServiceServicer_to_server
from opsmesh.guardrails.v1.policy_service_pb2_grpc import add_PolicyServiceServicer_to_server
from opsmesh.guardrails.v1.target_lock_service_pb2_grpc import add_TargetLockServiceServicer_to_server
from opsmesh.ingest.v1.ingest_service_pb2_grpc import add_IngestServiceServicer_to_server
from opsmesh.router.v1.decision_service_pb2_grpc import add_DecisionServiceServicer_to_server
from opsmesh.tools.workload.v1.workload_tool_service_pb2_grpc import add_WorkloadToolServiceServicer_to_server
from tests.cli import fakes, guarded_fakes
from tests.cli.mesh import Mesh
from tests.mesh.world import World


@pytest.fixture(scope="module")
async def serving(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """Run the fakes once per module."""
    folder: Path = tmp_path_factory.mktemp("state")
    world = World(folder)
    steps: list[str] = []
    mesh = Mesh(
        folder,
        world.pki,
        fakes.Incidents(),
        fakes.Guardrails(steps),
        fakes.Workloads(steps),
        fakes.Audit(),
        steps,
    )
    services: dict[str, list[tuple[Any, Any]]] = {
        "ingest": [(add_IngestServiceServicer_to_server, mesh.ingest)],
        "router": [(add_DecisionServiceServicer_to_server, fakes.Decisions())],
        "guardrails": [
            (add_GuardrailsServiceServicer_to_server, mesh.guardrails),
            (add_TargetLockServiceServicer_to_server, mesh.guardrails),
            (add_ApprovalServiceServicer_to_server, mesh.approvals),
            (add_KillSwitchServiceServicer_to_server, mesh.kill_switch),
            (add_PolicyServiceServicer_to_server, guarded_fakes.Policies()),
        ],
        "agents": [
            (add_ModelServiceServicer_to_server, mesh.models),
            (add_TemplateServiceServicer_to_server, mesh.templates),
            (add_AgentServiceServicer_to_server, mesh.runs),
        ],
        "automation": [(add_AutomationServiceServicer_to_server, mesh.automation)],
        "gateway": [
            (add_WorkloadToolServiceServicer_to_server, mesh.gateway),
            (add_EffectServiceServicer_to_server, mesh.effects),
        ],
        "audit": [(add_AuditServiceServicer_to_server, mesh.audit)],
    }
    async with AsyncExitStack() as stack:
        ports = {}
        for name, servicers in services.items():
            server = await stack.enter_async_context(world.serving(name, servicers))
            ports[name] = f"127.0.0.1:{server.port}"
        people = ("operator", "approver", "approver2")
        leafs = {one: {"cert": str(world.pki / f"{one}.pem"), "key": str(world.pki / f"{one}.key")} for one in people}
        endpoints = {
            "bridge": "http://127.0.0.1:1",
            "services": ports,
            "tls": {"ca": str(world.pki / "ca.pem"), **leafs},
            "webhooks": {},
        }
        (folder / "endpoints.json").write_text(json.dumps(endpoints))
        yield mesh


@pytest.fixture
def mesh(serving: Mesh) -> Mesh:
    """Give the mesh with nothing in it."""
    serving.clear()
    return serving
