"""What the router is told by its environment."""

from pathlib import Path

from pydantic import Field

from services.mesh.settings import PostgresSettings
from services.router.domain import MAX_PER_HOUR


class RouterSettings(PostgresSettings):
    """Settings of the router; OPSMESH_PEERS must name automation, agents, ingest, guardrails, gateway and audit."""

    resume_per_second: float = Field(
        default=2.0, ge=0.01, le=1000, description="how many held decisions are tried a second after a kill's release"
    )
    model_starts_per_hour: int = Field(
        default=MAX_PER_HOUR,
        ge=1,
        le=1000,
        description="how often an hour a model's choice may start the same playbook or agent for the same trouble",
    )
    identity_key_file: Path = Field(
        description="PEM with the Ed25519 private key that says who said what (identity.key); opsmesh certs init"
    )
    conversation_retention_days: int = Field(
        default=90, ge=1, le=3650, description="days after which conversations in which nothing is said are deleted"
    )
    retention_days: int = Field(
        default=365, ge=1, le=3650, description="days after which decisions of closed incidents are deleted"
    )
