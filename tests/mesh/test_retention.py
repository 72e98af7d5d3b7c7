"""Request ids are forgotten after their days, and nothing else is."""

from pathlib import Path

import pytest

from services.mesh.postgres import open_pool
from services.mesh.retention import STEP, Retention, request_ids
from services.mesh.settings import PostgresSettings
from tests.mesh.world import World
from tests.stores import Database


@pytest.mark.parametrize("name", ["ingest", "router", "agents", "automation", "guardrails", "gateway"])
async def test_old_request_ids_go_and_young_ones_stay(tmp_path: Path, database: Database, name: str) -> None:
    """More than one step is deleted in one round, by the service's own role; what is younger than its days stays."""
    values = {
        "postgres_dsn": database.dsn(name, with_password=False),
        "postgres_password_file": database.password_file(name),
    }
    pool = await open_pool(PostgresSettings(**World(tmp_path).settings(name).model_dump() | values), name)
    await pool.execute("DELETE FROM requests")
    await pool.execute(
        "INSERT INTO requests (caller, method, request_id, digest, response, create_time) "
        "SELECT '', '', gen_random_uuid(), '', '', now() - make_interval(days => days) "
        "FROM unnest($1::int[]) AS days",
        [31] * (STEP + 2) + [29] * 3,
    )
    assert await Retention(pool, request_ids(30)).forget() == STEP + 2
    assert await pool.fetchval("SELECT count(*) FROM requests") == 3
    await pool.close()
