"""What the chain does to every call, whatever its kind."""

import asyncio
import time

import grpc
import grpc.aio
import pytest
import structlog

from opsmesh.audit.v1 import audit_service_pb2 as pb
from opsmesh.audit.v1 import audit_service_pb2_grpc as rpc
from services.mesh import tls
from services.mesh.chain import CHAIN
from services.mesh.client import refusal_of
from services.mesh.errors import Refusal
from services.mesh.server import Server
from tests.mesh import fakes, kinds
from tests.mesh.fakes import FakeAudit, servicers
from tests.mesh.world import World

GET_EVENT = "opsmesh.audit.v1.AuditService/GetEvent"


def refusal(error: grpc.aio.AioRpcError) -> Refusal:
    """Return the refusal in an error; the test fails when it carries none."""
    found = refusal_of(error)
    assert found is not None
    return found


def raw_channel(world: World, server: Server, name: str = "operator") -> grpc.aio.Channel:
    """Connect without the mesh's client: it adds no deadline."""
    options = (("grpc.ssl_target_name_override", server.service),)
    credentials = tls.client_credentials(world.settings(name))
    return grpc.aio.secure_channel(f"127.0.0.1:{server.port}", credentials, options=options)


def test_the_order_of_the_links() -> None:
    """Telemetry sees everything; errors are told to everybody; who it is comes before what is asked."""
    names = [link.__name__ for link in CHAIN]
    assert names == ["telemetry_link", "errors_link", "identity_link", "deadline_link", "validate_link"]


async def test_identity_is_checked_before_the_request(world: World) -> None:
    """Who may not call does not learn whether the request was well-formed."""
    async with (
        world.serving("audit", servicers(FakeAudit())) as server,
        world.channel(server, "bridge") as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await rpc.AuditServiceStub(channel).GetEvent(pb.GetEventRequest(event_id="no uuid"))
    assert refusal(raised.value).name == "PERMISSION_DENIED"


async def test_broken_bounds_are_told_by_field(world: World) -> None:
    """A request that breaks its bounds is refused with the path of each field, before the servicer."""
    fake = FakeAudit()
    request = pb.AppendEventsRequest(
        events=[pb.AuditEvent(event_id="x", actor="a", action="b", phase=pb.AuditEvent.PHASE_INTENT)]
    )
    async with world.serving("audit", servicers(fake)) as server, world.channel(server, "gateway") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await rpc.AuditServiceStub(channel).AppendEvents(request)
    found = refusal(raised.value)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert {one.field for one in found.violations} == {"events[0].event_id", "events[0].event_time"}
    assert not fake.calls


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"\x0a\x24" + fakes.ECHO.encode() + b"\xf2\x3f\x01x", id="in the request"),
        pytest.param(b"\x0a\x24" + fakes.ECHO.encode() + b"\xf8\x3f\x01", id="a number"),
    ],
)
async def test_unknown_fields_are_refused(world: World, raw: bytes) -> None:
    """A field that this version does not know is refused, not ignored."""
    fake = FakeAudit()
    async with world.serving("audit", servicers(fake)) as server, raw_channel(world, server) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary(f"/{GET_EVENT}", None, None)(raw)
    assert refusal(raised.value).name == "UNKNOWN_FIELD"
    assert not fake.calls


