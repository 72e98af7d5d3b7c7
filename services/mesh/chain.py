"""The chain every call passes: telemetry, errors, identity and policy, deadline, validation.

Each link is a coroutine around the rest of the chain (`await proceed(visit)`); one adapter puts the list around all
four kinds of RPC, so that nothing is written twice. What can be known about a method is resolved when it is registered.
Async context managers on an exit stack read the same and cost 25 us more per call.
"""

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Final, Protocol

import grpc
import grpc.aio
import structlog
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from opsmesh.type.v1 import error_reason_pb2
from services.mesh import policy, telemetry, tls
from services.mesh.call import Call, current, enter, maybe_current, working
from services.mesh.errors import STATUS_KEY, FieldViolation, Refusal, from_rpc_error, to_status, unavailable, unstorable
from services.mesh.identities import Identities
from services.mesh.shares import Shares

__all__ = ["CHAIN", "Call", "Chain", "Served", "current", "maybe_current", "working"]

ON_BEHALF_OF: Final = "opsmesh-on-behalf-of"
BEHALF: Final = re.compile(r"(service|human)/[a-z][a-z0-9-]{0,62}")
HUMAN: Final = "human/"
# Without a deadline gRPC says that 9.2e18 s remain; nobody asks for a stream of ten years.
FOREVER: Final = 3.0e8
# gRPC rounds a deadline up on its way.
ROUNDING: Final = 0.1
log = structlog.get_logger("opsmesh.chain")

Context = Any  # grpc.aio.ServicerContext, whose stubs lag behind
Handler = Any  # grpc.RpcMethodHandler, generic in the stubs only
Behaviour = Callable[[Any, Context], Any]


class Served:
    """What is known at start-up about one method that this server serves."""

    def __init__(
        self, method: MethodDescriptor, service: str, identities: Identities, shares: Shares | None = None
    ) -> None:
        found = policy.read_policy(method)
        if found is None:
            raise Refusal(error_reason_pb2.ERROR_REASON_METHOD_WITHOUT_POLICY, method=policy.full_name(method))
        self.name = policy.full_name(method)
        self.service = service
        self.policy = found
        self.trust_domain = identities.trust_domain
        self.allowed = identities.holders(found.permission)
        self.max_seconds = policy.seconds(found.max_duration)
        self.streams_out = bool(method.server_streaming)
        self.streams_in = bool(method.client_streaming)
        self.streams = self.streams_in or self.streams_out
        self.shares = shares or Shares()
        # In a read, a field of that name is a filter.
        keyed = "request_id" in method.input_type.fields_by_name and not self.streams_in
        self.has_request_id = keyed and found.access not in policy.READS
        # Foreign protos (health, reflection) carry no bounds of ours and may grow fields.
        self.checked = method.containing_service.full_name not in policy.BUILTIN_SERVICES
        self.meter = telemetry.Meter(self.name, found)


class Visit:
    """One call on its way through the links."""

    __slots__ = ("call", "code", "context", "parent", "reason", "request", "served", "timeouts")

    def __init__(self, served: Served, request: Any, context: Context, timeouts: set[asyncio.Timeout]) -> None:
        metadata = dict(context.invocation_metadata() or ())
        trace, self.parent = telemetry.begin(metadata.get(telemetry.HEADER))
        self.served = served
        self.request = request
        self.context = context
        self.timeouts = timeouts
        self.code = grpc.StatusCode.OK
        self.reason = ""
        self.call = Call(
            identity="",
            method=served.name,
            policy=served.policy,
            deadline=time.monotonic() + served.max_seconds,
            trace=trace,
            request_id=request.request_id if served.has_request_id else "",
            metadata=metadata,
        )


Proceed = Callable[[Visit], Awaitable[Any]]


class Link(Protocol):
    """One link of the chain: does its part before and after the rest, `await proceed(visit)`."""

    __name__: str

    def __call__(self, visit: Visit, proceed: Proceed) -> Awaitable[Any]:
        """Pass the visit on."""


