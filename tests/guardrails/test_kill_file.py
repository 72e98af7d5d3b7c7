"""Kills without PostgreSQL: kept in a file, imported when it is back, never forgotten on the way."""

import asyncio
import os
import signal
import stat
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import grpc
import grpc.aio
import pytest

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc as rpc
from services.guardrails.kills import switch
from services.guardrails.kills.file import ORDERS_MAX, KillFile, Order
from services.local import postgres as pg
from services.local.files import free_port
from services.mesh import tls
from services.mesh.client import connect
from services.mesh.errors import Refusal
from tests.guardrails.killing import EVERYTHING, Kill, engage, lease, report, status
from tests.guardrails.test_process import start
from tests.guardrails.world import CHECKOUT, House, house, reason_of, restart
from tests.mesh.world import World
from tests.stores import Database, running

# The product's own, read before the fixture `patience` makes it longer.
DURABLE_SECONDS = switch.DURABLE_SECONDS


@pytest.fixture
async def cluster(store_folder: Path) -> Database:
    """Give a migrated PostgreSQL of the test's own, stopped: the test runs it."""
    folder = store_folder / uuid.uuid4().hex
    server = pg.Postgres(folder / "postgres", folder / "secrets", free_port())
    pg.initialise(server)
    async with running(pg.program(server), folder):
        await pg.wait_ready(server)
        await pg.provision(server)
        await pg.migrate(server.dsn(pg.OWNER, pg.DATABASE))
    return Database(server)


async def test_a_kill_without_postgresql(pki: World, cluster: Database, tmp_path: Path) -> None:
    """With PostgreSQL stopped a kill is in a private file before it is answered, no lease is given, followers hear."""
    state, server, folder = tmp_path / "state", cluster.server, cluster.server.directory.parent
    state.mkdir()
    file = state / "kills.jsonl"
    async with running(pg.program(server), folder) as process:
        await pg.wait_ready(server)
        async with house(pki, cluster, state) as home:
            await home.publish()
            context, request = await home.ready(), restart()
            grant = home.opened((await home.authorize(request, context)).grant)
            told = aiter(home.leases("automation").WatchLease(pb.WatchLeaseRequest(instance="test")))
            assert not (await anext(told)).lease.withdrawn
            process.send_signal(signal.SIGINT)
            await process.wait()

            request_id = str(uuid.uuid4())
            kill = await engage(home, request_id=request_id)
            assert (kill.durable, kill.state, kill.epoch) == (False, Kill.STATE_ENGAGED, 0)
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert KillFile(state).orders[0].kill_id == uuid.UUID(kill.kill_id)
            pushed = (await asyncio.wait_for(anext(told), 10)).lease
            assert (pushed.withdrawn, pushed.kills[0].kill_id) == (True, kill.kill_id)
            again = await engage(home, request_id=request_id)
            assert (again.kill_id, len(KillFile(state).orders)) == (kill.kill_id, 1)
            second = await engage(home, pb.KillScope(target_id=CHECKOUT), name="approver")
            assert [one.kill_id for one in await status(home)] == [second.kill_id, kill.kill_id]
            assert not (await status(home, kill))[0].durable
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await lease(home)
            assert reason_of(raised.value) == "KILLED"
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await report(home, kill)
            assert reason_of(raised.value) == "STORE_UNAVAILABLE"

            async with running(pg.program(server), folder):
                await pg.wait_ready(server)
                async with asyncio.timeout(40):
                    while (pushed := (await anext(told)).lease).withdrawn:
                        pass
                assert [one.kill_id for one in pushed.kills] == [kill.kill_id, second.kill_id]
                assert all(one.epoch > grant.kill_epoch for one in pushed.kills)
                assert not file.exists()
                await _is_stored(home, [second.kill_id, kill.kill_id], request_id)


async def _is_stored(home: House, kill_ids: list[str], first: str) -> None:
    """See that the kills of the file, newest first, are as if they had never been elsewhere, the records included."""
    assert [one.kill_id for one in reversed((await lease(home)).kills)] == kill_ids
    found = await status(home)
    assert [(one.kill_id, one.durable) for one in found] == [(one, True) for one in kill_ids]
    assert [one.engager for one in found] == ["human/approver", "human/operator"]
    stored = await engage(home, request_id=first)
    assert (stored.kill_id, stored.epoch, stored.durable) == (kill_ids[1], found[1].epoch, True)
    async with asyncio.timeout(40):
        while sum(one.action.endswith("/Engage") for one in home.audit.events.values()) < len(kill_ids):
            home.audit.arrived.clear()
            await home.audit.arrived.wait()