async def test_nested_unknown_fields_are_refused(world: World) -> None:
    """An unknown field deep inside a list is refused and its message named."""
    event = b"\xf2\x3f\x01x"
    raw = b"\x0a" + bytes([len(event)]) + event
    async with (
        world.serving("audit", servicers(FakeAudit())) as server,
        raw_channel(world, server, "gateway") as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary("/opsmesh.audit.v1.AuditService/AppendEvents", None, None)(raw)
    assert refusal(raised.value).metadata["message"] == "opsmesh.audit.v1.AuditEvent"


async def test_an_unknown_exception_leaks_nothing(world: World) -> None:
    """Only an error id goes out; the log has that id once, with the exception."""
    with structlog.testing.capture_logs() as logs:
        async with (
            world.serving("audit", servicers(FakeAudit())) as server,
            world.channel(server, "operator") as channel,
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await rpc.AuditServiceStub(channel).GetEvent(pb.GetEventRequest(event_id=fakes.BREAK))
    error = raised.value
    assert error.code() is grpc.StatusCode.INTERNAL
    assert fakes.SECRET not in f"{error.details()}{error.trailing_metadata()}{error.debug_error_string()}"
    error_id = refusal(error).metadata["error_id"]
    assert [entry["event"] for entry in logs if entry.get("error_id") == error_id] == ["unexpected"]


async def test_the_policy_ends_a_call_without_deadline(world: World) -> None:
    """Without a deadline from the caller the policy's longest duration holds, and the answer says so."""
    fake = FakeAudit()
    async with world.serving("audit", servicers(fake)) as server, raw_channel(world, server) as channel:
        server.methods[GET_EVENT].max_seconds = 0.1
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await rpc.AuditServiceStub(channel).GetEvent(pb.GetEventRequest(event_id=fakes.HANG))
    assert refusal(raised.value).name == "DEADLINE_EXCEEDED"
    assert fake.cancelled.is_set()


async def test_the_caller_ends_a_call(world: World) -> None:
    """At the caller's deadline the servicer is cancelled, not left running."""
    fake = FakeAudit()
    async with world.serving("audit", servicers(fake)) as server, world.channel(server, "operator") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await rpc.AuditServiceStub(channel).GetEvent(pb.GetEventRequest(event_id=fakes.HANG), timeout=2)
        await asyncio.wait_for(fake.cancelled.wait(), 20)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_deadline_longer_than_the_policy_is_cut(world: World) -> None:
    """The servicer sees the policy's deadline when the caller asks for an hour."""
    fake = FakeAudit()
    async with world.serving("audit", servicers(fake)) as server, raw_channel(world, server) as channel:
        await rpc.AuditServiceStub(channel).GetEvent(pb.GetEventRequest(event_id=fakes.ECHO), timeout=3600)
    assert fake.calls[0].deadline <= time.monotonic() + 5.1


@pytest.mark.parametrize(
    ("name", "answers"), [("UnaryUnary", 1), ("UnaryStream", 3), ("StreamUnary", 1), ("StreamStream", 2)]
)
async def test_all_four_kinds_pass_the_chain(world: World, name: str, answers: int) -> None:
    """Unary and streams in both directions reach the servicer and bring their answers back."""
    servicer = kinds.Kinds()
    async with world.serving("audit", [(kinds.add_kinds, servicer)]) as server, raw_channel(world, server) as channel:
        got = await kinds.invoke(channel, name, [pb.GetEventRequest(event_id=fakes.ECHO)] * 2)
    assert len(got) == answers
    assert servicer.seen == [fakes.ECHO] * (2 if name.startswith("Stream") else 1)


@pytest.mark.parametrize("name", ["StreamUnary", "StreamStream"])
async def test_streamed_requests_are_checked_one_by_one(world: World, name: str) -> None:
    """A bad message in a request stream is refused when it comes; the servicer never sees it."""
    servicer = kinds.Kinds()
    requests = [pb.GetEventRequest(event_id=fakes.ECHO), pb.GetEventRequest(event_id="no uuid")]
    async with world.serving("audit", [(kinds.add_kinds, servicer)]) as server, raw_channel(world, server) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await kinds.invoke(channel, name, requests)
    assert refusal(raised.value).name == "INVALID_ARGUMENT"
    assert servicer.seen in ([], [fakes.ECHO])


@pytest.mark.parametrize("name", ["UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream"])
async def test_every_kind_refuses_who_may_not(world: World, name: str) -> None:
    """The permission is checked for streams as for single calls."""
    servicer = kinds.Kinds()
    async with (
        world.serving("audit", [(kinds.add_kinds, servicer)]) as server,
        raw_channel(world, server, "bridge") as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await kinds.invoke(channel, name, [pb.GetEventRequest(event_id=fakes.ECHO)])
    assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert not servicer.seen
