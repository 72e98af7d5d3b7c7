"""What reasoning adds to a model's own time: routing here, the steps of an agent in `steps`.

The router's real code on PostgreSQL, with fakes around it over mTLS, and the real model boundary with a recorded
provider, which answers at once: what is left is context, prompt, boundary, parsing and storing.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from opsmesh.agents.v1 import agent_service_pb2_grpc, model_service_pb2_grpc, template_service_pb2_grpc
from services.agents.servicer import ModelServicer
from services.agents.settings import AgentsSettings
from services.agents.store import PostgresLedger
from services.local.files import LocalError
from services.mesh.call import working
from services.mesh.client import Peers
from services.mesh.postgres import Pool, open_pool
from services.mesh.writes import Writes
from services.router import domain
from services.router.book import RuleBook
from services.router.domain import Stage
from services.router.lanes import IDENTITY
from services.router.messages import snapshot_of
from services.router.reasoning import mind, parts
from services.router.records import decided
from services.router.rule_store import PostgresRuleStore
from services.router.store import PostgresDecisionStore
from tests.agents.house import Audit
from tests.bench import steps
from tests.bench.replay import boundary_of, replayed
from tests.bench.table import Row, percentile
from tests.mesh.world import World
from tests.router.village import Village, unknown
from tests.stores import Database, running_postgres

DECISIONS: Final = 150
WARM: Final = 10
P50_MAX_MS: Final = 100.0
EXCHANGE: Final = {
    "turn": -1,
    "tool_calls": [
        {
            "name": "decide",
            "arguments_json": '{"confidence":0.9,"reason":"known","detail":{"respond":{"text":"nothing to do"}}}',
        }
    ],
}


@dataclass
class Recording(Village):
    """A village whose agents is the real model boundary, answering from a file."""

    boundary: ModelServicer | None = None

    def serve_agents(self) -> Any:
        """Run agents."""
        servicers: list[tuple[Any, Any]] = [
            (model_service_pb2_grpc.add_ModelServiceServicer_to_server, self.boundary),
            (agent_service_pb2_grpc.add_AgentServiceServicer_to_server, self.agents),
            (template_service_pb2_grpc.add_TemplateServiceServicer_to_server, self.templates),
        ]
        return self.world.serving("agents", servicers, settings={"listen": f"127.0.0.1:{self.agents_port}"})


@asynccontextmanager
async def recorded(world: World, database: Database, folder: Path) -> AsyncIterator[ModelServicer]:
    """Give the model boundary on its ledger, with one recorded exchange."""
    known = replayed(folder, "routing", [EXCHANGE])
    settings = AgentsSettings(
        **world.settings("agents").model_dump()
        | {
            "postgres_dsn": database.dsn("agents", with_password=False),
            "postgres_password_file": database.password_file("agents"),
        }
    )
    pool = await open_pool(settings, "agents")
    ledger = PostgresLedger(pool, Writes(pool, "agents", Audit()), known.limits)
    try:
        yield ModelServicer(boundary_of(known, ledger), ledger)
    finally:
        await pool.close()


async def decide_all(village: Village, peers: Peers, pool: Pool, count: int) -> list[float]:
    """Return the milliseconds from a claimed decision to the stored outcome, one after the other."""
    store = PostgresDecisionStore(pool, Writes(pool, "router", Audit()))
    book = RuleBook(PostgresRuleStore(pool))
    think = parts.compose(peers, pool, store, book).jobs[Stage.MODEL].handle
    taken = []
    for _ in range(count):
        incident = unknown()
        village.incidents.incidents[incident.incident_id] = incident
        with working(IDENTITY, "router/model", mind.SECONDS):
            await store.decide(
                [snapshot_of(incident)],
                lambda snapshot, _: domain.Verdict(domain.State.AWAITING_MODEL, f"unknown {snapshot.revision}"),
                decided,
                "",
            )
            (work,) = await store.claim(Stage.MODEL, 1, mind.SECONDS)
            began = time.perf_counter()
            step = await think(work)
            await store.advance(work, step)
            taken.append((time.perf_counter() - began) * 1000)
        if step.made is None or step.made.verdict.outcome is not domain.Outcome.RESPOND:
            raise LocalError(f"not decided as recorded: {step}")
    return taken


async def routing(folder: Path) -> list[Row]:
    """Measure the routing of decisions that no rule knows."""
    world = World(folder)
    async with (
        running_postgres(folder) as database,
        recorded(world, database, folder) as boundary,
    ):
        village = Recording(world, database, boundary=boundary)
        settings = village.settings()
        pool, peers = await open_pool(settings, "router"), Peers(settings)
        try:
            async with village.peers(), village.serve_agents():
                await decide_all(village, peers, pool, WARM)
                taken = await decide_all(village, peers, pool, DECISIONS)
        finally:
            await peers.close()
            await pool.close()
    p50, p99 = percentile(taken, 50), percentile(taken, 99)
    return [
        Row(
            "routing by a model, without the provider's time",
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms",
            "11 sources of context, prompt, boundary, parse, store",
            None,
            f"p50 < {P50_MAX_MS:g} ms",
            p50 < P50_MAX_MS,
        )
    ]


async def rows(folder: Path) -> list[Row]:
    """Measure both, one after the other."""
    found: list[Row] = []
    for name, part in (("routing", routing), ("steps", steps.rows)):
        place = folder / name
        place.mkdir()
        found += await part(place)
    return found
