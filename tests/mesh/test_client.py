"""What a client hands on: deadline, trace, person; and what it sends again."""

from typing import Any

import grpc.aio
import pytest

from opsmesh.audit.v1 import audit_service_pb2 as pb
from opsmesh.audit.v1 import audit_service_pb2_grpc as rpc
from opsmesh.type.v1 import error_reason_pb2
from services.mesh import policy, telemetry
from services.mesh.call import current, working
from services.mesh.client import MARGIN, Peers, refusal_of, repeatable
from services.mesh.errors import BootError, Refusal
from tests.mesh import fakes, kinds
from tests.mesh.fakes import FakeAudit, servicers
from tests.mesh.world import World


class Relay(FakeAudit):
    """Asks another audit service."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__()
        self._stub = rpc.AuditServiceStub(channel)

    async def GetEvent(self, request: pb.GetEventRequest, _: Any) -> pb.GetEventResponse:  # noqa: N802  the IDL's
        """Pass it on."""
        self.calls.append(current())
        return await self._stub.GetEvent(request)


class Flaky(FakeAudit):
    """Is unavailable twice, then answers."""

    async def GetEvent(self, request: pb.GetEventRequest, context: Any) -> pb.GetEventResponse:  # noqa: N802  the IDL's
        """Fail, fail, answer."""
        if len(self.calls) < 2:
            self.calls.append(current())
            raise Refusal(error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE, store="PostgreSQL")
        return await super().GetEvent(request, context)


async def test_a_call_hands_on_deadline_trace_and_person(world: World) -> None:
    """The second hop has less time than the first, the same trace, and knows the person who asked."""
    last = FakeAudit()
    async with world.serving("audit", servicers(last)) as far, world.channel(far, "gateway") as inner:
        relay = Relay(inner)
        async with world.serving("gateway", servicers(relay)) as near, world.channel(near, "operator") as outer:
            await rpc.AuditServiceStub(outer).GetEvent(pb.GetEventRequest(event_id=fakes.ECHO), timeout=20)
    (first,), (second,) = relay.calls, last.calls
    assert second.deadline <= first.deadline - MARGIN / 2
    assert second.trace_id == first.trace_id
    assert second.trace.span_id != first.trace.span_id
    assert (second.identity, second.on_behalf_of) == ("service/gateway", "human/operator")


async def test_a_peers_refusal_is_passed_on(world: World) -> None:
    """A refusal of the second hop reaches the first caller with its reason."""
    async with world.serving("audit", servicers(FakeAudit())) as far, world.channel(far, "gateway") as inner:
        near = world.serving("gateway", servicers(Relay(inner)))
        async with near as server, world.channel(server, "operator") as outer:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await rpc.AuditServiceStub(outer).GetEvent(pb.GetEventRequest(event_id=fakes.REFUSE))
    refusal = refusal_of(raised.value)
    assert refusal is not None
    assert refusal.name == "NOT_FOUND"


async def test_a_person_cannot_speak_for_another(world: World) -> None:
    """Only services may say on whose behalf they call; a person's claim is dropped, nonsense is refused."""
    fake = FakeAudit()
    request = pb.GetEventRequest(event_id=fakes.ECHO)
    async with world.serving("audit", servicers(fake)) as server:
        async with world.channel(server, "operator") as channel:
            claim = (("opsmesh-on-behalf-of", "human/approver"),)
            await rpc.AuditServiceStub(channel).GetEvent(request, metadata=claim)
        async with world.channel(server, "gateway") as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await rpc.AuditServiceStub(channel).GetEvent(
                    request, metadata=(("opsmesh-on-behalf-of", "root; rm -rf"),)
                )
    assert [call.on_behalf_of for call in fake.calls] == [""]


async def test_reads_are_sent_again_while_unavailable(world: World) -> None:
    """A read that meets UNAVAILABLE is tried again by gRPC itself."""
    fake = Flaky()
    async with world.serving("audit", servicers(fake)) as server, world.channel(server, "operator") as channel:
        assert await rpc.AuditServiceStub(channel).GetEvent(pb.GetEventRequest(event_id=fakes.ECHO))
    assert len(fake.calls) == 3


def test_every_write_is_repeatable_by_its_key() -> None:
    """Every method of the mesh that is not a stream has a key; one without is never sent twice."""
    for name in policy.table():
        method = policy.find_method(name)
        assert method is not None
        assert repeatable(method) != method.server_streaming, name
    naked = policy.find_method(f"{kinds.NAKED}/Bare")
    assert naked is not None
    assert not repeatable(naked)


async def test_a_workers_call_has_its_deadline_and_trace(world: World) -> None:
    """Background work hands on the deadline and the trace that the stream carried."""
    carrier: dict[str, str] = {}
    with working("service/ingest", "opsmesh.ingest.v1.IngestService/SubmitSignals", 1) as first:
        telemetry.inject(carrier)
    fake = FakeAudit()
    async with world.serving("audit", servicers(fake)) as server, world.channel(server, "gateway") as channel:
        with working(
            "service/gateway", "opsmesh.gateway.v1.EffectService/GetEffect", 20, trace=telemetry.extract(carrier)
        ) as call:
            await rpc.AuditServiceStub(channel).GetEvent(pb.GetEventRequest(event_id=fakes.ECHO), timeout=60)
    assert fake.calls[0].trace_id == first.trace_id
    assert fake.calls[0].deadline <= call.deadline


def test_an_unknown_peer_is_told(world: World) -> None:
    """A peer without an address is a boot error that names the setting."""
    with pytest.raises(BootError, match="OPSMESH_PEERS has no address of audit"):
        Peers(world.settings("router")).channel("audit")


@pytest.mark.parametrize(
    "header",
    [None, "", "00-0-0-01", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "00-" + "A" * 32 + "-" + "1" * 16 + "-01", b"x"],
)
def test_a_malformed_trace_is_ignored(header: str | bytes | None) -> None:
    """What is no W3C traceparent starts a new trace."""
    assert telemetry.parse(header) is None
