"""Every service finds only its own door open; people and scripts find theirs where endpoints.json says."""

import asyncio
import stat
import sys
from pathlib import Path

import asyncpg
import httpx
import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError

from services.local.layout import SERVICES
from services.local.postgres import SERVICES as SCHEMAS
from services.local.programs import Stores
from tests.flows.world import World

GRPCURL_SECONDS = 20
ONCE = Retry(NoBackoff(), 0)


async def tables_of(world: World, schema: str) -> list[str]:
    """Return the tables of a schema."""
    query = "SELECT table_name FROM information_schema.tables WHERE table_schema = $1 ORDER BY table_name"
    return [row["table_name"] for row in await world.rows(query, schema)]


@pytest.mark.parametrize("name", SCHEMAS)
async def test_a_services_role_opens_its_own_schema_only(world: World, name: str) -> None:
    """With its own password a service reads its own tables, no table of another's, and makes nothing anywhere."""
    stores = Stores.of(world.mesh)
    connection = await asyncpg.connect(stores.postgres.dsn(f"opsmesh_{name}"), timeout=10)
    try:
        for table in await tables_of(world, name):
            await connection.execute(f"SELECT count(*) FROM {name}.{table}")  # noqa: S608  from the catalogue
        for other in sorted(set(SCHEMAS) - {name}):
            tables = await tables_of(world, other)
            assert tables
            for table in tables:
                for words in ("SELECT 1 FROM", "DELETE FROM", "TRUNCATE"):
                    with pytest.raises(asyncpg.InsufficientPrivilegeError):
                        await connection.execute(f"{words} {other}.{table}")
        for attempt in (
            "CREATE TABLE public.mine (a int)",
            f"CREATE TABLE {name}.mine (a int)",
            "CREATE SCHEMA mine",
            "CREATE ROLE mine",
            "SET ROLE opsmesh_owner",
            "COPY (SELECT 1) TO PROGRAM 'true'",
            "SELECT pg_read_file('/etc/passwd')",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(attempt)
    finally:
        await connection.close()


@pytest.mark.parametrize("name", SCHEMAS)
async def test_a_role_needs_its_own_password(world: World, name: str) -> None:
    """Another service's password, or none, opens nothing."""
    postgres = Stores.of(world.mesh).postgres
    other = SCHEMAS[(SCHEMAS.index(name) + 1) % len(SCHEMAS)]
    for password in (postgres.password(f"opsmesh_{other}"), ""):
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(postgres.dsn(f"opsmesh_{name}", with_password=False), password=password, timeout=10)


async def test_the_audit_log_only_grows(world: World) -> None:
    """Audit's own role may not change, remove or empty what was appended, nor switch that off."""
    connection = await asyncpg.connect(Stores.of(world.mesh).postgres.dsn("opsmesh_audit"), timeout=10)
    try:
        assert await connection.fetchval("SELECT count(*) FROM audit.events") > 0
        for attempt in (
            "UPDATE audit.events SET actor = 'nobody'",
            "DELETE FROM audit.events",
            "TRUNCATE audit.events",
            "ALTER TABLE audit.events DISABLE TRIGGER ALL",
            "DROP TABLE audit.events",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(attempt)
    finally:
        await connection.close()


async def test_the_reader_only_reads(world: World) -> None:
    """The role that endpoints.json gives to people changes nothing."""
    for attempt in ("DELETE FROM ingest.signals", "UPDATE gateway.effects SET state = 'FAILED'", "CREATE TABLE a ()"):
        with pytest.raises(asyncpg.PostgresError, match=r"permission denied|read-only"):
            await world.rows(attempt)


async def refuses(client: Redis, *words: str) -> None:
    """Expect a command to be refused for want of permission."""
    with pytest.raises(NoPermissionError):
        await client.execute_command(*words)  # type: ignore[no-untyped-call]


async def test_valkey_opens_to_ingest_alone(world: World) -> None:
    """Ingest may use its stream and nothing else, the observer only looks, and without a name nobody comes in."""
    valkey = Stores.of(world.mesh).valkey
    async with Redis.from_url(valkey.url("ingest")) as ingest:
        assert await ingest.xlen("signals") >= 0
        for words in (
            ("FLUSHALL",), ("CONFIG", "SET", "appendfsync", "no"), ("ACL", "LIST"), ("KEYS", "*"), ("SHUTDOWN",),
            ("SET", "elsewhere", "1"), ("XADD", "other", "*", "a", "b"), ("SCRIPT", "FLUSH"),
        ):  # fmt: skip
            await refuses(ingest, *words)
    async with Redis.from_url(valkey.url("observer")) as observer:
        assert await observer.xlen("signals") >= 0
        for words in (("XADD", "signals", "*", "a", "b"), ("DEL", "signals"), ("SET", "a", "b"), ("FLUSHALL",)):
            await refuses(observer, *words)
    async with Redis(host="127.0.0.1", port=valkey.port, retry=ONCE) as nobody:
        with pytest.raises(AuthenticationError):
            await nobody.ping()
    async with Redis(host="127.0.0.1", port=valkey.port, username="ingest", password="guessed", retry=ONCE) as guesser:
        with pytest.raises(AuthenticationError):
            await guesser.ping()


def test_endpoints_are_private_and_of_the_documented_shape(world: World) -> None:
    """endpoints.json (0600) says where everything is, every file it names exists, and no secret is open to others."""
    path = world.mesh.endpoints_file
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert set(world.endpoints) == {"bridge", "services", "metrics", "tls", "postgres", "redis", "temporal", "webhooks"}
    assert set(world.endpoints["services"]) == set(SERVICES)
    assert set(world.endpoints["metrics"]) == set(SERVICES)
    assert set(world.endpoints["tls"]) == {"ca", "operator", "approver", "approver2", *SERVICES}
    assert world.endpoints["bridge"] == f"http://127.0.0.1:{world.mesh.port_base}"
    assert "opsmesh_reader" in world.endpoints["postgres"]
    assert world.endpoints["redis"].startswith("redis://observer:")
    assert world.endpoints["temporal"].startswith("127.0.0.1:")
    private = [Path(leaf["key"]) for name, leaf in world.endpoints["tls"].items() if name != "ca"]
    for source, auth in (("alertmanager", "bearer"), ("grafana", "basic"), ("generic", "bearer")):
        hook = world.endpoints["webhooks"][source]
        assert set(hook) == {"url", "auth", "header", "secret_file"}
        assert (hook["url"], hook["auth"]) == (f"{world.endpoints['bridge']}/v1/webhooks/{source}", auth)
        private.append(Path(hook["secret_file"]))
    assert {stat.S_IMODE(one.stat().st_mode) for one in private} == {0o600}


@pytest.mark.parametrize("name", SERVICES)
async def test_every_service_counts_its_calls(world: World, name: str) -> None:
    """Every service's /metrics has the calls it served, by method and code."""
    text = (await world.http.get(world.endpoints["metrics"][name])).text
    assert "# TYPE opsmesh_rpc_total counter" in text
    assert "# TYPE opsmesh_rpc_seconds histogram" in text
    assert 'opsmesh_rpc_total{code="OK",method="' in text


async def grpcurl(world: World, *words: str) -> str:
    """Run grpcurl with the operator's certificate and return what it printed."""
    tls = world.endpoints["tls"]
    command = [str(Path(sys.executable).with_name("grpcurl")), "-cacert", tls["ca"]]
    command += ["-cert", tls["operator"]["cert"], "-key", tls["operator"]["key"], *words]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), GRPCURL_SECONDS)
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_grpcurl_needs_nothing_but_the_operators_certificate(world: World) -> None:
    """Reflection lists the services, and a call by name is answered."""
    listed = await grpcurl(world, world.endpoints["services"]["ingest"], "list")
    assert {"grpc.health.v1.Health", "opsmesh.ingest.v1.IngestService"} <= set(listed.split())
    method = "opsmesh.tools.runbook.v1.RunbookToolService/ListRunbooks"
    assert "runbooks" in await grpcurl(world, world.endpoints["services"]["gateway"], method)


async def test_the_bridge_is_closed_without_the_secret(world: World) -> None:
    """A webhook without its secret is 401, of an unknown source 404, and leaves nothing behind."""
    before = await world.value("SELECT count(*) FROM ingest.deliveries")
    hook = world.endpoints["webhooks"]["alertmanager"]["url"]
    for headers in ({}, {"Authorization": "Bearer guessed"}):
        assert (await world.http.post(hook, json={}, headers=headers)).status_code == httpx.codes.UNAUTHORIZED
    unknown = hook.replace("alertmanager", "nobody")
    assert (await world.http.post(unknown, json={})).status_code == httpx.codes.NOT_FOUND
    assert await world.value("SELECT count(*) FROM ingest.deliveries") == before
