"""What agents is told by its environment, beside what every service with a store is told."""

from pathlib import Path

from pydantic import Field

from services.agents.models import FILE
from services.mesh.settings import PostgresSettings


class AgentsSettings(PostgresSettings):
    """Settings of agents; OPSMESH_PEERS must name ingest, guardrails, gateway and audit."""

    models_file: Path | None = Field(
        default=None, description="YAML of the models and their providers; unset: models.yaml of the configuration"
    )
    retention_days: int = Field(
        default=365, ge=1, le=3650, description="days after which the ledger of model calls is deleted"
    )
    run_workers: int = Field(default=4, ge=1, le=64, description="runs of agents that this process works on at once")
    run_lease_seconds: float = Field(
        default=15.0, ge=1.0, le=300.0, description="seconds after which a run whose process died is another's"
    )

    @property
    def models_path(self) -> Path | None:
        """Return the models file; none is there in a configuration without models."""
        if self.models_file:
            return self.models_file
        path = self.config / FILE
        return path if path.exists() else None
