"""The full-text index of the runbooks in PostgreSQL: one row a section, so that a hit can be cited.

The files are the truth. Whoever searches looks first whether a file has changed since it was indexed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from services.mesh.postgres import Pool

TITLE_MAX: Final = 200
HEADING: Final = r"#{1,6}\s+(.+?)\s*#*\s*$"
FENCE: Final = r"\s*(```|~~~)"
# Where names that programs are given fall apart into words: HighErrorRate, high_error_rate, api.example.org/health.
SEAM: Final = r"(?<=[a-z0-9])(?=[A-Z])|(?<=\w)[-_./:]+(?=\w)|_"


@dataclass(frozen=True, slots=True)
class Section:
    """What stands under one heading; `line` is the heading's, from 1."""

    line: int
    heading: str
    body: str


@dataclass(frozen=True, slots=True)
class Indexed:
    """A runbook to index; `digest` is that of its file."""

    runbook_id: str
    title: str
    size_bytes: int
    digest: bytes
    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class Hit:
    """A section that fits a query."""

    runbook_id: str
    title: str
    size_bytes: int
    line: int
    heading: str
    excerpt: str
    rank: float


class RunbookIndex(Protocol):
    """What the runbook tools need of an index."""

    async def put(self, runbook: Indexed) -> None:
        """Index a runbook anew, unless it is indexed just so."""

    async def keep(self, runbook_ids: list[str]) -> None:
        """Forget all other runbooks."""

    async def search(self, query: str, limit: int) -> list[Hit]:
        """Return the sections that fit, best first."""


class PostgresRunbooks:
    """The index in schema gateway."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def put(self, runbook: Indexed) -> None:
        """Replace a runbook's sections in one transaction."""
        async with self._pool.acquire() as connection, connection.transaction():
            changed = await connection.fetchval(
                "INSERT INTO runbooks AS known (runbook_id, title, size_bytes, digest) VALUES ($1, $2, $3, $4) "
                "ON CONFLICT (runbook_id) DO UPDATE SET title = excluded.title, size_bytes = excluded.size_bytes, "
                "digest = excluded.digest WHERE known.digest <> excluded.digest RETURNING true",
                runbook.runbook_id,
                runbook.title,
                runbook.size_bytes,
                runbook.digest,
            )
            if not changed:
                return
            await connection.execute("DELETE FROM runbook_sections WHERE runbook_id = $1", runbook.runbook_id)
            await connection.executemany(
                "INSERT INTO runbook_sections (runbook_id, line, heading, body, document) VALUES ($1, $2, $3, $4, "
                "setweight(to_tsvector('english', $5), 'B') || setweight(to_tsvector('english', $6), 'A') || "
                "setweight(to_tsvector('english', $7), 'D'))",
                [
                    (
                        runbook.runbook_id,
                        one.line,
                        one.heading,
                        one.body,
                        words(runbook.title),
                        words(one.heading),
                        words(one.body),
                    )
                    for one in runbook.sections
                ],
            )

    async def keep(self, runbook_ids: list[str]) -> None:
        """Delete what has no file any more."""
        await self._pool.execute("DELETE FROM runbooks WHERE runbook_id <> ALL ($1::text[])", runbook_ids)

    async def search(self, query: str, limit: int) -> list[Hit]:
        """Rank by how close together the words stand, headings before titles before text."""
        rows = await self._pool.fetch(
            "SELECT found.runbook_id, runbooks.title, runbooks.size_bytes, found.line, found.heading, found.rank, "
            "ts_headline('english', found.body, found.query, "
            '\'StartSel="", StopSel="", MaxFragments=2, MaxWords=35, MinWords=10\') AS excerpt '
            "FROM (SELECT runbook_id, line, heading, body, query, ts_rank_cd(document, query, 33) AS rank "
            "FROM runbook_sections, websearch_to_tsquery('english', $1) AS query WHERE document @@ query "
            "ORDER BY rank DESC, runbook_id, line LIMIT $2) AS found JOIN runbooks USING (runbook_id) "
            "ORDER BY found.rank DESC, found.runbook_id, found.line",
            seams(query),
            limit,
        )
        return [
            Hit(
                runbook_id=row["runbook_id"],
                title=row["title"],
                size_bytes=row["size_bytes"],
                line=row["line"],
                heading=row["heading"],
                excerpt=row["excerpt"],
                rank=row["rank"],
            )
            for row in rows
        ]


def seams(text: str) -> str:
    """Return a text with names of programs taken apart; quotes and a minus before a word stay."""
    return re.sub(SEAM, " ", text)


def words(text: str) -> str:
    """Return a text to index: as it is, and with names taken apart where it has any."""
    apart = seams(text)
    return text if apart == text else f"{text}\n{apart}"


def sections(title: str, text: str) -> tuple[Section, ...]:
    """Split Markdown at its headings; what stands in fences is no heading."""
    return tuple(one for one in _sections(title, text.splitlines()) if one.body.strip() or one.heading != title)


def _sections(title: str, lines: list[str]) -> Iterator[Section]:
    """Yield the sections, the one before the first heading included."""
    begin, heading, body, fenced = 1, title, list[str](), False
    for number, line in enumerate(lines, start=1):
        fenced ^= bool(re.match(FENCE, line))
        found = None if fenced else re.match(HEADING, line)
        if found:
            if number > 1:
                yield Section(begin, heading, "\n".join(body))
            begin, heading, body = number, found[1][:TITLE_MAX], []
        else:
            body.append(line)
    yield Section(begin, heading, "\n".join(body))
