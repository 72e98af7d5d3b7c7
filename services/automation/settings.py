"""What automation is told by its environment, beyond what every service with a store is told."""

from pydantic import Field

from services.mesh.settings import ADDRESS, PostgresSettings


class AutomationSettings(PostgresSettings):
    """The settings of automation."""

    temporal: str = Field(pattern=ADDRESS, description="address of Temporal's front end, such as 127.0.0.1:7422")
