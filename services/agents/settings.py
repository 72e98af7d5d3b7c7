"""What agents is told by its environment: what every service is, and no store."""

from pathlib import Path

from pydantic import Field

from services.mesh.settings import MeshSettings


class AgentsSettings(MeshSettings):
    """Settings of agents; OPSMESH_PEERS must name guardrails."""

    models_file: Path | None = Field(default=None, description="the models and their providers; none = rules alone")
