"""Reads of callers that are marked: exactly what their read grant covers, while it lives and no kill made it void."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from google.protobuf.message import Message

from opsmesh.guardrails.v1 import grant_pb2
from opsmesh.tools.inventory.v1 import inventory_tool_service_pb2 as inventory_pb
from opsmesh.tools.runbook.v1 import runbook_tool_service_pb2 as runbook_pb
from opsmesh.tools.workload.v1 import workload_tool_service_pb2 as workload_pb
from services.gateway.grants import READ_GRANT_PREFIX
from services.mesh.errors import Refusal, from_rpc_error
from services.mesh.tool_caller import ToolCaller
from services.mesh.tools import find_tool
from tests.gateway.fakes import POLICY_SET
from tests.gateway.world import TARGET, Mesh

READ = find_tool("GetWorkload").name
RUNBOOKS = find_tool("ListRunbooks").name
OTHER = "svc:demo/gone"
RUN = str(uuid.uuid4())
UNKNOWN_FIELD = b"\xfa\x7f\x01x"
Forge = Callable[[Mesh, grant_pb2.ReadGrant], bytes]


@pytest.fixture(autouse=True)
async def released(mesh: Mesh) -> AsyncIterator[None]:
    """End each test without a kill that holds and under the policy set it began with."""
    yield
    mesh.guardrails.version = POLICY_SET
    mesh.guardrails.release()


def minted(mesh: Mesh, **changes: Any) -> grant_pb2.ReadGrant:
    """Return a good read grant of the agents, with changes."""
    values: dict[str, Any] = {
        "grant_id": str(uuid.uuid4()),
        "caller": "service/agents",
        "methods": [READ, RUNBOOKS],
        "targets": [grant_pb2.ReadTarget(target_id=TARGET, environment="demo")],
        "policy_set_version": POLICY_SET,
        "kill_epoch": mesh.guardrails.epoch,
        "run_id": RUN,
    }
    grant = grant_pb2.ReadGrant(**(values | changes))
    grant.issue_time.GetCurrentTime()
    grant.expire_time.FromNanoseconds(grant.issue_time.ToNanoseconds() + 300_000_000_000)
    return grant


def signature(mesh: Mesh, told: bytes) -> bytes:
    """Sign as guardrails does."""
    key = load_pem_private_key((mesh.world.pki / "grant.key").read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    return key.sign(told)


def sign(mesh: Mesh, grant: Message) -> bytes:
    """Return a read grant as it travels."""
    raw = grant.SerializeToString()
    return grant_pb2.SignedGrant(read_grant=raw, signature=signature(mesh, READ_GRANT_PREFIX + raw)).SerializeToString()


async def read(
    mesh: Mesh, grant: bytes, request: Message | None = None, tool: str = "GetWorkload", name: str = "agents"
) -> Any:
    """Call a tool as somebody; a Refusal when it is refused."""
    request = request or workload_pb.GetWorkloadRequest(target_id=TARGET)
    async with mesh.channel(name) as channel:
        try:
            return await ToolCaller(channel).call(find_tool(tool), request.SerializeToString(), 5.0, grant)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) or error from None


def changed(**changes: Any) -> Forge:
    """Return a forger: other content under a good signature, as a stolen one has."""
    return lambda mesh, _: sign(mesh, minted(mesh, **changes))


def aged(issued: int, expired: int) -> Forge:
    """Return a forger: issued and expired so many seconds ago."""

    def forge(mesh: Mesh, grant: grant_pb2.ReadGrant) -> bytes:
        now = grant.issue_time.ToNanoseconds()
        grant.issue_time.FromNanoseconds(now - issued * 10**9)
        grant.expire_time.FromNanoseconds(now - expired * 10**9)
        return sign(mesh, grant)

    return forge


def flipped(at: int) -> Forge:
    """Return a forger: one bit of a good one is another."""

    def forge(mesh: Mesh, grant: grant_pb2.ReadGrant) -> bytes:
        raw = bytearray(sign(mesh, grant))
        raw[at] ^= 1
        return bytes(raw)

    return forge


def widened(mesh: Mesh, grant: grant_pb2.ReadGrant) -> bytes:
    """Return one to which a target was added after it was signed."""
    signed = grant_pb2.SignedGrant.FromString(sign(mesh, grant))
    grant.targets.add(target_id=OTHER)
    signed.read_grant = grant.SerializeToString()
    return signed.SerializeToString()


def unprefixed(mesh: Mesh, grant: grant_pb2.ReadGrant) -> bytes:
    """Return one signed like a grant of an action."""
    raw = grant.SerializeToString()
    return grant_pb2.SignedGrant(read_grant=raw, signature=signature(mesh, raw)).SerializeToString()


def doubled(mesh: Mesh, grant: grant_pb2.ReadGrant) -> bytes:
    """Return a good one that carries a grant of an action, too."""
    signed = grant_pb2.SignedGrant.FromString(sign(mesh, grant))
    signed.grant = mesh.make(mesh.restart(), {}, caller="service/agents").SerializeToString()
    return signed.SerializeToString()


def of_an_action(mesh: Mesh, _: grant_pb2.ReadGrant) -> bytes:
    """Return a good grant of an action in its place."""
    return mesh.sign(mesh.make(mesh.restart(), {}, caller="service/agents"))


def action_signed_as_read(mesh: Mesh, _: grant_pb2.ReadGrant) -> bytes:
    """Return the bytes of a grant of an action, signed by guardrails as such, in the place of a read grant."""
    raw = mesh.make(mesh.restart(), {}, caller="service/agents").SerializeToString()
    return grant_pb2.SignedGrant(read_grant=raw, signature=signature(mesh, raw)).SerializeToString()


FORGERIES: dict[str, tuple[Forge, str]] = {
    "none": (lambda *_: b"", "GRANT_MISSING"),
    "garbage": (lambda *_: b"\xff" * 40, "GRANT_INVALID"),
    "too large": (lambda mesh, grant: sign(mesh, grant) + bytes(6200), "GRANT_INVALID"),
    "no signature": (
        lambda _, grant: grant_pb2.SignedGrant(read_grant=grant.SerializeToString()).SerializeToString(),
        "GRANT_INVALID",
    ),
    "bit flipped in it": (flipped(40), "GRANT_INVALID"),
    "bit flipped in the signature": (flipped(8), "GRANT_INVALID"),
    "widened after signing": (widened, "GRANT_INVALID"),
    "signed without its prefix": (unprefixed, "GRANT_INVALID"),
    "an action's beside it": (doubled, "GRANT_INVALID"),
    "an action's instead": (of_an_action, "GRANT_INVALID"),
    "an action's bytes as a read grant": (action_signed_as_read, "GRANT_INVALID"),
    "unknown field inside": (
        lambda mesh, grant: sign(mesh, grant_pb2.ReadGrant.FromString(grant.SerializeToString() + UNKNOWN_FIELD)),
        "GRANT_INVALID",
    ),
    "unknown field outside": (lambda mesh, grant: sign(mesh, grant) + UNKNOWN_FIELD, "GRANT_INVALID"),
    "expired": (aged(400, 100), "GRANT_INVALID"),
    "expired beyond the skew": (aged(306, 6), "GRANT_INVALID"),
    "lives too long": (aged(0, -301), "GRANT_INVALID"),
    "from the future": (aged(-20, -50), "GRANT_INVALID"),
    "the router's": (changed(caller="service/router"), "GRANT_INVALID"),
    "other tools": (changed(methods=[find_tool("CheckHealth").name]), "READ_NOT_GRANTED"),
    "another target": (changed(targets=[grant_pb2.ReadTarget(target_id=OTHER)]), "READ_NOT_GRANTED"),
    "no target": (changed(targets=[]), "READ_NOT_GRANTED"),
    "older policy set": (changed(policy_set_version=POLICY_SET - 1), "GRANT_STALE"),
    "newer policy set": (changed(policy_set_version=POLICY_SET + 1), "GRANT_STALE"),
    "a kill we never heard of": (changed(kill_epoch=10**6), "GRANT_STALE"),
}


@pytest.mark.parametrize("name", FORGERIES)
async def test_what_is_no_read_grant_for_this_reads_nothing(mesh: Mesh, name: str) -> None:
    """Missing, forged, another's, too old, too narrow or of another policy set: refused by name."""
    forge, reason = FORGERIES[name]
    grant = forge(mesh, minted(mesh))
    with pytest.raises(Refusal, match=reason):
        await read(mesh, grant)


