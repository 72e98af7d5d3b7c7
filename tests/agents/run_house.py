"""The engine of runs over real PostgreSQL and the real boundary, before a model that says what the test wants."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import duration_pb2

from opsmesh.config.v1 import templates_pb2
from opsmesh.ingest.v1 import ingest_service_pb2 as ingest
from opsmesh.type.v1 import type_pb2
from services.agents.boundary import Boundary
from services.agents.domain import Endpoint, Finish, Limits, Models, Price, Question, RawReply, ToolCall, Usage
from services.agents.providers import Provider, ProviderError
from services.agents.providers.recorded import Recorded
from services.agents.runs.contract import NewRun
from services.agents.runs.domain import Run
from services.agents.runs.peers import Peers as Mesh
from services.agents.runs.runner import Runner
from services.agents.runs.starting import new_root
from services.agents.runs.store import PostgresRuns
from services.agents.runs.work import Means, Pace
from services.agents.settings import AgentsSettings
from services.agents.store import PostgresLedger
from services.agents.templates.checking import digest_of, pins_of
from services.agents.templates.servicer import template_message
from services.agents.templates.store import NewTemplate, PostgresTemplates, TemplateRow
from services.mesh.client import Peers
from services.mesh.loop import wait
from services.mesh.postgres import Pool, open_pool
from services.mesh.writes import Writes
from tests.agents.house import Audit
from tests.agents.outside import Outside
from tests.mesh.world import World
from tests.stores import Database

TARGET, OTHER = "svc:demo/checkout", "svc:demo/payments"
QUICK = Pace(
    approval=0.05, child=0.1, claim=0.05, model=0.1, again=0.05, closing=0.1, lock=0.05, proof=0.02, proof_tries=3
)
Saying = Sequence[tuple[str, Any]] | ProviderError


@dataclass
class Script:
    """A model: for the text that its instructions hold, what it says at each turn; the last one for ever."""

    lines: dict[str, Sequence[Saying]] = field(default_factory=dict)
    asked: list[Question] = field(default_factory=list)
    usage: Usage = field(default_factory=lambda: Usage(100, 10))
    hangs: bool = False
    # So many of its next replies are none that could be used.
    mute: int = 0
    hanging: asyncio.Event = field(default_factory=asyncio.Event)

    async def generate(self, _endpoint: Endpoint, question: Question) -> RawReply:
        """Say the line of this turn."""
        self.asked.append(question)
        if self.hangs:
            self.hanging.set()
            await asyncio.Event().wait()
        if self.mute:
            self.mute -= 1
            return RawReply("Well.", (), Finish.STOP, self.usage)
        lines = next(lines for marker, lines in self.lines.items() if marker in question.system)
        turn = sum(one.speaker.value == "assistant" for one in question.messages)
        said = lines[min(turn, len(lines) - 1)]
        if isinstance(said, ProviderError):
            raise said
        calls = tuple(ToolCall("", name, made if isinstance(made, str) else json.dumps(made)) for name, made in said)
        return RawReply("I will look." if calls else "Nothing to do.", calls, Finish.STOP, self.usage)


def template(template_id: str = "repair", **changes: Any) -> templates_pb2.AgentTemplate:
    """Return a template that reads, restarts, and is proved by health."""
    values: dict[str, Any] = {
        "template_id": template_id,
        "title": "Repairs",
        "role": f"You are a {template_id} agent.",
        "tools": ["GetWorkload", "CheckHealth", "RestartWorkload"],
        "max_steps": 20,
        "timeout_duration": duration_pb2.Duration(seconds=600),
        "token_budget": 100_000,
        "proof": templates_pb2.Proof(tool="CheckHealth", field="healthy"),
    }
    return templates_pb2.AgentTemplate(**values | changes)


def incident() -> ingest.Incident:
    """Return an open incident with two targets."""
    made = ingest.Incident(incident_id=str(uuid.uuid4()), title="checkout is slow", source="alertmanager", firing=True)
    for target_id in (TARGET, OTHER):
        made.targets.append(type_pb2.Target(target_id=target_id, environment="demo", in_inventory=True))
    return made


def check(target: str = TARGET) -> tuple[str, Any]:
    """Read health."""
    return "workload_CheckHealth", {"target_id": target}


def restart(target: str = TARGET, reason: str = "it is stuck") -> tuple[str, Any]:
    """Restart."""
    return "workload_RestartWorkload", {"target_id": target, "reason": reason}


def report(outcome: str = "OUTCOME_REPAIRED", evidence: int = 2, action: int | None = 4) -> tuple[str, Any]:
    """Report."""
    made: dict[str, Any] = {
        "outcome": outcome,
        "cause": "it was stuck",
        "evidence": [{"step_number": evidence, "what": "it answered 503"}],
        "confidence": 0.8,
        "verification": "read its health again",
    }
    if action is not None:
        made["actions"] = [{"step_number": action, "what": "restarted it"}]
    return "report", made


# The steps of it: 1 model, 2 read, 3 model, 4 action, 5 model, 6 report, 7 proof.
REPAIR: Sequence[Saying] = ([check()], [restart()], [report()])


@dataclass
class Runs:
    """The engine and what is around it."""

    pool: Pool
    store: PostgresRuns
    templates: PostgresTemplates
    means: Means
    runner: Runner
    outside: Outside
    script: Script
    boundary: Boundary

    async def publish(self, content: templates_pb2.AgentTemplate) -> TemplateRow:
        """Publish a template."""
        pins, written = pins_of(content), content.SerializeToString(deterministic=True)
        new = NewTemplate(content.template_id, digest_of(written, pins), written, pins, "human/operator")
        async with self.pool.acquire() as connection, connection.transaction():
            return await self.templates.publish(connection, new)

    async def start(
        self, content: templates_pb2.AgentTemplate | None = None, targets: tuple[str, ...] = (TARGET,), **changes: Any
    ) -> str:
        """Start a run; return its id."""
        row = await self.publish(content or template())
        values: dict[str, Any] = {
            "run_id": str(uuid.uuid4()),
            "template": row,
            "incident": incident(),
            "decision_id": "",
            "target_ids": targets,
            "goal": "find out and repair",
            "requester": "service/router",
            "execution_id": "",
            "execution_trace": "",
            "identity_token": b"",
            "traceparent": "",
        }
        new = NewRun(**values | changes)
        async with self.pool.acquire() as connection, connection.transaction():
            await self.store.create(connection, new_root(new, template_message(row)))
        self.runner.wake()
        return new.run_id

    async def run(self, run_id: str) -> Run:
        """Return a run as it is."""
        found = await self.store.run(run_id)
        assert found is not None
        return found

    async def until(self, run_id: str, *states: str, closed: bool = False) -> Run:
        """Wait until a run is in one of these states; with none, until it has ended."""
        async with asyncio.timeout(60):
            while True:
                found = await self.run(run_id)
                there = found.state in states if states else not found.open
                if there and (found.closed or not closed):
                    return found
                await self._look()

    async def until_said(self, run_id: str, reason: str) -> Run:
        """Wait until a run waits for this reason."""
        async with asyncio.timeout(60):
            while (found := await self.run(run_id)).reason != reason:
                await self._look()
        return found

    async def until_tried(self, run_id: str, number: int) -> Run:
        """Wait until a step of a run was tried, and is to be tried again."""
        async with asyncio.timeout(60):
            found = await self.run(run_id)
            while not any(one.number == number and one.tries for one in found.steps):
                await self._look()
                found = await self.run(run_id)
        return found

    async def cancel(self, run_id: str) -> bool:
        """Ask a run to stop."""
        async with self.pool.acquire() as connection, connection.transaction():
            asked = await self.store.request_cancel(connection, run_id, "enough")
        self.runner.wake()
        return asked

    async def rows(self, sql: str, *arguments: Any) -> list[Mapping[str, Any]]:
        """Ask the database."""
        return [dict(row) for row in await self.pool.fetch(sql, *arguments)]

    async def _look(self) -> None:
        """Let the runner look now instead of in half a second, and give way for a moment."""
        self.runner.wake()
        await wait(asyncio.Event(), 0.03)


def boundary_of(pool: Pool, script: Provider) -> Boundary:
    """Return the real boundary and ledger before a scripted model."""
    endpoint = Endpoint(model="openai/tiny", provider="here", seconds=20.0, price=Price(1_000_000, 1_000_000))
    models = Models({"agent": (endpoint,)}, Limits())
    writes = Writes(pool, "agents", Audit())

    async def warm() -> None:
        return

    return Boundary(models, PostgresLedger(pool, writes, models.limits), script, Recorded({}), warm)


async def pool_of(world: World, database: Database) -> Pool:
    """Open the pool of agents."""
    settings = AgentsSettings(
        **world.settings("agents").model_dump()
        | {
            "postgres_dsn": database.dsn("agents", with_password=False),
            "postgres_password_file": database.password_file("agents"),
        }
    )
    return await open_pool(settings, "agents", maximum=8)


@asynccontextmanager
async def running(
    world: World,
    database: Database,
    *,
    lines: dict[str, Sequence[Saying]] | None = None,
    places: int = 4,
    pace: Pace = QUICK,
    work: bool = True,
    peers: Peers | None = None,
    minds: Callable[[Pool], Boundary] | None = None,
) -> AsyncIterator[Runs]:
    """Run the engine; without `work` nothing is taken, with `peers` these are asked, with `minds` these think."""
    pool = await pool_of(world, database)
    script, outside = Script(dict(lines or {"": REPAIR})), Outside()
    store, templates = PostgresRuns(pool), PostgresTemplates(pool)
    boundary = minds(pool) if minds else boundary_of(pool, script)
    means = Means(store, templates, Mesh(peers) if peers else outside, boundary, pace)
    runner = Runner(means, places, 5.0)
    stop = asyncio.Event()
    worker = asyncio.create_task(runner.work(stop)) if work else None
    try:
        yield Runs(pool, store, templates, means, runner, outside, script, boundary)
    finally:
        stop.set()
        if worker is not None:
            await worker
        await pool.close()
