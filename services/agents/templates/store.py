"""Published templates in PostgreSQL: versions never change, one of them is active."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from services.mesh.postgres import Connection, Pool

_COLUMNS: Final = "template_id, version, active, digest, content, tools, pins, publisher, publish_time"


@dataclass(frozen=True, slots=True)
class TemplateRow:
    """One published version; `content` is the serialised template, `pins` are tools and what they were then."""

    template_id: str
    version: int
    active: bool
    digest: str
    content: bytes
    pins: Mapping[str, str]
    publisher: str
    publish_time: datetime


@dataclass(frozen=True, slots=True)
class NewTemplate:
    """What a publish writes."""

    template_id: str
    digest: str
    content: bytes
    pins: Mapping[str, str]
    publisher: str


class TemplateStore(Protocol):
    """What servicers and runs need. Methods that take a connection run in the transaction of the caller's write."""

    async def publish(self, connection: Connection, new: NewTemplate) -> TemplateRow:
        """Store the next version and make it the active one; the active one again if its digest is the same."""
        ...

    async def template(self, template_id: str, version: int = 0) -> TemplateRow | None:
        """Return a version; 0 means the active one."""
        ...

    async def templates(self, after: str, limit: int) -> list[TemplateRow]:
        """Return active versions in order of id."""
        ...

    async def published(self, template_ids: Sequence[str]) -> frozenset[str]:
        """Return which of these have an active version."""
        ...


class PostgresTemplates:
    """The templates in the schema `agents`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def publish(self, connection: Connection, new: NewTemplate) -> TemplateRow:
        """See TemplateStore; two publishers of one template wait for each other."""
        await connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('agents.templates.' || $1, 0))", new.template_id
        )
        active = await connection.fetchrow(
            f"SELECT {_COLUMNS} FROM agents.templates WHERE template_id = $1 AND active",  # noqa: S608  constants
            new.template_id,
        )
        if active and active["digest"] == new.digest:
            return _row(active)
        await connection.execute(
            "UPDATE agents.templates SET active = false WHERE template_id = $1 AND active", new.template_id
        )
        row = await connection.fetchrow(
            "INSERT INTO agents.templates (template_id, version, active, digest, content, tools, pins, publisher) "  # noqa: S608
            "SELECT $1, coalesce(max(version), 0) + 1, true, $2, $3, $4, $5, $6 FROM agents.templates "
            f"WHERE template_id = $1 RETURNING {_COLUMNS}",
            new.template_id,
            new.digest,
            new.content,
            list(new.pins),
            list(new.pins.values()),
            new.publisher,
        )
        return _row(row)

    async def template(self, template_id: str, version: int = 0) -> TemplateRow | None:
        """See TemplateStore."""
        row = await self._pool.fetchrow(
            f"SELECT {_COLUMNS} FROM agents.templates "  # noqa: S608  constants
            "WHERE template_id = $1 AND CASE WHEN $2::bigint = 0 THEN active ELSE version = $2 END",
            template_id,
            version,
        )
        return _row(row) if row else None

    async def templates(self, after: str, limit: int) -> list[TemplateRow]:
        """See TemplateStore."""
        rows = await self._pool.fetch(
            f"SELECT {_COLUMNS} FROM agents.templates "  # noqa: S608  constants
            "WHERE active AND template_id > $1 ORDER BY template_id LIMIT $2",
            after,
            limit,
        )
        return [_row(row) for row in rows]

    async def published(self, template_ids: Sequence[str]) -> frozenset[str]:
        """See TemplateStore."""
        sql = "SELECT template_id FROM agents.templates WHERE active AND template_id = ANY($1::text[])"
        return frozenset(row["template_id"] for row in await self._pool.fetch(sql, list(template_ids)))


def _row(record: Any) -> TemplateRow:
    """Return a record as a row."""
    found = dict(record)
    pins = dict(zip(found.pop("tools"), found.pop("pins"), strict=True))
    return TemplateRow(**found, pins=pins)
