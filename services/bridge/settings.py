"""What the bridge must be told."""

from pathlib import Path

from pydantic import Field

from services.mesh.settings import MeshSettings


class BridgeSettings(MeshSettings):
    """The bridge's settings; all but HTTP and SECRETS have working defaults."""

    http: str = Field(description="Address of the webhook listener, HOST:PORT.")
    secrets: Path = Field(description="Folder with one secret file per webhook source.")
    https: str = Field(
        default="", description="Address of the same over TLS, HOST:PORT, for senders with a client certificate."
    )
    https_cert: Path | None = Field(default=None, description="Its PEM certificate; else OPSMESH_TLS_CERT.")
    https_key: Path | None = Field(default=None, description="Its PEM private key; else OPSMESH_TLS_KEY.")
    queue_max: int = Field(default=4096, ge=1, description="Most deliveries that wait for ingest; beyond it: 503.")
    queue_bytes_max: int = Field(default=64 << 20, ge=1 << 20, description="Most bytes that wait for ingest.")
