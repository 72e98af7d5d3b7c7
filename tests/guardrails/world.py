"""Guardrails for tests: its real servicers over real mTLS on a real PostgreSQL; fakes of gateway, ingest and audit."""
# ruff: noqa: N802  the names are those of the IDL

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from opsmesh.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from opsmesh.config.v1 import inventory_pb2, policies_pb2
from opsmesh.gateway.v1 import effect_service_pb2, effect_service_pb2_grpc
from opsmesh.guardrails.v1 import (
    approval_service_pb2_grpc,
    grant_pb2,
    guardrails_service_pb2,
    guardrails_service_pb2_grpc,
    kill_switch_service_pb2_grpc,
    policy_service_pb2,
    policy_service_pb2_grpc,
    target_lock_service_pb2,
    target_lock_service_pb2_grpc,
)
from opsmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from opsmesh.tools.autoscaling.v1 import autoscaling_tool_service_pb2_grpc
from opsmesh.tools.notify.v1 import notify_tool_service_pb2
from opsmesh.tools.workload.v1 import workload_tool_service_pb2, workload_tool_service_pb2_grpc
from opsmesh.type.v1 import error_reason_pb2, type_pb2
from services.guardrails.main import RESERVED_MAX, furnish
from services.guardrails.settings import GuardrailsSettings
from services.mesh.client import Peers, refusal_of
from services.mesh.config import load_yaml
from services.mesh.errors import Refusal
from services.mesh.postgres import open_pool
from services.mesh.server import Server
from tests.guardrails.groups import FakeGroups
from tests.mesh.world import ROOT, World
from tests.stores import Database

CHECKOUT = "svc:demo/checkout"
PAYMENTS = "svc:demo/payments"
PRODUCTION = "svc:production/checkout"
VAULT = "svc:demo/vault"
RESTART = "opsmesh.tools.workload.v1.WorkloadToolService/RestartWorkload"
NOTICE = "opsmesh.tools.notify.v1.NotifyToolService/SendNotice"
Rule = policies_pb2.PolicyRule
RestartRequest = workload_tool_service_pb2.RestartWorkloadRequest
NoticeRequest = notify_tool_service_pb2.SendNoticeRequest
Context = guardrails_service_pb2.ActionContext
Answer = guardrails_service_pb2.AuthorizeActionResponse


class FakeGateway(workload_tool_service_pb2_grpc.WorkloadToolServiceServicer):
    """Tells the state of workloads; `refusal` is raised instead where a test sets it."""

    def __init__(self) -> None:
        self.process_id = 41
        self.refusal: Refusal | None = None
        self.reads: list[str] = []

    async def GetWorkload(
        self, request: workload_tool_service_pb2.GetWorkloadRequest, _: Any
    ) -> workload_tool_service_pb2.GetWorkloadResponse:
        """Answer with the process that runs."""
        self.reads.append(request.target_id)
        if self.refusal:
            raise self.refusal
        return workload_tool_service_pb2.GetWorkloadResponse(
            state=workload_tool_service_pb2.Workload.STATE_RUNNING, process_id=self.process_id
        )

    async def CheckHealth(self, *_: Any) -> Any:
        """Stay unused: guardrails reads preconditions only."""
        raise NotImplementedError

    async def RestartWorkload(self, *_: Any) -> Any:
        """Stay unused: guardrails changes nothing."""
        raise NotImplementedError


class FakeEffects(effect_service_pb2_grpc.EffectServiceServicer):
    """Knows the effects that tests say were begun, by method and request id."""

    def __init__(self) -> None:
        self.states: dict[tuple[str, str], effect_service_pb2.Effect.State.ValueType] = {}

    async def GetEffect(
        self, request: effect_service_pb2.GetEffectRequest, _: Any
    ) -> effect_service_pb2.GetEffectResponse:
        """Read one."""
        state = self.states.get((request.method, request.request_id))
        if state is None:
            raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="effect", id=request.request_id)
        return effect_service_pb2.GetEffectResponse(effect=effect_service_pb2.Effect(state=state))

    async def ListEffects(self, *_: Any) -> Any:
        """Stay unused."""
        raise NotImplementedError

    async def SettleEffect(self, *_: Any) -> Any:
        """Stay unused."""
        raise NotImplementedError


