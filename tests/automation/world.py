"""Automation for tests: a real process of it on real PostgreSQL and Temporal, between the fakes."""

import asyncio
import json
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio

from opsmesh.audit.v1 import audit_service_pb2_grpc
from opsmesh.automation.v1 import (
    automation_service_pb2,
    automation_service_pb2_grpc,
    playbook_service_pb2,
    playbook_service_pb2_grpc,
)
from opsmesh.config.v1 import playbooks_pb2
from opsmesh.gateway.v1 import effect_service_pb2_grpc
from opsmesh.guardrails.v1 import (
    approval_service_pb2_grpc,
    guardrails_service_pb2_grpc,
    kill_switch_service_pb2_grpc,
    target_lock_service_pb2_grpc,
)
from opsmesh.ingest.v1 import ingest_service_pb2_grpc
from opsmesh.tools.notify.v1 import notify_tool_service_pb2_grpc
from opsmesh.tools.runbook.v1 import runbook_tool_service_pb2_grpc
from opsmesh.tools.workload.v1 import workload_tool_service_pb2_grpc
from services.local.files import free_port
from services.local.process import base_environment
from services.local.temporal import Temporal
from services.local.waiting import until
from services.mesh import tls
from services.mesh.client import connect
from services.mesh.config import load_yaml
from services.mesh.errors import from_rpc_error
from services.mesh.server import Servicers
from tests.automation.fakes import FakeAudit, FakeGateway, FakeGuardrails, FakeIngest
from tests.mesh.world import ROOT, World
from tests.stores import Database

Execution = automation_service_pb2.Execution
StepRecord = automation_service_pb2.StepRecord
ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELLED", "UNKNOWN", "OBSERVED"})
BOOT_SECONDS = 60


class _NotYetError(Exception):
    """What is waited for does not hold yet."""


