"""A gateway for tests: a real process of it, a real workload, fakes of audit and guardrails over mTLS."""

import asyncio
import json
import signal
import sys
import uuid
import xmlrpc.client
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from google.protobuf.message import Message

from opsmesh.gateway.v1 import effect_service_pb2, effect_service_pb2_grpc
from opsmesh.guardrails.v1 import grant_pb2
from opsmesh.tools.notify.v1 import notify_tool_service_pb2_grpc
from opsmesh.tools.workload.v1 import workload_tool_service_pb2, workload_tool_service_pb2_grpc
from services.gateway.grants import METADATA_KEY
from services.local.checkout import Workload
from services.local.files import free_port
from services.local.process import base_environment
from services.local.waiting import until
from services.mesh import policy, precondition, tls
from services.mesh.client import connect
from services.mesh.errors import from_rpc_error
from services.mesh.tools import find_tool
from tests.gateway.fakes import POLICY_SET, FakeAudit, FakeGuardrails
from tests.mesh.world import ROOT, World
from tests.stores import Database

TARGET = "svc:demo/checkout"
RESTART = "opsmesh.tools.workload.v1.WorkloadToolService/RestartWorkload"
NOTICE = "opsmesh.tools.notify.v1.NotifyToolService/SendNotice"
BOOT_SECONDS = 60
PROGRAM = ("-m", "services", "gateway")
RestartRequest = workload_tool_service_pb2.RestartWorkloadRequest


