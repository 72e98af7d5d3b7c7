"""Who is not let in: every wrong certificate, and none."""

from datetime import UTC, datetime, timedelta

import grpc
import grpc.aio
import pytest

from opsmesh.audit.v1 import audit_service_pb2 as pb
from opsmesh.audit.v1 import audit_service_pb2_grpc as rpc
from services.local import certs
from services.mesh import tls
from services.mesh.client import refusal_of
from tests.mesh import fakes
from tests.mesh.fakes import FakeAudit, servicers
from tests.mesh.world import World

OPERATOR = "spiffe://opsmesh.local/human/operator"
STRANGER = "spiffe://opsmesh.local/service/stranger"


async def refused(world: World, credentials: grpc.ChannelCredentials) -> grpc.aio.AioRpcError:
    """Call with these credentials, expect a refusal, and expect that the servicer never saw the call."""
    fake = FakeAudit()
    async with world.serving("audit", servicers(fake)) as server, world.channel_with(server, credentials) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await rpc.AuditServiceStub(channel).GetEvent(pb.GetEventRequest(event_id=fakes.ECHO), timeout=20)
    assert not fake.calls
    return raised.value


def credentials_of(world: World, leaf: certs.Leaf) -> grpc.ChannelCredentials:
    """Return client credentials with a leaf, trusting the mesh's CA."""
    return grpc.ssl_channel_credentials(world.authority.pem, leaf.key, leaf.certificate)


async def test_a_certificate_of_another_ca_is_refused(world: World) -> None:
    """The right SPIFFE id under a wrong CA does not connect."""
    leaf = certs.issue(certs.create_authority(), [OPERATOR])
    assert (await refused(world, credentials_of(world, leaf))).code() is grpc.StatusCode.UNAVAILABLE


async def test_an_expired_certificate_is_refused(world: World) -> None:
    """A certificate of our CA that ended a day ago does not connect."""
    past = datetime.now(UTC) - timedelta(days=2)
    leaf = certs.issue(world.authority, [OPERATOR], now=past, lifetime=timedelta(days=1))
    assert (await refused(world, credentials_of(world, leaf))).code() is grpc.StatusCode.UNAVAILABLE


async def test_no_certificate_is_refused(world: World) -> None:
    """A client without a certificate does not connect."""
    credentials = grpc.ssl_channel_credentials(world.authority.pem)
    assert (await refused(world, credentials)).code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    "identities",
    [
        [OPERATOR, STRANGER],
        [],
        ["spiffe://elsewhere.local/human/operator"],
        ["spiffe://opsmesh.local/human/operator/more"],
        ["spiffe://opsmesh.local/robot/operator"],
        ["https://opsmesh.local/human/operator"],
        ["spiffe://opsmesh.local/human/operator?x=1"],
    ],
)
async def test_anything_but_one_spiffe_id_is_refused(world: World, identities: list[str]) -> None:
    """Two SPIFFE ids, none, one of another trust domain or of another shape are no identity."""
    error = await refused(world, credentials_of(world, certs.issue(world.authority, identities)))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    refusal = refusal_of(error)
    assert refusal is not None
    assert refusal.name == "UNAUTHENTICATED"


async def test_an_identity_that_is_not_listed_is_refused(world: World) -> None:
    """A good certificate of an identity that identities.yaml does not list may do nothing, not even health."""
    error = await refused(world, credentials_of(world, certs.issue(world.authority, [STRANGER])))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "service/stranger may not call opsmesh.audit.v1.AuditService/GetEvent" in (error.details() or "")


async def test_plaintext_is_refused(world: World) -> None:
    """There is no plaintext port."""
    async with (
        world.serving("audit", servicers(FakeAudit())) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await rpc.AuditServiceStub(channel).GetEvent(pb.GetEventRequest(event_id=fakes.ECHO), timeout=20)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_server_of_another_name_is_not_talked_to(world: World) -> None:
    """A client that wants `audit` does not talk to a server whose certificate names `ingest`."""
    fake = FakeAudit()
    async with world.serving("ingest", servicers(fake)) as server:
        server.service = "audit"
        async with world.channel(server, "operator") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await rpc.AuditServiceStub(channel).GetEvent(pb.GetEventRequest(event_id=fakes.ECHO), timeout=20)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not fake.calls


async def test_a_renewed_certificate_is_used_without_a_restart(world: World) -> None:
    """After the certificate files change, the next connection sees the new certificate."""
    old = certs.issue(world.authority, ["spiffe://opsmesh.local/service/audit"], ("other", "localhost"))
    old.write(world.folder, "renewed")
    changes = {"tls_cert": world.folder / "renewed.pem", "tls_key": world.folder / "renewed.key"}
    stub_request = pb.GetEventRequest(event_id=fakes.ECHO)
    async with world.serving("audit", servicers(FakeAudit()), settings=changes) as server:
        async with world.channel(server, "operator") as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await rpc.AuditServiceStub(channel).GetEvent(stub_request, timeout=1)
        new = certs.issue(world.authority, ["spiffe://opsmesh.local/service/audit"], ("audit", "localhost"))
        new.write(world.folder, "renewed")
        credentials = tls.client_credentials(world.settings("operator"))
        async with world.channel_with(server, credentials) as channel:
            assert await rpc.AuditServiceStub(channel).GetEvent(stub_request)