async def telemetry_link(visit: Visit, proceed: Proceed) -> Any:
    """Count, time and log the call, whatever becomes of it."""
    started = time.perf_counter()
    enter(visit.call)
    try:
        with telemetry.span(visit.call, visit.parent):
            return await proceed(visit)
    except asyncio.CancelledError:
        late = visit.call.remaining <= 0
        visit.code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
        raise
    except grpc.aio.AbortError:
        # A foreign servicer (health) aborts by itself; a refusal has set the code already.
        if visit.code is grpc.StatusCode.OK:
            visit.code = grpc.StatusCode.UNKNOWN
        raise
    finally:
        visit.served.meter.done(visit.call, visit.code, started, visit.reason)


async def errors_link(visit: Visit, proceed: Proceed) -> Any:
    """Turn what is raised into a status: a refusal as it is, a peer's refusal passed on, the rest as an error id."""
    try:
        return await proceed(visit)
    except Refusal as refusal:
        found = refusal
    except grpc.aio.AioRpcError as error:
        found = _from_peer(error, visit)
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # noqa: BLE001  the one place where what nobody expected ends
        found = _store_is_gone(error, visit) or unstorable(error) or _unexpected(visit)
    filled = {"method": visit.call.method, "service": visit.served.service} | found.metadata
    answer = Refusal(found.reason, violations=found.violations, retry_after=found.retry_after, **filled)
    visit.code, visit.reason = answer.code, answer.name
    status = to_status(answer, f"opsmesh.{visit.served.service}")
    return await visit.context.abort(answer.code, status.message, ((STATUS_KEY, status.SerializeToString()),))


async def identity_link(visit: Visit, proceed: Proceed) -> Any:
    """Let only those in who carry one SPIFFE id of this mesh that holds the method's permission, and not too many."""
    served, call = visit.served, visit.call
    identity = tls.peer_identity(visit.context.auth_context(), served.trust_domain)
    if identity is None:
        raise Refusal(error_reason_pb2.ERROR_REASON_UNAUTHENTICATED)
    call.identity = identity
    # Before the permission: what is refused costs, too.
    served.shares.pace(identity, served.name)
    if identity not in served.allowed:
        raise Refusal(
            error_reason_pb2.ERROR_REASON_PERMISSION_DENIED,
            identity=identity,
            method=served.name,
            permission=served.policy.permission,
        )
    behalf = call.metadata.get(ON_BEHALF_OF)
    if behalf and not identity.startswith(HUMAN):
        if not isinstance(behalf, str) or not BEHALF.fullmatch(behalf):
            wrong = FieldViolation(f"metadata.{ON_BEHALF_OF}", "must be an identity such as human/operator")
            raise Refusal(error_reason_pb2.ERROR_REASON_INVALID_ARGUMENT, violations=[wrong])
        call.on_behalf_of = behalf
    served.shares.enter(identity, stream=served.streams)
    try:
        return await proceed(visit)
    finally:
        served.shares.leave(identity, stream=served.streams)


async def deadline_link(visit: Visit, proceed: Proceed) -> Any:
    """End the call at its deadline: the caller's or the policy's, for a unary call whichever is sooner."""
    served, call = visit.served, visit.call
    remaining = visit.context.time_remaining()
    if remaining is not None and remaining < (FOREVER if served.streams_out else served.max_seconds + ROUNDING):
        call.deadline = time.monotonic() + max(0.0, remaining)
        if not served.streams_out:
            # gRPC itself cancels us at the caller's deadline: a second timer would say nothing that arrives in time.
            return await proceed(visit)
    latest = asyncio.get_running_loop().time() + call.remaining
    timeout = asyncio.timeout_at(latest)
    if served.streams_out:
        visit.timeouts.add(timeout)
    try:
        async with timeout:
            return await proceed(visit)
    except TimeoutError:
        if not timeout.expired():
            raise
        if (timeout.when() or latest) < latest:
            # Ended early: the server drains and tells its watchers to come back.
            raise Refusal(
                error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE, store=served.service, retry_after=1.0
            ) from None
        raise Refusal(error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED, method=served.name) from None
    finally:
        visit.timeouts.discard(timeout)


