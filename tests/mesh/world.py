"""A small mesh for tests: real certificates, real mTLS sockets, the real server and client."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from services.local import certs
from services.mesh import tls
from services.mesh.client import MeshChannel, connect
from services.mesh.server import Server, Servicers
from services.mesh.settings import MeshSettings

ROOT = Path(__file__).resolve().parents[2]


class World:
    """Certificates under `folder`, and settings, servers and channels made from them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pki = certs.ensure(folder)
        self.authority = certs.load_authority(self.pki)

    def settings(self, name: str, **changes: Any) -> MeshSettings:
        """Return the settings of a service (or person) with the repository's identities and free ports."""
        values: dict[str, Any] = {
            "listen": "127.0.0.1:0",
            "metrics": "",
            "tls_cert": self.pki / f"{name}.pem",
            "tls_key": self.pki / f"{name}.key",
            "tls_ca": self.pki / "ca.pem",
            "identities": ROOT / "deploy" / "identities.yaml",
            "config": ROOT / "deploy",
            "peers": {},
            "state": self.folder,
        }
        return MeshSettings(**(values | changes))

    @asynccontextmanager
    async def serving(self, name: str, servicers: Servicers, **options: Any) -> AsyncIterator[Server]:
        """Run a server with the certificate of service `name`; its port is `.port`."""
        changes = options.pop("settings", {})
        server = Server(self.settings(name, **changes), servicers, **options)
        await server.start()
        try:
            yield server
        finally:
            await server.stop(grace=1.0)

    @asynccontextmanager
    async def channel(self, server: Server, name: str) -> AsyncIterator[MeshChannel]:
        """Connect to a server with the certificate of service or person `name`."""
        async with self.channel_with(server, tls.client_credentials(self.settings(name))) as made:
            yield made

    @asynccontextmanager
    async def channel_with(self, server: Server, credentials: grpc.ChannelCredentials) -> AsyncIterator[MeshChannel]:
        """Connect to a server with any credentials."""
        async with connect(f"127.0.0.1:{server.port}", server.service, credentials) as made:
            yield made
