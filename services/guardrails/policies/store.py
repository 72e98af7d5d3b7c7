"""Published policy sets in PostgreSQL, the active one also in memory: versions never change, only which is active."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from opsmesh.config.v1 import inventory_pb2, policies_pb2
from opsmesh.guardrails.v1 import policy_service_pb2 as pb
from opsmesh.type.v1 import error_reason_pb2
from services.guardrails import convert, domain
from services.mesh import policy
from services.mesh.errors import Refusal
from services.mesh.postgres import Connection, Pool

ACTIVE: Final = "SELECT policy_set_version FROM state"
READ: Final = (
    "SELECT version, policy_set, inventory, digest, publisher, publish_time FROM policy_sets WHERE version = $1"
)
PAGE: Final = (
    "SELECT version, digest, publisher, publish_time FROM policy_sets WHERE version < $1 ORDER BY version DESC LIMIT $2"
)
# Publishes wait for each other here, so that versions follow each other without a gap.
CLAIM: Final = "SELECT policy_set_version FROM state FOR UPDATE"
HEAD: Final = "SELECT version, digest, publisher, publish_time FROM policy_sets WHERE version = $1"
INSERT: Final = """
INSERT INTO policy_sets (version, policy_set, inventory, digest, publisher)
VALUES ($1, $2, $3, $4, $5) RETURNING publish_time
"""
ACTIVATE: Final = "UPDATE state SET policy_set_version = $1 WHERE policy_set_version < $1"


@dataclass(frozen=True, slots=True)
class Head:
    """A version without its documents."""

    version: int
    digest: str
    publisher: str
    publish_time: datetime


class Policies:
    """Reads and publishes policy sets; keeps the newest one it saw ready for judging."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._kept = domain.PolicySet()

    @property
    def kept(self) -> domain.PolicySet:
        """Return the newest policy set seen; whoever decides compares its version with the database's."""
        return self._kept

    async def at(self, version: int, connection: Connection) -> domain.PolicySet:
        """Return the policy set of a version that is active now, from memory where it is there."""
        if version == self._kept.version:
            return self._kept
        head, policy_set, inventory = await self._read(version, connection)
        # Thousands of rules take a while to compile; leases must not wait for it.
        self._kept = await asyncio.to_thread(convert.to_policy_set, head.version, policy_set, inventory)
        return self._kept

    async def active(self, connection: Connection) -> domain.PolicySet:
        """Return the active policy set, or refuse when none was ever published."""
        version = await connection.fetchval(ACTIVE)
        if not version:
            raise Refusal(error_reason_pb2.ERROR_REASON_NO_POLICY_SET)
        return await self.at(version, connection)

    async def active_version(self, connection: Connection | None = None) -> int:
        """Return the number of the active version; 0 when none was ever published."""
        return int(await (connection or self._pool).fetchval(ACTIVE))

    async def read(self, version: int) -> tuple[Head, policies_pb2.PolicySet, inventory_pb2.Inventory]:
        """Return a version with its documents, or refuse."""
        async with self._pool.acquire() as connection:
            return await self._read(version, connection)

    async def _read(
        self, version: int, connection: Connection
    ) -> tuple[Head, policies_pb2.PolicySet, inventory_pb2.Inventory]:
        """Return a version with its documents, or refuse."""
        row = await connection.fetchrow(READ, version)
        if row is None:
            raise Refusal(
                error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="policy set", id=str(version), list="policies list"
            )
        head = Head(row["version"], row["digest"], row["publisher"], row["publish_time"])
        documents = policies_pb2.PolicySet.FromString(row["policy_set"])
        return head, documents, inventory_pb2.Inventory.FromString(row["inventory"])

    async def page(self, before: int, limit: int) -> Sequence[Head]:
        """Return versions below `before`, newest first."""
        rows = await self._pool.fetch(PAGE, before, limit)
        return [Head(row["version"], row["digest"], row["publisher"], row["publish_time"]) for row in rows]


async def publish(
    connection: Connection, policy_set: policies_pb2.PolicySet, inventory: inventory_pb2.Inventory, publisher: str
) -> Head:
    """Store and activate the next version, in the caller's transaction; for the active content answer its version."""
    current: int = await connection.fetchval(CLAIM)
    digest = digest_of(policy_set, inventory)
    row = await connection.fetchrow(HEAD, current)
    if row and row["digest"] == digest:
        return Head(row["version"], row["digest"], row["publisher"], row["publish_time"])
    version = current + 1
    documents = [one.SerializeToString(deterministic=True) for one in (policy_set, inventory)]
    publish_time = await connection.fetchval(INSERT, version, *documents, digest, publisher)
    await connection.execute(ACTIVATE, version)
    return Head(version, digest, publisher, publish_time)


def digest_of(policy_set: policies_pb2.PolicySet, inventory: inventory_pb2.Inventory) -> str:
    """Return the SHA-256 of both documents, hex."""
    both = pb.PolicySetVersion(policy_set=policy_set, inventory=inventory)
    return policy.digest("", both).hex()
