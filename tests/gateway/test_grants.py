"""Every grant that is not exactly for this call is refused, without an effect and without a row."""

from collections.abc import Callable

import pytest

from opsmesh.guardrails.v1 import grant_pb2
from services.mesh.errors import Refusal
from tests.gateway.world import Mesh, RestartRequest

Forge = Callable[[Mesh, RestartRequest, grant_pb2.Grant], bytes]
UNKNOWN_FIELD = b"\xfa\x7f\x01x"


def changed(**changes: object) -> Forge:
    """Return a forger: a grant with other content under a good signature, as a stolen one for another call has."""

    def forge(mesh: Mesh, _request: RestartRequest, grant: grant_pb2.Grant) -> bytes:
        for name in changes:
            grant.ClearField(name)  # type: ignore[arg-type]
        grant.MergeFrom(grant_pb2.Grant(**changes))  # type: ignore[arg-type]
        return mesh.sign(grant)

    return forge


def tampered(**changes: object) -> Forge:
    """Return a forger: a signed grant whose content was changed after it was signed."""

    def forge(mesh: Mesh, request: RestartRequest, grant: grant_pb2.Grant) -> bytes:
        signed = grant_pb2.SignedGrant.FromString(mesh.sign(grant))
        signed.grant = grant_pb2.SignedGrant.FromString(changed(**changes)(mesh, request, grant)).grant
        return signed.SerializeToString()

    return forge


def flipped(position: int) -> Forge:
    """Return a forger: one bit of the signed grant is flipped, counted from the front or, negative, from the end."""

    def forge(mesh: Mesh, _request: RestartRequest, grant: grant_pb2.Grant) -> bytes:
        raw = bytearray(mesh.sign(grant))
        raw[position] ^= 1
        return bytes(raw)

    return forge


def aged(issued: int, expires: int) -> Forge:
    """Return a forger: minted and expired that many seconds ago."""

    def forge(mesh: Mesh, _request: RestartRequest, grant: grant_pb2.Grant) -> bytes:
        grant.expire_time.CopyFrom(grant.issue_time)
        grant.issue_time.seconds -= issued
        grant.expire_time.seconds -= expires
        return mesh.sign(grant)

    return forge


def extended_inside(mesh: Mesh, _request: RestartRequest, grant: grant_pb2.Grant) -> bytes:
    """Return a grant with an unknown field under a good signature."""
    return mesh.sign(grant_pb2.Grant.FromString(grant.SerializeToString() + UNKNOWN_FIELD))


def extended_outside(mesh: Mesh, _request: RestartRequest, grant: grant_pb2.Grant) -> bytes:
    """Return a good grant with an unknown field around it."""
    return mesh.sign(grant) + UNKNOWN_FIELD


def unsigned(_mesh: Mesh, _request: RestartRequest, grant: grant_pb2.Grant) -> bytes:
    """Return a good grant without a signature."""
    return grant_pb2.SignedGrant(grant=grant.SerializeToString()).SerializeToString()


def retargeted(mesh: Mesh, request: RestartRequest, grant: grant_pb2.Grant) -> bytes:
    """Use a good grant for another target."""
    request.target_id = "svc:demo/gone"
    return mesh.sign(grant)


def reworded(mesh: Mesh, request: RestartRequest, grant: grant_pb2.Grant) -> bytes:
    """Use a good grant for other bytes on the same target."""
    request.reason = "something else"
    return mesh.sign(grant)


def renamed(mesh: Mesh, request: RestartRequest, grant: grant_pb2.Grant) -> bytes:
    """Use a good grant for a second request."""
    request.request_id = mesh.restart().request_id
    return mesh.sign(grant)


def garbage(_mesh: Mesh, _request: RestartRequest, _grant: grant_pb2.Grant) -> bytes:
    """Return bytes that are no grant."""
    return b"\xff" * 40


