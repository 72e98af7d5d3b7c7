"""The embedded stores are what the mesh relies on: durable, closed to strangers, least privilege."""

from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError
from temporalio.client import Client

from services.local import postgres as pg
from services.local.temporal import Temporal
from services.local.valkey import Valkey
from tests.stores import Database

ONCE = Retry(NoBackoff(), 0)


async def test_postgres_is_durable(postgres: Database) -> None:
    """Commits are on disk: fsync, full pages and synchronous commit are on."""
    connection = await asyncpg.connect(postgres.dsn("reader"))
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        assert await connection.fetchval("SELECT current_setting($1)", setting) == "on"
    await connection.close()


@pytest.mark.parametrize("role", [*pg.ROLES, pg.SUPERUSER])
async def test_postgres_asks_for_a_password(postgres: Database, role: str) -> None:
    """Nobody gets in without the right password, not even the superuser."""
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(postgres.dsn(role, with_password=False), password="wrong")


@pytest.mark.parametrize("role", pg.ROLES)
async def test_every_role_connects_and_none_is_superuser(postgres: Database, role: str) -> None:
    """Each role has its password, and none of them may do what only a superuser may."""
    connection = await asyncpg.connect(postgres.dsn(role))
    row = await connection.fetchrow(
        "SELECT rolsuper, rolcreaterole, rolcreatedb, rolbypassrls FROM pg_roles WHERE rolname = current_user"
    )
    assert row is not None
    assert not any(row.values())
    await connection.close()


async def test_a_service_cannot_make_tables(postgres: Database) -> None:
    """A service role creates nothing, not in public and not as a new schema."""
    connection = await asyncpg.connect(postgres.dsn("ingest"))
    for statement in ("CREATE TABLE public.x (a int)", "CREATE SCHEMA x", "CREATE TEMP TABLE x (a int)"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    await connection.close()


async def test_fresh_databases_are_apart(postgres: Database) -> None:
    """What one fresh database holds, the next does not."""
    async with postgres.fresh() as one, postgres.fresh() as two:
        first, second = await asyncpg.connect(one.dsn("owner")), await asyncpg.connect(two.dsn("owner"))
        await first.execute("CREATE TABLE public.only_here (a int)")
        assert await second.fetchval("SELECT to_regclass('public.only_here')") is None
        await first.close()
        await second.close()


async def test_migrations_run_once_and_services_read_the_revision(postgres: Database, tmp_path: Path) -> None:
    """A second run changes nothing, and a service sees the revision without being able to change it."""
    folders = []
    for number, name in enumerate(("one", "two")):
        folder = tmp_path / name
        folder.mkdir()
        sql = f"-- migrate:up\nCREATE SCHEMA {name};\n-- migrate:down\nDROP SCHEMA {name};\n"
        (folder / f"2020010100000{number}_{name}.sql").write_text(sql)
        folders.append(folder)
    async with postgres.fresh() as fresh:
        assert "Applied" in await pg.migrate(fresh.dsn("owner"), folders)
        assert "Applied" not in await pg.migrate(fresh.dsn("owner"), folders)
        connection = await asyncpg.connect(fresh.dsn("gateway"))
        versions = [row["version"] for row in await connection.fetch("SELECT version FROM public.schema_migrations")]
        assert {"20200101000000", "20200101000001"} <= set(versions)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("DELETE FROM public.schema_migrations")
        await connection.close()


async def test_valkey_syncs_every_write_and_evicts_nothing(valkey: Valkey) -> None:
    """An acknowledged entry is on disk and stays: appendfsync always, noeviction, a memory cap."""
    client = Redis.from_url(valkey.url("observer"), decode_responses=True)
    assert (await client.config_get("appendfsync"))["appendfsync"] == "always"
    assert (await client.config_get("appendonly"))["appendonly"] == "yes"
    assert (await client.config_get("maxmemory-policy"))["maxmemory-policy"] == "noeviction"
    assert (await client.config_get("maxmemory"))["maxmemory"] == str(256 << 20)
    await client.aclose()


async def test_ingest_works_its_stream_and_nothing_else(valkey: Valkey) -> None:
    """The ingest user appends, claims and acknowledges on its keys; other keys and administration are closed."""
    client = Redis.from_url(valkey.url("ingest"))
    await client.xgroup_create("signals:test", "workers", mkstream=True)
    entry = await client.xadd("signals:test", {"raw": b"1"})
    await client.xreadgroup("workers", "one", {"signals:test": ">"}, count=1)
    claimed = await client.xautoclaim("signals:test", "workers", "two", min_idle_time=0)
    assert claimed[1][0][0] == entry
    assert (await client.xpending("signals:test", "workers"))["pending"] == 1
    assert await client.xack("signals:test", "workers", entry) == 1
    assert await client.eval("return redis.call('incr', KEYS[1])", 1, "ingest:rate:test") == 1
    assert "used_memory" in await client.info("memory")
    await client.delete("ingest:rate:test", "signals:test")
    for command in (("CONFIG", "SET", "appendfsync", "no"), ("FLUSHALL",), ("SHUTDOWN",)):
        with pytest.raises(NoPermissionError):
            await client.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
    with pytest.raises(NoPermissionError):
        await client.set("other", "1")
    await client.aclose()


async def test_the_observer_only_reads(valkey: Valkey) -> None:
    """The observer sees lengths and settings and changes nothing."""
    client = Redis.from_url(valkey.url("observer"))
    assert await client.xlen("signals") >= 0
    with pytest.raises(NoPermissionError):
        await client.xadd("signals", {"raw": b"1"})
    with pytest.raises(NoPermissionError):
        await client.config_set("appendfsync", "no")
    await client.aclose()


async def test_valkey_knows_no_strangers(valkey: Valkey) -> None:
    """Without a user, or with a wrong password, nothing is answered."""
    anonymous = Redis(port=valkey.port, retry=ONCE)
    with pytest.raises(AuthenticationError):
        await anonymous.ping()
    await anonymous.aclose()
    wrong = Redis(port=valkey.port, username="ingest", password="wrong", retry=ONCE)
    with pytest.raises(AuthenticationError):
        await wrong.ping()
    await wrong.aclose()


async def test_temporal_serves_the_default_namespace(temporal: Temporal) -> None:
    """A client connects and finds the default namespace."""
    client = await Client.connect(temporal.address)
    assert client.namespace == "default"
    assert await client.service_client.check_health()
