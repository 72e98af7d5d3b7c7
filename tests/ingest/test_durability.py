"""What was accepted outlives everything; a store that may forget is refused at boot, each way it may, and shown."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from services.ingest import stream
from services.local import postgres as pg
from services.local import valkey as vk
from services.local.process import Program
from services.mesh.errors import BootError, Refusal
from tests import stores
from tests.bridge.test_processes import Mesh
from tests.ingest.house import House, alert, contents, entry, eventually, notification, settings_for
from tests.ingest.test_faults import Machine, machine
from tests.ingest.test_worker import running

__all__ = ["machine"]
FORGETFUL = {
    "maxmemory-policy": ("allkeys-lru", "maxmemory-policy is allkeys-lru, not noeviction"),
    "appendonly": ("no", "appendonly is no, not yes"),
    "appendfsync": ("everysec", "appendfsync is everysec, not always"),
}


def forgetful(machine: Machine, changes: Mapping[str, str]) -> Program:
    """Return the server with some settings changed."""
    program = vk.program(machine.valkey)
    path = Path(program.argv[-1])
    text = path.read_text()
    for name, value in changes.items():
        text = re.sub(rf"^{name} .*$", f"{name} {value}", text, flags=re.MULTILINE)
    path.write_text(text)
    return program


@asynccontextmanager
async def instead(machine: Machine, changes: Mapping[str, str]) -> AsyncIterator[None]:
    """Run the machine's Valkey with other settings, then as it was."""
    await machine.stop("valkey")
    async with stores.running(forgetful(machine, changes), machine.folder):
        await vk.wait_ready(machine.valkey)
        yield
    await machine.start("valkey")


@pytest.mark.parametrize("name", FORGETFUL)
async def test_each_way_to_forget_is_a_boot_error(machine: Machine, tmp_path: Path, name: str) -> None:
    """One wrong setting is enough; it is named, with what it must be and what to do, and nothing else is."""
    value, words = FORGETFUL[name]
    async with instead(machine, {name: value}):
        client = stream.connect(settings_for(tmp_path, machine.valkey, None))
        with pytest.raises(BootError) as refused:
            await stream.Appender(client, settings_for(tmp_path, machine.valkey, None)).check()
        await client.aclose()
    assert f"may lose acknowledged signals: {words}. NEXT: " in str(refused.value)


async def test_the_process_does_not_start_on_a_forgetful_store(machine: Machine) -> None:
    """Ingest itself ends with the code of a wrong configuration and the words a person needs."""
    ingest = Mesh(machine).programs()[1]
    async with instead(machine, {"appendfsync": "everysec"}):
        process = await asyncio.create_subprocess_exec(
            *ingest.argv, env=dict(ingest.env), cwd=ingest.cwd, stderr=asyncio.subprocess.PIPE
        )
        _, error = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 78
    assert "appendfsync is everysec, not always. NEXT: " in error.decode()
    assert "OPSMESH_REDIS_LOSSY=true" in error.decode()


async def test_an_override_is_loud_and_shown(machine: Machine) -> None:
    """With OPSMESH_REDIS_LOSSY webhooks are taken, ingest's log shouts, and /readyz says what is degraded."""
    mesh = Mesh(machine)
    # PostgreSQL, which is away, need not be there for this, but its password.
    assert stores.Database(machine.postgres).password("ingest")
    bridge, ingest = mesh.programs()
    ingest = replace(ingest, env={**ingest.env, "OPSMESH_REDIS_LOSSY": "true"})
    async with instead(machine, {"appendonly": "no", "maxmemory-policy": "allkeys-lru"}):
        async with stores.running(bridge, machine.folder), stores.running(ingest, machine.folder):
            await mesh.says(200, "postgres", "durability")
            assert (await mesh.post()).status_code == 202
        await mesh.http.aclose()
    log = (machine.folder / "ingest.log").read_text()
    assert "ACKNOWLEDGED SIGNALS MAY BE LOST" in log
    assert "appendonly is no, not yes; maxmemory-policy is allkeys-lru, not noeviction" in log


