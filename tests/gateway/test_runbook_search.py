"""The ranked search of runbooks, in a real PostgreSQL."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from opsmesh.tools.runbook.v1 import runbook_tool_service_pb2 as pb
from services.gateway.runbook_index import PostgresRunbooks, sections, words
from services.gateway.tools.runbook import RunbookTools
from services.mesh.postgres import Pool
from tests.stores import Database

CHECKOUT = """# Checkout is down

Who to call: the shop team.

## Symptoms

Alert CheckoutErrorRate fires; customers see errors.

## Repair

Restart the workload. If restarting does not help, roll back the deployment.

```
# this is no heading: rollback
```
"""
DATABASE = """Some words before any heading about vacuum.

# Orders database

### Disk is full

Delete old partitions. Never restart the primary.
"""


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[Pool]:
    """Give a pool with the rights of the gateway, on an empty index."""
    async with asyncpg.create_pool(
        database.dsn("gateway"), min_size=1, max_size=3, server_settings={"search_path": "gateway"}
    ) as found:
        await found.execute("DELETE FROM runbooks")
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with two runbooks."""
    (tmp_path / "checkout-down.md").write_text(CHECKOUT)
    (tmp_path / "orders.md").write_text(DATABASE)
    return tmp_path


@pytest.fixture
def family(folder: Path, pool: Pool) -> RunbookTools:
    """Give the family on that folder."""
    return RunbookTools(folder, PostgresRunbooks(pool))


async def cited(family: RunbookTools, query: str, most: int = 0) -> list[tuple[str, int, str]]:
    """Return the citations of what a search finds."""
    found = await family.search_runbooks(pb.SearchRunbooksRequest(query=query, max_results=most), {})
    assert [one.rank for one in found.hits] == sorted((one.rank for one in found.hits), reverse=True)
    return [(one.runbook.runbook_id, one.line, one.heading) for one in found.hits]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("roll back deployment", [("checkout-down", 9, "Repair")]),
        ("checkout restarted", [("checkout-down", 9, "Repair")]),
        ("CheckoutErrorRate", [("checkout-down", 5, "Symptoms")]),
        ("checkout_error-rate", [("checkout-down", 5, "Symptoms")]),
        ('"disk is full" restart', [("orders", 5, "Disk is full")]),
        ("restart -primary", [("checkout-down", 9, "Repair")]),
        ("vacuum", [("orders", 1, "Orders database")]),
        ("partitions or customers", [("checkout-down", 5, "Symptoms"), ("orders", 5, "Disk is full")]),
        ("submarine checkout", []),
        ("the", []),
        ("'; drop table runbooks; --", []),
        ('"" ! & | <-> ( :*', []),
    ],
)
async def test_a_hit_is_a_citation(family: RunbookTools, query: str, found: list[tuple[str, int, str]]) -> None:
    """Runbook, line and heading of the section that has all words, in any inflection."""
    assert sorted(await cited(family, query)) == found


async def test_the_best_section_comes_first(family: RunbookTools) -> None:
    """A word in a heading counts more than one in the text; max_results bounds."""
    (family._shelf._folder / "zz.md").write_text("# Other\n\ntext: disk\n\n## Disk\n\nAll about it: disk, disk.\n")  # type: ignore[operator]
    assert (await cited(family, "disk"))[0] == ("zz", 5, "Disk")
    assert await cited(family, "disk", most=1) == [("zz", 5, "Disk")]


async def test_the_excerpt_shows_the_words(family: RunbookTools) -> None:
    """One line without markup of ours; the runbook's title and size are told."""
    (hit,) = (await family.search_runbooks(pb.SearchRunbooksRequest(query="partitions"), {})).hits
    assert hit.excerpt == "Delete old partitions. Never restart the primary"
    assert (hit.runbook.title, hit.runbook.size_bytes) == ("Orders database", len(DATABASE))


async def test_changed_new_and_deleted_files_are_found_as_they_are(family: RunbookTools, folder: Path) -> None:
    """The next search knows."""
    assert await cited(family, "partitions")
    (folder / "orders.md").write_text(DATABASE.replace("partitions", "archives"))
    (folder / "new.md").write_text("# New\n\nabout penguins\n")
    (folder / "checkout-down.md").unlink()
    assert await cited(family, "partitions") == []
    assert await cited(family, "archives") == [("orders", 5, "Disk is full")]
    assert await cited(family, "penguins") == [("new", 1, "New")]
    assert await cited(family, "checkout") == []


async def test_what_has_not_changed_is_not_written(family: RunbookTools, folder: Path, pool: Pool) -> None:
    """Not by the next search, nor by a gateway that starts anew, nor for a touched file."""

    async def written() -> list[tuple[str, int]]:
        rows = await pool.fetch("SELECT DISTINCT runbook_id, xmin::text::bigint AS id FROM runbook_sections ORDER BY 1")
        return [(row["runbook_id"], row["id"]) for row in rows]

    await family.refresh()
    before = await written()
    os.utime(folder / "orders.md", (1, 1))
    await family.refresh()
    await RunbookTools(folder, PostgresRunbooks(pool)).refresh()
    assert await written() == before


async def test_two_gateways_may_index_at_once(folder: Path, pool: Pool) -> None:
    """Each section is there once."""
    families = [RunbookTools(folder, PostgresRunbooks(pool)) for _ in range(3)]
    await asyncio.gather(*(one.refresh() for one in families))
    assert await cited(families[0], "restart") == await cited(families[1], "restart")
    assert await pool.fetchval("SELECT count(*) FROM runbook_sections") == 5


def test_sections_begin_at_headings() -> None:
    """What stands in a fence is none, nor seven #; an empty section without heading is left out."""
    found = sections("T", "\n# A #\nx\n```\n# no\n```\n####### seven\n## B\n\n~~~sh\n## no\n")
    assert [(one.line, one.heading) for one in found] == [(2, "A"), (8, "B")]
    assert sections("T", "") == ()


def test_names_of_programs_fall_apart() -> None:
    """Beside the text as it is."""
    assert words("HTTPErrorRate2Go a_b x.y/z") == "HTTPErrorRate2Go a_b x.y/z\nHTTPError Rate2 Go a b x y z"
    assert words("plain text. And more: here") == "plain text. And more: here"
