"""A gRPC server of the mesh: mTLS only, the chain around every method, health, reflection, metrics, a graceful end."""

import asyncio
import gc
import inspect
import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import grpc
import grpc.aio
import structlog
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from services.mesh import policy, telemetry, tls
from services.mesh.chain import Chain, Handler, Served
from services.mesh.errors import BootError
from services.mesh.identities import Identities
from services.mesh.metrics import MetricsServer
from services.mesh.settings import MeshSettings
from services.mesh.shares import Shares

GRACE: Final = 10.0
STREAM_GRACE: Final = 1.0
WORKER_GRACE: Final = 5.0
READY_PERIOD: Final = 1.0
MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
CONCURRENT_MAX: Final = 1000
SERVING: Final = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
OPTIONS: Final = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    # Two processes on one port would share it in silence.
    ("grpc.so_reuseport", 0),
    # Our clients ping every 20 s; the default takes that for an attack.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)

Servicers = Sequence[tuple[Callable[[Any, Any], None], Any]]
Worker = Callable[[asyncio.Event], Coroutine[Any, Any, None]]
Ready = Callable[[], Awaitable[bool]]
log = structlog.get_logger("opsmesh.server")


class _Registrar:
    """Takes the place of a server in the generated `add_..._to_server` functions and collects the handlers."""

    def __init__(self) -> None:
        self.services: dict[str, Mapping[str, Handler]] = {}

    def add_generic_rpc_handlers(self, _: Any) -> None:
        """Ignore the generic form: the same handlers come registered."""

    def add_registered_method_handlers(self, name: str, handlers: Mapping[str, Handler]) -> None:
        """Collect the handlers of one service."""
        self.services[name] = handlers


