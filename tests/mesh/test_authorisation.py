"""Every (identity, method) pair that deploy/identities.yaml does not allow is refused, over real mTLS."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from services.local import certs
from services.mesh import policy
from services.mesh.client import refusal_of
from services.mesh.identities import Identities
from services.mesh.server import Server
from tests.mesh.world import ROOT, World

IDENTITIES = Identities.load(ROOT / "deploy" / "identities.yaml")
METHODS = {policy.full_name(method): method for one in policy.generated_services() for method in one.methods}
STRANGER = "service/stranger"
NAMES = sorted({*IDENTITIES.names, STRANGER})


class Unimplemented:
    """Stands where a service's servicer would: whoever gets here was let in."""

    def __init__(self, service: ServiceDescriptor) -> None:
        self.service = service

    async def single(self, _: Any, context: Any) -> None:
        """Say that the door was open."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "let in")

    async def stream(self, _: Any, context: Any) -> AsyncIterator[Any]:
        """Say that the door was open."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "let in")
        yield

    def handler(self, method: MethodDescriptor) -> Any:
        """Return a handler of the method's own kind and messages."""
        kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
        behaviour = self.stream if method.server_streaming else self.single
        decode = GetMessageClass(method.input_type).FromString
        return getattr(grpc, f"{kind}_rpc_method_handler")(behaviour, decode, bytes)


def add_unimplemented(servicer: Unimplemented, server: Any) -> None:
    """Register every method of a service, as generated code does."""
    handlers = {method.name: servicer.handler(method) for method in servicer.service.methods}
    server.add_registered_method_handlers(servicer.service.full_name, handlers)


@pytest.fixture(scope="module")
async def server(world: World) -> AsyncIterator[Server]:
    """Give one real server of the mesh that serves every service there is."""
    servicers = [(add_unimplemented, Unimplemented(one)) for one in policy.generated_services()]
    async with world.serving("audit", servicers) as running:
        yield running


@pytest.fixture(scope="module")
async def channels(world: World, server: Server) -> AsyncIterator[dict[str, grpc.aio.Channel]]:
    """Give a channel for every identity, each with a certificate of its own."""
    async with AsyncExitStack() as stack:
        found: dict[str, grpc.aio.Channel] = {}
        for name in NAMES:
            leaf = certs.issue(world.authority, [f"spiffe://{IDENTITIES.trust_domain}/{name}"])
            credentials = grpc.ssl_channel_credentials(world.authority.pem, leaf.key, leaf.certificate)
            found[name] = await stack.enter_async_context(world.channel_with(server, credentials))
        yield found


async def code_of(channel: grpc.aio.Channel, method: MethodDescriptor) -> tuple[grpc.StatusCode, str]:
    """Call a method with an empty request; return the code and the reason of the refusal."""
    path, request = f"/{policy.full_name(method)}", GetMessageClass(method.input_type)()
    codec = (type(request).SerializeToString, GetMessageClass(method.output_type).FromString)
    assert not method.client_streaming, "teach this test to stream requests"
    try:
        if method.server_streaming:
            async for _ in channel.unary_stream(path, *codec)(request, timeout=10):
                pass
        else:
            await channel.unary_unary(path, *codec)(request, timeout=10)
    except grpc.aio.AioRpcError as error:
        refusal = refusal_of(error)
        return error.code(), refusal.name if refusal else ""
    return grpc.StatusCode.OK, ""


@pytest.mark.parametrize("name", NAMES)
async def test_what_is_not_allowed_is_refused(channels: dict[str, grpc.aio.Channel], name: str) -> None:
    """PERMISSION_DENIED for each method whose permission the identity lacks, and for no other."""
    for full_name, method in METHODS.items():
        code, reason = await code_of(channels[name], method)
        if policy.method_policy(full_name).permission in IDENTITIES.permissions(name):
            assert code in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INVALID_ARGUMENT), full_name
        else:
            assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"), full_name


def test_every_permission_in_the_file_is_asked_for_somewhere() -> None:
    """A permission that no method asks for is a typo."""
    assert IDENTITIES.unknown_permissions() == {}


def test_every_method_can_be_called_by_somebody() -> None:
    """A method that nobody may call is a mistake in identities.yaml."""
    lonely = [name for name, found in policy.table().items() if not IDENTITIES.holders(found.permission)]
    assert lonely == []


def test_the_router_may_not_act() -> None:
    """The router holds no permission of a method that changes infrastructure, nor one to ask for a grant of one."""
    held = IDENTITIES.permissions("service/router")
    reached = {method for method, found in policy.table().items() if found.permission in held}
    tools = {method for method in reached if method.startswith("opsmesh.tools.")}
    assert tools
    assert not {method for method in tools if policy.method_policy(method).access not in policy.READS}
    assert "guardrails.authorize" not in held


@pytest.mark.parametrize("name", ["service/agents", "service/router"])
def test_who_talks_to_a_model_moves_no_guard(name: str) -> None:
    """Agents and router may not approve, publish, engage, release or settle; even their reads need a grant."""
    words = ("approvals.decide", ".publish", "kills.engage", "kills.release", "effects.settle", "executions.cancel")
    assert not {one for one in IDENTITIES.permissions(name) if one.endswith(words)}
    assert IDENTITIES.reads_need_grant(name)


def test_no_person_speaks_as_a_service() -> None:
    """People hold no permission with which services write audit events, decide or receive signals' decisions."""
    people = [name for name in IDENTITIES.names if name.startswith("human/")]
    assert people
    for name in people:
        assert not IDENTITIES.permissions(name) & {"audit.append", "router.decisions.decide"}
