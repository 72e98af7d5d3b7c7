"""A call from a stub through mTLS and the chain to a servicer and back."""

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from opsmesh.audit.v1 import audit_service_pb2 as pb
from opsmesh.audit.v1 import audit_service_pb2_grpc as rpc
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.client import refusal_of
from tests.mesh import fakes
from tests.mesh.fakes import FakeAudit, servicers
from tests.mesh.world import World


async def test_a_call_reaches_the_servicer_with_its_identity(world: World) -> None:
    """The servicer knows who calls, what, until when and in which trace."""
    fake = FakeAudit()
    async with world.serving("audit", servicers(fake)) as server, world.channel(server, "operator") as channel:
        answer = await rpc.AuditServiceStub(channel).GetEvent(pb.GetEventRequest(event_id=fakes.ECHO))
    assert answer.event.actor == "human/operator"
    (call,) = fake.calls
    assert call.method == "opsmesh.audit.v1.AuditService/GetEvent"
    assert call.policy.permission == "audit.read"
    assert len(call.trace_id) == 32


async def test_a_refusal_arrives_whole(world: World) -> None:
    """Reason, status, metadata, text and next step of a refusal reach the caller."""
    async with (
        world.serving("audit", servicers(FakeAudit())) as server,
        world.channel(server, "operator") as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await rpc.AuditServiceStub(channel).GetEvent(pb.GetEventRequest(event_id=fakes.REFUSE))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert raised.value.details() == f"there is no event {fakes.REFUSE}. NEXT: list what exists: opsmesh events list"
    refusal = refusal_of(raised.value)
    assert refusal is not None
    assert refusal.reason == error_reason_pb2.ERROR_REASON_NOT_FOUND
    assert refusal.metadata["id"] == fakes.REFUSE
    assert refusal.retry_after == 1.5


async def test_a_stream_arrives_whole(world: World) -> None:
    """A server stream passes the chain message by message."""
    async with (
        world.serving("audit", servicers(FakeAudit())) as server,
        world.channel(server, "operator") as channel,
    ):
        parts = [part async for part in rpc.AuditServiceStub(channel).ExportEvents(pb.ExportEventsRequest())]
    assert len(parts) == 2


async def test_health_is_serving(world: World) -> None:
    """Health answers SERVING for the server and for each of its services."""
    async with (
        world.serving("audit", servicers(FakeAudit())) as server,
        world.channel(server, "operator") as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "opsmesh.audit.v1.AuditService"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
