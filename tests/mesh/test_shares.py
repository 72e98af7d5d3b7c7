"""One identity, whatever it does with its certificate, leaves room for others: the kill switch has a server, too."""

import asyncio

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from opsmesh.audit.v1 import audit_service_pb2 as pb
from opsmesh.audit.v1 import audit_service_pb2_grpc as rpc
from services.mesh.client import refusal_of
from services.mesh.errors import Refusal
from services.mesh.shares import CALLS_MAX, STREAMS_MAX, Shares
from tests.mesh.fakes import ECHO, HANG, FakeAudit, servicers
from tests.mesh.world import World

LIMIT = 100


async def test_streams_of_one_identity_leave_room(world: World) -> None:
    """Who may do nothing but look at health opens as many streams as the server takes calls; a person gets through."""
    async with (
        world.serving("audit", servicers(FakeAudit()), limit=LIMIT) as server,
        world.channel(server, "bridge") as crowd,
        world.channel(server, "operator") as person,
    ):
        watch = health_pb2_grpc.HealthStub(crowd).Watch
        streams = [watch(health_pb2.HealthCheckRequest(), timeout=30) for _ in range(LIMIT)]
        answers = await asyncio.gather(*(stream.read() for stream in streams), return_exceptions=True)
        answer = await rpc.AuditServiceStub(person).GetEvent(pb.GetEventRequest(event_id=ECHO))
        assert answer.event.actor == "human/operator"
        refused = [one for one in answers if isinstance(one, grpc.aio.AioRpcError)]
        assert len(refused) == LIMIT - STREAMS_MAX
        assert {one.name for one in map(refusal_of, refused) if one} == {"OVERLOADED"}
        for stream in streams:
            stream.cancel()


async def test_calls_of_one_identity_leave_room(world: World) -> None:
    """Calls of one identity that hang are bounded likewise, and each that ends makes room again."""
    fake = FakeAudit()
    async with (
        world.serving("audit", servicers(fake)) as server,
        world.channel(server, "operator") as crowd,
        world.channel(server, "gateway") as other,
    ):
        stub = rpc.AuditServiceStub(crowd)
        hanging = [asyncio.ensure_future(stub.GetEvent(pb.GetEventRequest(event_id=HANG))) for _ in range(CALLS_MAX)]
        await fake.entered.wait()

        async def crowded() -> None:
            """Call until one too many of the others has begun."""
            while True:
                await stub.GetEvent(pb.GetEventRequest(event_id=ECHO))

        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await crowded()
        assert (refusal := refusal_of(raised.value)) is not None
        assert refusal.name == "OVERLOADED"
        await rpc.AuditServiceStub(other).GetEvent(pb.GetEventRequest(event_id=ECHO))
        fake.released.set()
        assert len(await asyncio.gather(*hanging)) == CALLS_MAX
        await stub.GetEvent(pb.GetEventRequest(event_id=ECHO))


def test_a_person_is_paced_but_for_the_kill_switch() -> None:
    """Above so many calls a minute OVERLOADED says when to come again; a stop, and what services do, is never paced."""
    now = [0.0]
    shares = Shares(2, lambda: now[0])
    reads = "opsmesh.ingest.v1.IngestService/ListIncidents"
    for _ in range(2):
        shares.pace("human/operator", reads)
    with pytest.raises(Refusal, match="2 calls a minute of human/operator") as caught:
        shares.pace("human/operator", reads)
    assert (caught.value.name, caught.value.retry_after) == ("OVERLOADED", 30)
    shares.pace("human/operator", "opsmesh.guardrails.v1.KillSwitchService/EngageKill")
    shares.pace("human/approver", reads)
    for _ in range(5):
        shares.pace("service/bridge", reads)
    now[0] = 30
    shares.pace("human/operator", reads)
    for _ in range(100):
        Shares().pace("human/operator", reads)


async def test_the_limit_of_the_settings_holds(world: World) -> None:
    """The third call within a minute is refused at the server."""
    async with (
        world.serving("audit", servicers(FakeAudit()), settings={"rate_limit_per_minute": 2}) as server,
        world.channel(server, "operator") as person,
    ):
        stub = rpc.AuditServiceStub(person)
        for _ in range(2):
            await stub.GetEvent(pb.GetEventRequest(event_id=ECHO))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.GetEvent(pb.GetEventRequest(event_id=ECHO))
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