async def test_a_store_that_comes_back_forgetful_is_found_out(machine: Machine, tmp_path: Path) -> None:
    """Checked at every return, not at boot alone: nothing is accepted until it keeps things again."""
    settings = settings_for(tmp_path, machine.valkey, None)
    client = stream.connect(settings)
    appender = stream.Appender(client, settings)
    one = contents([entry(notification(alert()))])
    await appender.append(one)
    async with instead(machine, {"appendfsync": "everysec"}):
        with capture_logs() as logs:
            # The first one may find the old connection gone; then it looks.
            for _ in range(2):
                with pytest.raises(Refusal):
                    await appender.append(one)
        assert (appender.takes, await appender.durable()) == (False, False)
    assert any("appendfsync is everysec" in line.get("error", "") for line in logs)

    async def taken() -> bool:
        try:
            await appender.append(one)
        except Refusal:
            return False
        return True

    await eventually(taken)
    assert (appender.takes, await appender.durable()) == (True, True)
    await client.aclose()


async def test_a_restart_of_everything_loses_nothing(machine: Machine, tmp_path: Path) -> None:
    """Accepted, handed out, recorded but not acknowledged: after kill -9 of both stores each has its row, once."""
    await machine.start("postgres")
    await pg.provision(machine.postgres)
    await pg.migrate(machine.postgres.dsn(pg.OWNER))
    database = stores.Database(machine.postgres)
    house = await House.build(tmp_path, machine.valkey, database)
    entries = [entry(notification(alert(str(number)))) for number in range(200)]
    sources = [f"source{number % 3}" for number in range(200)]
    await house.appender.append(contents(entries[:150]), sources[:150])
    dead = house.reader()
    await dead.ensure_group()
    handed = [pb.StreamEntry.FromString(one.content) for one in await dead.read()]
    assert 50 < len(handed) <= 150
    await house.take(*handed[:50])
    await house.appender.append(contents(entries[150:]), sources[150:])
    await machine.stop("valkey", signal.SIGKILL)
    # A crash of the whole server, as kill -9 of each of its processes: it recovers from its log.
    await machine.stop("postgres", signal.SIGQUIT)
    await asyncio.gather(machine.start("valkey"), machine.start("postgres"))
    # The test's own connections; the worker's find out by themselves.
    await house.pool.expire_connections()
    await house.client.connection_pool.disconnect()
    async with running(house.worker()):
        await eventually(lambda: house.rows("SELECT 1 FROM signals HAVING count(*) = 200"))
        await eventually(house.idle)
        await eventually(lambda: emptied(house))
    assert await house.dispositions() == ["OPENED"] * 200
    assert not await house.rows("SELECT 1 FROM dead_letters")
    assert not await house.rows("SELECT 1 FROM incidents WHERE (signal_count, duplicate_count) <> (1, 0)")
    await house.close()


async def emptied(house: House) -> bool:
    """Say whether what is finished was trimmed."""
    return await stream.left(house.client) == 0


async def test_nothing_unfinished_is_trimmed_whatever_is_done_meanwhile(house: House) -> None:
    """Trimming all the time while two workers read, fail, take over and acknowledge: every signal has its row."""
    entries = [entry(notification(alert(str(number % 7), pod=str(number)))) for number in range(300)]
    over = asyncio.Event()
    trimmer = house.reader()
    await trimmer.ensure_group()

    async def trim() -> None:
        while not over.is_set():
            await trimmer.trim()

    trimming = asyncio.create_task(trim())
    async with running(house.worker()), running(house.worker()):
        for start in range(0, 300, 20):
            sources = [f"source{number % 3}" for number in range(20)]
            await house.appender.append(contents(entries[start : start + 20]), sources)
            # Somebody takes some of one stream and never finishes them.
            dead = house.reader()
            await dead.ensure_group()
            await dead.read({f"{stream.STREAM}:source{start % 3}": 1})
        await eventually(lambda: house.rows("SELECT 1 FROM signals HAVING count(*) = 300"))
        await eventually(house.idle)
    over.set()
    await trimming
    assert len(await house.dispositions()) == 300
