"""Every service writes to its own schema, and only there."""

import asyncpg
import pytest

from tests.stores import Database

SCHEMAS = ("ingest", "router", "agents", "automation", "guardrails", "gateway", "audit")
WITH_OUTBOX = [name for name in SCHEMAS if name != "audit"]


async def ask(database: Database, role: str, sql: str, *arguments: str) -> bool:
    """Ask one question as a service's role."""
    connection = await asyncpg.connect(database.dsn(role), timeout=10)
    try:
        return bool(await connection.fetchval(sql, *arguments))
    finally:
        await connection.close()


@pytest.mark.parametrize("table", ["requests", "outbox"])
@pytest.mark.parametrize("name", WITH_OUTBOX)
async def test_a_service_may_use_its_house_tables(database: Database, name: str, table: str) -> None:
    """Idempotency and the audit outbox need all four rights on these two tables."""
    for right in ("SELECT", "INSERT", "UPDATE", "DELETE"):
        sql = "SELECT has_table_privilege($1, $2)"
        assert await ask(database, name, sql, f"{name}.{table}", right), right


@pytest.mark.parametrize("name", SCHEMAS)
async def test_a_service_sees_no_other_schema(database: Database, name: str) -> None:
    """A role has no use of another service's schema and may create nothing in its own."""
    for other in SCHEMAS:
        used = await ask(database, name, "SELECT has_schema_privilege($1, 'USAGE')", other)
        assert used == (other == name), other
        assert not await ask(database, name, "SELECT has_schema_privilege($1, 'CREATE')", other), other
