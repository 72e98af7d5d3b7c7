"""Stores that die under ingest: nothing acknowledged is lost, intake goes on without PostgreSQL, recovery by itself."""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path

import asyncpg
import pytest
from structlog.testing import capture_logs

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from services.ingest import stream
from services.ingest.correlation import Calm
from services.ingest.domain import Inventory
from services.ingest.letters import DeadLetter
from services.ingest.store import PostgresIncidents
from services.local import postgres as pg
from services.local import valkey as vk
from services.local.files import free_port
from services.local.process import Program
from services.mesh.errors import BootError, Refusal
from services.mesh.loop import wait
from services.mesh.postgres import answers
from tests import stores
from tests.ingest.house import House, alert, contents, entry, eventually, notification, settings_for
from tests.ingest.test_worker import running

KILLS = 3


class Machine:
    """A Valkey and a PostgreSQL of one test, that can be killed and started again on the same files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.valkey = vk.Valkey(folder / "valkey", folder / "secrets" / "valkey", free_port())
        self.postgres = pg.Postgres(folder / "postgres", folder / "secrets" / "postgres", free_port())
        self._stack: dict[str, AsyncExitStack] = {}
        self._process: dict[str, asyncio.subprocess.Process] = {}

    async def start(self, name: str) -> None:
        """Start a store and wait until it answers."""
        self._stack[name] = AsyncExitStack()
        program = vk.program(self.valkey) if name == "valkey" else pg.program(self.postgres)
        self._process[name] = await self._stack[name].enter_async_context(stores.running(program, self.folder))
        if name == "valkey":
            await vk.wait_ready(self.valkey)
        else:
            await pg.wait_ready(self.postgres)

    async def stop(self, name: str, number: signal.Signals | None = None) -> None:
        """Stop a store, or kill it with a signal."""
        if number and self._process[name].returncode is None:
            self._process[name].send_signal(number)
            await self._process[name].wait()
        await self._stack.pop(name).aclose()

    async def close(self) -> None:
        """Stop what runs."""
        for name in list(self._stack):
            await self.stop(name)


@pytest.fixture
async def machine(store_folder: Path) -> AsyncIterator[Machine]:
    """Give stores of this test's own; the folder is short and open to PostgreSQL's user."""
    folder = store_folder / f"faults-{free_port()}"
    made = Machine(folder)
    pg.initialise(made.postgres)
    await made.start("valkey")
    yield made
    await made.close()


async def test_kill_9_of_valkey_under_load_loses_no_acknowledged_entry(machine: Machine, tmp_path: Path) -> None:
    """What was acknowledged is there after each kill; what was refused may be tried again with the same id."""
    settings = settings_for(tmp_path, machine.valkey, None)
    client = stream.connect(settings)
    appender = stream.Appender(client, settings)
    acknowledged: list[str] = []
    refusals: set[str] = set()
    done = asyncio.Event()

    async def post() -> None:
        while not done.is_set():
            one = entry(notification(alert()))
            try:
                await appender.append(contents([one]))
                acknowledged.append(one.delivery.delivery_id)
            except Refusal as refusal:
                refusals.add(refusal.name)
                await wait(done, 0.02)

    posts = [asyncio.create_task(post()) for _ in range(16)]
    for _ in range(KILLS):
        await eventually(partial(_more, acknowledged, len(acknowledged) + 300))
        await machine.stop("valkey", signal.SIGKILL)
        await machine.start("valkey")
    await eventually(partial(_more, acknowledged, len(acknowledged) + 100))
    done.set()
    await asyncio.gather(*posts)
    entries = await client.xrange(stream.STREAM)
    kept = {pb.StreamEntry.FromString(fields[stream.FIELD]).delivery.delivery_id for _, fields in entries or ()}  # type: ignore[index, arg-type]
    assert refusals == {"STORE_UNAVAILABLE"}
    assert not set(acknowledged) - kept
    await client.aclose()


async def _more(found: list[str], count: int) -> bool:
    return len(found) > count


async def test_intake_goes_on_without_postgresql_and_catches_up(machine: Machine, tmp_path: Path) -> None:
    """With PostgreSQL killed signals are accepted and wait; when it is back they get their rows, once each."""
    await machine.start("postgres")
    await pg.provision(machine.postgres)
    await pg.migrate(machine.postgres.dsn(pg.OWNER))
    house = await House.build(tmp_path, machine.valkey, stores.Database(machine.postgres))
    async with running(house.worker()):
        await house.appender.append(contents([entry(notification(alert("before")))]))
        await eventually(lambda: house.rows("SELECT 1 FROM incidents"))
        await machine.stop("postgres", signal.SIGQUIT)
        assert not await answers(house.pool)
        for number in range(50):
            await house.appender.append(contents([entry(notification(alert(str(number))))]))
        await machine.start("postgres")
        await eventually(lambda: house.rows("SELECT 1 FROM signals HAVING count(*) = 51"))
        await eventually(house.idle)
    assert await house.dispositions() == ["OPENED"] * 51
    assert not await house.rows("SELECT 1 FROM dead_letters")
    await house.close()


async def test_a_debounce_outlives_every_crash(machine: Machine, tmp_path: Path) -> None:
    """What gathers waits in PostgreSQL: after a crash of it, or of who had claimed it, it is due again."""
    await machine.start("postgres")
    await pg.provision(machine.postgres)
    await pg.migrate(machine.postgres.dsn(pg.OWNER))
    house = await House.build(tmp_path, machine.valkey, stores.Database(machine.postgres))
    house.store = PostgresIncidents(house.pool, Calm(timedelta(hours=1), timedelta(minutes=30)))
    await house.take(entry(notification(alert())))
    (due,) = await house.rows("SELECT due_time FROM incidents WHERE due_time > open_time + interval '29 minutes'")
    await machine.stop("postgres", signal.SIGQUIT)
    await machine.start("postgres")
    await eventually(lambda: answers(house.pool))
    assert await house.rows("SELECT due_time FROM incidents WHERE needs_decision") == [due]
    assert await house.store.claim_undecided(10) == []
    for attempts in (1, 2):
        # Its time has come; whoever claimed it before died with it, and its lease is over.
        await house.pool.execute("UPDATE incidents SET due_time = now()")
        (claimed,) = await house.store.claim_undecided(10)
        assert (claimed.attempts, claimed.incident.revision) == (attempts, 1)
        assert await house.store.claim_undecided(10) == []
    await house.close()


async def test_a_worker_outlives_valkey(machine: Machine, tmp_path: Path, database: stores.Database) -> None:
    """The worker goes on by itself when Valkey is back, even with an empty one that lacks the group."""
    house = await House.build(tmp_path, machine.valkey, database)
    async with running(house.worker()):
        await house.appender.append(contents([entry(notification(alert("before")))]))
        await eventually(lambda: house.rows("SELECT 1 FROM incidents"))
        await machine.stop("valkey", signal.SIGKILL)
        with pytest.raises(Refusal, match="Valkey does not answer"):
            await house.appender.append(contents([entry(notification(alert("lost")))]))
        await machine.start("valkey")
        await house.client.delete(stream.STREAM)
        await house.appender.append(contents([entry(notification(alert("after")))]))
        await eventually(lambda: house.rows("SELECT 1 FROM incidents HAVING count(*) = 2"))
    await house.close()


async def test_a_lossy_store_is_refused_unless_accepted(machine: Machine, tmp_path: Path) -> None:
    """A store that may forget what it acknowledged is a boot error that names the setting; it can be accepted."""
    await machine.stop("valkey")
    async with stores.running(lossy(machine), machine.folder):
        await vk.wait_ready(machine.valkey)
        settings = settings_for(tmp_path, machine.valkey, None)
        client = stream.connect(settings)
        with pytest.raises(
            BootError, match="appendfsync is everysec, not always; maxmemory-policy is allkeys-lru"
        ) as error:
            await stream.Appender(client, settings).check()
        assert "NEXT: " in str(error.value)
        await stream.Appender(client, settings_for(tmp_path, machine.valkey, None, redis_lossy=True)).check()
        await client.aclose()
    await machine.start("valkey")


async def test_a_store_that_does_not_tell_how_it_keeps_things_is_refused(machine: Machine, tmp_path: Path) -> None:
    """Without the right to ask, the start is refused, too, and says what is missing; it can be accepted."""
    users = machine.valkey.directory / "users.acl"
    await machine.stop("valkey")
    program = vk.program(machine.valkey)
    users.write_text(users.read_text().replace("+config|get", ""))
    async with stores.running(program, machine.folder):
        await vk.wait_ready(machine.valkey)
        settings = settings_for(tmp_path, machine.valkey, None)
        client = stream.connect(settings)
        with pytest.raises(BootError, match=r"appendfsync is not told \(the user lacks \+config\|get\), not always"):
            await stream.Appender(client, settings).check()
        await stream.Appender(client, settings_for(tmp_path, machine.valkey, None, redis_lossy=True)).check()
        await client.aclose()
    await machine.start("valkey")


def lossy(machine: Machine) -> Program:
    """Return the server with a configuration that loses what it acknowledged."""
    program = vk.program(machine.valkey)
    path = Path(program.argv[-1])
    config = path.read_text().replace("appendfsync always", "appendfsync everysec")
    path.write_text(config.replace("noeviction", "allkeys-lru"))
    return program


BROKEN = {
    "a missing table": ("ALTER TABLE ingest.turns RENAME TO gone", "ALTER TABLE ingest.gone RENAME TO turns"),
    "a missing column": (
        "ALTER TABLE ingest.incidents RENAME sealed TO gone",
        "ALTER TABLE ingest.incidents RENAME gone TO sealed",
    ),
    "a missing right": (
        "REVOKE INSERT ON ingest.signals FROM opsmesh_ingest",
        "GRANT INSERT ON ingest.signals TO opsmesh_ingest",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_a_bad_deploy_is_no_poison(house: House, database: stores.Database, what: str) -> None:
    """A store that answers but lacks what rows need is waited for, and told: nothing counts, nothing is put aside."""
    broken, mended = BROKEN[what]
    one = house.worker()
    owner = await asyncpg.connect(database.dsn(pg.OWNER))
    await house.appender.append(contents([entry(notification(alert(str(number)))) for number in range(20)]))
    await owner.execute(broken)
    with capture_logs() as logs:
        try:
            async with running(one):

                async def told() -> bool:
                    return sum("CANNOT BE USED" in line["event"] for line in logs) > 2

                await eventually(told)
                assert not await one.records()
                assert await house.store.answers()
        finally:
            await owner.execute(mended)
            await owner.close()
    async with running(house.worker()):
        await eventually(lambda: house.rows("SELECT 1 FROM signals HAVING count(*) = 20"))
        await eventually(house.idle)
    assert await house.dispositions() == ["OPENED"] * 20
    assert not await house.rows("SELECT 1 FROM dead_letters")


async def test_a_worker_goes_on_when_a_bad_deploy_is_mended(house: House, database: stores.Database) -> None:
    """The same worker writes what waited as soon as it may, and says so."""
    broken, mended = BROKEN["a missing right"]
    owner = await asyncpg.connect(database.dsn(pg.OWNER))
    one = house.worker()
    await owner.execute(broken)
    try:
        async with running(one):

            async def refused() -> bool:
                return not await one.records()

            await house.appender.append(contents([entry(notification(alert()))]))
            await eventually(refused)
            await owner.execute(mended)
            await eventually(lambda: house.rows("SELECT 1 FROM signals"))
            await eventually(one.records)
    finally:
        await owner.execute(mended)
        await owner.close()


class Locked:
    """A store whose tables somebody else holds: what would write times out, what only asks is answered."""

    def __init__(self, house: House) -> None:
        self._store = house.store
        self.held = True
        self.tries = 0

    async def record(self, entries: Sequence[pb.StreamEntry], inventory: Inventory) -> bool:
        """Time out as the server does."""
        self.tries += 1
        if self.held:
            raise asyncpg.QueryCanceledError("canceling statement due to statement timeout")
        return await self._store.record(entries, inventory)

    async def answers(self) -> bool:
        """Answer as ever."""
        return await self._store.answers()

    async def put_aside(self, letter: DeadLetter) -> None:
        """Put aside as ever."""
        await self._store.put_aside(letter)


async def test_who_holds_a_table_for_long_makes_no_poison(house: House) -> None:
    """What times out is tried in parts, and then waited for, however often: no delivery counts as failed."""
    locked = Locked(house)
    await house.appender.append(contents([entry(notification(alert(str(number)))) for number in range(20)]))
    async with running(house.worker(store=locked)):

        async def often() -> bool:
            return locked.tries > 20

        await eventually(often)
        locked.held = False
        await eventually(lambda: house.rows("SELECT 1 FROM signals HAVING count(*) = 20"))
        await eventually(house.idle)
    assert await house.dispositions() == ["OPENED"] * 20
    assert not await house.rows("SELECT 1 FROM dead_letters")
