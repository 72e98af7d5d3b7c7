"""The webhook listener: cap, exact bytes, authenticate, pass on, answer. It parses nothing."""

import time
import uuid
from collections.abc import Awaitable, Callable, Mapping

import grpc
import structlog
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from opsmesh.ingest.v1 import ingest_service_pb2 as ingest
from services.bridge.batches import Batches, FullError
from services.bridge.domain import BODY_MAX, DISCARD_MAX
from services.bridge.health import Readiness
from services.bridge.senders import Door
from services.mesh import telemetry

CLOSE = {"Connection": "close"}
RETRY = {"Retry-After": "2"}
CONTENT_TYPE_MAX = 256
UNKNOWN = "unknown"

WEBHOOKS = Counter("opsmesh_webhooks_total", "Webhooks answered.", ["source", "code"])
SECONDS = Histogram(
    "opsmesh_webhook_seconds", "Time to answer a webhook.", buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)
)
log = structlog.get_logger("opsmesh.bridge")


class TooLargeError(Exception):
    """The body is above its cap; what came of it was discarded."""


async def read_body(request: Request) -> bytes:
    """Return the exact bytes. Raises TooLargeError above 1 MiB, after discarding up to 16 MiB of it."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > DISCARD_MAX:
        raise TooLargeError
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > DISCARD_MAX:
            raise TooLargeError
        if size <= BODY_MAX:
            chunks.append(chunk)
        else:
            chunks.clear()
    if size > BODY_MAX:
        raise TooLargeError
    return b"".join(chunks)


def problem(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return a small JSON answer that says what is wrong."""
    return JSONResponse({"error": text}, status, headers=dict(headers or {}))


class Webhooks:
    """The endpoint that all senders share."""

    def __init__(self, doors: Mapping[str, Door], batches: Batches) -> None:
        self._doors = doors
        self._batches = batches

    async def post(self, request: Request) -> Response:
        """Answer a webhook of the source that the path names."""
        return await self.answer(request, request.path_params["source"])

    def fixed(self, source: str) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint for SOURCE whatever the path."""

        async def endpoint(request: Request) -> Response:
            return await self.answer(request, source)

        return endpoint

    async def answer(self, request: Request, source: str) -> Response:
        """Answer a webhook and count it."""
        began = time.perf_counter()
        try:
            response = await self._accept(request, source)
        except ClientDisconnect:
            response = problem(400, "the sender went away before its body was complete", CLOSE)
        SECONDS.observe(time.perf_counter() - began)
        WEBHOOKS.labels(source if source in self._doors else UNKNOWN, response.status_code).inc()
        return response

    async def _accept(self, request: Request, source: str) -> Response:
        door = self._doors.get(source)
        if door is None:
            return problem(404, "there is no such source; sources are configured in sources.yaml", CLOSE)
        received = Timestamp()
        received.GetCurrentTime()
        try:
            body = await read_body(request)
        except TooLargeError:
            return problem(413, f"the body is larger than {BODY_MAX} bytes", CLOSE)
        authenticity = door.authenticity(request.headers)
        if authenticity is None:
            return problem(401, "unauthorized")
        trace, _ = telemetry.begin(request.headers.get(telemetry.HEADER))
        delivery = ingest.Delivery(
            delivery_id=str(uuid.uuid4()),
            source=source,
            body=body,
            content_type=request.headers.get("content-type", "")[:CONTENT_TYPE_MAX],
            receive_time=received,
            authenticity=authenticity,
            traceparent=trace.header,
        )
        try:
            result = await self._batches.submit(delivery)
        except FullError:
            return problem(503, "too many deliveries wait; come again", RETRY)
        except (grpc.aio.AioRpcError, LookupError) as error:
            log.warning("delivery not accepted", source=source, trace_id=trace.trace_id, error=repr(error)[:500])
            return problem(503, "the delivery could not be stored; come again", RETRY)
        return answer_to(result, door)


def answer_to(result: ingest.DeliveryResult, door: Door) -> Response:
    """Turn ingest's answer into HTTP."""
    if result.state == ingest.DeliveryResult.STATE_ACCEPTED:
        return JSONResponse({"results": [{"signal_id": one} for one in result.signal_ids]}, 202)
    if result.state == ingest.DeliveryResult.STATE_MALFORMED:
        if door.sender.accept_malformed:
            return JSONResponse({"results": []}, 202)
        errors = [{"field": one.field, "description": one.description} for one in result.errors]
        return JSONResponse({"errors": errors}, 422)
    return problem(404, "no parser understands this source; see `parser` in sources.yaml")


def build(doors: Mapping[str, Door], batches: Batches, readiness: Callable[[], Readiness]) -> Starlette:
    """Return the application."""
    webhooks = Webhooks(doors, batches)

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> Response:
        current = readiness()
        return JSONResponse(current.body(), 200 if current.ready else 503)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    # Grafana may be told to PUT.
    methods = ["POST", "PUT"]
    return Starlette(
        routes=[
            Route("/v1/webhooks/{source}", webhooks.post, methods=methods),
            Route("/api/webhook", webhooks.fixed("generic"), methods=methods),
            Route("/api/alert/webhook", webhooks.fixed("alertmanager"), methods=methods),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
        ]
    )
