"""The bridge's composition root: doors, batches to ingest, the HTTP listener, and a gRPC server for health."""

import time
from collections.abc import Mapping

import uvloop
from starlette.types import ASGIApp

from opsmesh.config.v1 import sources_pb2
from opsmesh.ingest.v1 import ingest_service_pb2_grpc
from services.bridge.app import build
from services.bridge.batches import Batches
from services.bridge.health import Watch
from services.bridge.limits import Limits
from services.bridge.listener import Listener, tls_context
from services.bridge.senders.doors import Door, load_doors
from services.bridge.settings import BridgeSettings
from services.mesh.client import Peers
from services.mesh.config import load_yaml
from services.mesh.errors import BootError
from services.mesh.server import serve
from services.mesh.settings import load


def run() -> None:
    """Serve until told to stop, on an event loop that is quick with sockets."""
    uvloop.run(serve_webhooks())


async def serve_webhooks() -> None:
    """Put the parts together and serve."""
    settings = load(BridgeSettings)
    doors = load_doors(settings.config, settings.secrets)
    peers = Peers(settings)
    channel = peers.channel("ingest")
    batches = Batches(ingest_service_pb2_grpc.IngestServiceStub(channel), settings.queue_max, settings.queue_bytes_max)
    watch = Watch(channel)
    sources = load_yaml(settings.config / "sources.yaml", sources_pb2.Sources).sources
    limits = Limits(sources, settings.rate_limit_per_minute, time.monotonic)
    app = build(doors, batches, lambda: watch.current, limits)
    listeners = [Listener(app, settings.http), *_over_tls(app, doors, settings)]

    async def started() -> bool:
        return all([await one.started() for one in listeners])

    try:
        await serve(settings, [], workers=[*(one.run for one in listeners), watch.run], ready=started)
        await batches.drain()
    finally:
        await peers.close()


def _over_tls(app: ASGIApp, doors: Mapping[str, Door], settings: BridgeSettings) -> list[Listener]:
    """Return the TLS listener if there is to be one. Raises BootError when a source needs it and there is none."""
    waiting = [name for name, door in doors.items() if door.authorities]
    if not settings.https:
        if waiting:
            raise BootError(
                f"source {waiting[0]} proves itself with a client certificate, and no listener asks for one\n"
                "NEXT: set OPSMESH_HTTPS to an address, such as 0.0.0.0:8443"
            )
        return []
    authorities = [one for door in doors.values() for one in door.authorities]
    context = tls_context(settings.https_cert or settings.tls_cert, settings.https_key or settings.tls_key, authorities)
    return [Listener(app, settings.https, context, "OPSMESH_HTTPS")]
