"""How a server starts, refuses to start, and ends."""

import asyncio
import urllib.request

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from opsmesh.audit.v1 import audit_service_pb2 as pb
from opsmesh.audit.v1 import audit_service_pb2_grpc as rpc
from services.local.files import free_port
from services.mesh.client import refusal_of
from services.mesh.errors import BootError
from services.mesh.server import Server
from tests.mesh import fakes, kinds
from tests.mesh.fakes import FakeAudit, servicers
from tests.mesh.world import World


class Partial(fakes.FakeAudit):
    """Forgot one method: the generated one stands in its place."""

    GetEvent = rpc.AuditServiceServicer.GetEvent  # type: ignore[assignment]


NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING


async def test_a_method_without_policy_is_not_served(world: World) -> None:
    """The server refuses to start and names the method."""
    with pytest.raises(BootError, match=r"opsmesh.mesh_test.v1.NakedService/Bare carries no policy"):
        Server(world.settings("audit"), [(kinds.add_naked, kinds.Kinds())])


async def test_a_method_that_is_not_implemented_is_not_served(world: World) -> None:
    """A servicer that leaves out a method cannot be served: what is declared works."""
    with pytest.raises(BootError, match="is not async or not implemented"):
        Server(world.settings("audit"), [(rpc.add_AuditServiceServicer_to_server, Partial())])


async def test_without_identities_nothing_is_served(world: World) -> None:
    """A missing identities.yaml is a boot error that names the file."""
    missing = world.folder / "nowhere.yaml"
    with pytest.raises(BootError, match=r"nowhere\.yaml:1"):
        Server(world.settings("audit", identities=missing), servicers(FakeAudit()))


async def test_a_missing_certificate_is_told(world: World) -> None:
    """A missing certificate is a boot error that says how to make one."""
    settings = world.settings("audit", tls_cert=world.folder / "nowhere.pem")
    with pytest.raises(BootError, match="opsmesh certs init"):
        Server(settings, servicers(FakeAudit()))


async def test_a_taken_port_is_told(world: World) -> None:
    """A second server on the same port does not start."""
    listen = f"127.0.0.1:{free_port()}"
    async with world.serving("audit", servicers(FakeAudit()), settings={"listen": listen}):
        with pytest.raises(BootError, match=f"OPSMESH_LISTEN={listen}"):
            Server(world.settings("audit", listen=listen), servicers(FakeAudit()))


async def test_a_call_in_flight_may_finish(world: World) -> None:
    """While the server drains, health says NOT_SERVING and a call that was in flight is answered."""
    fake = FakeAudit()
    async with world.serving("audit", servicers(fake)) as server, world.channel(server, "operator") as channel:
        call = rpc.AuditServiceStub(channel).GetEvent(pb.GetEventRequest(event_id=fakes.HANG))
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        states = aiter(watch)
        assert (await anext(states)).status == SERVING
        await fake.entered.wait()
        stopping = asyncio.create_task(server.stop(grace=5))
        assert (await anext(states)).status == NOT_SERVING
        fake.released.set()
        assert (await call).event.event_id == fakes.HANG
        watch.cancel()
        await stopping


async def test_streams_are_told_to_come_back(world: World) -> None:
    """A stream that would hold up the drain ends within a second with a retryable refusal."""
    fake = FakeAudit()
    async with world.serving("audit", servicers(fake)) as server, world.channel(server, "operator") as channel:
        stream = aiter(rpc.AuditServiceStub(channel).ExportEvents(pb.ExportEventsRequest(start_sequence=1)))
        await anext(stream)
        await fake.entered.wait()
        stopping = asyncio.create_task(server.stop(grace=8))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await anext(stream)
        await asyncio.wait_for(stopping, 7)
    refusal = refusal_of(raised.value)
    assert refusal is not None
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert refusal.retry_after == 1.0


async def test_what_outlives_the_grace_is_cancelled(world: World) -> None:
    """A call that does not end within the grace is cancelled and the server stops."""
    fake = FakeAudit()
    async with world.serving("audit", servicers(fake)) as server, world.channel(server, "operator") as channel:
        call = asyncio.ensure_future(rpc.AuditServiceStub(channel).GetEvent(pb.GetEventRequest(event_id=fakes.HANG)))
        await fake.entered.wait()
        await asyncio.wait_for(server.stop(grace=0.1), 30)
        with pytest.raises(grpc.aio.AioRpcError):
            await call
    assert fake.cancelled.is_set()


async def test_health_follows_ready(world: World) -> None:
    """A server that is not ready listens and says NOT_SERVING until it is."""
    able = asyncio.Event()

    async def ready() -> bool:
        return able.is_set()

    async with (
        world.serving("audit", servicers(FakeAudit()), ready=ready) as server,
        world.channel(server, "operator") as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service="opsmesh.audit.v1.AuditService")
        )
        states = aiter(watch)
        assert (await anext(states)).status == NOT_SERVING
        able.set()
        assert (await anext(states)).status == SERVING
        watch.cancel()


async def test_reflection_lists_the_services(world: World) -> None:
    """Reflection, which grpcurl uses, lists what is served."""
    async with (
        world.serving("audit", servicers(FakeAudit())) as server,
        world.channel(server, "operator") as channel,
    ):
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
        answers = [answer async for answer in call]
    names = {one.name for one in answers[0].list_services_response.service}
    assert names == {
        "opsmesh.audit.v1.AuditService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


async def test_more_calls_than_the_limit_are_shed(world: World) -> None:
    """Beyond the limit a call is refused at once instead of waiting."""
    fake = FakeAudit()
    async with (
        world.serving("audit", servicers(fake), limit=1) as server,
        world.channel(server, "operator") as channel,
    ):
        stub = rpc.AuditServiceStub(channel)
        waiting = asyncio.ensure_future(stub.GetEvent(pb.GetEventRequest(event_id=fakes.HANG)))
        await fake.entered.wait()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.GetEvent(pb.GetEventRequest(event_id=fakes.ECHO))
        fake.released.set()
        await waiting
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_metrics_count_calls_by_method_and_code(world: World) -> None:
    """GET /metrics has a counter and a histogram per method; /healthz answers; nothing else does."""
    address = f"127.0.0.1:{free_port()}"
    async with (
        world.serving("audit", servicers(FakeAudit()), settings={"metrics": address}) as server,
        world.channel(server, "operator") as channel,
    ):
        await rpc.AuditServiceStub(channel).GetEvent(pb.GetEventRequest(event_id=fakes.ECHO))

        def get(path: str) -> tuple[int, str]:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()

        status, text = await asyncio.to_thread(get, "/metrics")
        assert status == 200
        assert 'opsmesh_rpc_total{code="OK",method="opsmesh.audit.v1.AuditService/GetEvent"}' in text
        assert 'opsmesh_rpc_seconds_bucket{le="0.1",method="opsmesh.audit.v1.AuditService/GetEvent"}' in text
        assert await asyncio.to_thread(get, "/healthz") == (200, "ok\n")
        with pytest.raises(urllib.error.HTTPError):
            await asyncio.to_thread(get, "/other")
