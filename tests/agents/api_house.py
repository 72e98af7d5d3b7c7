"""Templates and the API of runs as agents serves them: real PostgreSQL, real mTLS; ingest and audit of our own."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import asyncpg

from opsmesh.agents.v1 import agent_service_pb2 as pb
from opsmesh.agents.v1 import agent_service_pb2_grpc as rpc
from opsmesh.agents.v1 import template_service_pb2 as templates_pb
from opsmesh.agents.v1 import template_service_pb2_grpc as templates_rpc
from opsmesh.config.v1 import templates_pb2
from opsmesh.guardrails.v1 import kill_switch_service_pb2 as kills_pb
from opsmesh.ingest.v1 import ingest_service_pb2 as ingest
from opsmesh.type.v1 import error_reason_pb2, type_pb2
from services.agents.domain import Models
from services.agents.runs.servicer import AgentServicer, Surroundings
from services.agents.runs.shown import ShownRuns
from services.agents.runs.store import PostgresRuns
from services.agents.settings import AgentsSettings
from services.agents.templates.servicer import TemplateServicer
from services.agents.templates.store import PostgresTemplates
from services.mesh.errors import Refusal
from services.mesh.kills import Facts, stopping, words
from services.mesh.postgres import open_pool
from services.mesh.writes import Writes
from tests.agents.house import Audit
from tests.mesh.world import World
from tests.stores import Database

CHECKOUT, PAYMENTS, STRANGER = "svc:demo/checkout", "svc:demo/payments", "somewhere.example"


@dataclass
class Ingest:
    """Knows `incidents`; refuses others as ingest does."""

    incidents: dict[str, ingest.Incident] = field(default_factory=dict)

    def open(self, state: "ingest.Incident.State.ValueType" = ingest.Incident.STATE_OPEN) -> str:
        """Make an incident with two known targets and one that nobody knows; return its id."""
        made = ingest.Incident(incident_id=str(uuid.uuid4()), title="checkout is slow", state=state)
        made.targets.append(type_pb2.Target(target_id=CHECKOUT, environment="demo", region="eu", in_inventory=True))
        made.targets.append(type_pb2.Target(target_id=PAYMENTS, environment="demo", in_inventory=True))
        made.targets.append(type_pb2.Target(target_id=STRANGER, raw_key=STRANGER))
        self.incidents[made.incident_id] = made
        return made.incident_id

    async def incident(self, incident_id: str) -> ingest.Incident:
        """Return an incident as it is now."""
        if incident_id not in self.incidents:
            raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="incident", id=incident_id)
        return self.incidents[incident_id]


@dataclass
class Api:
    """Agents, asked by several certificates; `woken` counts what the runner was told, `kills` hold."""

    stack: AsyncExitStack
    world: World
    server: Any
    ingest: Ingest
    audit: Audit
    database: Database
    woken: list[None]
    kills: list[kills_pb.LeasedKill]

    async def templates(self, who: str = "operator") -> "templates_rpc.TemplateServiceAsyncStub":
        """Return TemplateService as WHO."""
        stub: templates_rpc.TemplateServiceAsyncStub = templates_rpc.TemplateServiceStub(await self._channel(who))
        return stub

    async def runs(self, who: str = "operator") -> "rpc.AgentServiceAsyncStub":
        """Return AgentService as WHO."""
        stub: rpc.AgentServiceAsyncStub = rpc.AgentServiceStub(await self._channel(who))
        return stub

    async def _channel(self, who: str) -> Any:
        return await self.stack.enter_async_context(self.world.channel(self.server, who))

    async def publish(self, template: templates_pb2.AgentTemplate, **changes: Any) -> Any:
        """Publish a template as the operator; return the answer."""
        request: dict[str, Any] = {"request_id": str(uuid.uuid4()), "template": template} | changes
        return await (await self.templates()).PublishTemplate(templates_pb.PublishTemplateRequest(**request))

    async def sql(self, statement: str, *arguments: Any, role: str = "opsmesh_owner") -> list[dict[str, Any]]:
        """Ask the database."""
        connection = await asyncpg.connect(self.database.dsn(role), timeout=10)
        try:
            return [dict(row) for row in await connection.fetch(statement, *arguments)]
        finally:
            await connection.close()


@asynccontextmanager
async def living(world: World, database: Database, models: Models | None = None) -> AsyncIterator[Api]:
    """Serve both."""
    values = {
        "postgres_dsn": database.dsn("agents", with_password=False),
        "postgres_password_file": database.password_file("agents"),
    }
    settings = AgentsSettings(**world.settings("agents").model_dump() | values)
    pool, audit, known = await open_pool(settings, "agents"), Audit(), Ingest()
    writes, templates = Writes(pool, "agents", audit), PostgresTemplates(pool)
    woken: list[None] = []
    kills: list[kills_pb.LeasedKill] = []
    around = Surroundings(known.incident, templates, lambda: woken.append(None), partial(admit, kills))
    servicers: list[tuple[Any, Any]] = [
        (
            templates_rpc.add_TemplateServiceServicer_to_server,
            TemplateServicer(templates, writes, models or Models()),
        ),
        (rpc.add_AgentServiceServicer_to_server, AgentServicer(ShownRuns(PostgresRuns(pool)), writes, around)),
    ]
    stop = asyncio.Event()
    worker = asyncio.create_task(writes.outbox_worker(stop))
    try:
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(world.serving("agents", servicers))
            yield Api(stack, world, server, known, audit, database, woken, kills)
    finally:
        stop.set()
        await worker
        await pool.close()


def admit(kills: Sequence[kills_pb.LeasedKill], about: Facts) -> None:
    """Refuse what one of these kills stops, as a lease does."""
    if kill := stopping(kills, about):
        reason, scope = error_reason_pb2.ERROR_REASON_KILLED, words(kill.scope)
        raise Refusal(reason, kill_id=kill.kill_id, scope=scope, retry_after=2.0)


def template(template_id: str = "looker", **changes: Any) -> templates_pb2.AgentTemplate:
    """Return a template that only reads."""
    made = templates_pb2.AgentTemplate(
        template_id=template_id,
        title="It looks",
        role="You look.",
        tools=["CheckHealth", "GetWorkload"],
        max_steps=8,
        token_budget=1000,
        proof=templates_pb2.Proof(tool="CheckHealth", field="healthy"),
    )
    made.timeout_duration.FromSeconds(60)
    made.MergeFrom(templates_pb2.AgentTemplate(**changes))
    return made


def start(incident_id: str, template_id: str = "looker", **changes: Any) -> pb.StartRunRequest:
    """Return the wish for a run."""
    values = {"request_id": str(uuid.uuid4()), "template_id": template_id, "incident_id": incident_id, "goal": "look"}
    return pb.StartRunRequest(**values | changes)
