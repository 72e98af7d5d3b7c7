"""What the audit service is told by its environment."""

from pathlib import Path

from pydantic import Field

from services.mesh.settings import PostgresSettings


class AuditSettings(PostgresSettings):
    """The settings of the audit service."""

    log_key_file: Path = Field(description="PEM Ed25519 key that signs checkpoints; make one with: opsmesh certs init")
    checkpoint_file: Path = Field(description="file outside the database to which signed checkpoints are appended")
