"""What the gateway is told by its environment, beside what every service is told."""

from pathlib import Path

from pydantic import Field

from services.mesh.settings import PostgresSettings


class GatewaySettings(PostgresSettings):
    """The settings of the gateway; secrets are file paths."""

    grant_public_key_file: Path = Field(
        description="PEM of the Ed25519 public key of guardrails (grant.pub); make one with: opsmesh certs init"
    )
    backends_file: Path = Field(description="YAML of how to reach what the tools act on, such as deploy/backends.yaml")
    effect_retention_days: int = Field(
        default=90,
        ge=1,
        le=3650,
        description="days after which finished effects are deleted; UNKNOWN ones wait for a person for ever",
    )
