"""Real processes of guardrails and gateway on a real PostgreSQL, with a cable between them that can be cut.

Hand-written are audit, which keeps everything, and the process manager, which does at once what it is told and records
when. Grants are signed here with the mesh's key, so that a test may hold as many as it likes before it needs them.
"""

import asyncio
import json
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from opsmesh.audit.v1 import audit_service_pb2_grpc
from opsmesh.config.v1 import inventory_pb2, policies_pb2
from opsmesh.guardrails.v1 import (
    grant_pb2,
    kill_switch_service_pb2,
    kill_switch_service_pb2_grpc,
    policy_service_pb2,
    policy_service_pb2_grpc,
)
from opsmesh.tools.workload.v1.workload_tool_service_pb2 import RestartWorkloadRequest
from services.gateway.tools.supervisord import RUNNING
from services.local.files import free_port
from services.local.process import base_environment
from services.local.waiting import until
from services.mesh import policy, tls
from services.mesh.client import connect
from tests.bench.stub import Manager, serving
from tests.gateway.fakes import FakeAudit
from tests.mesh.world import ROOT, World
from tests.stores import Database

RESTART = "opsmesh.tools.workload.v1.WorkloadToolService/RestartWorkload"
ENVIRONMENT = "demo"
STATE = {"process_id": "1000", "state": "STATE_RUNNING"}
BOOT_SECONDS = 60
# The longest that anything is held.
HELD_SECONDS = 20


class Recorder(Manager):
    """Every program at once; `stops` holds when each was told to stop, in seconds of `time.monotonic()`.

    A restart changes nothing that a precondition reads, so that a grant stays good until it is used. While `go` is
    cleared nobody is told about a program, and `asked` says that somebody waits for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stops: dict[str, list[float]] = defaultdict(list)
        self.asked, self.go = threading.Event(), threading.Event()
        self.go.set()

    def get(self, _: Any) -> Any:
        """Tell about a program: always up."""
        self.asked.set()
        self.go.wait(HELD_SECONDS)
        return {"state": RUNNING, "pid": int(STATE["process_id"]), "start": 1, "spawnerr": ""}

    def stop(self, program: Any, _: Any, /) -> Any:
        """Note the beginning of an effect."""
        self.stops[program].append(time.monotonic())
        return True

    def start(self, _: Any, __: Any, /) -> Any:
        """Be up again."""
        return True


class Cable:
    """A TCP proxy; while it is cut it accepts everything and passes nothing on, in both directions."""

    def __init__(self, port: int) -> None:
        self.port = free_port()
        self._to = port
        self._whole = asyncio.Event()
        self._whole.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Hold everything from now on."""
        self._whole.clear()

    def mend(self) -> None:
        """Pass on what was held, and everything after it."""
        self._whole.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.close()
            return
        for one, other in ((reader, there[1]), (there[0], writer)):
            task = asyncio.create_task(self._pass(one, other))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(64 * 1024):
                await self._whole.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # one side went away: so does the other
        finally:
            writer.close()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Cable"]:
        """Listen."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()


@dataclass
class Guarded:
    """A gateway behind guardrails, and what a test needs to use and to stop both."""

    world: World
    database: Database
    folder: Path
    recorder: Recorder
    cable: Cable
    audit: FakeAudit
    targets: Sequence[str]
    ports: dict[str, int]
    audit_port: int
    metrics: str
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)
    version: int = 0
    # Nobody is there, unless a test has one.
    ingest_port: int = 1

    def __post_init__(self) -> None:
        """Load the key that signs grants."""
        key = load_pem_private_key((self.world.pki / "grant.key").read_bytes(), None)
        if not isinstance(key, Ed25519PrivateKey):
            raise TypeError("the grant key is no Ed25519 key")
        self._key = key

    def grant(self, target: str, *, epoch: int, fence: int = 1) -> tuple[RestartWorkloadRequest, bytes]:
        """Return a new restart of a target with a good grant for automation, minted under a kill epoch."""
        request = RestartWorkloadRequest(request_id=str(uuid.uuid4()), target_id=target, reason="a test")
        grant = grant_pb2.Grant(
            grant_id=str(uuid.uuid4()),
            method=RESTART,
            request_digest=policy.digest(RESTART, request),
            caller="service/automation",
            request_id=request.request_id,
            target_id=target,
            environment=ENVIRONMENT,
            fence=fence,
            precondition=STATE,
            policy_set_version=self.version,
            kill_epoch=epoch,
        )
        grant.issue_time.GetCurrentTime()
        grant.expire_time.FromNanoseconds(grant.issue_time.ToNanoseconds() + 30_000_000_000)
        raw = grant.SerializeToString()
        return request, grant_pb2.SignedGrant(grant=raw, signature=self._key.sign(raw)).SerializeToString()

    @asynccontextmanager
    async def channel(self, service: str, name: str) -> AsyncIterator[grpc.aio.Channel]:
        """Connect to a service as a service or person, without the cable."""
        credentials = tls.client_credentials(self.world.settings(name))
        async with connect(f"127.0.0.1:{self.ports[service]}", service, credentials) as channel:
            yield channel

    def stops(self) -> int:
        """Return how many effects have begun, by the process manager's record."""
        return sum(len(one) for one in self.recorder.stops.values())

    async def publish(self, *agents: policies_pb2.AgentAllowance, rule: policies_pb2.PolicyRule | None = None) -> None:
        """Publish a policy set with an inventory of the targets, for locks need one, and what agents may call."""
        everything = policies_pb2.PolicyRule(
            rule_id="all", verdict=policies_pb2.PolicyRule.VERDICT_ALLOW, match=policies_pb2.PolicyMatch()
        )
        inventory = inventory_pb2.Inventory()
        for target in self.targets:
            inventory.entries.add(target_id=target, kind="service", environment=ENVIRONMENT, region="local")
        policies = policies_pb2.PolicySet(rules=[rule or everything], agents=agents)
        request = policy_service_pb2.PublishPolicySetRequest(
            request_id=str(uuid.uuid4()), policy_set=policies, inventory=inventory
        )
        async with self.channel("guardrails", "operator") as channel:
            answer = await policy_service_pb2_grpc.PolicyServiceStub(channel).PublishPolicySet(request)
        self.version = answer.policy_set.version

    async def leased(self) -> None:
        """Wait until guardrails gives leases."""
        async with self.channel("guardrails", "gateway") as channel:
            stub = kill_switch_service_pb2_grpc.KillSwitchServiceStub(channel)

            async def ask() -> None:
                await stub.PollLease(kill_switch_service_pb2.PollLeaseRequest(instance="test"), timeout=2)

            await until(ask, "guardrails", BOOT_SECONDS, grpc.aio.AioRpcError)

    async def start(self, service: str) -> None:
        """Run a service until it accepts calls."""
        with (self.folder / f"{service}.log").open("ab") as log:
            self.processes[service] = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "services", service),
                cwd=ROOT,
                env=self._environment(service),
                stdout=log,
                stderr=log,
            )
        async with asyncio.timeout(BOOT_SECONDS), self.channel(service, "operator") as channel:
            await channel.channel_ready()

    async def stop(self, service: str) -> None:
        """Stop a service cleanly, or hard when it does not; also one that is paused."""
        process = self.processes.pop(service)
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 15)
        except TimeoutError:
            process.kill()
            await process.wait()

    def _environment(self, service: str) -> dict[str, str]:
        """Return what a service is told."""
        (self.folder / service).mkdir(exist_ok=True)
        peers = {
            "audit": f"127.0.0.1:{self.audit_port}",
            "guardrails": f"127.0.0.1:{self.cable.port}",
            "gateway": f"127.0.0.1:{self.ports['gateway']}",
            "ingest": f"127.0.0.1:{self.ingest_port}",
        }
        settings = {
            "LISTEN": f"127.0.0.1:{self.ports[service]}",
            "METRICS": self.metrics if service == "gateway" else "",
            "TLS_CERT": self.world.pki / f"{service}.pem",
            "TLS_KEY": self.world.pki / f"{service}.key",
            "TLS_CA": self.world.pki / "ca.pem",
            "IDENTITIES": ROOT / "deploy" / "identities.yaml",
            "CONFIG": ROOT / "deploy",
            "PEERS": json.dumps(peers),
            "STATE": self.folder / service,
            "POSTGRES_DSN": self.database.dsn(service, with_password=False),
            "POSTGRES_PASSWORD_FILE": self.database.password_file(service),
            "GRANT_KEY_FILE": self.world.pki / "grant.key",
            "IDENTITY_PUBLIC_KEY_FILE": self.world.pki / "identity.pub",
            "GRANT_PUBLIC_KEY_FILE": self.world.pki / "grant.pub",
            "BACKENDS_FILE": self.folder / "backends.yaml",
            "LOG_LEVEL": "warning",
        }
        return base_environment() | {f"OPSMESH_{name}": str(value) for name, value in settings.items()}


