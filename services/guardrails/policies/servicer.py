"""PolicyService: proto in, proto out."""
# ruff: noqa: N802  the names are those of the IDL

import asyncio
from typing import Any, Final

from opsmesh.guardrails.v1 import policy_service_pb2 as pb
from opsmesh.guardrails.v1 import policy_service_pb2_grpc as rpc
from opsmesh.type.v1 import error_reason_pb2
from services.guardrails.convert import timestamp
from services.guardrails.kills.lease import LeaseBoard
from services.guardrails.policies import review
from services.guardrails.policies import store as policies
from services.guardrails.policies.store import Head, Policies
from services.mesh import paging
from services.mesh.call import current
from services.mesh.errors import FieldViolation, Refusal
from services.mesh.identities import Identities
from services.mesh.postgres import Connection
from services.mesh.tools import tools
from services.mesh.writes import Subject, Writes

NEWEST: Final = 2**63 - 1


class PolicyServicer(rpc.PolicyServiceServicer):
    """Publishes and reads policy sets."""

    def __init__(self, kept: Policies, writes: Writes, identities: Identities, board: LeaseBoard) -> None:
        self._policies = kept
        self._writes = writes
        self._identities = identities
        self._board = board

    async def PublishPolicySet(self, request: pb.PublishPolicySetRequest, _: Any) -> pb.PublishPolicySetResponse:
        """Validate and activate, or only say whether it would be accepted."""
        # Thousands of entries take a while; leases must not wait for them.
        wrong = await asyncio.to_thread(
            review.problems, request.policy_set, request.inventory, tools(), self._identities.names
        )
        if wrong:
            violations = [FieldViolation(*one) for one in wrong]
            raise Refusal(error_reason_pb2.ERROR_REASON_POLICY_SET_INVALID, violations=violations)
        digest = policies.digest_of(request.policy_set, request.inventory)
        if request.validate_only:
            return pb.PublishPolicySetResponse(policy_set=await self._would_be(digest))
        publisher = current().identity

        async def change(connection: Connection) -> pb.PublishPolicySetResponse:
            head = await policies.publish(connection, request.policy_set, request.inventory, publisher)
            return pb.PublishPolicySetResponse(policy_set=to_version(head, head.version))

        subject = Subject(detail={"digest": digest})
        response = await self._writes.once(request, pb.PublishPolicySetResponse, change, subject)
        self._board.changed()
        return response

    async def GetPolicySet(self, request: pb.GetPolicySetRequest, _: Any) -> pb.GetPolicySetResponse:
        """Read a version; 0 means the active one."""
        active = await self._policies.active_version()
        if not (request.version or active):
            raise Refusal(error_reason_pb2.ERROR_REASON_NO_POLICY_SET)
        head, policy_set, inventory = await self._policies.read(request.version or active)
        version = to_version(head, active)
        version.policy_set.CopyFrom(policy_set)
        version.inventory.CopyFrom(inventory)
        return pb.GetPolicySetResponse(policy_set=version)

    async def ListPolicySets(self, request: pb.ListPolicySetsRequest, _: Any) -> pb.ListPolicySetsResponse:
        """List versions, newest first."""
        size = paging.page_size(request.page_size)
        after = paging.read_token(request, int)
        heads = await self._policies.page(after[0] if after else NEWEST, size + 1)
        active = await self._policies.active_version()
        token = paging.write_token(request, heads[size - 1].version) if len(heads) > size else ""
        versions = [to_version(head, active) for head in heads[:size]]
        return pb.ListPolicySetsResponse(policy_sets=versions, next_page_token=token)

    async def _would_be(self, digest: str) -> pb.PolicySetVersion:
        """Return the version that a publish would answer with."""
        active = await self._policies.active_version()
        for head in await self._policies.page(active + 1, 1):
            if head.digest == digest:
                return to_version(head, active)
        return pb.PolicySetVersion(version=active + 1, digest=digest, publisher=current().identity)


def to_version(head: Head, active: int) -> pb.PolicySetVersion:
    """Return a version without its documents."""
    return pb.PolicySetVersion(
        version=head.version,
        active=head.version == active,
        digest=head.digest,
        publisher=head.publisher,
        publish_time=timestamp(head.publish_time),
    )