@dataclass
class Mesh:
    """Everything around one automation, and its process."""

    world: World
    database: Database
    temporal: Temporal
    folder: Path
    peers: dict[str, str]
    ingest: FakeIngest = field(default_factory=FakeIngest)
    audit: FakeAudit = field(default_factory=FakeAudit)
    guardrails: FakeGuardrails = field(default_factory=FakeGuardrails)
    gateway: FakeGateway = field(default_factory=FakeGateway)
    port: int = field(default_factory=free_port)
    process: asyncio.subprocess.Process | None = None

    def servers(self) -> Sequence[tuple[str, Servicers]]:
        """Return what each fake service serves."""
        return [
            ("ingest", [(ingest_service_pb2_grpc.add_IngestServiceServicer_to_server, self.ingest)]),
            ("audit", [(audit_service_pb2_grpc.add_AuditServiceServicer_to_server, self.audit)]),
            (
                "guardrails",
                [
                    (guardrails_service_pb2_grpc.add_GuardrailsServiceServicer_to_server, self.guardrails),
                    (target_lock_service_pb2_grpc.add_TargetLockServiceServicer_to_server, self.guardrails),
                    (approval_service_pb2_grpc.add_ApprovalServiceServicer_to_server, self.guardrails),
                    (kill_switch_service_pb2_grpc.add_KillSwitchServiceServicer_to_server, self.guardrails),
                ],
            ),
            (
                "gateway",
                [
                    (workload_tool_service_pb2_grpc.add_WorkloadToolServiceServicer_to_server, self.gateway),
                    (notify_tool_service_pb2_grpc.add_NotifyToolServiceServicer_to_server, self.gateway),
                    (runbook_tool_service_pb2_grpc.add_RunbookToolServiceServicer_to_server, self.gateway),
                    (effect_service_pb2_grpc.add_EffectServiceServicer_to_server, self.gateway),
                ],
            ),
        ]

    def environment(self) -> dict[str, str]:
        """Return what automation is told."""
        settings = {
            "LISTEN": f"127.0.0.1:{self.port}",
            "METRICS": "",
            "TLS_CERT": self.world.pki / "automation.pem",
            "TLS_KEY": self.world.pki / "automation.key",
            "TLS_CA": self.world.pki / "ca.pem",
            "IDENTITIES": ROOT / "deploy" / "identities.yaml",
            "CONFIG": ROOT / "deploy",
            "PEERS": json.dumps(self.peers),
            "STATE": self.folder,
            "POSTGRES_DSN": self.database.dsn("automation", with_password=False),
            "POSTGRES_PASSWORD_FILE": self.database.password_file("automation"),
            "TEMPORAL": self.temporal.address,
        }
        return base_environment() | {f"OPSMESH_{name}": str(value) for name, value in settings.items()}

    async def start_process(self, **changes: str) -> None:
        """Run automation until its port accepts."""
        with (self.folder / "automation.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "services",
                "automation",
                cwd=ROOT,
                env=self.environment() | changes,
                stdout=log,
                stderr=log,
            )
        async with asyncio.timeout(BOOT_SECONDS), self.channel() as channel:
            await channel.channel_ready()

    async def stop_process(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop automation, by default cleanly; return its exit code."""
        if self.process is None or self.process.returncode is not None:
            return 0
        process, self.process = self.process, None
        process.send_signal(number)
        return await asyncio.wait_for(process.wait(), 40)

    @asynccontextmanager
    async def channel(self, name: str = "operator") -> AsyncIterator[grpc.aio.Channel]:
        """Connect as a service or person."""
        credentials = tls.client_credentials(self.world.settings(name))
        async with connect(f"127.0.0.1:{self.port}", "automation", credentials) as channel:
            yield channel

    async def call(self, name: str, request: Any, as_name: str = "operator") -> Any:
        """Call an RPC of either service by its name; a Refusal when it is refused."""
        async with self.channel(as_name) as channel:
            stubs: list[Any] = [
                automation_service_pb2_grpc.AutomationServiceStub(channel),
                playbook_service_pb2_grpc.PlaybookServiceStub(channel),
            ]
            method = next(found for stub in stubs if (found := getattr(stub, name, None)))
            try:
                return await method(request)
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) or error from None

    async def publish(self, playbook: playbooks_pb2.Playbook | str) -> playbook_service_pb2.PlaybookVersion:
        """Publish a playbook, or the one of that name in deploy/."""
        if isinstance(playbook, str):
            playbook = load_yaml(ROOT / "deploy" / "playbooks" / f"{playbook}.yaml", playbooks_pb2.Playbook)
        request = playbook_service_pb2.PublishPlaybookRequest(request_id=str(uuid.uuid4()), playbook=playbook)
        answer: playbook_service_pb2.PublishPlaybookResponse = await self.call("PublishPlaybook", request)
        return answer.playbook

    async def start(self, playbook_id: str, incident_id: str = "", identity_token: bytes = b"", note: str = "") -> str:
        """Start a playbook as the router does and return the execution's id."""
        request = automation_service_pb2.StartExecutionRequest(
            request_id=str(uuid.uuid4()),
            playbook_id=playbook_id,
            incident_id=incident_id or str(uuid.uuid4()),
            decision_id=str(uuid.uuid4()),
            rule_set_version=3,
            rule_id="restart-checkout",
            identity_token=identity_token,
            note=note,
        )
        answer: automation_service_pb2.StartExecutionResponse = await self.call("StartExecution", request, "router")
        return answer.execution.execution_id

    async def cancel(self, execution_id: str) -> Execution:
        """Cancel as the operator."""
        request = automation_service_pb2.CancelExecutionRequest(
            request_id=str(uuid.uuid4()), execution_id=execution_id, reason="a test"
        )
        answer: automation_service_pb2.CancelExecutionResponse = await self.call("CancelExecution", request)
        return answer.execution

    async def get(self, execution_id: str) -> Execution:
        """Read an execution."""
        request = automation_service_pb2.GetExecutionRequest(execution_id=execution_id)
        answer: automation_service_pb2.GetExecutionResponse = await self.call("GetExecution", request)
        return answer.execution

    async def reached(self, execution_id: str, states: frozenset[str] = ENDED, seconds: float = 60) -> Execution:
        """Wait until an execution is in one of these states."""
        found: list[Execution] = []

        async def look() -> None:
            found[:] = [await self.get(execution_id)]
            if state_of(found[0]) not in states:
                raise _NotYetError(state_of(found[0]))

        await until(look, "the execution", seconds, _NotYetError)
        return found[0]

    async def run(self, playbook_id: str) -> Execution:
        """Start a playbook and wait for its end."""
        return await self.reached(await self.start(playbook_id))

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait, at most 60 s, for something that only another process can bring about."""

        async def look() -> None:
            if not holds():
                raise _NotYetError

        await until(look, "the condition", 60, _NotYetError)

    async def until_true(self, read: Callable[[], Awaitable[object]], holds: Callable[[], object]) -> None:
        """Read again until something holds, at most 60 s."""

        async def look() -> None:
            await read()
            if not holds():
                raise _NotYetError

        await until(look, "the condition", 60, _NotYetError)

    async def execute(self, statement: str, *values: object) -> Any:
        """Run one statement as the superuser and return its first value."""
        connection = await asyncpg.connect(self.database.dsn("postgres"))
        try:
            return await connection.fetchval(statement, *values)
        finally:
            await connection.close()


def state_of(execution: Execution) -> str:
    """Return the state's word."""
    return Execution.State.Name(execution.state).removeprefix("STATE_")


def steps_of(execution: Execution) -> dict[str, str]:
    """Return each step's state, in order."""
    return {step.step_id: StepRecord.State.Name(step.state).removeprefix("STATE_") for step in execution.steps}


@asynccontextmanager
async def running_mesh(folder: Path, database: Database, temporal: Temporal) -> AsyncIterator[Mesh]:
    """Run the fakes and one automation between them."""
    mesh = Mesh(World(folder / "world"), database, temporal, folder, {})
    async with AsyncExitStack() as stack:
        for name, servicers in mesh.servers():
            server = await stack.enter_async_context(mesh.world.serving(name, servicers))
            mesh.peers[name] = f"127.0.0.1:{server.port}"
        await mesh.start_process()
        try:
            yield mesh
        finally:
            await mesh.stop_process()