@asynccontextmanager
async def guarded(folder: Path, database: Database, targets: int, ingest_port: int = 1) -> AsyncIterator[Guarded]:
    """Run guardrails and gateway with so many targets until the context ends."""
    world, audit, recorder = World(folder / "w"), FakeAudit(), Recorder()
    names = [f"svc:demo/w{number}" for number in range(targets)]
    add_audit = audit_service_pb2_grpc.add_AuditServiceServicer_to_server
    ports = {"guardrails": free_port(), "gateway": free_port()}
    async with AsyncExitStack() as stack:
        stack.enter_context(serving(recorder))
        server = await stack.enter_async_context(world.serving("audit", [(add_audit, audit)]))
        cable = await stack.enter_async_context(Cable(ports["guardrails"]).serving())
        workloads = [
            {
                "target_id": name,
                "health_url": recorder.url,
                "supervisord": {"server_url": recorder.url, "program": name.rpartition("/")[2]},
            }
            for name in names
        ]
        document = {"workloads": workloads, "channels": [], "runbook_folder": "runbooks"}
        (folder / "runbooks").mkdir()
        (folder / "backends.yaml").write_text(yaml.safe_dump(document))
        metrics = f"127.0.0.1:{free_port()}"
        made = Guarded(world, database, folder, recorder, cable, audit, names, ports, server.port, metrics)
        made.ingest_port = ingest_port
        try:
            for service in ports:
                await made.start(service)
            await made.leased()
            yield made
        finally:
            cable.mend()
            for service in list(made.processes):
                await made.stop(service)
