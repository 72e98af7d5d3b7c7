"""What guardrails is told by its environment, beside what every service is told."""

from pathlib import Path

from pydantic import Field

from services.mesh.settings import PostgresSettings


class GuardrailsSettings(PostgresSettings):
    """The settings of guardrails; secrets are file paths."""

    grant_key_file: Path = Field(
        description="PEM with the Ed25519 private key that signs grants (grant.key); make one with: opsmesh certs init"
    )
