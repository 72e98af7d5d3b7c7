"""A kill holds over the end of everything: the mesh, PostgreSQL's absence, and a Valkey restored from an old copy."""

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as kills
from services.local.checkout import NAME, Workload, start_workload, stop_workload
from services.local.files import free_port
from tests.flows.payloads import alertmanager, generic, now
from tests.flows.people import Kill, people
from tests.flows.world import SPARE, TILLS, Incident, World, connected, lay_out, leftovers, running_mesh, until

pytestmark = pytest.mark.timeout(480)
EVERYTHING = kills.KillScope(everything=True)


@pytest.fixture
async def stage() -> AsyncIterator[tuple[Path, Workload]]:
    """Give a folder with a configuration, and the one workload behind all of its targets."""
    folder = Path(tempfile.mkdtemp(prefix="opsmesh-kill-"))
    await asyncio.to_thread(folder.chmod, 0o755)
    workload = await start_workload(folder / "workload", free_port())
    try:
        lay_out(folder / "config", dict.fromkeys((NAME, SPARE, *TILLS), workload))
        yield folder, workload
    finally:
        await stop_workload(workload)
    assert leftovers(folder) == []
    shutil.rmtree(folder)


@asynccontextmanager
async def up(stage: tuple[Path, Workload]) -> AsyncIterator[World]:
    """Run `opsmesh up` on the folder until the block ends."""
    folder, workload = stage
    log = folder / "up.log"
    async with (
        running_mesh(folder / "mesh", folder / "config", log) as mesh,
        connected(mesh, dict.fromkeys((NAME, SPARE, *TILLS), workload)) as world,
    ):
        yield world


async def test_a_kill_outlives_restarts_and_an_old_valkey(stage: tuple[Path, Workload]) -> None:
    """Engaged without PostgreSQL it holds over two restarts of everything and an older Valkey, and so do all signals.

    The old copy of Valkey holds signals that have a row by then: they are delivered again and stay one row each.
    """
    folder, workload = stage
    starts = workload.start_count()
    async with up(stage) as world:
        await world.program("stop", "stores:postgres")
        signals = [await world.accepted("generic", generic(f"disk {number}", "db-1")) for number in range(5)]
        async with people(world, "operator") as (operator,):
            kill = await operator.engage(EVERYTHING)
            assert not kill.durable
            assert (await operator.kill(kill.kill_id)).state == Kill.STATE_ENGAGED
    shutil.copytree(folder / "mesh" / "valkey", folder / "valkey-old")

    async with up(stage) as world:
        await held(world, kill.kill_id)
        await world.break_down(NAME)
        signals.append(await world.accepted("alertmanager", alertmanager(now())))
        _, incident_id = await world.recorded(signals[-1])
        assert kill.kill_id in (await world.reaches(incident_id, Incident.STATE_HELD)).state_detail
        for one in signals:
            await world.recorded(one)
    shutil.rmtree(folder / "mesh" / "valkey")
    await asyncio.to_thread(shutil.copytree, folder / "valkey-old", folder / "mesh" / "valkey")

    async with up(stage) as world:
        await held(world, kill.kill_id)
        signals.append(await world.accepted("generic", generic("after the restore", "db-2")))
        await world.recorded(signals[-1])
        query = "SELECT signal_id::text FROM ingest.signals WHERE signal_id = ANY($1::uuid[])"
        assert Counter(row[0] for row in await world.rows(query, signals)) == Counter(signals)
        assert (await world.incident(incident_id)).state == Incident.STATE_HELD
        assert (await world.incident(incident_id)).age_seconds > 0
        assert workload.start_count() == starts
        async with people(world, "operator", "approver") as (operator, approver):
            for _ in range(2):
                assert (await operator.release(kill.kill_id)).state == Kill.STATE_RELEASE_PENDING
            assert (await approver.release(kill.kill_id)).state == Kill.STATE_RELEASED
        await world.reaches(incident_id, Incident.STATE_RESOLVED)
        assert workload.start_count() == starts + 1
        twice = "SELECT incident_id FROM router.decisions GROUP BY incident_id, revision HAVING count(*) > 1"
        assert await world.rows(twice) == []


async def held(world: World, kill_id: str) -> None:
    """Wait until the kill is in PostgreSQL and everybody has reported what stopped."""
    async with people(world, "operator") as (operator,):

        async def look() -> bool:
            kill = await operator.kill(kill_id)
            stopped = {stop.state for stop in kill.stops} <= {kills.Stop.STATE_STOPPED}
            return kill.state == Kill.STATE_ENGAGED and kill.durable and stopped

        await until(look, "a kill that is stored and reported")
