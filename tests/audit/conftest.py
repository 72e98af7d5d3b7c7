"""Fixtures of the audit tests: the log on real PostgreSQL, appended to by a running sequencer."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.audit.checkpoints import CheckpointFile
from services.audit.store import PostgresLog
from tests.audit.running import Audit, opened
from tests.stores import Database


@pytest.fixture
async def fresh(postgres: Database) -> AsyncIterator[Database]:
    """Give an empty migrated database that belongs to one test: its log can be attacked."""
    async with postgres.fresh() as database:
        yield database


@pytest.fixture
async def audit_log(fresh: Database, tmp_path: Path) -> AsyncIterator[Audit]:
    """Give a running log of its own."""
    key = Ed25519PrivateKey.generate()
    checkpoints = CheckpointFile(key, tmp_path / "audit" / "checkpoints.jsonl")
    pool = await asyncpg.create_pool(fresh.dsn("audit"), min_size=1, max_size=2)
    stop = asyncio.Event()
    sequencer = opened(fresh, checkpoints)
    running = asyncio.create_task(sequencer.run(stop))
    log = Audit(fresh, sequencer, checkpoints, PostgresLog(pool), tmp_path / "audit" / "checkpoints.jsonl", key)
    try:
        await log.is_ready()
        yield log
    finally:
        stop.set()
        await running
        await pool.close()
