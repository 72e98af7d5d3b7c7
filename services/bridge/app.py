"""The webhook listener: cap, exact bytes, authenticate, pass on, answer. It parses nothing."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from math import ceil

import grpc
import structlog
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from opsmesh.ingest.v1 import ingest_service_pb2 as ingest
from services.bridge import cloudevents
from services.bridge.answers import EVENTS, JSON, AnswerError, answer_to, invalid
from services.bridge.batches import Batches
from services.bridge.connections import CERTIFICATE
from services.bridge.domain import BODY_MAX, DISCARD_MAX
from services.bridge.health import Readiness
from services.bridge.kept import kept_headers
from services.bridge.limits import Busy, Limits
from services.bridge.senders import events
from services.bridge.senders.doors import Door
from services.bridge.senders.memory import Answers, delivery_id_of
from services.bridge.senders.proof import Knock, Proof, UnavailableError
from services.bridge.waiting import FullError
from services.mesh import telemetry
from services.mesh.client import refusal_of

CLOSE = {"Connection": "close"}
CHALLENGE = {"WWW-Authenticate": 'Basic realm="webhooks"'}
RETRY_SECONDS = 2
RETRY = {"Retry-After": str(RETRY_SECONDS)}
BODY_SECONDS = 20
CONTENT_TYPE_MAX = 256
UNKNOWN = "unknown"
PREFIX = "/v1/webhooks/"
OPTIONS = "OPTIONS"

WEBHOOKS = Counter("opsmesh_webhooks_total", "Webhooks answered.", ["source", "code"])
REPLAYS = Counter("opsmesh_webhook_replays_total", "Webhooks answered as the same one before was.", ["source"])
SECONDS = Histogram(
    "opsmesh_webhook_seconds", "Time to answer a webhook.", buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)
)
log = structlog.get_logger("opsmesh.bridge")


async def read_body(request: Request) -> bytes:
    """Return the exact bytes; AnswerError above 1 MiB (after discarding up to 16 MiB of it), or after 20 s."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _read(request)
    except TimeoutError:
        raise AnswerError(408, f"the body did not come within {BODY_SECONDS} s", CLOSE) from None
    except ClientDisconnect:
        raise AnswerError(400, "the sender went away before its body was complete", CLOSE) from None


async def _read(request: Request) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > DISCARD_MAX:
        raise AnswerError(413, f"the body is larger than {BODY_MAX} bytes", CLOSE)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > DISCARD_MAX:
            raise AnswerError(413, f"the body is larger than {BODY_MAX} bytes", CLOSE)
        if size <= BODY_MAX:
            chunks.append(chunk)
        else:
            chunks.clear()
    if size > BODY_MAX:
        raise AnswerError(413, f"the body is larger than {BODY_MAX} bytes", CLOSE)
    return b"".join(chunks)


