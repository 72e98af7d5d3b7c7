"""Fixtures of guardrails' tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from services.guardrails.kills import switch
from tests.guardrails.world import House, house
from tests.mesh.world import World
from tests.stores import Database

# Rich tracebacks take seconds each, in which guardrails would answer nobody.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Give certificates and signing keys."""
    return World(tmp_path_factory.mktemp("guardrails"))


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an Engage wait for the database as long as its deadline allows: a busy machine takes more than a second."""
    monkeypatch.setattr(switch, "DURABLE_SECONDS", 4.0)


@pytest.fixture
async def home(pki: World, postgres: Database, tmp_path: Path) -> AsyncIterator[House]:
    """Give guardrails on an empty database of its own, without a policy set."""
    async with postgres.fresh() as database, house(pki, database, tmp_path) as made:
        yield made
