"""The bridge's composition root: doors, batches to ingest, the HTTP listener, and a gRPC server for health."""

import uvloop

from opsmesh.ingest.v1 import ingest_service_pb2_grpc
from services.bridge.app import build
from services.bridge.batches import Batches
from services.bridge.health import Watch
from services.bridge.listener import Listener
from services.bridge.senders import load_doors
from services.bridge.settings import BridgeSettings
from services.mesh.client import Peers
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
    listener = Listener(build(doors, batches, lambda: watch.current), settings.http)
    try:
        await serve(settings, [], workers=[listener.run, watch.run], ready=listener.started)
        await batches.drain()
    finally:
        await peers.close()