FORGERIES: dict[str, tuple[Forge, str]] = {
    "bit flipped in the grant": (flipped(40), "GRANT_INVALID"),
    "bit flipped in the signature": (flipped(-1), "GRANT_INVALID"),
    "other bytes": (reworded, "GRANT_INVALID"),
    "other target in the request": (retargeted, "GRANT_INVALID"),
    "other request id": (renamed, "GRANT_INVALID"),
    "garbage": (garbage, "GRANT_INVALID"),
    "no signature": (unsigned, "GRANT_INVALID"),
    "unknown field inside": (extended_inside, "GRANT_INVALID"),
    "unknown field outside": (extended_outside, "GRANT_INVALID"),
    "another caller's": (changed(caller="service/agents"), "GRANT_INVALID"),
    "another target": (changed(target_id="svc:production/checkout"), "GRANT_INVALID"),
    "another method": (changed(method="opsmesh.tools.notify.v1.NotifyToolService/SendNotice"), "GRANT_INVALID"),
    "another request": (changed(request_id="00000000-0000-4000-8000-000000000000"), "GRANT_INVALID"),
    "another digest": (changed(request_digest=bytes(32)), "GRANT_INVALID"),
    "no fence": (changed(fence=0), "GRANT_INVALID"),
    "no precondition": (changed(precondition={}), "GRANT_INVALID"),
    "retargeted after signing": (tampered(target_id="svc:production/checkout"), "GRANT_INVALID"),
    "fence raised after signing": (tampered(fence=99), "GRANT_INVALID"),
    "expired": (aged(60, 30), "GRANT_INVALID"),
    "expired beyond the skew": (aged(36, 6), "GRANT_INVALID"),
    "lives too long": (aged(0, -31), "GRANT_INVALID"),
    "from the future": (aged(-20, -50), "GRANT_INVALID"),
    "older policy set": (changed(policy_set_version=6), "GRANT_STALE"),
    "newer policy set": (changed(policy_set_version=8), "GRANT_STALE"),
    "a kill we never heard of": (changed(kill_epoch=1), "GRANT_STALE"),
}


@pytest.mark.parametrize("name", FORGERIES)
async def test_a_forged_grant_has_no_effect(mesh: Mesh, name: str) -> None:
    """It is refused, supervisord's record shows no start, and there is no row."""
    forge, reason = FORGERIES[name]
    request, starts = mesh.restart(), mesh.workload.start_count()
    grant = forge(mesh, request, await mesh.mint(request))
    with pytest.raises(Refusal, match=reason):
        await mesh.call(request, grant)
    assert await mesh.rows(request) == 0
    assert mesh.workload.start_count() == starts


async def test_a_good_grant_within_the_skew_goes_through(mesh: Mesh) -> None:
    """Three seconds after its expiry by our clock a grant is still good: clocks differ."""
    request = mesh.restart()
    assert (await mesh.call(request, aged(33, 3)(mesh, request, await mesh.mint(request)))).process_id


async def test_a_stolen_grant_is_no_use_to_another_identity(mesh: Mesh) -> None:
    """The operator cannot use a grant minted for automation."""
    request, starts = mesh.restart(), mesh.workload.start_count()
    with pytest.raises(Refusal, match="GRANT_INVALID"):
        await mesh.call(request, mesh.sign(await mesh.mint(request)), "operator")
    assert (await mesh.rows(request), mesh.workload.start_count()) == (0, starts)


async def test_no_grant_is_no_effect(mesh: Mesh) -> None:
    """Without a grant: GRANT_MISSING."""
    request = mesh.restart()
    with pytest.raises(Refusal, match="GRANT_MISSING"):
        await mesh.call(request, None)
    assert await mesh.rows(request) == 0


async def test_unknown_fields_in_the_request_are_refused(mesh: Mesh) -> None:
    """A request with a field this version does not know is refused, whatever the grant says."""
    plain = mesh.restart()
    request = RestartRequest.FromString(plain.SerializeToString() + UNKNOWN_FIELD)
    with pytest.raises(Refusal, match="UNKNOWN_FIELD"):
        await mesh.call(request, mesh.sign(await mesh.mint(request)))
    assert await mesh.rows(request) == 0