async def validate_link(visit: Visit, proceed: Proceed) -> Any:
    """Refuse unknown fields and broken bounds; streamed requests are checked one by one as they come."""
    if visit.served.checked:
        if visit.served.streams_in:
            visit.request = _admitted(visit.request)
        else:
            _admit(visit.request)
    return await proceed(visit)


CHAIN: Final[Sequence[Link]] = (telemetry_link, errors_link, identity_link, deadline_link, validate_link)


def _admit(request: Message) -> None:
    """Check one request message."""
    policy.reject_unknown_fields(request)
    policy.validate(request)


async def _admitted(requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
    """Check each message of a stream before the servicer sees it."""
    async for request in requests:
        _admit(request)
        yield request


def _from_peer(error: grpc.aio.AioRpcError, visit: Visit) -> Refusal:
    """Say why a peer's failure fails this call: its refusal is passed on, its silence is named."""
    if refusal := from_rpc_error(error):
        return refusal
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Refusal(error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED, method=visit.served.name)
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return Refusal(error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE, store="a service it needs", retry_after=1.0)
    return _unexpected(visit)


def _store_is_gone(error: Exception, visit: Visit) -> Refusal | None:
    """Name the store that does not answer; the log keeps what it said."""
    refusal = unavailable(error)
    if refusal:
        log.warning("store unavailable", store=refusal.metadata["store"], method=visit.call.method, error=repr(error))
    return refusal


def _unexpected(visit: Visit) -> Refusal:
    """Log the exception being handled, once, under an id; only the id goes out."""
    error_id = secrets.token_hex(8)
    log.exception("unexpected", error_id=error_id, method=visit.call.method, identity=visit.call.identity)  # noqa: LOG004
    return Refusal(error_reason_pb2.ERROR_REASON_INTERNAL, service=visit.served.service, error_id=error_id)


class Chain:
    """Puts the links around the handlers of a server, and can end its streams early when the server drains."""

    def __init__(self, links: Sequence[Link] = CHAIN) -> None:
        self.links = tuple(links)
        self._timeouts: set[asyncio.Timeout] = set()

    def wrap(self, served: Served, handler: Handler) -> Handler:
        """Return the handler with the chain around it: the one adapter for all four kinds of RPC."""
        kind = f"{'stream' if served.streams_in else 'unary'}_{'stream' if served.streams_out else 'unary'}"
        behaviour = getattr(handler, kind)
        wrapped = self._streaming(served, behaviour) if served.streams_out else self._single(served, behaviour)
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(wrapped, handler.request_deserializer, handler.response_serializer)

    def end_streams(self, seconds: float) -> None:
        """Give the streams that are open now `seconds` to end by themselves."""
        latest = asyncio.get_running_loop().time() + seconds
        for timeout in tuple(self._timeouts):
            when = timeout.when()
            if not timeout.expired() and (when is None or when > latest):
                timeout.reschedule(latest)

    def _compose(self, last: Proceed) -> Proceed:
        """Return the links around `last`."""
        chained = last
        for link in reversed(self.links):
            chained = partial(link, proceed=chained)
        return chained

    def _single(self, served: Served, behaviour: Behaviour) -> Callable[[Any, Context], Awaitable[Any]]:
        """Return a handler that answers once."""

        async def answer(visit: Visit) -> Any:
            return await behaviour(visit.request, visit.context)

        chained, timeouts = self._compose(answer), self._timeouts

        async def handle(request: Any, context: Context) -> Any:
            return await chained(Visit(served, request, context, timeouts))

        return handle

    def _streaming(self, served: Served, behaviour: Behaviour) -> Callable[[Any, Context], Awaitable[None]]:
        """Return a handler that writes a stream; in one task, so that the deadline reaches into it."""

        async def answer(visit: Visit) -> None:
            answers = behaviour(visit.request, visit.context)
            if not hasattr(answers, "__aiter__"):
                await answers
                return
            async with aclosing(answers):
                async for response in answers:
                    await visit.context.write(response)

        chained, timeouts = self._compose(answer), self._timeouts

        async def handle(request: Any, context: Context) -> None:
            await chained(Visit(served, request, context, timeouts))

        return handle
