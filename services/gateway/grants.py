"""Reads grants: nothing in one is believed before its signature over exactly these bytes was verified, offline."""

from datetime import UTC
from pathlib import Path
from typing import Final, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf.message import DecodeError

from opsmesh.guardrails.v1 import grant_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.gateway import domain
from services.mesh import policy
from services.mesh.errors import Refusal
from services.mesh.keys import public_key

METADATA_KEY: Final = "opsmesh-grant-bin"
BYTES_MAX: Final = 6 * 1024
# Signed before a read grant's bytes. No grant of an action begins like this: the first byte would be no field's tag.
READ_GRANT_PREFIX: Final = b"opsmesh-read-grant\0"
G = TypeVar("G", grant_pb2.Grant, grant_pb2.ReadGrant)


class GrantReader:
    """Verifies signed grants with the public key of guardrails."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key

    @classmethod
    def load(cls, path: Path) -> "GrantReader":
        """Read the public key; a BootError says what is wrong with the file."""
        return cls(public_key("OPSMESH_GRANT_PUBLIC_KEY_FILE", path))

    def read(self, raw: object, method: str) -> grant_pb2.Grant:
        """Return the verified grant of a call; refuse what is missing, forged, too large or of another version."""
        signed = _open(raw, method)
        if signed.read_grant:
            raise invalid("it is a read grant")
        return self._verified(signed.grant, signed.signature, signed.grant, grant_pb2.Grant)

    def read_reads(self, raw: object, method: str) -> grant_pb2.ReadGrant:
        """Return the verified read grant of a call; a grant of an action is none."""
        signed = _open(raw, method)
        if signed.grant or not signed.read_grant:
            raise invalid("it is no read grant")
        told = READ_GRANT_PREFIX + signed.read_grant
        return self._verified(told, signed.signature, signed.read_grant, grant_pb2.ReadGrant)

    def _verified(self, told: bytes, signature: bytes, raw: bytes, kind: type[G]) -> G:
        """Return what guardrails signed, parsed without tolerance."""
        try:
            self._key.verify(signature, told)
            grant = kind.FromString(raw)
            policy.reject_unknown_fields(grant)
            policy.validate(grant)
        except InvalidSignature:
            raise invalid("its signature is wrong") from None
        except DecodeError:
            raise invalid("it is no grant") from None
        except Refusal as refusal:
            raise invalid(f"it breaks its bounds ({refusal.name})") from None
        return grant


def _open(raw: object, method: str) -> grant_pb2.SignedGrant:
    """Return what a call carries; nothing of it is believed yet."""
    if not isinstance(raw, bytes) or not raw:
        raise Refusal(error_reason_pb2.ERROR_REASON_GRANT_MISSING, method=method)
    if len(raw) > BYTES_MAX:
        raise invalid(f"it is larger than {BYTES_MAX} bytes")
    try:
        signed = grant_pb2.SignedGrant.FromString(raw)
        policy.reject_unknown_fields(signed)
    except DecodeError:
        raise invalid("it is no grant") from None
    except Refusal as refusal:
        raise invalid(f"it breaks its bounds ({refusal.name})") from None
    return signed


def invalid(what: str) -> Refusal:
    """Return the refusal of a grant that does not fit."""
    return Refusal(error_reason_pb2.ERROR_REASON_GRANT_INVALID, what=what)


def to_domain(grant: grant_pb2.Grant) -> domain.Grant:
    """Return what the checks need of a verified grant."""
    return domain.Grant(
        grant_id=grant.grant_id,
        method=grant.method,
        digest=grant.request_digest,
        caller=grant.caller,
        request_id=grant.request_id,
        target_id=grant.target_id,
        fence=grant.fence,
        precondition=dict(grant.precondition),
        policy_set_version=grant.policy_set_version,
        kill_epoch=grant.kill_epoch,
        issue_time=grant.issue_time.ToDatetime(UTC),
        expire_time=grant.expire_time.ToDatetime(UTC),
        environment=grant.environment,
        playbook_id=grant.playbook_id,
        execution_id=grant.execution_id,
        run_id=grant.run_id,
        ancestors=tuple(grant.ancestor_run_ids),
    )


def reads_to_domain(grant: grant_pb2.ReadGrant) -> domain.ReadGrant:
    """Return what the checks need of a verified read grant."""
    return domain.ReadGrant(
        caller=grant.caller,
        methods=frozenset(grant.methods),
        targets={one.target_id: one.environment for one in grant.targets},
        policy_set_version=grant.policy_set_version,
        kill_epoch=grant.kill_epoch,
        issue_time=grant.issue_time.ToDatetime(UTC),
        expire_time=grant.expire_time.ToDatetime(UTC),
        run_id=grant.run_id,
        ancestors=tuple(grant.ancestor_run_ids),
    )
