"""The composition root of agents: the model boundary, without a provider in this version."""

import structlog

from opsmesh.agents.v1 import model_service_pb2_grpc
from services.agents.servicer import ModelServicer
from services.agents.settings import AgentsSettings
from services.agents.stops import StopReports
from services.mesh.client import Peers
from services.mesh.server import serve
from services.mesh.settings import load

log = structlog.get_logger("opsmesh.agents")


async def run() -> None:
    """Serve until told to stop."""
    settings = load(AgentsSettings)
    if settings.models_file:
        # Not a boot error: the mesh works without a model, and ListModels says that there is none.
        log.warning("this version has no model providers: the models file is not used", file=str(settings.models_file))
    servicer, peers = ModelServicer({}), Peers(settings)
    reports = StopReports(peers.channel("guardrails"))
    try:
        await serve(
            settings,
            [(model_service_pb2_grpc.add_ModelServiceServicer_to_server, servicer)],
            workers=[reports.run],
        )
    finally:
        await peers.close()