class Server:
    """Serves `servicers`, pairs of a generated add function and a servicer; raises BootError when anything is missing.

    `ready` is asked every second: the health service says SERVING only while it answers True. `parts` are asked
    likewise and have names of their own there (`ingest/postgres`): what is degraded while the service goes on.
    `limit` calls are served at once, more are shed.
    """

    def __init__(
        self,
        settings: MeshSettings,
        servicers: Servicers,
        *,
        ready: Ready | None = None,
        parts: Mapping[str, Ready] = MappingProxyType({}),
        limit: int = CONCURRENT_MAX,
    ) -> None:
        trust_domain, identity = tls.own_identity(settings.tls_cert)
        self.service = identity.partition("/")[2]
        self.identities = Identities.load(settings.identities)
        if trust_domain != self.identities.trust_domain:
            raise BootError(
                f"{settings.tls_cert} is of trust domain {trust_domain}, {settings.identities} of "
                f"{self.identities.trust_domain}. NEXT: make both the same"
            )
        self.chain = Chain()
        self._settings = settings
        self._ready = ready
        self._parts = parts
        self._health = HealthServicer()
        self._server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=limit)
        self.methods = self._register(servicers)
        try:
            self.port = self._server.add_secure_port(settings.listen, tls.server_credentials(settings))
        except RuntimeError as error:
            raise BootError(
                f"cannot listen on OPSMESH_LISTEN={settings.listen}: {error}. NEXT: free the port"
            ) from None
        self._metrics = MetricsServer(settings.metrics) if settings.metrics else None
        self._polling: list[asyncio.Task[None]] = []

    def _register(self, servicers: Servicers) -> dict[str, Served]:
        """Wrap every handler into the chain and register it; refuse methods without policy or without `async`."""
        registrar = _Registrar()
        for add, servicer in servicers:
            add(servicer, registrar)
        self.served_services = tuple(registrar.services)
        names = (*self.served_services, *sorted(policy.BUILTIN_SERVICES))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, registrar)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(ReflectionServicer(names), registrar)
        found: dict[str, MethodDescriptor] = {}
        for name, handlers in registrar.services.items():
            for rpc in handlers:
                method = policy.find_method(f"{name}/{rpc}")
                if method is None:
                    raise BootError(
                        f"{name}/{rpc} has no descriptor. NEXT: generate the code: python protos/generate.py"
                    )
                found[f"{name}/{rpc}"] = method
        policy.check_policies(found.values())
        methods: dict[str, Served] = {}
        shares = Shares(
            self._settings.rate_limit_per_minute, service_per_minute=self._settings.service_rate_limit_per_minute
        )
        for name, handlers in registrar.services.items():
            wrapped: dict[str, Handler] = {}
            for rpc, handler in handlers.items():
                served = Served(found[f"{name}/{rpc}"], self.service, self.identities, shares)
                if not _is_async(handler):
                    if not served.checked:
                        continue  # the health package declares one method more than it implements
                    raise BootError(f"{served.name} is not async or not implemented. NEXT: write it as `async def`")
                methods[served.name] = served
                wrapped[rpc] = self.chain.wrap(served, handler)
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, wrapped),))
            self._server.add_registered_method_handlers(name, wrapped)  # type: ignore[attr-defined]
        return methods

    async def start(self) -> None:
        """Listen, and say SERVING as soon as `ready` agrees."""
        own = ("", *self.served_services)
        await self._say(own, serving=self._ready is None)
        await self._server.start()
        if self._metrics:
            self._metrics.start()
        asked = {own: self._ready} if self._ready else {}
        for names, check in (asked | {(name,): check for name, check in self._parts.items()}).items():
            self._polling.append(asyncio.create_task(self._poll(check, names)))
        log.info("listening", service=self.service, address=self._settings.listen, port=self.port)

    async def stop(self, grace: float = GRACE) -> None:
        """Say NOT_SERVING, end streams after a second, let calls finish within `grace` seconds, then cancel them."""
        for task in self._polling:
            task.cancel()
        await self._health.enter_graceful_shutdown()
        self.chain.end_streams(min(STREAM_GRACE, grace))
        await self._server.stop(grace)
        if self._metrics:
            self._metrics.stop()

    async def _poll(self, ready: Ready, names: Sequence[str]) -> None:
        """Ask whether this service, or a part of it, can work and publish the answer under `names`."""
        last: bool | None = None
        while True:
            try:
                serving = await asyncio.wait_for(ready(), timeout=2 * READY_PERIOD)
            except Exception as error:  # noqa: BLE001  whatever went wrong: not ready
                serving = False
                if last is not False:
                    log.warning("not ready", service=self.service, part=names[0], error=repr(error))
            if serving != last:
                await self._say(names, serving=serving)
                last = serving
            await asyncio.sleep(READY_PERIOD)

    async def _say(self, names: Sequence[str], *, serving: bool) -> None:
        """Publish a state under each of `names`."""
        for name in names:
            await self._health.set(name, SERVING if serving else NOT_SERVING)


def _is_async(handler: Handler) -> bool:
    """Say whether a method is `async`: a blocking one would stop every call of the process."""
    behaviours = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
    behaviour = next(one for one in behaviours if one)
    return inspect.iscoroutinefunction(behaviour) or inspect.isasyncgenfunction(behaviour)


async def serve(
    settings: MeshSettings,
    servicers: Servicers,
    *,
    workers: Sequence[Worker] = (),
    ready: Ready | None = None,
    parts: Mapping[str, Ready] = MappingProxyType({}),
    limit: int = CONCURRENT_MAX,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain and stop the workers; raises what a worker failed with."""
    stop, leave = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave.set)
    server = Server(settings, servicers, ready=ready, parts=parts, limit=limit)
    await server.start()
    # What exists now stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    running = [asyncio.create_task(worker(stop), name=getattr(worker, "__qualname__", "worker")) for worker in workers]
    for task in running:
        task.add_done_callback(lambda done: leave.set() if not done.cancelled() and done.exception() else None)
    await leave.wait()
    log.info("stopping", service=server.service)
    await server.stop()
    stop.set()
    if running:
        _, late = await asyncio.wait(running, timeout=WORKER_GRACE)
        for task in late:
            log.warning("worker cancelled", worker=task.get_name())
            task.cancel()
    failures = [one for one in await asyncio.gather(*running, return_exceptions=True) if isinstance(one, Exception)]
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
    await asyncio.to_thread(telemetry.close)
    log.info("stopped", service=server.service)
    if failures:
        raise failures[0]