class Webhooks:
    """The endpoint that all senders share."""

    def __init__(self, doors: Mapping[str, Door], batches: Batches, limits: Limits) -> None:
        self._doors = doors
        self._limits = limits
        self._batches = batches
        self._answers = Answers()

    async def post(self, request: Request) -> Response:
        """Answer a webhook of the source that the path names."""
        return await self.answer(request, request.path_params["source"])

    def fixed(self, source: str) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint for SOURCE whatever the path."""

        async def endpoint(request: Request) -> Response:
            return await self.answer(request, source)

        return endpoint

    async def answer(self, request: Request, source: str, token: str = "") -> Response:
        """Answer a webhook, or a question whether it may come, and count it; TOKEN is what its path ends with."""
        began = time.perf_counter()
        try:
            if request.method == OPTIONS:
                response = self._handshake(request, source, token)
            else:
                response = await self._accept(request, source, token)
        except AnswerError as error:
            response = error.response
        SECONDS.observe(time.perf_counter() - began)
        WEBHOOKS.labels(source if source in self._doors else UNKNOWN, response.status_code).inc()
        return response

    def _handshake(self, request: Request, source: str, token: str) -> Response:
        self._refuse(self._limits.client(_address(request)), source)
        return cloudevents.handshake(self._door(source, token), request.headers, self._limits.a_minute(source))

    def _door(self, source: str, token: str) -> Door:
        door = self._doors.get(source)
        if door is None or (token and not door.takes_token):
            raise AnswerError(404, "there is no such source; sources are configured in sources.yaml")
        return door

    async def _accept(self, request: Request, source: str, token: str) -> Response:
        received = Timestamp()
        received.FromNanoseconds(time.time_ns())
        # Read before anything is refused: a sender that still writes would never see the answer.
        body = await read_body(request)
        self._refuse(self._limits.client(_address(request)), source)
        door = self._door(source, token)
        proof = await _prove(request, door, body, token)
        if not cloudevents.is_understood(door, request.headers):
            raise AnswerError(415, "this content type is no event; send application/cloudevents+json")
        if _is_packed(request):
            raise AnswerError(415, "nothing is unpacked here; send it as it is", {"Accept-Encoding": "identity"})
        known = self._answers.find(source, proof, time.monotonic())
        if known is not None:
            REPLAYS.labels(source).inc()
            return Response(known, 202, media_type=JSON)
        # After the proof: nobody else can use up what a source may hand in.
        self._refuse(self._limits.source(source), source)
        if proof.in_body and (errors := events.errors_of(body)):
            return invalid(errors)
        if proof.hidden:
            body = events.masked(body, proof.hidden)
        trace, _ = telemetry.begin(request.headers.get(telemetry.HEADER))
        delivery = ingest.Delivery(
            delivery_id=delivery_id_of(source, proof),
            source=source,
            body=body,
            content_type=request.headers.get("content-type", "")[:CONTENT_TYPE_MAX],
            receive_time=received,
            authenticity=door.authenticity,
            traceparent=trace.header,
            headers=kept_headers(request.headers, door.secret_header),
        )
        result = await self._submit(delivery)
        answer = answer_to(result, door, proof)
        # What was not understood is not remembered: the sender may send it again once somebody has mended that.
        if result.state == ingest.DeliveryResult.STATE_ACCEPTED:
            self._answers.keep(source, proof, bytes(answer.body), time.monotonic())
        return answer

    def _refuse(self, busy: Busy | None, source: str) -> None:
        """Tell a sender that hands in too much to come again, with the status that it understands."""
        if busy:
            status = self._limits.status(source)
            raise AnswerError(status, f"{busy.text}; come again", {"Retry-After": str(ceil(busy.seconds))})

    async def _submit(self, delivery: ingest.Delivery) -> ingest.DeliveryResult:
        """Pass a delivery on. A store that is away is 503 for everybody; of too much each is told as it needs."""
        try:
            return await self._batches.submit(delivery)
        except FullError:
            status = self._limits.status(delivery.source)
            raise AnswerError(status, "too many deliveries wait; come again", RETRY) from None
        except grpc.aio.AioRpcError as error:
            refusal = refusal_of(error)
            seconds = refusal.retry_after if refusal and refusal.retry_after else RETRY_SECONDS
            headers = {"Retry-After": str(ceil(seconds))}
            raise AnswerError(503, "the delivery could not be stored; come again", headers) from None
        except LookupError:
            raise AnswerError(503, "the delivery could not be stored; come again", RETRY) from None


def _address(request: Request) -> str:
    """Return whose connection it is, and nobody whom a header names: every sender could write one."""
    return request.client.host if request.client else ""


def _is_packed(request: Request) -> bool:
    """Say whether the body is compressed: neither read, for a bomb is small, nor kept as something it is not."""
    said = ",".join(request.headers.getlist("content-encoding")).lower()
    return any(one.strip() not in {"", "identity"} for one in said.split(","))


async def _prove(request: Request, door: Door, body: bytes, token: str) -> Proof:
    """Return the proof of a request; AnswerError when it proves nothing, or when that cannot be found out now."""
    certificate = request.scope.get("state", {}).get(CERTIFICATE, b"")
    try:
        proof = await door.prove(Knock(request.headers, body, time.time(), certificate, token))
    except UnavailableError as error:
        log.warning("a sender cannot be recognised now", source=door.source, why=str(error))
        raise AnswerError(503, "the sender cannot be recognised now; come again", RETRY) from None
    if proof is None:
        raise AnswerError(401, "unauthorized", CHALLENGE if door.challenge else None)
    return proof


def build(
    doors: Mapping[str, Door], batches: Batches, readiness: Callable[[], Readiness], limits: Limits | None = None
) -> ASGIApp:
    """Return the application."""
    limits = limits or Limits([], 0, time.monotonic)
    webhooks = Webhooks(doors, batches, limits)

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> Response:
        current = readiness()
        return JSONResponse(current.body(), 200 if current.ready else 503)

    async def metrics(request: Request) -> Response:
        if busy := limits.client(_address(request)):
            return Response(status_code=429, headers={"Retry-After": str(ceil(busy.seconds))})
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    # Grafana may be told to PUT.
    methods = ["POST", "PUT"]
    app = Starlette(
        routes=[
            Route(PREFIX + "{source}", webhooks.post, methods=methods),
            Route("/api/webhook", webhooks.fixed("generic"), methods=methods),
            Route("/api/alert/webhook", webhooks.fixed("alertmanager"), methods=methods),
            # Where clients of PagerDuty's Events API post to, whatever host they are given.
            Route("/v2/enqueue", webhooks.fixed(EVENTS), methods=methods),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
        ]
    )

    # A sender follows no redirection to another spelling of a path, or sends its secret after it.
    app.router.redirect_slashes = False

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        """Take webhooks past the framework's layers, which cost as much as the rest of a webhook; it has the others."""
        path = scope.get("path", "")
        source, _, token = path[len(PREFIX) :].partition("/")
        webhook = path.startswith(PREFIX) and source and scope.get("method") in {*methods, OPTIONS}
        if webhook and (token or not path.endswith("/")):
            response = await webhooks.answer(Request(scope, receive), source, token)
            await response(scope, receive, send)
        else:
            await app(scope, receive, send)

    return front