async def test_a_read_grant_is_good_for_many_reads_of_its_tools_and_targets(mesh: Mesh) -> None:
    """Twice the workload, and a tool that names no target; three seconds after its end, too: clocks differ."""
    grant = sign(mesh, minted(mesh))
    for _ in range(2):
        assert (await read(mesh, grant)).workload.target_id == TARGET
    assert (await read(mesh, grant, runbook_pb.ListRunbooksRequest(), "ListRunbooks")).runbooks
    assert await read(mesh, aged(303, 3)(mesh, minted(mesh)))


async def test_the_same_grant_reads_nothing_else(mesh: Mesh) -> None:
    """Not another target, not another tool of the same target, not another tool without a target."""
    grant = sign(mesh, minted(mesh))
    attempts: list[tuple[str, Message]] = [
        ("GetWorkload", workload_pb.GetWorkloadRequest(target_id=OTHER)),
        ("CheckHealth", workload_pb.CheckHealthRequest(target_id=TARGET)),
        ("ListTargets", inventory_pb.ListTargetsRequest()),
        ("SearchRunbooks", runbook_pb.SearchRunbooksRequest(query="checkout")),
    ]
    for tool, request in attempts:
        with pytest.raises(Refusal, match="READ_NOT_GRANTED"):
            await read(mesh, grant, request, tool)


