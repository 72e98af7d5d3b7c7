"""What guardrails is told by its environment, beside what every service is told."""

from pathlib import Path

from pydantic import Field

from services.mesh.settings import PostgresSettings


class GuardrailsSettings(PostgresSettings):
    """The settings of guardrails; secrets are file paths."""

    grant_key_file: Path = Field(
        description="PEM with the Ed25519 private key that signs grants (grant.key); make one with: opsmesh certs init"
    )
    identity_public_key_file: Path = Field(
        description="PEM with the Ed25519 public key of the router's identity tokens (identity.pub); "
        "make one with: opsmesh certs init"
    )
    retention_days: int = Field(
        default=365, ge=1, le=3650, description="days after which runs of agents that are over are deleted"
    )
