"""Finished effects go after their days; what may still act, or whose end nobody knows, stays for ever."""

import uuid

import asyncpg
import pytest

from services.gateway.store import finished
from services.mesh.retention import Retention
from tests.stores import Database

INSERT = """
INSERT INTO gateway.effects (method, request_id, state, tries, digest, caller, request, authority, target_id,
    environment, fence, incident_id, execution_id, step_id, trace_id, start_time, deadline_time, resolve_time, end_time)
SELECT 'm', $1::uuid, $2::text, 1, '', 'c', '', '', 't', 'e', 0, '', '', '', '', past, past, past,
       CASE WHEN $2::text = 'STARTED' THEN NULL ELSE past END
FROM (SELECT now() - make_interval(days => $3) AS past) AS times
"""


@pytest.mark.parametrize(
    ("state", "days", "stays"),
    [
        *((state, 91, False) for state in ("SUCCEEDED", "FAILED", "NOT_STARTED")),
        *((state, 89, True) for state in ("SUCCEEDED", "FAILED", "NOT_STARTED")),
        *((state, 4000, True) for state in ("STARTED", "UNKNOWN")),
    ],
)
async def test_only_what_is_finished_and_old_is_deleted(
    database: Database, state: str, days: int, *, stays: bool
) -> None:
    """By state and age, under the gateway's own role."""
    owner = await asyncpg.connect(database.dsn("postgres"))
    pool = await asyncpg.create_pool(
        database.dsn("gateway"), min_size=1, max_size=2, server_settings={"search_path": "gateway"}
    )
    request_id = uuid.uuid4()
    try:
        await owner.execute(INSERT, request_id, state, days)
        await Retention(pool, finished(90)).forget()
        left = await owner.fetchval("SELECT count(*) FROM gateway.effects WHERE request_id = $1", request_id)
    finally:
        await pool.close()
        await owner.close()
    assert bool(left) is stays
