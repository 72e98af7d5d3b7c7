"""The inventory tools, on a guardrails that counts how often it is asked."""
# ruff: noqa: N802  the names are those of the IDL

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf import json_format

from opsmesh.guardrails.v1 import policy_service_pb2, policy_service_pb2_grpc
from opsmesh.policy.v1 import policy_pb2
from opsmesh.tools.inventory.v1 import inventory_tool_service_pb2 as pb
from opsmesh.type.v1 import error_reason_pb2
from services.gateway.tools.inventory import InventoryTools
from services.mesh.call import working
from services.mesh.client import refusal_of
from services.mesh.errors import Refusal
from tests.mesh.world import World

GET = "opsmesh.tools.inventory.v1.InventoryToolService/GetTarget"
ENTRIES = [
    {
        "target_id": "svc:production/checkout",
        "kind": "service",
        "environment": "production",
        "region": "eu-west-1",
        "min_risk": "RISK_HIGH",
        "keys": ["Checkout.prod"],
        "depends_on": ["svc:production/payments", "db:production/orders"],
        "owners": ["shop"],
    },
    {
        "target_id": "svc:production/payments",
        "kind": "service",
        "environment": "production",
        "region": "us-east-1",
        "depends_on": ["db:production/orders"],
        "owners": ["bank", "shop"],
    },
    {"target_id": "db:production/orders", "kind": "database", "environment": "production"},
    {"target_id": "svc:demo/checkout", "kind": "service", "environment": "demo"},
]


class FakePolicies(policy_service_pb2_grpc.PolicyServiceServicer):
    """Has one policy set with an inventory."""

    def __init__(self) -> None:
        self.version = 3
        self.entries = ENTRIES
        self.asked = 0
        self.answering = True

    async def GetPolicySet(
        self, _request: policy_service_pb2.GetPolicySetRequest, _: Any
    ) -> policy_service_pb2.GetPolicySetResponse:
        """Answer with it."""
        self.asked += 1
        if not self.answering:
            raise Refusal(error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE, store="PostgreSQL")
        answer = {"policy_set": {"version": self.version, "active": True, "inventory": {"entries": self.entries}}}
        return json_format.ParseDict(answer, policy_service_pb2.GetPolicySetResponse())

    async def PublishPolicySet(self, *_: Any) -> Any:
        """Stay unused."""
        raise NotImplementedError

    async def ListPolicySets(self, *_: Any) -> Any:
        """Stay unused."""
        raise NotImplementedError


@pytest.fixture
def policies() -> FakePolicies:
    """Give a guardrails."""
    return FakePolicies()


@pytest.fixture(autouse=True)
def call() -> Iterator[None]:
    """Put every test into a call with thirty seconds."""
    with working("service/automation", GET, 30):
        yield


@pytest.fixture
async def family(tmp_path: Path, policies: FakePolicies) -> AsyncIterator[InventoryTools]:
    """Give the family as the gateway has it: with its own certificate and the permissions of deploy/."""
    world = World(tmp_path)
    add = policy_service_pb2_grpc.add_PolicyServiceServicer_to_server
    async with world.serving("guardrails", [(add, policies)]) as server, world.channel(server, "gateway") as channel:
        yield InventoryTools(channel, lambda: policies.version)


async def get(family: InventoryTools, target: str) -> pb.InventoryTarget:
    """Return one target."""
    return (await family.get_target(pb.GetTargetRequest(target_id=target), {})).target


async def ids(family: InventoryTools, **narrow: Any) -> list[str]:
    """Return the ids of the targets asked for."""
    return [one.target_id for one in (await family.list_targets(pb.ListTargetsRequest(**narrow), {})).targets]


async def test_a_target_is_what_the_inventory_says(family: InventoryTools) -> None:
    """With what it depends on and what depends on it, and the version of the policy set."""
    answer = await family.get_target(pb.GetTargetRequest(target_id="svc:production/payments"), {})
    assert answer.policy_set_version == 3
    assert list(answer.target.depends_on) == ["db:production/orders"]
    assert list(answer.target.depended_on_by) == ["svc:production/checkout"]
    checkout = await get(family, "svc:production/checkout")
    assert (checkout.region, checkout.min_risk, list(checkout.owners)) == ("eu-west-1", policy_pb2.RISK_HIGH, ["shop"])
    orders = await get(family, "db:production/orders")
    assert list(orders.depended_on_by) == ["svc:production/checkout", "svc:production/payments"]


async def test_an_unknown_target_is_refused(family: InventoryTools) -> None:
    """A key is no id."""
    for name in ("svc:nowhere/x", "Checkout.prod"):
        with pytest.raises(Refusal, match="NOT_FOUND: there is no target"):
            await get(family, name)


@pytest.mark.parametrize(
    ("narrow", "found"),
    [
        ({}, ["db:production/orders", "svc:demo/checkout", "svc:production/checkout", "svc:production/payments"]),
        ({"environment": "demo"}, ["svc:demo/checkout"]),
        ({"region": "us-east-1"}, ["svc:production/payments"]),
        ({"kind": "database"}, ["db:production/orders"]),
        ({"owner": "shop"}, ["svc:production/checkout", "svc:production/payments"]),
        ({"name_contains": "checkout.PROD"}, ["svc:production/checkout"]),
        ({"name_contains": "checkout", "environment": "production"}, ["svc:production/checkout"]),
        ({"kind": "database", "environment": "demo"}, []),
    ],
)
async def test_lists_are_narrowed(family: InventoryTools, narrow: dict[str, Any], found: list[str]) -> None:
    """By environment, region, kind, owner, and part of an id or key."""
    assert await ids(family, **narrow) == found


async def test_lists_come_in_pages(family: InventoryTools) -> None:
    """By id."""
    first = await family.list_targets(pb.ListTargetsRequest(page_size=3), {})
    rest = await family.list_targets(pb.ListTargetsRequest(page_size=3, page_token=first.next_page_token), {})
    assert [one.target_id for one in rest.targets] == ["svc:production/payments"]
    assert (len(first.targets), rest.next_page_token) == (3, "")


async def test_the_inventory_is_read_once_a_version(family: InventoryTools, policies: FakePolicies) -> None:
    """What is published next counts at once; meanwhile guardrails may even be down."""
    await get(family, "svc:demo/checkout")
    policies.answering = False
    await get(family, "svc:demo/checkout")
    assert policies.asked == 1
    policies.answering, policies.version, policies.entries = True, 4, ENTRIES[:1]
    assert await ids(family) == ["svc:production/checkout"]
    assert policies.asked == 2


async def test_no_inventory_is_no_empty_inventory(family: InventoryTools, policies: FakePolicies) -> None:
    """Without guardrails the answer is a refusal."""
    policies.answering = False
    with pytest.raises(grpc.aio.AioRpcError, match="PostgreSQL") as caught:
        await ids(family)
    refusal = refusal_of(caught.value)
    assert refusal
    assert refusal.name == "STORE_UNAVAILABLE"
