"""Fixtures of ingest's tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.local.valkey import Valkey
from tests.ingest.house import House
from tests.stores import Database


@pytest.fixture
async def house(tmp_path: Path, valkey: Valkey, database: Database) -> AsyncIterator[House]:
    """Give ingest's parts on real, empty stores."""
    made = await House.build(tmp_path, valkey, database)
    yield made
    await made.close()