class FakeIngest(ingest_service_pb2_grpc.IngestServiceServicer):
    """Knows the incidents that tests put in; silent where `refusal` is set."""

    def __init__(self) -> None:
        self.incidents: dict[str, ingest_service_pb2.Incident] = {}
        self.refusal: Refusal | None = None
        self.reads = 0

    def open(self, *targets: str, state: str = "STATE_RUNNING") -> str:
        """Put an incident in and return its id."""
        made = ingest_service_pb2.Incident(
            incident_id=str(uuid.uuid4()),
            state=ingest_service_pb2.Incident.State.Value(state),
            targets=[type_pb2.Target(target_id=one, in_inventory=True) for one in targets],
        )
        self.incidents[made.incident_id] = made
        return made.incident_id

    async def GetIncident(
        self, request: ingest_service_pb2.GetIncidentRequest, _: Any
    ) -> ingest_service_pb2.GetIncidentResponse:
        """Read one."""
        self.reads += 1
        if self.refusal:
            raise self.refusal
        if request.incident_id not in self.incidents:
            raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="incident", id=request.incident_id)
        return ingest_service_pb2.GetIncidentResponse(incident=self.incidents[request.incident_id])

    async def SubmitSignals(self, *_: Any) -> Any:
        """Stay unused."""
        raise NotImplementedError

    async def ListIncidents(self, *_: Any) -> Any:
        """Stay unused."""
        raise NotImplementedError

    async def ResolveIncident(self, *_: Any) -> Any:
        """Stay unused."""
        raise NotImplementedError

    async def ListChanges(self, *_: Any) -> Any:
        """Stay unused."""
        raise NotImplementedError

    # So do these.
    ListDeadLetters = RedriveDeadLetters = DiscardDeadLetters = GetSignal = ListSignals = ListChanges  # type: ignore[assignment]


class FakeAudit(audit_service_pb2_grpc.AuditServiceServicer):
    """Keeps events; refuses them while `down`."""

    def __init__(self) -> None:
        self.events: dict[str, audit_service_pb2.AuditEvent] = {}
        self.down = False
        self.arrived = asyncio.Event()

    async def AppendEvents(
        self, request: audit_service_pb2.AppendEventsRequest, _: Any
    ) -> audit_service_pb2.AppendEventsResponse:
        """Keep them."""
        if self.down:
            raise Refusal(error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE, store="PostgreSQL")
        for event in request.events:
            self.events.setdefault(event.event_id, event)
        self.arrived.set()
        return audit_service_pb2.AppendEventsResponse(sequences=range(1, len(request.events) + 1))

    async def GetEvent(self, *_: Any) -> Any:
        """Stay unused."""
        raise NotImplementedError

    async def ListEvents(self, *_: Any) -> Any:
        """Stay unused."""
        raise NotImplementedError

    async def GetCheckpoint(self, *_: Any) -> Any:
        """Stay unused."""
        raise NotImplementedError

    async def ExportEvents(
        self, _request: audit_service_pb2.ExportEventsRequest, _: Any
    ) -> AsyncIterator[audit_service_pb2.ExportEventsResponse]:
        """Stay unused."""
        yield audit_service_pb2.ExportEventsResponse()


