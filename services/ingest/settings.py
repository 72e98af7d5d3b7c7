"""What ingest is told by its environment."""

from pathlib import Path

from pydantic import Field

from services.mesh.settings import PostgresSettings


class IngestSettings(PostgresSettings):
    """The settings of ingest. Descriptions are the mend that a boot error prints."""

    redis_url: str = Field(
        pattern="^(rediss?|unix)://",
        description="URL of Redis or Valkey without password, such as redis://ingest@host/0",
    )
    redis_password_file: Path = Field(description="file that holds the password of the URL's user")
    redis_lossy: bool = Field(
        default=False, description="true accepts a store that may lose acknowledged signals (appendfsync, eviction)"
    )
    shed_percent: int = Field(
        default=80, ge=1, le=95, description="percent of the store's maxmemory above which signals are refused"
    )
    claim_seconds: float = Field(
        default=10, ge=0.05, le=3600, description="seconds after which an unacknowledged entry goes to another worker"
    )
    debounce_seconds: float = Field(
        default=0, ge=0, le=3600, description="seconds a new incident waits before it is decided"
    )
    dedupe_seconds: int = Field(
        default=3600,
        ge=1,
        le=30 * 86400,
        description="seconds in which an alert without a start time counts as the same one again",
    )
    retention_days: int = Field(
        default=30, ge=1, le=3650, description="days after which signals, raw bytes and closed incidents are deleted"
    )
