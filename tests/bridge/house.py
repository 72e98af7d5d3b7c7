"""A running bridge: the real listener and app, with a hand-written ingest behind them."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import httpx

from opsmesh.config.v1 import sources_pb2
from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from services.bridge.app import build
from services.bridge.batches import Batches, Ingest
from services.bridge.health import Readiness
from services.bridge.limits import Limits
from services.bridge.listener import Listener
from services.bridge.senders.doors import load_doors
from services.ingest.mapping import entry_of, result_of
from services.ingest.sources import PARSERS
from services.local.files import free_port
from services.mesh.config import load_yaml
from tests.ingest.house import eventually

SOURCES = """
sources:
  - source: alertmanager
    bearer: {}
  - source: grafana
    basic: {}
  - source: generic
    bearer: {secret_file: alertmanager}
  - source: headed
    parser: generic
    header: {header: X-Secret}
  - source: open
    parser: generic
    none: {}
  - source: patient
    parser: alertmanager
    bearer: {secret_file: alertmanager}
    malformed_answer: MALFORMED_ANSWER_ACCEPT
  - source: signed
    parser: alertmanager
    hmac_github: {secret_file: alertmanager}
  - source: pagerduty-events
    routing_key: {secret_file: routed}
  - source: tokened
    parser: alertmanager
    url_token: {secret_file: routed}
"""
KEY = "R0123456789abcdef0123456789abcde"
SECRETS = {
    "alertmanager": "old-secret\nnew-secret\n",
    "grafana": "grafana:pass:word\n",
    "headed": "s3cret\n",
    "routed": f"{KEY}\n",
}
BEARER = {"Authorization": "Bearer new-secret"}
BASIC = {"Authorization": "Basic " + base64.b64encode(b"grafana:pass:word").decode()}
PARSER_OF = {
    "headed": "generic",
    "open": "generic",
    "patient": "alertmanager",
    "signed": "alertmanager",
    "tokened": "alertmanager",
}


def unavailable(code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> grpc.aio.AioRpcError:
    """Return the error of a call that did not get through."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "gone", None)


class MemoryIngest:
    """Parses as ingest does and keeps entries in memory; `gate` holds calls back, `error` fails them."""

    def __init__(self) -> None:
        self.entries: list[pb.StreamEntry] = []
        self.batches: list[int] = []
        self.error: grpc.aio.AioRpcError | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def SubmitSignals(  # noqa: N802  the IDL's name
        self,
        request: pb.SubmitSignalsRequest,
        *,
        timeout: float,  # noqa: ASYNC109  the stub's name
    ) -> pb.SubmitSignalsResponse:
        """Keep the deliveries and answer each, within `timeout` seconds."""
        async with asyncio.timeout(timeout):
            await self.gate.wait()
        if self.error:
            raise self.error
        self.batches.append(len(request.deliveries))
        entries = [entry_of(one, PARSERS[PARSER_OF.get(one.source, one.source)]) for one in request.deliveries]
        self.entries += entries
        return pb.SubmitSignalsResponse(results=[result_of(one) for one in entries])


class Bridge:
    """A bridge that listens; `post` sends a webhook."""

    def __init__(self, url: str, http: httpx.AsyncClient, batches: Batches) -> None:
        self.url = url
        self.http = http
        self.batches = batches
        self.readiness = Readiness(ready=True, degraded=())

    async def post(
        self, body: bytes, path: str = "/v1/webhooks/alertmanager", headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Post a body with good credentials, or with these headers."""
        return await self.http.post(self.url + path, content=body, headers=BEARER if headers is None else headers)


def write_config(folder: Path, sources: str = SOURCES, secrets: Mapping[str, str] = SECRETS) -> Path:
    """Write sources.yaml and the secret files; return the folder of both."""
    (folder / "sources.yaml").write_text(sources)
    for name, text in secrets.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    return folder


@asynccontextmanager
async def running(
    folder: Path,
    ingest: Ingest,
    *,
    items_max: int = 4096,
    bytes_max: int = 64 << 20,
    per_minute: int = 0,
    clock: Callable[[], float] = lambda: 0.0,
) -> AsyncIterator[Bridge]:
    """Run a bridge whose configuration is in the folder; by its clock no quota refills, however slow the machine is."""
    address = f"127.0.0.1:{free_port()}"
    doors = load_doors(folder, folder)
    async with httpx.AsyncClient(timeout=20, limits=httpx.Limits(max_connections=300)) as http:
        batches = Batches(ingest, items_max, bytes_max)
        bridge = Bridge(f"http://{address}", http, batches)
        sources = load_yaml(folder / "sources.yaml", sources_pb2.Sources).sources
        limits = Limits(sources, per_minute, clock)
        app = build(doors, batches, lambda: bridge.readiness, limits)
        listener, stop = Listener(app, address), asyncio.Event()
        task = asyncio.create_task(listener.run(stop))
        try:
            await eventually(listener.started)
            yield bridge
        finally:
            stop.set()
            await task
