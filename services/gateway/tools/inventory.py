"""Tools for the inventory that guardrails judges by, read with the policy set and kept until there is a newer one."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import grpc

from opsmesh.config.v1 import inventory_pb2
from opsmesh.guardrails.v1 import policy_service_pb2, policy_service_pb2_grpc
from opsmesh.tools.inventory.v1 import inventory_tool_service_pb2 as pb
from opsmesh.tools.inventory.v1 import inventory_tool_service_pb2_grpc as rpc
from opsmesh.type.v1 import error_reason_pb2
from services.mesh import paging
from services.mesh.errors import Refusal

DEPENDENTS_MAX: Final = 256
Version = Callable[[], int | None]


@dataclass(frozen=True, slots=True)
class Inventory:
    """The targets of one policy set version, by id in order."""

    version: int
    targets: Mapping[str, pb.InventoryTarget]


class InventoryTools:
    """InventoryToolService; `version` tells the policy set version in force, or None while nobody knows it."""

    service = pb.DESCRIPTOR.services_by_name["InventoryToolService"]
    add = staticmethod(rpc.add_InventoryToolServiceServicer_to_server)

    def __init__(self, guardrails: grpc.aio.Channel, version: Version) -> None:
        stub = policy_service_pb2_grpc.PolicyServiceStub(guardrails)
        self._read: Callable[..., Awaitable[policy_service_pb2.GetPolicySetResponse]] = stub.GetPolicySet
        self._version = version
        self._kept: Inventory | None = None

    async def get_target(self, request: pb.GetTargetRequest, _precondition: Mapping[str, str]) -> pb.GetTargetResponse:
        """Read one."""
        inventory = await self._inventory()
        target = inventory.targets.get(request.target_id)
        if target is None:
            raise Refusal(
                error_reason_pb2.ERROR_REASON_NOT_FOUND,
                resource="target",
                id=request.target_id,
                list="tools call ListTargets",
            )
        return pb.GetTargetResponse(target=target, policy_set_version=inventory.version)

    async def list_targets(
        self, request: pb.ListTargetsRequest, _precondition: Mapping[str, str]
    ) -> pb.ListTargetsResponse:
        """List them by id."""
        position, size = paging.read_token(request, str), paging.page_size(request.page_size)
        inventory = await self._inventory()
        after = position[0] if position else ""
        left = [one for name, one in inventory.targets.items() if name > after and fits(one, request)]
        more = paging.write_token(request, left[size - 1].target_id) if len(left) > size else ""
        targets = [_short(one) for one in left[:size]]
        return pb.ListTargetsResponse(targets=targets, next_page_token=more, policy_set_version=inventory.version)

    async def _inventory(self) -> Inventory:
        """Return what is in force: what is kept if it is that, else what guardrails says."""
        kept = self._kept
        if kept is None or kept.version != self._version():
            # Two calls at once may both ask; what they get is the same.
            answer = await self._read(policy_service_pb2.GetPolicySetRequest())
            kept = self._kept = index(answer.policy_set.version, answer.policy_set.inventory)
        return kept


def index(version: int, inventory: inventory_pb2.Inventory) -> Inventory:
    """Return the targets with their dependencies in both directions."""
    dependents: dict[str, list[str]] = {}
    entries = sorted(inventory.entries, key=lambda one: one.target_id)
    for entry in entries:
        for name in entry.depends_on:
            dependents.setdefault(name, []).append(entry.target_id)
    return Inventory(
        version,
        {
            entry.target_id: pb.InventoryTarget(
                target_id=entry.target_id,
                kind=entry.kind,
                environment=entry.environment,
                region=entry.region,
                min_risk=entry.min_risk,
                owners=entry.owners,
                keys=entry.keys,
                depends_on=entry.depends_on,
                depended_on_by=dependents.get(entry.target_id, [])[:DEPENDENTS_MAX],
            )
            for entry in entries
        },
    )


def _short(target: pb.InventoryTarget) -> pb.InventoryTarget:
    """Return a target as lists show it: without what depends on it, which may be long."""
    short = pb.InventoryTarget()
    short.CopyFrom(target)
    short.ClearField("depended_on_by")
    return short


def fits(target: pb.InventoryTarget, request: pb.ListTargetsRequest) -> bool:
    """Say whether a target is one of those asked for."""
    part = request.name_contains.casefold()
    return (
        request.environment in {"", target.environment}
        and request.region in {"", target.region}
        and request.kind in {"", target.kind}
        and (not request.owner or request.owner in target.owners)
        and any(part in name.casefold() for name in (target.target_id, *target.keys))
    )
