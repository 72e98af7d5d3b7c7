"""Agents' model boundary with its real ledger, served over mTLS, before providers of the test's choosing."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import yaml

from opsmesh.agents.v1 import model_service_pb2 as pb
from opsmesh.agents.v1 import model_service_pb2_grpc as rpc
from opsmesh.audit.v1 import audit_service_pb2 as audit_pb
from services.agents import models
from services.agents.boundary import Boundary
from services.agents.main import read_recordings
from services.agents.providers.hosted import Hosted, warm
from services.agents.providers.recorded import Recorded, Recorder
from services.agents.providers.structured import Structured
from services.agents.servicer import ModelServicer
from services.agents.settings import AgentsSettings
from services.agents.store import PostgresLedger
from services.mesh.postgres import open_pool
from services.mesh.writes import Writes
from tests.mesh.world import World
from tests.stores import Database

INCIDENT = "6f3f2ad2-6a3f-4c5e-9d6b-0d3a5c1b7e11"
SCHEMA = '{"type":"object","properties":{"target_id":{"type":"string"}},"required":["target_id"]}'


@dataclass
class Audit:
    """Takes every event."""

    events: "asyncio.Queue[audit_pb.AuditEvent]" = field(default_factory=asyncio.Queue)

    async def AppendEvents(  # noqa: N802  the IDL's name
        self, request: audit_pb.AppendEventsRequest, **_: Any
    ) -> audit_pb.AppendEventsResponse:
        """Acknowledge."""
        for one in request.events:
            self.events.put_nowait(one)
        return audit_pb.AppendEventsResponse()


@dataclass
class House:
    """A running boundary; `stub` asks as the router."""

    stub: "rpc.ModelServiceAsyncStub"
    boundary: Boundary
    ledger: PostgresLedger
    audit: Audit
    database: Database

    async def rows(self, sql: str) -> list[dict[str, Any]]:
        """Ask the database."""
        connection = await asyncpg.connect(self.database.dsn("agents"), timeout=10)
        try:
            return [dict(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()


@asynccontextmanager
async def living(world: World, database: Database, folder: Path, written: dict[str, Any]) -> AsyncIterator[House]:
    """Serve the boundary with a models file of this content."""
    path = folder / "models.yaml"
    path.write_text(yaml.safe_dump(written))
    settings = AgentsSettings(
        **world.settings("agents").model_dump()
        | {
            "postgres_dsn": database.dsn("agents", with_password=False),
            "postgres_password_file": database.password_file("agents"),
        }
    )
    known = models.load(path)
    pool, audit = await open_pool(settings, "agents"), Audit()
    writes = Writes(pool, "agents", audit)
    ledger = PostgresLedger(pool, writes, known.limits)
    boundary = Boundary(known, ledger, Recorder(Structured(Hosted())), Recorded(read_recordings(known)), warm)
    servicers = [(rpc.add_ModelServiceServicer_to_server, ModelServicer(boundary, ledger))]
    stop = asyncio.Event()
    worker = asyncio.create_task(writes.outbox_worker(stop))
    try:
        async with world.serving("agents", servicers) as server, world.channel(server, "router") as channel:
            yield House(rpc.ModelServiceStub(channel), boundary, ledger, audit, database)
    finally:
        stop.set()
        await worker
        await pool.close()


def role(api_base: str, **changes: Any) -> dict[str, Any]:
    """Return a role of a models file whose model is at this base URL."""
    return {"model": "openai/tiny", "api_base": api_base, "timeout": 20, "max_tokens": 100} | changes


def user(text: str) -> pb.Message:
    """Return a message of ours."""
    return pb.Message(role=pb.Message.ROLE_USER, text=text)


def ask(*messages: pb.Message, tools: tuple[str, ...] = (), **changes: Any) -> pb.GenerateRequest:
    """Return a question of the role routing about the incident."""
    values: dict[str, Any] = {
        "request_id": str(uuid.uuid4()),
        "role": "routing",
        "system": "You decide.",
        "messages": list(messages) or [user("checkout is down")],
        "tools": [
            pb.ToolDefinition(name=name, description="It helps.", parameters_json_schema=SCHEMA) for name in tools
        ],
        "attribution": pb.Attribution(incident_id=INCIDENT, sender="alertmanager"),
    }
    return pb.GenerateRequest(**values | changes)