@dataclass
class House:
    """Guardrails and everything around it, as one caller sees it; `by(name)` gives another caller's view."""

    world: World
    database: Database
    gateway: FakeGateway
    ingest: FakeIngest
    audit: FakeAudit
    server: Server
    effects: FakeEffects = field(default_factory=FakeEffects)
    peers: dict[str, str] = field(default_factory=dict)
    address: str = ""
    callers: dict[str, Peers] = field(default_factory=dict)

    def channel(self, name: str) -> grpc.aio.Channel:
        """Return the channel of a service or person."""
        if name not in self.callers:
            settings = self.world.settings(name, peers={"guardrails": self.address or f"127.0.0.1:{self.server.port}"})
            self.callers[name] = Peers(settings)
        return self.callers[name].channel("guardrails")

    def guardrails(self, name: str = "automation") -> "guardrails_service_pb2_grpc.GuardrailsServiceAsyncStub":
        """Return the stub that judges."""
        return guardrails_service_pb2_grpc.GuardrailsServiceStub(self.channel(name))

    def locks(self, name: str = "automation") -> "target_lock_service_pb2_grpc.TargetLockServiceAsyncStub":
        """Return the stub of locks."""
        return target_lock_service_pb2_grpc.TargetLockServiceStub(self.channel(name))

    def policies(self, name: str = "operator") -> "policy_service_pb2_grpc.PolicyServiceAsyncStub":
        """Return the stub of policy sets."""
        return policy_service_pb2_grpc.PolicyServiceStub(self.channel(name))

    def approvals(self, name: str = "operator") -> "approval_service_pb2_grpc.ApprovalServiceAsyncStub":
        """Return the stub of approvals."""
        return approval_service_pb2_grpc.ApprovalServiceStub(self.channel(name))

    def leases(self, name: str = "gateway") -> "kill_switch_service_pb2_grpc.KillSwitchServiceAsyncStub":
        """Return the stub of leases."""
        return kill_switch_service_pb2_grpc.KillSwitchServiceStub(self.channel(name))

    async def publish(
        self,
        *rules: Rule,
        caps: dict[str, int] | None = None,
        places: inventory_pb2.Inventory | None = None,
        **fields: Any,
    ) -> int:
        """Publish rules (none: everything is allowed) with the tests' inventory, or `places`; return the version.

        `fields` are others of the policy set.
        """
        request = policy_service_pb2.PublishPolicySetRequest(
            request_id=str(uuid.uuid4()),
            policy_set=policies_pb2.PolicySet(
                rules=rules or [rule("all", "ALLOW")],
                notice_caps=[policies_pb2.NoticeCap(channel=key, per_hour=cap) for key, cap in (caps or {}).items()],
                **fields,
            ),
            inventory=inventory() if places is None else places,
        )
        answer = await self.policies().PublishPolicySet(request)
        return int(answer.policy_set.version)

    async def lock(self, target_id: str = CHECKOUT, execution_id: str = "", name: str = "automation") -> Any:
        """Take a lock and return it."""
        request = target_lock_service_pb2.AcquireLockRequest(
            request_id=str(uuid.uuid4()), target_id=target_id, execution_id=execution_id
        )
        # The longest there is: on a busy machine a test takes longer than the usual thirty seconds.
        request.ttl_duration.seconds = 60
        return (await self.locks(name).AcquireLock(request)).lock

    async def ready(self, target_id: str = CHECKOUT) -> Context:
        """Open an incident on a target, lock it for a new execution, and return the context of its step."""
        execution_id = str(uuid.uuid4())
        await self.lock(target_id, execution_id)
        return Context(incident_id=self.ingest.open(target_id), execution_id=execution_id, step_id="restart")

    async def authorize(
        self, request: Any, context: Context | None = None, *, method: str = RESTART, name: str = "automation"
    ) -> Answer:
        """Authorise a request message, or raw bytes, or JSON text."""
        payload: Any = {"request_json": request} if isinstance(request, str) else {"request": as_bytes(request)}
        asked = guardrails_service_pb2.AuthorizeActionRequest(method=method, context=context, **payload)
        return await self.guardrails(name).AuthorizeAction(asked)

    async def fetch(self, query: str, *values: Any) -> list[Any]:
        """Ask the database as guardrails."""
        connection = await asyncpg.connect(self.database.dsn("guardrails"))
        try:
            return list(await connection.fetch(query, *values))
        finally:
            await connection.close()

    async def events(self, count: int) -> list[audit_service_pb2.AuditEvent]:
        """Wait until audit has so many events, and return them all."""
        async with asyncio.timeout(40):
            while len(self.audit.events) < count:
                self.audit.arrived.clear()
                await self.audit.arrived.wait()
        return list(self.audit.events.values())

    @property
    def public_key(self) -> Ed25519PublicKey:
        """Return the key the gateway believes."""
        key = load_pem_public_key((self.world.pki / "grant.pub").read_bytes())
        assert isinstance(key, Ed25519PublicKey)
        return key

    def opened(self, raw: bytes) -> grant_pb2.Grant:
        """Verify a grant as the gateway would and return it."""
        signed = grant_pb2.SignedGrant.FromString(raw)
        self.public_key.verify(signed.signature, signed.grant)
        return grant_pb2.Grant.FromString(signed.grant)