class Proxy:
    """Sits between gateway and supervisord on a Unix socket of its own; holds one XML-RPC call where a test says.

    `hold` is ("before" or "after", method): before it is passed on, or after it was done and before its answer.
    """

    def __init__(self, path: Path, upstream: Path) -> None:
        self.path = path
        self.upstream = upstream
        self.hold: tuple[str, str] | None = None
        self.held = asyncio.Event()
        self.deaf = False
        self._go = asyncio.Event()
        self.calls: list[str] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head, body = await _message(reader)
            method = xmlrpc.client.loads(body)[1] or ""
            self.calls.append(method)
            if self.deaf:
                return
            await self._maybe("before", method)
            answer_reader, forward = await asyncio.open_unix_connection(str(self.upstream))
            forward.write(head + body)
            answer = b"".join(await _message(answer_reader))
            forward.close()
            await self._maybe("after", method)
            writer.write(answer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the other side was killed: that is what these tests do
        finally:
            writer.close()

    async def _maybe(self, when: str, method: str) -> None:
        if self.hold == (when, method):
            self.hold = None
            # One of its own: what a killed gateway sent is held for good, as if it were lost.
            go = self._go = asyncio.Event()
            self.held.set()
            await go.wait()

    def release(self) -> None:
        """Let the held call go on."""
        self._go.set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Proxy"]:
        """Listen."""
        server = await asyncio.start_unix_server(self._serve, str(self.path))
        try:
            yield self
        finally:
            server.close()


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Read one HTTP message with a Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return head, await reader.readexactly(int(lengths[0]))


@dataclass
class Mesh:
    """Everything around one gateway, and the gateway's process."""

    world: World
    database: Database
    workload: Workload
    folder: Path
    audit: FakeAudit
    guardrails: FakeGuardrails
    proxy: Proxy
    peers: dict[str, str]
    channels: list[dict[str, Any]]
    # Further entries of the backends file.
    backends: dict[str, Any] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: asyncio.subprocess.Process | None = None
    # What Python is told to run.
    program: tuple[str, ...] = PROGRAM

    @property
    def inbox(self) -> Path:
        """Return the file of channel `ops`."""
        return self.folder / "inbox.jsonl"

    def environment(self) -> dict[str, str]:
        """Return what the gateway is told; writes its backends file."""
        supervisord = self.workload.backend() | {"server_url": f"unix://{self.proxy.path}"}
        one = {"target_id": TARGET, "health_url": self.workload.health_url, "supervisord": supervisord}
        gone = one | {"target_id": "svc:demo/gone", "supervisord": {"server_url": "unix:///nowhere", "program": "x"}}
        document = {"workloads": [one, gone], "channels": self.channels, "runbook_folder": "runbooks"}
        document |= self.backends
        backends = self.folder / "backends.yaml"
        backends.write_text(yaml.safe_dump(document))
        settings = {
            "LISTEN": f"127.0.0.1:{self.port}",
            "METRICS": "",
            "TLS_CERT": self.world.pki / "gateway.pem",
            "TLS_KEY": self.world.pki / "gateway.key",
            "TLS_CA": self.world.pki / "ca.pem",
            "IDENTITIES": ROOT / "deploy" / "identities.yaml",
            "CONFIG": ROOT / "deploy",
            "PEERS": json.dumps(self.peers),
            "STATE": self.folder,
            "POSTGRES_DSN": self.database.dsn("gateway", with_password=False),
            "POSTGRES_PASSWORD_FILE": self.database.password_file("gateway"),
            "GRANT_PUBLIC_KEY_FILE": self.world.pki / "grant.pub",
            "BACKENDS_FILE": backends,
        }
        return base_environment() | {f"OPSMESH_{name}": str(value) for name, value in settings.items()}

    async def start(self) -> None:
        """Run the gateway until it serves and has a lease."""
        with (self.folder / "gateway.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, *self.program, cwd=ROOT, env=self.environment(), stdout=log, stderr=log
            )
        polls = self.guardrails.polls
        async with asyncio.timeout(BOOT_SECONDS), self.channel() as channel:
            await channel.channel_ready()
        await self.until(lambda: self.guardrails.polls > polls)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop the gateway, by default cleanly; return its exit code."""
        if self.process is None or self.process.returncode is not None:
            return 0
        process, self.process = self.process, None
        process.send_signal(number)
        return await asyncio.wait_for(process.wait(), 40)

    @asynccontextmanager
    async def channel(self, name: str = "automation") -> AsyncIterator[grpc.aio.Channel]:
        """Connect as a service or person."""
        credentials = tls.client_credentials(self.world.settings(name))
        async with connect(f"127.0.0.1:{self.port}", "gateway", credentials) as channel:
            yield channel

    async def stop_hard(self) -> None:
        """Kill the gateway with no time to say anything."""
        await self.stop(signal.SIGKILL)

    def restart(self) -> RestartRequest:
        """Return a new request."""
        return RestartRequest(request_id=str(uuid.uuid4()), target_id=TARGET, reason="a test")

    async def found(self) -> dict[str, str]:
        """Return the precondition as it is now, as guardrails would read it."""
        async with self.channel() as channel:
            stub = workload_tool_service_pb2_grpc.WorkloadToolServiceStub(channel)
            answer = await stub.GetWorkload(workload_tool_service_pb2.GetWorkloadRequest(target_id=TARGET))
        return dict(precondition.snapshot(answer, find_tool(RESTART).spec.precondition_fields))

    async def mint(self, request: Any, method: str = RESTART, **changes: Any) -> grant_pb2.Grant:
        """Return a good grant for a request, with changes."""
        return self.make(request, await self.found() if method == RESTART else {}, method, **changes)

    def make(self, request: Any, found: dict[str, str], method: str = RESTART, **changes: Any) -> grant_pb2.Grant:
        """Return a good grant for a request in a known state."""
        values: dict[str, Any] = {
            "grant_id": str(uuid.uuid4()),
            "method": method,
            "request_digest": policy.digest(method, request),
            "caller": "service/automation",
            "request_id": request.request_id,
            "target_id": TARGET if method == RESTART else "",
            "environment": "demo",
            "region": "local",
            "fence": 1 if method == RESTART else 0,
            "precondition": found,
            "policy_set_version": POLICY_SET,
        }
        grant = grant_pb2.Grant(**(values | changes))
        if "issue_time" not in changes:
            grant.issue_time.GetCurrentTime()
        if "expire_time" not in changes:
            grant.expire_time.FromNanoseconds(grant.issue_time.ToNanoseconds() + 30_000_000_000)
        return grant

    def sign(self, grant: Message) -> bytes:
        """Return a grant as it travels."""
        key = load_pem_private_key((self.world.pki / "grant.key").read_bytes(), None)
        assert isinstance(key, Ed25519PrivateKey)
        raw = grant.SerializeToString()
        return grant_pb2.SignedGrant(grant=raw, signature=key.sign(raw)).SerializeToString()

    async def call(self, request: Message, grant: bytes | None, name: str = "automation") -> Any:
        """Call RestartWorkload or SendNotice; a Refusal when it is refused."""
        metadata = ((METADATA_KEY, grant),) if grant is not None else ()
        async with self.channel(name) as channel:
            method: Any
            if isinstance(request, RestartRequest):
                method = workload_tool_service_pb2_grpc.WorkloadToolServiceStub(channel).RestartWorkload
            else:
                method = notify_tool_service_pb2_grpc.NotifyToolServiceStub(channel).SendNotice
            try:
                return await method(request, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) or error from None

    async def effect(self, request: Any, method: str = RESTART) -> effect_service_pb2.Effect:
        """Return the effect of a request, resolved when it is due."""
        async with self.channel() as channel:
            stub = effect_service_pb2_grpc.EffectServiceStub(channel)
            asked = effect_service_pb2.GetEffectRequest(method=method, request_id=request.request_id)
            return (await stub.GetEffect(asked)).effect

    async def settle(
        self, request: Any, state: "effect_service_pb2.Effect.State.ValueType", reason: str
    ) -> effect_service_pb2.Effect:
        """Say as the operator how an effect ended."""
        asked = effect_service_pb2.SettleEffectRequest(
            request_id=str(uuid.uuid4()),
            method=RESTART,
            effect_request_id=request.request_id,
            state=state,
            reason=reason,
        )
        async with self.channel("operator") as channel:
            try:
                return (await effect_service_pb2_grpc.EffectServiceStub(channel).SettleEffect(asked)).effect
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) or error from None

    async def execute(self, statement: str, *values: object) -> Any:
        """Run one statement as the superuser and return its first value."""
        connection = await asyncpg.connect(self.database.dsn("postgres"))
        try:
            return await connection.fetchval(statement, *values)
        finally:
            await connection.close()

    async def overdue(self, request: Any) -> None:
        """Move the deadline of an effect into the past, in place of waiting for it."""
        statement = (
            "UPDATE gateway.effects SET deadline_time = clock_timestamp(), resolve_time = clock_timestamp() "
            "WHERE request_id = $1 AND state = 'STARTED' RETURNING true"
        )
        assert await self.execute(statement, uuid.UUID(request.request_id))

    async def let_pass(self, request: Any) -> None:
        """Let the deadline of an effect be over, and see it resolved.

        Whoever asks before that may come second to the gateway's own lane, and hear that it is in flight.
        """
        await self.overdue(request)
        state = "SELECT state FROM gateway.effects WHERE request_id = $1"

        async def resolved() -> None:
            if await self.execute(state, uuid.UUID(request.request_id)) == "STARTED":
                raise _NotYetError

        await until(resolved, "the effect", 40, _NotYetError)

    async def rows(self, request: Any) -> int:
        """Return how many effects a request has: none when it was refused before transaction 1."""
        statement = "SELECT count(*) FROM gateway.effects WHERE request_id = $1"
        return int(await self.execute(statement, uuid.UUID(request.request_id)))

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait, at most 40 s, for something that only another process can bring about."""

        async def look() -> None:
            if not holds():
                raise _NotYetError

        await until(look, "the condition", 40, _NotYetError)


class _NotYetError(Exception):
    """What is waited for does not hold yet."""
