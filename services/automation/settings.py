"""What automation is told by its environment, beyond what every service with a store is told."""

from pydantic import Field

from services.mesh.settings import ADDRESS, PostgresSettings


class AutomationSettings(PostgresSettings):
    """The settings of automation."""

    history_retention_days: int = Field(
        default=3, ge=1, le=365, description="days for which the engine keeps the history of what has ended"
    )
    retention_days: int = Field(
        default=365, ge=1, le=36500, description="days for which executions that have ended are kept with their steps"
    )
    temporal: str = Field(pattern=ADDRESS, description="address of Temporal's front end, such as 127.0.0.1:7422")
