"""The composition root of agents: the model boundary with its ledger, templates, runs, and what it tells guardrails."""

import asyncio
import os
import socket
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from opsmesh.agents.v1 import agent_service_pb2_grpc, model_service_pb2_grpc, template_service_pb2_grpc
from opsmesh.audit.v1 import audit_service_pb2_grpc
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc
from services.agents import models as models_file
from services.agents.boundary import Boundary
from services.agents.domain import Models
from services.agents.providers import hosted
from services.agents.providers.recorded import Recorded, Recorder, Recordings
from services.agents.providers.structured import Structured
from services.agents.runs.incidents import Incidents
from services.agents.runs.peers import Peers as Outside
from services.agents.runs.runner import Runner
from services.agents.runs.servicer import AgentServicer, Surroundings
from services.agents.runs.shown import ShownRuns
from services.agents.runs.store import PostgresRuns
from services.agents.runs.store import forgotten as forgotten_runs
from services.agents.runs.work import Means
from services.agents.servicer import ModelServicer
from services.agents.settings import AgentsSettings
from services.agents.stops import KillStore, Stops
from services.agents.store import PostgresLedger, forgotten
from services.agents.templates.servicer import TemplateServicer
from services.agents.templates.store import PostgresTemplates
from services.mesh.client import Peers
from services.mesh.leases import Leases
from services.mesh.loop import every
from services.mesh.postgres import answers, check_revision, open_pool
from services.mesh.retention import Retention, request_ids
from services.mesh.server import serve
from services.mesh.settings import load
from services.mesh.writes import Writes

MIGRATIONS: Final = Path(__file__).parent / "migrations"
SWEEP_PERIOD: Final = 30.0
# Runs share the pool with the servicers.
POOL_MAX: Final = 8
log = structlog.get_logger("opsmesh.agents")


async def run() -> None:
    """Serve until told to stop."""
    settings = load(AgentsSettings)
    models = models_file.load(settings.models_path) if settings.models_path else Models()
    recordings = read_recordings(models)

    peers = Peers(settings)
    pool = await open_pool(settings, "agents", maximum=POOL_MAX)
    try:
        await check_revision(pool, MIGRATIONS)
        writes = Writes(pool, "agents", audit_service_pb2_grpc.AuditServiceStub(peers.channel("audit")))
        ledger = PostgresLedger(pool, writes, models.limits)
        boundary = Boundary(models, ledger, Recorder(Structured(hosted.Hosted())), Recorded(recordings), hosted.warm)
        templates = PostgresTemplates(pool)
        runs = PostgresRuns(pool)
        means = Means(runs, templates, Outside(peers), boundary)
        runner = Runner(means, settings.run_workers, settings.run_lease_seconds)
        switch = kill_switch_service_pb2_grpc.KillSwitchServiceStub(peers.channel("guardrails"))
        leases = Leases(switch, f"agents@{socket.gethostname()}/{os.getpid()}"[:128])
        incident = Incidents(peers.channel("ingest")).incident
        around = Surroundings(incident, templates, wake=runner.wake, admit=leases.admit)
        stops = Stops(leases, KillStore(pool), runner.halt, switch)
        days = settings.retention_days
        rules = (request_ids(settings.request_retention_days), *forgotten(days), forgotten_runs(days))
        retention = Retention(pool, *rules)

        async def sweep(stop: asyncio.Event) -> None:
            await every(stop, SWEEP_PERIOD, ledger.sweep)

        async def warm(stop: asyncio.Event) -> None:
            if any(not one.replays for one in models_file.endpoints(models)):
                await hosted.warm()
            await stop.wait()

        await serve(
            settings,
            [
                (model_service_pb2_grpc.add_ModelServiceServicer_to_server, ModelServicer(boundary, ledger)),
                (
                    template_service_pb2_grpc.add_TemplateServiceServicer_to_server,
                    TemplateServicer(templates, writes, models),
                ),
                (
                    agent_service_pb2_grpc.add_AgentServiceServicer_to_server,
                    AgentServicer(ShownRuns(runs), writes, around),
                ),
            ],
            workers=[
                *(writes.outbox_worker, retention.run, sweep, warm),
                *(runner.work, leases.watch, leases.poll, stops.work),
            ],
            ready=partial(answers, pool),
        )
    finally:
        await peers.close()
        pool.terminate()


def read_recordings(models: Models) -> dict[str, Recordings]:
    """Read the folders that are replayed, and say so: nobody shall take a recording for a model."""
    found: dict[str, Recordings] = {}
    for role, endpoints in models.roles.items():
        for one in endpoints:
            if one.replays:
                log.warning("replies come from recordings, not from a model", role=role, folder=one.replays)
                found.setdefault(one.replays, Recordings.load(Path(one.replays)))
            if one.records:
                log.warning("exchanges are recorded", role=role, model=one.model, folder=one.records)
    if not models.roles:
        log.info("no model is configured: rules go on, what they do not know waits")
    return found
