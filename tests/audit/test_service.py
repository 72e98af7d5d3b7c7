"""The audit service as a process: what was acknowledged survives kill -9, and people can read and prove it."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from grpc_health.v1 import health_pb2, health_pb2_grpc

from opsmesh.audit.v1 import audit_service_pb2 as audit
from opsmesh.audit.v1 import audit_service_pb2_grpc as rpc
from services.audit.chain import Report, Verifier, read_checkpoints
from services.local.files import LocalError, free_port
from services.local.process import base_environment
from services.local.waiting import until
from services.mesh import tls
from services.mesh.client import MeshChannel, connect, refusal_of
from tests.audit.events import event, events
from tests.mesh.world import ROOT, World
from tests.stores import Database


class Process:
    """The service on one database; `start` and `kill` it as often as wanted."""

    def __init__(self, world: World, database: Database) -> None:
        self.world = world
        self.file = world.folder / "audit" / "checkpoints.jsonl"
        self.address = f"127.0.0.1:{free_port()}"
        self.process: asyncio.subprocess.Process | None = None
        self.environment = base_environment() | {
            "OPSMESH_LISTEN": self.address,
            "OPSMESH_METRICS": "",
            "OPSMESH_TLS_CERT": str(world.pki / "audit.pem"),
            "OPSMESH_TLS_KEY": str(world.pki / "audit.key"),
            "OPSMESH_TLS_CA": str(world.pki / "ca.pem"),
            "OPSMESH_IDENTITIES": str(ROOT / "deploy" / "identities.yaml"),
            "OPSMESH_CONFIG": str(ROOT / "deploy"),
            "OPSMESH_PEERS": "{}",
            "OPSMESH_STATE": str(world.folder),
            "OPSMESH_POSTGRES_DSN": database.dsn("audit", with_password=False),
            "OPSMESH_POSTGRES_PASSWORD_FILE": str(database.password_file("audit")),
            "OPSMESH_LOG_KEY_FILE": str(world.pki / "log.key"),
            "OPSMESH_CHECKPOINT_FILE": str(self.file),
        }

    async def start(self, **changes: str) -> None:
        """Start it and return once it serves."""
        await self.spawn(**changes)

        async def ask() -> None:
            async with self.channel("operator") as channel:
                answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
            if answer.status != health_pb2.HealthCheckResponse.SERVING:
                raise LocalError("not yet")

        await until(ask, "audit", 60, grpc.aio.AioRpcError, LocalError)

    async def spawn(self, **changes: str) -> None:
        """Start it."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services",
            "audit",
            cwd=ROOT,
            env=self.environment | changes,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )

    async def end(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal; return the exit code and what it said."""
        assert self.process is not None
        if self.process.returncode is None:
            os.kill(self.process.pid, number)
        return await self.exited()

    async def exited(self) -> tuple[int, str]:
        """Return the exit code and what it said, once it ended."""
        assert self.process is not None
        _, said = await asyncio.wait_for(self.process.communicate(), 60)
        return self.process.returncode or 0, said.decode()

    @asynccontextmanager
    async def channel(self, name: str) -> AsyncIterator[MeshChannel]:
        """Connect as a service or a person."""
        async with connect(self.address, "audit", tls.client_credentials(self.world.settings(name))) as made:
            yield made

    async def verify(self) -> Report:
        """Verify as the operator does."""
        key = load_pem_public_key((self.world.pki / "log.pub").read_bytes())
        assert isinstance(key, Ed25519PublicKey)
        verifier = Verifier(read_checkpoints(self.file, key))
        async with self.channel("operator") as channel:
            async for part in rpc.AuditServiceStub(channel).ExportEvents(audit.ExportEventsRequest()):
                verifier.feed(part.events)
        return verifier.finish(datetime.now(UTC))


@pytest.fixture
async def process(postgres: Database, tmp_path: Path) -> AsyncIterator[Process]:
    """Give the service, not yet started, on a database of its own."""
    async with postgres.fresh() as database:
        made = Process(World(tmp_path), database)
        try:
            yield made
        finally:
            if made.process is not None and made.process.returncode is None:
                await made.end(signal.SIGKILL)


async def test_acknowledged_events_survive_kill_9(process: Process) -> None:
    """Killed three times while eight writers append, no acknowledged event is lost and the chain is whole."""
    acknowledged: dict[str, int] = {}

    async def write(stub: "rpc.AuditServiceAsyncStub") -> None:
        while True:
            sent = events(3)
            answer = await stub.AppendEvents(audit.AppendEventsRequest(events=sent))
            acknowledged.update(zip((one.event_id for one in sent), answer.sequences, strict=True))

    for _ in range(3):
        await process.start()
        before = len(acknowledged)
        async with process.channel("gateway") as channel:
            stub: rpc.AuditServiceAsyncStub = rpc.AuditServiceStub(channel)
            writers = [asyncio.create_task(write(stub)) for _ in range(8)]

            async def enough(target: int = before + 300) -> None:
                if len(acknowledged) < target:
                    raise LocalError(f"{len(acknowledged)} of {target}")

            await until(enough, "three hundred more events", 60, LocalError)
            await process.end(signal.SIGKILL)
            for writer in writers:
                writer.cancel()
            await asyncio.gather(*writers, return_exceptions=True)
    await process.start()
    report = await process.verify()
    assert report.intact
    assert report.events >= len(acknowledged) >= 900
    async with process.channel("operator") as channel:
        stub = rpc.AuditServiceStub(channel)
        for event_id, sequence in list(acknowledged.items())[::50]:
            answer = await stub.GetEvent(audit.GetEventRequest(event_id=event_id))
            assert answer.event.sequence == sequence
            assert answer.event.writer == "service/gateway"


async def test_a_clean_stop_leaves_a_checkpoint_of_the_last_event(process: Process) -> None:
    """SIGTERM ends it with exit code 0 after signing the head; started again it goes on from there."""
    await process.start()
    async with process.channel("gateway") as channel:
        stub: rpc.AuditServiceAsyncStub = rpc.AuditServiceStub(channel)
        await stub.AppendEvents(audit.AppendEventsRequest(events=events(7)))
    code, _ = await process.end(signal.SIGTERM)
    assert code == 0
    assert json.loads(process.file.read_bytes().splitlines()[-1])["sequence"] == "7"
    await process.start()
    async with process.channel("gateway") as channel:
        answer = await rpc.AuditServiceStub(channel).AppendEvents(audit.AppendEventsRequest(events=events(1)))
    assert list(answer.sequences) == [8]
    report = await process.verify()
    assert (report.intact, report.head) == (True, 8)
    # Eight once the periodic checkpoint came in between.
    assert report.covered in {7, 8}


async def test_get_checkpoint_writes_one_first(process: Process) -> None:
    """The answer of GetCheckpoint is already in the file, readable by nobody else."""
    await process.start()
    async with process.channel("gateway") as channel:
        stub: rpc.AuditServiceAsyncStub = rpc.AuditServiceStub(channel)
        await stub.AppendEvents(audit.AppendEventsRequest(events=events(2)))
        answer = await stub.GetCheckpoint(audit.GetCheckpointRequest())
    assert json.loads(process.file.read_bytes().splitlines()[-1])["sequence"] == "2"
    assert answer.checkpoint.sequence == 2
    assert process.file.stat().st_mode & 0o077 == 0
    assert (await process.verify()).covered == 2


async def test_lists_are_filtered_and_paged(process: Process) -> None:
    """A typed filter finds its events over pages in both orders; a token of another filter is refused."""
    await process.start()
    incident = "7d444840-9dc0-11d1-b245-5ffdce74fad2"
    async with process.channel("gateway") as channel:
        stub: rpc.AuditServiceAsyncStub = rpc.AuditServiceStub(channel)
        for number in range(5):
            mine = event(incident_id=incident, phase=1 + number % 2)
            await stub.AppendEvents(audit.AppendEventsRequest(events=[event(), mine]))
    async with process.channel("operator") as channel:
        stub = rpc.AuditServiceStub(channel)
        for descending in (False, True):
            request = audit.ListEventsRequest(incident_id=incident, page_size=2, descending=descending)
            found: list[int] = []
            while True:
                page = await stub.ListEvents(request)
                assert len(page.events) <= 2
                found += [one.sequence for one in page.events]
                if not page.next_page_token:
                    break
                request.page_token = page.next_page_token
            assert found == sorted([2, 4, 6, 8, 10], reverse=descending)
        both = audit.ListEventsRequest(incident_id=incident, phase=audit.AuditEvent.PHASE_OUTCOME)
        assert [one.sequence for one in (await stub.ListEvents(both)).events] == [4, 8]
        early = audit.ListEventsRequest()
        early.end_time.seconds = 1
        assert not (await stub.ListEvents(early)).events
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.ListEvents(audit.ListEventsRequest(page_token=request.page_token))
        refusal = refusal_of(raised.value)
        assert refusal is not None
        assert refusal.name == "INVALID_PAGE_TOKEN"


async def test_who_may_not_append_or_read(process: Process) -> None:
    """A person cannot write the log, a service without the permission cannot read it."""
    await process.start()
    async with process.channel("operator") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await rpc.AuditServiceStub(channel).AppendEvents(audit.AppendEventsRequest(events=events(1)))
    assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
    async with process.channel("router") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await rpc.AuditServiceStub(channel).ListEvents(audit.ListEventsRequest())
    assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("name", ["OPSMESH_LOG_KEY_FILE", "OPSMESH_CHECKPOINT_FILE", "OPSMESH_POSTGRES_PASSWORD_FILE"])
async def test_a_missing_setting_names_itself(process: Process, name: str) -> None:
    """Without a setting, or with one that cannot be used, it does not start and says which one and what to do."""
    del process.environment[name]
    await process.spawn()
    code, said = await process.exited()
    assert code == 78
    assert name in said
    assert "NEXT" in said
