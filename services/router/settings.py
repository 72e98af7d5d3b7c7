"""What the router is told by its environment: nothing beyond what every service with a store needs."""

from services.mesh.settings import PostgresSettings


class RouterSettings(PostgresSettings):
    """Settings of the router; OPSMESH_PEERS must name automation, agents and audit."""
