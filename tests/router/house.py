"""A router with its real store, server and lanes, among fake peers on real mTLS sockets."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from opsmesh.agents.v1 import model_service_pb2_grpc
from opsmesh.audit.v1 import audit_service_pb2_grpc
from opsmesh.automation.v1 import automation_service_pb2_grpc, playbook_service_pb2_grpc
from opsmesh.config.v1 import rules_pb2
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc
from opsmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc, signal_pb2
from opsmesh.router.v1 import (
    decision_service_pb2,
    decision_service_pb2_grpc,
    rule_service_pb2,
    rule_service_pb2_grpc,
)
from opsmesh.type.v1 import type_pb2
from services.local.files import free_port
from services.local.waiting import until
from services.mesh.client import MeshChannel, Peers
from services.mesh.postgres import Pool, open_pool
from services.mesh.server import Server
from services.router.book import RuleBook
from services.router.main import compose
from services.router.settings import RouterSettings
from tests.mesh.world import World
from tests.router.fakes import FakeAudit, FakeAutomation, FakeIngest, FakeKillSwitch, FakeModels, FakePlaybooks
from tests.stores import Database

Decision = decision_service_pb2.Decision
Incident = ingest_service_pb2.Incident


@dataclass
class Town:
    """The fake peers and where they are; `automation_port` may have nobody listening yet."""

    world: World
    database: Database
    automation: FakeAutomation = field(default_factory=FakeAutomation)
    models: FakeModels = field(default_factory=FakeModels)
    kills: FakeKillSwitch = field(default_factory=FakeKillSwitch)
    incidents: FakeIngest = field(default_factory=FakeIngest)
    audit: FakeAudit = field(default_factory=FakeAudit)
    automation_port: int = field(default_factory=free_port)
    agents_port: int = field(default_factory=free_port)
    audit_port: int = field(default_factory=free_port)
    guardrails_port: int = field(default_factory=free_port)
    ingest_port: int = field(default_factory=free_port)
    gateway_port: int = field(default_factory=free_port)

    def serve_automation(self) -> Any:
        """Run automation."""
        servicers: list[tuple[Any, Any]] = [
            (automation_service_pb2_grpc.add_AutomationServiceServicer_to_server, self.automation),
            (playbook_service_pb2_grpc.add_PlaybookServiceServicer_to_server, FakePlaybooks()),
        ]
        return self.world.serving("automation", servicers, settings={"listen": f"127.0.0.1:{self.automation_port}"})

    def serve_agents(self) -> Any:
        """Run agents."""
        servicers = [(model_service_pb2_grpc.add_ModelServiceServicer_to_server, self.models)]
        return self.world.serving("agents", servicers, settings={"listen": f"127.0.0.1:{self.agents_port}"})

    def serve_audit(self) -> Any:
        """Run audit."""
        servicers = [(audit_service_pb2_grpc.add_AuditServiceServicer_to_server, self.audit)]
        return self.world.serving("audit", servicers, settings={"listen": f"127.0.0.1:{self.audit_port}"})

    def serve_guardrails(self) -> Any:
        """Run guardrails' kill switch."""
        servicers = [(kill_switch_service_pb2_grpc.add_KillSwitchServiceServicer_to_server, self.kills)]
        return self.world.serving("guardrails", servicers, settings={"listen": f"127.0.0.1:{self.guardrails_port}"})

    def serve_ingest(self) -> Any:
        """Run ingest."""
        servicers = [(ingest_service_pb2_grpc.add_IngestServiceServicer_to_server, self.incidents)]
        return self.world.serving("ingest", servicers, settings={"listen": f"127.0.0.1:{self.ingest_port}"})

    def settings(self, **changes: Any) -> RouterSettings:
        """Return what a router is told."""
        peers = {
            "automation": self.automation_port,
            "agents": self.agents_port,
            "audit": self.audit_port,
            "guardrails": self.guardrails_port,
            "ingest": self.ingest_port,
            "gateway": self.gateway_port,
        }
        return RouterSettings(
            **self.world.settings("router").model_dump()
            | {
                "peers": {name: f"127.0.0.1:{port}" for name, port in peers.items()},
                "postgres_dsn": self.database.dsn("router", with_password=False),
                "identity_key_file": self.world.pki / "identity.key",
                "postgres_password_file": self.database.password_file("router"),
            }
            | changes
        )

    @asynccontextmanager
    async def router(self, **changes: Any) -> AsyncIterator["Router"]:
        """Run a replica of the router."""
        settings = self.settings(**changes)
        pool, channels, stop = await open_pool(settings, "router"), Peers(settings), asyncio.Event()
        parts = compose(settings, channels, pool)
        await parts.book.refresh()
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(self.world.serving("router", parts.servicers))
            tasks = [asyncio.create_task(worker(stop)) for worker in parts.workers]
            yield Router(
                server,
                pool,
                parts.book,
                await stack.enter_async_context(self.world.channel(server, "ingest")),
                await stack.enter_async_context(self.world.channel(server, "operator")),
            )
            stop.set()
            await asyncio.gather(*tasks)
        await channels.close()
        await pool.close()


