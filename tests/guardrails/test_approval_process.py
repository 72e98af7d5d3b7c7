"""Approvals outlive the process that made them, and no clock but the database's counts."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import asyncpg
import pytest

from services.local import postgres as pg
from services.local.files import free_port
from services.mesh import tls
from services.mesh.client import connect
from tests.guardrails.people import SECOND, Approval, approve, asks, read, until_closed, waiting
from tests.guardrails.test_process import environment
from tests.guardrails.world import House, failures, house
from tests.mesh.world import ROOT, World
from tests.stores import Database

MIGRATIONS = ROOT / "services" / "guardrails" / "migrations"
HOUR = 3600
# Every clock that our code asks runs wrong in a process that starts with this; gRPC's own stays right.
WRONG_CLOCK = """
import datetime, sys, time, types
from grpc._cython import cygrpc
# compiled code has no frame of its own: without this, deadlines of calls would be read on our wrong clock
cygrpc.time = types.SimpleNamespace(**vars(time))
_time, _time_ns = time.time, time.time_ns
def _wrong():
    return ({shift}) if sys._getframe(2).f_globals["__name__"].startswith("services") else 0
time.time = lambda: _time() + _wrong()
time.time_ns = lambda: _time_ns() + _wrong() * 10**9
_real = datetime.datetime
class _Kind(type(_real)):
    def __instancecheck__(cls, one):
        return isinstance(one, _real)
class Wrong(_real, metaclass=_Kind):
    @classmethod
    def now(cls, tz=None):
        return _real.now(tz) + datetime.timedelta(seconds={shift})
    @classmethod
    def utcnow(cls):
        return _real.utcnow() + datetime.timedelta(seconds={shift})
datetime.datetime = Wrong
print("the clock is wrong by", {shift}, flush=True)
"""
OLD_ROW = """
INSERT INTO guardrails.approvals (approval_id, state, method, request_id, digest, requester, incident_id, request,
                                  judgement, context, expire_time)
VALUES (gen_random_uuid(), $1, 'opsmesh.tools.workload.v1.WorkloadToolService/RestartWorkload', gen_random_uuid(),
        '\\x01', 'service/automation', '', '', '', '', now() + interval '1 hour')
"""


@dataclass
class Running:
    """A guardrails process of its own on the database and peers of a house, and the house as seen through it."""

    home: House
    process: asyncio.subprocess.Process

    async def kill(self) -> None:
        """End it as a crash would."""
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()


@pytest.fixture
async def quiet(pki: World, postgres: Database, tmp_path: Path) -> AsyncIterator[House]:
    """Give a house whose own guardrails sweeps nothing: what happens is done by processes."""
    async with postgres.fresh() as database, house(pki, database, tmp_path, working=False) as made:
        yield made


@asynccontextmanager
async def another(home: House, folder: Path, **more: str) -> AsyncIterator[Running]:
    """Run `python -m services guardrails`; `.home` speaks to it instead of the house's own."""
    port = free_port()
    given = environment(home.world, home.database, folder, port, PEERS=json.dumps(home.peers)) | more
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "services", "guardrails", cwd=ROOT, env=given)
    credentials = tls.client_credentials(home.world.settings("automation"))
    view = replace(home, callers={}, address=f"127.0.0.1:{port}")
    try:
        async with asyncio.timeout(40), connect(view.address, "guardrails", credentials) as channel:
            await channel.channel_ready()
        yield Running(view, process)
    finally:
        for caller in view.callers.values():
            await caller.close()
        if process.returncode is None:
            process.terminate()
            await asyncio.wait_for(process.wait(), 40)


async def test_a_crash_between_yes_and_act_loses_nothing(quiet: House, tmp_path: Path) -> None:
    """Killed with -9 after the first yes and again before the act, the next process goes on from there."""
    async with another(quiet, tmp_path) as first:
        await first.home.publish(asks(approvers=2))
        case = await waiting(first.home)
        await case.approve()
        await first.kill()
    async with another(quiet, tmp_path) as second:
        found = await read(second.home, case.approval_id)
        assert (found.state, len(found.votes)) == (Approval.STATE_PENDING, 1)
        done = await approve(second.home.approvals(SECOND), found)
        assert done.state == Approval.STATE_APPROVED
        await second.kill()
    async with another(quiet, tmp_path) as third:
        assert await read(third.home, case.approval_id) == done
        answer = await third.home.authorize(case.request, case.context)
        assert third.home.opened(answer.grant).approval_id == case.approval_id
        assert (await read(third.home, case.approval_id)).HasField("execute_time")


@pytest.mark.parametrize("shift", [HOUR, -HOUR])
async def test_a_wrong_local_clock_changes_nothing(quiet: House, tmp_path: Path, shift: int) -> None:
    """In a process whose clock is an hour ahead or behind, both clocks run as the database's does."""
    (tmp_path / "sitecustomize.py").write_text(WRONG_CLOCK.format(shift=shift))
    async with another(quiet, tmp_path, PYTHONPATH=str(tmp_path)) as running:
        home = running.home
        await home.publish(asks(execute=60))
        case = await waiting(home)
        # An hour ahead it would be over at once.
        assert (await case.approve()).state == Approval.STATE_APPROVED
        assert (await case.again()).grant
        await home.publish(asks(seconds=1))
        silent = await waiting(home, "svc:demo/payments")
        over = await until_closed(home, silent.approval_id)
        # An hour behind it would still wait.
        assert over.state == Approval.STATE_EXPIRED
        late = over.update_time.ToNanoseconds() - over.expire_time.ToNanoseconds()
        assert 0 <= late < 5_000_000_000
        assert failures(await silent.again()) == {"policy": "APPROVAL_EXPIRED"}


async def test_old_approvals_survive_the_migration(postgres: Database, tmp_path: Path) -> None:
    """Rows from before approvals could be answered stay, none of them open: who must answer was never stored."""
    name = "old_approvals"
    await pg.provision(postgres.server, name)
    dsn = postgres.server.dsn(pg.OWNER, name)
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, versions in ((first, ("40",)), (second, ("40", "41"))):
        folder.mkdir()
        for path in MIGRATIONS.glob("*.sql"):
            if path.name.partition("_")[0].endswith(versions):
                (folder / path.name).write_text(path.read_text())
    await pg.migrate(dsn, [first])
    connection = await asyncpg.connect(dsn)
    try:
        for state in ("PENDING", "EXPIRED"):
            await connection.execute(OLD_ROW, state)
        await pg.migrate(dsn, [second])
        rows = await connection.fetch("SELECT state, close_reason, close_detail, renewal FROM guardrails.approvals")
        assert [tuple(row) for row in rows] == [("EXPIRED", "APPROVAL_EXPIRED", "nobody answered in time", 0)] * 2
        (path,) = second.glob("*41_*.sql")
        up, _, down = path.read_text().partition("-- migrate:down")
        await connection.execute(down)
        await connection.execute(up)
        assert await connection.fetchval("SELECT count(*) FROM guardrails.approvals") == 2
    finally:
        await connection.close()
