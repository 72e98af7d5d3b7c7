"""What the router is told by its environment."""

from pydantic import Field

from services.mesh.settings import PostgresSettings


class RouterSettings(PostgresSettings):
    """Settings of the router; OPSMESH_PEERS must name automation, agents, ingest, guardrails and audit."""

    resume_per_second: float = Field(
        default=2.0, ge=0.01, le=1000, description="how many held decisions are tried a second after a kill's release"
    )
    retention_days: int = Field(
        default=365, ge=1, le=3650, description="days after which decisions of closed incidents are deleted"
    )