@dataclass
class Router:
    """A running replica and stubs of those who call it."""

    server: Server
    pool: Pool
    book: RuleBook
    ingest: MeshChannel
    operator: MeshChannel

    async def decide(self, *incidents: Incident) -> list[Decision]:
        """Decide as ingest."""
        stub = decision_service_pb2_grpc.DecisionServiceStub(self.ingest)
        answer = await stub.DecideIncident(decision_service_pb2.DecideIncidentRequest(incidents=incidents))
        return list(answer.decisions)

    async def decision(self, decision_id: str) -> Decision:
        """Read a decision as ingest."""
        stub = decision_service_pb2_grpc.DecisionServiceStub(self.ingest)
        answer = await stub.GetDecision(decision_service_pb2.GetDecisionRequest(decision_id=decision_id))
        found: Decision = answer.decision
        return found

    async def preview(self, incident: Incident) -> decision_service_pb2.PreviewDecisionResponse:
        """Preview as the operator."""
        stub = decision_service_pb2_grpc.DecisionServiceStub(self.operator)
        request = decision_service_pb2.PreviewDecisionRequest(incident=incident)
        answer: decision_service_pb2.PreviewDecisionResponse = await stub.PreviewDecision(request)
        return answer

    async def publish(
        self, rule_set: rules_pb2.RuleSet, request_id: str = "", *, validate_only: bool = False
    ) -> rule_service_pb2.RuleSetVersion:
        """Publish as the operator."""
        stub = rule_service_pb2_grpc.RuleServiceStub(self.operator)
        request = rule_service_pb2.PublishRuleSetRequest(
            request_id=request_id or str(uuid.uuid4()), rule_set=rule_set, validate_only=validate_only
        )
        return (await stub.PublishRuleSet(request)).rule_set

    async def until(self, decision_id: str, holds: Callable[[Decision], object], seconds: float = 60) -> Decision:
        """Return the decision once something holds for it."""
        found: list[Decision] = []

        async def probe() -> None:
            decision = await self.decision(decision_id)
            if not holds(decision):
                raise LookupError(str(decision))
            found.append(decision)

        await until(probe, "the decision", seconds, LookupError, pause=0.02)
        return found[0]


def incident(revision: int = 1, incident_id: str = "", **changes: Any) -> Incident:
    """Return a firing, critical CheckoutDown in demo."""
    made = Incident(
        incident_id=incident_id or str(uuid.uuid4()),
        revision=revision,
        title="checkout is down",
        state=Incident.STATE_OPEN,
        severity=signal_pb2.Signal.SEVERITY_CRITICAL,
        source="alertmanager",
        status=signal_pb2.Signal.STATUS_FIRING,
        firing=True,
        labels={"alertname": "CheckoutDown"},
        targets=[
            type_pb2.Target(target_id="host:x", raw_key="host:x"),
            type_pb2.Target(target_id="svc:demo/checkout", environment="demo", region="local", in_inventory=True),
        ],
    )
    made.open_time.FromDatetime(datetime.now(UTC))
    for name, value in changes.items():
        if name == "labels":
            made.ClearField("labels")
            made.labels.update(value)
        else:
            setattr(made, name, value)
    return made


def rule(alertname: str, **outcome: Any) -> rules_pb2.Rule:
    """Return a rule for alerts of this `alertname`; outcome restart-workload unless told otherwise."""
    made = rules_pb2.Rule(
        rule_id=alertname.lower(), priority=100, match=rules_pb2.RuleMatch(equals={"labels.alertname": alertname})
    )
    if not outcome:
        made.trigger_automation.playbook_id = "restart-workload"
    for name, value in outcome.items():
        getattr(made, name).CopyFrom(value)
    return made


def checkout_rules(*more: rules_pb2.Rule) -> rules_pb2.RuleSet:
    """Return a rule set that restarts on CheckoutDown."""
    known = rules_pb2.Rule(
        rule_id="checkout-down",
        priority=10,
        match=rules_pb2.RuleMatch(
            equals={"labels.alertname": "CheckoutDown", "environment": "demo"},
            conditions=[rules_pb2.Condition(field="title", matches="(?i)DOWN$")],
        ),
        trigger_automation=rules_pb2.TriggerAutomation(playbook_id="restart-workload"),
    )
    return rules_pb2.RuleSet(rules=[known, *more])
