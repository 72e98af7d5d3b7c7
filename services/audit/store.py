"""The log in PostgreSQL: one connection that appends and holds the log's lock, and a pool that reads."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

import asyncpg

from opsmesh.audit.v1 import audit_service_pb2 as audit
from services.audit.chain import ZERO_HASH
from services.audit.domain import Filter, Head, Place
from services.audit.events import COLUMNS, from_row

# pg_advisory_lock key of "the one sequencer": any number, as long as it never changes.
LOCK_KEY: Final = 0x6F70736D657368
STATEMENT_SECONDS: Final = 5.0
EXPORT_ROWS: Final = 500
# A page ends at this size, so that it stays well below the 4 MiB of a message.
PAGE_BYTES: Final = 1_500_000
APPENDER_SETTINGS: Final = {
    "application_name": "opsmesh-audit-sequencer",
    "synchronous_commit": "on",
    # Asked by key only: a planner that believes old statistics must not choose to read the whole log.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
LOWEST: Final = -(2**63)
EXACT: Final = (
    "incident_id",
    "actor",
    "action",
    "target",
    "environment",
    "phase",
    "outcome",
    "execution_id",
    "request_id",
)
_COLUMN_LIST: Final = ", ".join(COLUMNS)


class LogIsTaken(Exception):  # noqa: N818  a state, not an error
    """Another sequencer holds the log."""


@dataclass(frozen=True, slots=True)
class Look:
    """The database's time, and where those of the asked events stand that are in the log already."""

    now: datetime
    known: dict[str, Place]