@asynccontextmanager
async def house(world: World, database: Database, folder: Path, *, working: bool = True) -> AsyncIterator[House]:
    """Run guardrails, its workers unless told otherwise, and its peers."""
    gateway, ingest, audit = FakeGateway(), FakeIngest(), FakeAudit()
    effects = FakeEffects()
    workload = (workload_tool_service_pb2_grpc.add_WorkloadToolServiceServicer_to_server, gateway)
    groups = (autoscaling_tool_service_pb2_grpc.add_AutoscalingToolServiceServicer_to_server, FakeGroups())
    done = (effect_service_pb2_grpc.add_EffectServiceServicer_to_server, effects)
    intake = (ingest_service_pb2_grpc.add_IngestServiceServicer_to_server, ingest)
    log = (audit_service_pb2_grpc.add_AuditServiceServicer_to_server, audit)
    async with (
        world.serving("gateway", [workload, groups, done]) as at_gateway,
        world.serving("ingest", [intake]) as at_ingest,
        world.serving("audit", [log]) as at_audit,
    ):
        servers = {"gateway": at_gateway, "ingest": at_ingest, "audit": at_audit}
        values = world.settings("guardrails").model_dump() | {
            "peers": {name: f"127.0.0.1:{server.port}" for name, server in servers.items()},
            "state": folder,
            "postgres_dsn": database.dsn("guardrails", with_password=False),
            "postgres_password_file": database.password_file("guardrails"),
            "grant_key_file": world.pki / "grant.key",
            "identity_public_key_file": world.pki / "identity.pub",
        }
        settings = GuardrailsSettings(**values)
        pool, peers, stop = await open_pool(settings, "guardrails"), Peers(settings), asyncio.Event()
        reserved = await open_pool(settings, "guardrails", maximum=RESERVED_MAX)
        rooms = furnish(settings, pool, reserved, peers)
        workers = [asyncio.create_task(worker(stop)) for worker in rooms.workers if working]
        async with world.serving("guardrails", rooms.servicers) as server:
            made = House(world, database, gateway, ingest, audit, server, effects, values["peers"])
            try:
                yield made
            finally:
                for caller in made.callers.values():
                    await caller.close()
        stop.set()
        await asyncio.wait_for(asyncio.gather(*workers), 30)
        await peers.close()
        await reserved.close()
        await pool.close()


def rule(rule_id: str, verdict: str, **match: Any) -> Rule:
    """Return a policy rule; REQUIRE_APPROVAL asks one person."""
    approval = policies_pb2.ApprovalNeed(approvers=1) if verdict == "REQUIRE_APPROVAL" else None
    matcher = policies_pb2.PolicyMatch(**match)
    return Rule(rule_id=rule_id, verdict=Rule.Verdict.Value(f"VERDICT_{verdict}"), match=matcher, approval=approval)


def inventory() -> inventory_pb2.Inventory:
    """Return the demo's inventory, and a service that its checkout depends on."""
    found = load_yaml(ROOT / "deploy" / "demo" / "inventory.yaml", inventory_pb2.Inventory)
    found.entries[0].depends_on.append(PAYMENTS)
    found.entries.add(target_id=PAYMENTS, kind="service", environment="demo", region="local")
    found.entries.add(target_id=VAULT, kind="service", environment="demo", region="local", min_risk="RISK_CRITICAL")
    return found


def restart(target_id: str = CHECKOUT) -> RestartRequest:
    """Return a new request to restart a workload."""
    return RestartRequest(request_id=str(uuid.uuid4()), target_id=target_id, reason="a test")


def notice(channel: str = "ops") -> NoticeRequest:
    """Return a new notice."""
    kind = NoticeRequest.KIND_PERSON_NEEDED
    return NoticeRequest(request_id=str(uuid.uuid4()), channel=channel, kind=kind, title="a test")


def as_bytes(request: Any) -> bytes:
    """Return the bytes of a message; bytes stay what they are."""
    return request if isinstance(request, bytes) else request.SerializeToString()


def failures(answer: Any) -> dict[str, str]:
    """Return the reason of each check that did not pass."""
    return {check.name: check.reason for check in answer.judgement.checks if not check.passed}


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """Return the reason of a refusal."""
    refusal = refusal_of(error)
    return refusal.name if refusal else error.code().name
