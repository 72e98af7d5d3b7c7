"""What agents is told by its environment: what every service is, and no store."""

from services.mesh.settings import MeshSettings


class AgentsSettings(MeshSettings):
    """Settings of agents; without OPSMESH_CONFIG/models.yaml there is no provider."""