async def test_a_stolen_read_grant_is_no_use_to_the_router(mesh: Mesh) -> None:
    """It is the agents'."""
    with pytest.raises(Refusal, match="GRANT_INVALID"):
        await read(mesh, sign(mesh, minted(mesh)), name="router")


async def test_who_is_not_marked_reads_without_one(mesh: Mesh) -> None:
    """Automation's identity is enough."""
    assert (await read(mesh, b"", name="automation")).workload.target_id == TARGET


async def test_nothing_is_written_with_a_read_grant(mesh: Mesh) -> None:
    """Even one that names the tool that writes, signed by guardrails: no row, no start."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    grant = sign(mesh, minted(mesh, methods=[READ, find_tool("RestartWorkload").name]))
    with pytest.raises(Refusal, match="GRANT_INVALID"):
        await read(mesh, grant, request, "RestartWorkload")
    as_action = grant_pb2.SignedGrant.FromString(grant)
    moved = grant_pb2.SignedGrant(grant=READ_GRANT_PREFIX + as_action.read_grant, signature=as_action.signature)
    with pytest.raises(Refusal, match="GRANT_INVALID"):
        await read(mesh, moved.SerializeToString(), request, "RestartWorkload")
    assert (await mesh.rows(request), mesh.workload.start_count()) == (0, starts)


INSIDE: list[dict[str, Any]] = [
    {"everything": True},
    {"environment": "demo"},
    {"target_id": TARGET},
    {"tool": READ},
    {"run_id": RUN},
]
OUTSIDE: list[dict[str, Any]] = [
    {"environment": "production"},
    {"target_id": OTHER},
    {"tool": RUNBOOKS},
    {"run_id": str(uuid.uuid4())},
    {"playbook_id": "other"},
    {"execution_id": RUN},
]


async def engaged(mesh: Mesh, **scope: Any) -> str:
    """Engage a kill and wait until the gateway knows it: it reports on each."""
    kill_id = mesh.guardrails.engage(**scope)
    await mesh.until(lambda: [one for one in mesh.guardrails.reports if one.kill_id == kill_id])
    return kill_id


async def heard(mesh: Mesh) -> None:
    """Wait until the gateway has asked anew."""
    polls = mesh.guardrails.polls
    await mesh.until(lambda: mesh.guardrails.polls > polls + 1)


@pytest.mark.parametrize("scope", INSIDE, ids=lambda scope: next(iter(scope)))
async def test_a_kill_voids_the_read_grants_in_its_scope_for_ever(mesh: Mesh, scope: dict[str, Any]) -> None:
    """While it holds and after its release; one minted then is good."""
    grant = sign(mesh, minted(mesh))
    kill_id = await engaged(mesh, **scope)
    for step in ("engaged", "released"):
        with pytest.raises(Refusal, match="KILLED") as caught:
            await read(mesh, grant)
        assert caught.value.metadata["kill_id"] == kill_id
        if step == "engaged":
            mesh.guardrails.release()
            await heard(mesh)
    assert await read(mesh, sign(mesh, minted(mesh)))


@pytest.mark.parametrize("scope", OUTSIDE, ids=lambda scope: next(iter(scope)))
async def test_a_kill_elsewhere_lets_reads_go_on(mesh: Mesh, scope: dict[str, Any]) -> None:
    """What it is not about is read with the grant from before it."""
    grant = sign(mesh, minted(mesh))
    await engaged(mesh, **scope)
    assert await read(mesh, grant)


@pytest.mark.parametrize("scope", [{"target_id": TARGET}, {"environment": "demo"}], ids=lambda scope: next(iter(scope)))
async def test_what_names_no_target_stops_with_any_of_its_grant(mesh: Mesh, scope: dict[str, Any]) -> None:
    """A runbook that is read for a killed target is not read."""
    grant = sign(mesh, minted(mesh))
    await engaged(mesh, **scope)
    with pytest.raises(Refusal, match="KILLED"):
        await read(mesh, grant, runbook_pb.ListRunbooksRequest(), "ListRunbooks")


async def refused(mesh: Mesh, grant: bytes) -> None:
    """Read until it is refused."""
    while True:
        await read(mesh, grant)


async def test_without_a_lease_nothing_is_read(mesh: Mesh) -> None:
    """Whoever cannot hear of kills does not know whether the grant still holds."""
    mesh.guardrails.withdrawn = True
    mesh.guardrails.tell()
    try:
        with pytest.raises(Refusal, match="LEASE_STALE"):
            await asyncio.wait_for(refused(mesh, sign(mesh, minted(mesh))), 40)
    finally:
        mesh.guardrails.withdrawn = False
        mesh.guardrails.tell()
    await heard(mesh)
