"""docs/security-grants.md says exactly what policy grants."""

from pathlib import Path

import pytest

from tests.faults.verdicts import PAGE, generate
from tests.guardrails.world import house
from tests.mesh.world import World
from tests.stores import Database

pytestmark = pytest.mark.timeout(300)


async def test_the_published_grants_are_those_of_now(database: Database, tmp_path: Path) -> None:
    """Asked again, guardrails answers as the document says; `python -m tests.faults.verdicts --write` renews it."""
    async with house(World(tmp_path / "pki"), database, tmp_path) as home:
        assert await generate(home) == PAGE.read_text(encoding="utf-8")
