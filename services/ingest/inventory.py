"""The inventory that guardrails has published, as ingest follows it."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import grpc.aio
import structlog

from opsmesh.guardrails.v1 import kill_switch_service_pb2, policy_service_pb2
from services.ingest.domain import Inventory
from services.ingest.mapping import inventory_of
from services.ingest.store import PostgresIncidents
from services.mesh.call import working
from services.mesh.loop import every

IDENTITY: Final = "service/ingest"
INVENTORY: Final = "opsmesh.guardrails.v1.PolicyService/GetPolicySet"
READ_SECONDS: Final = 5.0
# A lease tells the version in one small answer; the inventory itself is read only when that has changed.
PERIOD: Final = 0.25
log = structlog.get_logger("opsmesh.inventory")


class Policies(Protocol):
    """What ingest needs of guardrails' policy stub."""

    @property
    def GetPolicySet(self) -> Callable[..., Awaitable[policy_service_pb2.GetPolicySetResponse]]:  # noqa: N802  the IDL's name
        """Read the active policy set with its inventory."""


class Leases(Protocol):
    """What ingest needs of guardrails' lease stub."""

    @property
    def PollLease(self) -> Callable[..., Awaitable[kill_switch_service_pb2.PollLeaseResponse]]:  # noqa: N802  the IDL's name
        """Read which policy set is active."""


class InventoryLane:
    """Keeps the inventory that guardrails has published; without guardrails the last one stays."""

    def __init__(self, store: PostgresIncidents, policies: Policies, leases: Leases, wake: asyncio.Event) -> None:
        self._store = store
        self._policies = policies
        self._leases = leases
        self._wake = wake
        self._loaded = False
        self._instance = f"ingest@{socket.gethostname()}/{os.getpid()}"[:128]
        self.inventory = Inventory()

    def current(self) -> Inventory:
        """Return the inventory to look keys up in."""
        return self.inventory

    async def run(self, stop: asyncio.Event) -> None:
        """Follow it until `stop`."""
        await every(stop, PERIOD, self.read)

    async def read(self) -> None:
        """Take over a newer version, if there is one; incidents whose targets it makes known are decided anew."""
        if not self._loaded:
            self.inventory = await self._store.read_inventory()
            self._loaded = True
        with contextlib.suppress(grpc.aio.AioRpcError):
            await self._follow()
        # Not only when the version changes: what was being written at that moment was looked up in the old one.
        if self.inventory.version and await self._store.relocate(self.inventory):
            self._wake.set()

    async def _follow(self) -> None:
        """Ask guardrails; an AioRpcError when it does not answer."""
        with working(IDENTITY, INVENTORY, READ_SECONDS):
            request = kill_switch_service_pb2.PollLeaseRequest(instance=self._instance)
            version = (await self._leases.PollLease(request)).lease.policy_set_version
            if version in (0, self.inventory.version):
                return
            answer = await self._policies.GetPolicySet(policy_service_pb2.GetPolicySetRequest(version=version))
        found = answer.policy_set
        await self._store.write_inventory(found.version, found.inventory)
        self.inventory = inventory_of(found.inventory, found.version)
        log.info("inventory", version=found.version, entries=len(found.inventory.entries))
