"""One identity, whatever it does with its certificate, leaves room for others: the kill switch has a server, too."""

import asyncio
import uuid
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from opsmesh.audit.v1 import audit_service_pb2 as pb
from opsmesh.audit.v1 import audit_service_pb2_grpc as rpc
from opsmesh.guardrails.v1 import (
    kill_switch_service_pb2,
    kill_switch_service_pb2_grpc,
    policy_service_pb2,
    policy_service_pb2_grpc,
)
from services.mesh.client import refusal_of
from services.mesh.errors import Refusal
from services.mesh.shares import CALLS_MAX, CLIENTS_MAX, STREAMS_MAX, Shares
from tests.mesh.fakes import ECHO, HANG, FakeAudit, servicers
from tests.mesh.world import World
from tests.router.fakes import FakeKillSwitch
from tests.router.minds import FakePolicies

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
        # So many calls take a busy machine longer than one of them may last.
        server.methods["opsmesh.audit.v1.AuditService/GetEvent"].max_seconds = 60
        stub, hang = rpc.AuditServiceStub(crowd), pb.GetEventRequest(event_id=HANG)
        hanging = [asyncio.ensure_future(stub.GetEvent(hang, timeout=60)) for _ in range(CALLS_MAX)]
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
        shares.pace("human/operator", "grpc.health.v1.Health/Check")
    now[0] = 30
    shares.pace("human/operator", reads)
    for _ in range(100):
        Shares().pace("human/operator", reads)


def test_services_have_a_pace_of_their_own() -> None:
    """It holds only where people are paced, too, and is another number."""
    now = [0.0]
    shares = Shares(2, lambda: now[0], service_per_minute=5)
    for _ in range(5):
        shares.pace("service/bridge", "opsmesh.ingest.v1.IngestService/SubmitSignals")
    with pytest.raises(Refusal, match="5 calls a minute of service/bridge") as caught:
        shares.pace("service/bridge", "opsmesh.ingest.v1.IngestService/SubmitSignals")
    assert caught.value.retry_after == 12
    shares.pace("service/gateway", "opsmesh.ingest.v1.IngestService/SubmitSignals")
    shares.pace("service/bridge", "opsmesh.guardrails.v1.KillSwitchService/PollLease")
    free = Shares(service_per_minute=1)
    for _ in range(5):
        free.pace("service/bridge", "opsmesh.ingest.v1.IngestService/SubmitSignals")


def test_the_clients_that_are_remembered_are_bounded() -> None:
    """However many identities come, those seen last are known: a crowd of names fills no memory."""
    shares = Shares(1, lambda: 0.0)
    for number in range(CLIENTS_MAX + 500):
        shares.pace(f"human/p{number}", "x")
    assert len(shares._paces) == CLIENTS_MAX
    with pytest.raises(Refusal):
        shares.pace(f"human/p{CLIENTS_MAX + 499}", "x")


async def test_who_is_over_the_limit_can_still_stop_everything(world: World) -> None:
    """Refused in everything else, allowed or not, and told when to come again: kills and health go on."""
    guardrails: list[tuple[Any, Any]] = [
        (kill_switch_service_pb2_grpc.add_KillSwitchServiceServicer_to_server, FakeKillSwitch()),
        (policy_service_pb2_grpc.add_PolicyServiceServicer_to_server, FakePolicies()),
    ]
    async with (
        world.serving("guardrails", guardrails, settings={"rate_limit_per_minute": 1}) as server,
        world.channel(server, "operator") as person,
    ):
        policies = policy_service_pb2_grpc.PolicyServiceStub(person)
        await policies.GetPolicySet(policy_service_pb2.GetPolicySetRequest())
        for call in (
            policies.GetPolicySet(policy_service_pb2.GetPolicySetRequest()),
            policies.PublishPolicySet(policy_service_pb2.PublishPolicySetRequest()),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            refusal = refusal_of(raised.value)
            assert refusal is not None
            assert refusal.retry_after is not None
            assert 0 < refusal.retry_after <= 60
        switch = kill_switch_service_pb2_grpc.KillSwitchServiceStub(person)
        scope = kill_switch_service_pb2.KillScope(everything=True)
        for _ in range(3):
            request_id = str(uuid.uuid4())
            await switch.Engage(
                kill_switch_service_pb2.EngageRequest(request_id=request_id, scope=scope, reason="stop")
            )
            await switch.GetStatus(kill_switch_service_pb2.GetStatusRequest())
            await switch.Release(
                kill_switch_service_pb2.ReleaseRequest(request_id=request_id, kill_id=request_id, reason="go")
            )
            await health_pb2_grpc.HealthStub(person).Check(health_pb2.HealthCheckRequest())


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