class Appender(Protocol):
    """The only way into the log. Every method raises ConnectionError, TimeoutError or asyncpg's errors."""

    async def head(self) -> Head:
        """Return the newest row."""

    async def hash_at(self, sequence: int) -> bytes | None:
        """Return the hash of a row, None where there is none."""

    async def look(self, event_ids: Sequence[str]) -> Look:
        """Return the time and the places of known events."""

    async def append(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Append rows; they are durable when this returns."""

    async def close(self) -> None:
        """Give up the log."""


class PostgresAppender:
    """An appender on a connection of its own: whoever loses the connection loses the lock and can append no more."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._connection = connection

    @classmethod
    async def open(cls, dsn: str, password: str) -> "PostgresAppender":
        """Connect and take the lock; LogIsTaken while another process holds it."""
        connection = await asyncpg.connect(
            dsn,
            password=password or None,
            timeout=STATEMENT_SECONDS,
            command_timeout=STATEMENT_SECONDS,
            server_settings=APPENDER_SETTINGS,
        )
        try:
            is_ours = await connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK_KEY)
        except BaseException:
            connection.terminate()
            raise
        if not is_ours:
            await connection.close(timeout=STATEMENT_SECONDS)
            raise LogIsTaken
        return cls(connection)

    async def head(self) -> Head:
        """Return the newest row."""
        row = await self._connection.fetchrow("SELECT sequence, hash FROM audit.events ORDER BY sequence DESC LIMIT 1")
        return Head(row["sequence"], row["hash"]) if row else Head(0, ZERO_HASH)

    async def hash_at(self, sequence: int) -> bytes | None:
        """Return the hash of a row; the beginning has the zero hash."""
        if sequence == 0:
            return ZERO_HASH
        found: bytes | None = await self._connection.fetchval(
            "SELECT hash FROM audit.events WHERE sequence = $1", sequence
        )
        return found

    async def look(self, event_ids: Sequence[str]) -> Look:
        """Return the time and the places of known events, in one round trip."""
        row = await self._connection.fetchrow(
            "SELECT clock_timestamp() AS now, array_agg(event_id::text) AS ids, array_agg(sequence) AS sequences, "
            "array_agg(writer) AS writers "
            "FROM unnest($1::uuid[]) AS asked (event_id) JOIN audit.events USING (event_id)",
            event_ids,
        )
        assert row is not None  # noqa: S101  an aggregate without groups has one row
        places = map(Place, row["sequences"] or (), row["writers"] or ())
        known = dict(zip(row["ids"] or (), places, strict=True))
        return Look(row["now"], known)

    async def append(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Append rows in one COPY, which is a transaction of its own."""
        await self._connection.copy_records_to_table(
            "events", schema_name="audit", columns=COLUMNS, records=rows, timeout=STATEMENT_SECONDS
        )

    async def close(self) -> None:
        """Close the connection, which releases the lock."""
        try:
            await self._connection.close(timeout=STATEMENT_SECONDS)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._connection.terminate()


class Log(Protocol):
    """What readers of the log can ask."""

    async def get(self, event_id: str) -> audit.AuditEvent | None:
        """Return one event."""

    async def page(self, wanted: Filter, after: int | None, limit: int) -> tuple[list[audit.AuditEvent], bool]:
        """Return at most `limit` events beyond sequence `after` in the filter's order, and whether there are more."""

    def export(self, start: int) -> AsyncIterator[list[audit.ExportedEvent]]:
        """Yield all rows from a sequence on, as the columns say, in parts."""


class PostgresLog:
    """The log as a pool of connections reads it."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    async def get(self, event_id: str) -> audit.AuditEvent | None:
        """Return one event."""
        row = await self._pool.fetchrow(f"SELECT {_COLUMN_LIST} FROM audit.events WHERE event_id = $1", event_id)  # noqa: S608  columns are constants
        return from_row(row) if row else None

    async def page(self, wanted: Filter, after: int | None, limit: int) -> tuple[list[audit.AuditEvent], bool]:
        """Return a page by key: cheap on any page, unmoved by rows that arrive meanwhile."""
        condition, values = where(wanted, after)
        order = "DESC" if wanted.descending else "ASC"
        rows = await self._pool.fetch(
            f"SELECT {_COLUMN_LIST} FROM audit.events WHERE {condition} ORDER BY sequence {order} LIMIT {limit + 1:d}",  # noqa: S608  fragments are constants, values are parameters
            *values,
        )
        page: list[audit.AuditEvent] = []
        size = 0
        for row in rows[:limit]:
            event = from_row(row)
            size += event.ByteSize()
            if page and size > PAGE_BYTES:
                break
            page.append(event)
        return page, len(rows) > len(page)

    async def export(self, start: int) -> AsyncIterator[list[audit.ExportedEvent]]:
        """Yield all rows from a sequence on; from 0 also rows that somebody put before the first."""
        after = start - 1 if start else LOWEST
        while rows := await self._pool.fetch(
            f"SELECT {_COLUMN_LIST} FROM audit.events WHERE sequence > $1 ORDER BY sequence LIMIT {EXPORT_ROWS:d}",  # noqa: S608  constants
            after,
        ):
            part: list[audit.ExportedEvent] = []
            size = 0
            for row in rows:
                one = audit.ExportedEvent(event=from_row(row), previous_hash=row["previous_hash"], hash=row["hash"])
                size += one.ByteSize()
                if part and size > PAGE_BYTES:
                    break
                part.append(one)
            after = part[-1].event.sequence
            yield part


def where(wanted: Filter, after: int | None) -> tuple[str, list[Any]]:
    """Return the condition and its parameters: only the given fields, so that their indexes are used."""
    tests = [(f"{name} = $%d", getattr(wanted, name)) for name in EXACT if getattr(wanted, name)]
    if wanted.start_time is not None:
        tests.append(("event_time >= $%d", wanted.start_time))
    if wanted.end_time is not None:
        tests.append(("event_time < $%d", wanted.end_time))
    if after is not None:
        tests.append(("sequence < $%d" if wanted.descending else "sequence > $%d", after))
    condition = " AND ".join(test % number for number, (test, _) in enumerate(tests, 1)) or "TRUE"
    return condition, [value for _, value in tests]