async def test_a_kill_while_postgresql_hangs(
    pki: World, cluster: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PostgreSQL that takes the connection and says nothing costs a second, not the kill."""
    assert DURABLE_SECONDS <= 1
    monkeypatch.setattr(switch, "DURABLE_SECONDS", DURABLE_SECONDS)
    state, server = tmp_path / "state", cluster.server
    state.mkdir()
    async with running(pg.program(server), server.directory.parent):
        await pg.wait_ready(server)
        async with house(pki, cluster, state) as home:
            await lease(home)
            told = aiter(home.leases("automation").WatchLease(pb.WatchLeaseRequest(instance="test")))
            await anext(told)
            postmaster = int((server.data / "postmaster.pid").read_text().splitlines()[0])
            family = [postmaster, *children(postmaster)]
            for one in family:
                os.kill(one, signal.SIGSTOP)
            try:
                asked = time.monotonic()
                kill = await engage(home)
                # The second, and what a busy machine adds to it.
                assert time.monotonic() - asked < 5
                assert not kill.durable
                while not (pushed := (await asyncio.wait_for(anext(told), 10)).lease).withdrawn:
                    pass
                assert pushed.kills[0].kill_id == kill.kill_id
                assert [one.kill_id for one in await status(home)] == [kill.kill_id]
            finally:
                for one in family:
                    os.kill(one, signal.SIGCONT)
            async with asyncio.timeout(40):
                while (pushed := (await anext(told)).lease).withdrawn:
                    pass
            assert [one.kill_id for one in pushed.kills] == [kill.kill_id]
            (row,) = await home.fetch("SELECT count(*) AS kills FROM guardrails.kills")
            assert row["kills"] == 1


async def test_the_file_survives_kill_nine(pki: World, cluster: Database, tmp_path: Path) -> None:
    """Guardrails starts and engages without PostgreSQL; killed with -9 it imports the kill before its first lease."""
    state, port = tmp_path / "state", free_port()
    state.mkdir()
    kill = pb.Kill()
    for _ in range(2):
        process = await start(pki, cluster, state, port)
        async with asyncio.timeout(40), person(pki, port) as switch:
            request_id = str(uuid.UUID(int=7))
            request = pb.EngageRequest(request_id=request_id, scope=EVERYTHING, reason="a test")
            kill = (await switch.Engage(request)).kill
            assert not kill.durable
        process.kill()
        await process.communicate()
    async with running(pg.program(cluster.server), cluster.server.directory.parent):
        await pg.wait_ready(cluster.server)
        process = await start(pki, cluster, state, port)
        async with asyncio.timeout(40), person(pki, port, "gateway") as switch:
            while True:
                try:
                    given = await switch.PollLease(pb.PollLeaseRequest(instance="test"))
                    break
                except grpc.aio.AioRpcError as error:
                    # It is refused until the kill is stored; on a busy machine it may take too long, too.
                    assert error.code() is not grpc.StatusCode.INTERNAL  # noqa: PT017  nothing else is right here
            assert [one.kill_id for one in given.lease.kills] == [kill.kill_id]
        process.send_signal(signal.SIGTERM)
        _, errors = await asyncio.wait_for(process.communicate(), 40)
        assert process.returncode == 0, errors.decode()


async def test_kills_survive_restarts(pki: World, cluster: Database, tmp_path: Path) -> None:
    """A stored kill holds after kill -9 of guardrails and of PostgreSQL."""
    server, folder = cluster.server, cluster.server.directory.parent
    async with running(pg.program(server), folder) as process:
        await pg.wait_ready(server)
        async with house(pki, cluster, tmp_path) as home:
            kill = await engage(home)
        process.kill()
        await process.wait()
    async with running(pg.program(server), folder):
        await pg.wait_ready(server)
        async with house(pki, cluster, tmp_path) as home:
            assert [one.kill_id for one in (await lease(home)).kills] == [kill.kill_id]
            assert (await lease(home)).kill_epoch == kill.epoch


async def test_what_cannot_be_read_stops_everything(home: House, tmp_path: Path) -> None:
    """A torn line counts as a kill of everything, and a kill after it is not spoiled by it."""
    file = tmp_path / "elsewhere" / "kills.jsonl"
    file.parent.mkdir()
    file.write_bytes(b'{"kill_id": "')
    kept = KillFile(file.parent)
    (torn,) = kept.orders
    assert torn.scope == EVERYTHING
    whole = KillFile(file.parent)
    order = torn.__class__(
        uuid.uuid4(),
        "human/operator",
        uuid.uuid4(),
        b"",
        pb.KillScope(target_id=CHECKOUT),
        "why",
        torn.engage_time,
        b"",
    )
    await whole.append(order)
    read = KillFile(file.parent).orders
    assert [one.scope for one in read] == [EVERYTHING, order.scope]
    assert read[0].kill_id == torn.kill_id
    await whole.remove([torn.kill_id, order.kill_id])
    assert not file.exists()
    assert not (await lease(home)).kills


@asynccontextmanager
async def person(pki: World, port: int, name: str = "operator") -> AsyncIterator["rpc.KillSwitchServiceAsyncStub"]:
    """Give the kill switch of a process, as somebody sees it."""
    credentials = tls.client_credentials(pki.settings(name))
    async with connect(f"127.0.0.1:{port}", "guardrails", credentials) as channel:
        await channel.channel_ready()
        yield rpc.KillSwitchServiceStub(channel)


def children(process: int) -> list[int]:
    """Return the processes that a process has started."""
    found = []
    for status_file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status_file.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process:
            found.append(int(status_file.parent.name))
    return found


async def test_the_file_is_bounded_and_everything_is_always_possible(tmp_path: Path) -> None:
    """One scope too many is refused and says what to do; everything too often is answered with the one that holds."""
    file = KillFile(tmp_path)

    def order(scope: pb.KillScope) -> Order:
        return Order(uuid.uuid4(), "human/operator", uuid.uuid4(), b"", scope, "odd", datetime.now(UTC), b"")

    scoped = [order(pb.KillScope(environment=f"e{number}")) for number in range(ORDERS_MAX)]
    for one in scoped:
        await file.append(file.place_for(one))
    with pytest.raises(Refusal, match="engage everything"):
        file.place_for(order(pb.KillScope(environment="another")))
    assert file.place_for(scoped[0]) == scoped[0]
    for _ in range(ORDERS_MAX):
        await file.append(file.place_for(order(EVERYTHING)))
    again = order(EVERYTHING)
    assert file.place_for(again) == file.orders[-1] != again
    assert len(KillFile(tmp_path).orders) == 2 * ORDERS_MAX
