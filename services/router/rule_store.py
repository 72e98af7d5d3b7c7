"""Rule sets in PostgreSQL: immutable versions and one pointer to the active one."""

from typing import Final, Protocol

import asyncpg

from services.mesh.postgres import Connection, Pool
from services.router.domain import RuleSetRow

HEAD: Final = (
    "rule_sets.version, rule_sets.version = active_rule_set.version AS active, digest, rule_count, publisher, "
    "publish_time"
)
ACTIVE_VERSION: Final = "SELECT version FROM active_rule_set"
# Holds every other publish back until this one is committed.
LOCK: Final = "SELECT version FROM active_rule_set FOR UPDATE"
READ: Final = (
    f"SELECT {HEAD}, content FROM rule_sets CROSS JOIN active_rule_set "  # noqa: S608  constants only
    "WHERE rule_sets.version = CASE WHEN $1 = 0 THEN active_rule_set.version ELSE $1 END"
)
PAGE: Final = (
    f"SELECT {HEAD} FROM rule_sets CROSS JOIN active_rule_set "  # noqa: S608  constants only
    "WHERE ($1 = 0 OR rule_sets.version < $1) ORDER BY rule_sets.version DESC LIMIT $2"
)
INSERT: Final = """
INSERT INTO rule_sets (version, digest, rule_count, publisher, content)
SELECT COALESCE(max(version), 0) + 1, $1, $2, $3, $4 FROM rule_sets
RETURNING version, true AS active, digest, rule_count, publisher, publish_time
"""
ACTIVATE: Final = "UPDATE active_rule_set SET version = $1"


class RuleStore(Protocol):
    """Where rule sets live."""

    async def active_version(self) -> int:
        """Return the version that decides; 0 when none is published."""

    async def read(self, version: int) -> RuleSetRow | None:
        """Return a version with its content; 0 means the active one."""

    async def page(self, before: int, limit: int) -> list[RuleSetRow]:
        """Return versions without content, newest first, below `before` (0: from the newest)."""


class PostgresRuleStore:
    """RuleStore on asyncpg."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def active_version(self) -> int:
        """See RuleStore."""
        version: int = await self._pool.fetchval(ACTIVE_VERSION)
        return version

    async def read(self, version: int) -> RuleSetRow | None:
        """See RuleStore."""
        row = await self._pool.fetchrow(READ, version)
        return _row(row, row["content"]) if row else None

    async def page(self, before: int, limit: int) -> list[RuleSetRow]:
        """See RuleStore."""
        return [_row(row) for row in await self._pool.fetch(PAGE, before, limit)]


async def publish(connection: Connection, digest: str, rule_count: int, publisher: str, content: bytes) -> RuleSetRow:
    """Store and activate a new version within the transaction of `connection`; the active one when it is the same."""
    await connection.execute(LOCK)
    active = await connection.fetchrow(READ, 0)
    if active and active["digest"] == digest:
        return _row(active)
    (row,) = await connection.fetch(INSERT, digest, rule_count, publisher, content)
    await connection.execute(ACTIVATE, row["version"])
    return _row(row)


def _row(row: asyncpg.Record, content: bytes | None = None) -> RuleSetRow:
    """Return a database row as a version."""
    return RuleSetRow(
        version=row["version"],
        active=row["active"],
        digest=row["digest"],
        rule_count=row["rule_count"],
        publisher=row["publisher"],
        publish_time=row["publish_time"],
        content=content,
    )
