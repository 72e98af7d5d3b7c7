"""The composition root of agents: the model boundary, without a provider in this version."""

from opsmesh.agents.v1 import model_service_pb2_grpc
from services.agents.servicer import ModelServicer
from services.agents.settings import AgentsSettings
from services.mesh.errors import BootError
from services.mesh.server import serve
from services.mesh.settings import load

MODELS_FILE = "models.yaml"


async def run() -> None:
    """Serve until told to stop; a models file that this version cannot use is refused, not ignored."""
    settings = load(AgentsSettings)
    if (settings.config / MODELS_FILE).exists():
        raise BootError(
            f"{settings.config / MODELS_FILE}: this version has no model providers. NEXT: remove the file; "
            "the mesh runs on rules alone and asks people about the rest"
        )
    servicer = ModelServicer({})
    await serve(settings, [(model_service_pb2_grpc.add_ModelServiceServicer_to_server, servicer)])
