"""Signs grants: the only place that holds the key."""

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from opsmesh.guardrails.v1 import grant_pb2
from opsmesh.guardrails.v1 import guardrails_service_pb2 as pb
from opsmesh.policy.v1 import policy_pb2
from services.guardrails.action import Action
from services.guardrails.convert import timestamp
from services.guardrails.domain import Case, Entry
from services.mesh import policy
from services.mesh.keys import private_key

LIFETIME: Final = timedelta(seconds=30)
# Of a read grant.
READ_LIFETIME: Final = timedelta(minutes=5)
READ_PREFIX: Final = b"opsmesh-read-grant\0"
# What gRPC carries in metadata without refusing it at random.
BYTES_MAX: Final = 6 * 1024
# Bound of SignedGrant.read_grant.
RAW_MAX: Final = 6000


class Minter:
    """Makes grants and signs them."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def load(cls, path: Path) -> "Minter":
        """Read the private key; a BootError says what is wrong with the file."""
        return cls(private_key("OPSMESH_GRANT_KEY_FILE", path))

    def mint(
        self,
        action: Action,
        case: Case,
        context: pb.ActionContext,
        *,
        now: datetime,
        latest: datetime | None,
        fence: int,
        precondition: Mapping[str, str],
        policy_set_version: int,
        kill_epoch: int,
        approval_id: str = "",
        ancestors: Sequence[str] = (),
    ) -> tuple[bytes, datetime]:
        """Return a signed grant for exactly this action from `now` (the database's clock), and when it ends.

        It ends at `latest`, with the lock it rests on, where that is before its own lifetime is over.
        A ValueError when it would not fit into metadata.
        """
        expires = min(now + LIFETIME, latest) if latest else now + LIFETIME
        grant = grant_pb2.Grant(
            grant_id=str(uuid.uuid4()),
            method=action.method,
            request_digest=action.digest,
            caller=case.caller,
            request_id=action.request_id,
            target_id=case.target_id,
            environment=case.environment,
            region=case.region,
            fence=fence,
            precondition=precondition,
            policy_set_version=policy_set_version,
            kill_epoch=kill_epoch,
            risk=policy_pb2.Risk.ValueType(case.risk),
            incident_id=context.incident_id,
            decision_id=context.decision_id,
            execution_id=context.execution_id,
            step_id=context.step_id,
            approval_id=approval_id,
            rule_set_version=context.rule_set_version,
            on_behalf_of=context.on_behalf_of,
            playbook_id=context.playbook_id,
            run_id=context.run_id,
            ancestor_run_ids=ancestors,
            issue_time=timestamp(now),
            expire_time=timestamp(expires),
        )
        policy.validate(grant)
        raw = grant.SerializeToString(deterministic=True)
        signed = grant_pb2.SignedGrant(grant=raw, signature=self._key.sign(raw)).SerializeToString()
        if len(signed) > BYTES_MAX:
            raise ValueError(f"a grant of {len(signed)} bytes is larger than {BYTES_MAX}")
        return signed, expires

    def mint_read(
        self,
        caller: str,
        methods: Sequence[str],
        targets: Sequence[Entry],
        *,
        now: datetime,
        latest: datetime | None,
        policy_set_version: int,
        kill_epoch: int,
        incident_id: str,
        decision_id: str = "",
        run_id: str = "",
        ancestors: Sequence[str] = (),
    ) -> tuple[bytes, grant_pb2.ReadGrant]:
        """Return a signed grant for many reads, and what it says; a ValueError when it would not fit into metadata."""
        ends = now + READ_LIFETIME
        grant = grant_pb2.ReadGrant(
            grant_id=str(uuid.uuid4()),
            caller=caller,
            methods=methods,
            targets=[grant_pb2.ReadTarget(target_id=one.target_id, environment=one.environment) for one in targets],
            policy_set_version=policy_set_version,
            kill_epoch=kill_epoch,
            incident_id=incident_id,
            decision_id=decision_id,
            run_id=run_id,
            ancestor_run_ids=ancestors,
            issue_time=timestamp(now),
            expire_time=timestamp(min(ends, latest) if latest else ends),
        )
        policy.validate(grant)
        raw = grant.SerializeToString(deterministic=True)
        signature = self._key.sign(READ_PREFIX + raw)
        signed = grant_pb2.SignedGrant(read_grant=raw, signature=signature).SerializeToString()
        if len(raw) > RAW_MAX or len(signed) > BYTES_MAX:
            raise ValueError(f"a read grant of {len(signed)} bytes is larger than {BYTES_MAX}")
        return signed, grant
