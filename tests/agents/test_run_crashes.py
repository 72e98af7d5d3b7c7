"""kill -9 between each pair of steps and in the middle of an action: another goes on, and nothing happens twice."""

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from services.agents.runs.domain import Kind
from services.agents.runs.store import Held, LostError, Notes, Park
from tests.agents.run_house import REPAIR, Runs, running
from tests.mesh.world import ROOT, World
from tests.stores import Database


async def ends_of(way: str, world: World, database: Database, folder: Path, run_id: str) -> tuple[list[int], str]:
    """Let workers end that way; return how each of them ended, and what they said."""
    settings = world.settings("agents").model_dump(mode="json") | {
        "postgres_dsn": database.dsn("agents", with_password=False),
        "postgres_password_file": str(database.password_file("agents")),
    }
    told = folder / "told.json"
    given = {"way": way, "settings": settings, "folder": str(folder), "run_id": run_id, "lines": lines()}
    told.write_text(json.dumps(given))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.agents.run_crashes", str(told)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), 100)
    finally:
        # One that is paused, or waits for it, ends with the test.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    found: list[int] = json.loads(said.splitlines()[-1])
    return found, said.decode()


def lines() -> list[Any]:
    """Return what the model says, as JSON takes it."""
    return [[list(call) for call in turn] for turn in REPAIR if not isinstance(turn, Exception)]


async def test_killed_at_every_point_it_goes_on(mesh: World, database: Database, tmp_path: Path) -> None:
    """Before and after every checkpoint, and after the effect before its answer: one effect, one question a turn."""
    async with running(mesh, database, work=False) as runs:
        run_id = await runs.start()
        ends, _ = await ends_of("killed", mesh, database, tmp_path, run_id)
        run = await runs.run(run_id)
        kinds = [one.kind for one in run.steps]
    died = [one for one in ends if os.WIFSIGNALED(one) and os.WTERMSIG(one) == signal.SIGKILL]
    assert len(died) == len(ends) - 1
    assert len(died) >= 25
    assert os.WEXITSTATUS(ends[-1]) == 0
    assert (run.state, run.health_proved, run.closed) == ("SUCCEEDED", True, True)
    assert kinds == [Kind.MODEL, Kind.READ, Kind.MODEL, Kind.ACTION, Kind.MODEL, Kind.REPORT, Kind.PROOF]
    outside = json.loads((tmp_path / "outside.json").read_text())
    assert outside["count"] == 1
    assert list(outside["made"].values()) == ["RestartWorkload"]
    assert (outside["claims"], outside["locks"], outside["ended"]) == ({}, {}, [run_id])
    assert (tmp_path / "asked").read_text().split() == ["0", "1", "2"]


async def test_a_paused_holder_writes_nothing(mesh: World, database: Database, tmp_path: Path) -> None:
    """SIGSTOP past its lease: another finishes; the first wakes up, and what it would write is refused."""
    async with running(mesh, database, work=False) as runs:
        run_id = await runs.start()
        ends, said = await ends_of("paused", mesh, database, tmp_path, run_id)
        run = await runs.run(run_id)
        assert ends == [0, 0]
        assert said.count("lease lost") == 1
        assert (run.state, len(run.steps)) == ("SUCCEEDED", 7)
        assert json.loads((tmp_path / "outside.json").read_text())["count"] == 1


@pytest.fixture
async def runs(mesh: World, database: Database) -> Any:
    """Give a store whose runs nobody works on."""
    async with running(mesh, database, work=False) as one:
        yield one


async def test_who_lost_the_lease_writes_nothing(runs: Runs) -> None:
    """The second holder writes; the first can neither write nor renew, and leaves no trace."""
    run_id = await runs.start()
    [first] = await runs.store.claim(5, 0.01)
    second: list[Held] = []
    while not second:
        second = await runs.store.claim(5, 30.0)
    assert not await runs.store.claim(5, 30.0)
    run = await runs.run(run_id)
    for late in (runs.store.checkpoint(first, run, notes=Notes(waited=9.0)), runs.store.renew(first, 30.0)):
        with pytest.raises(LostError):
            await late
    await runs.store.let_go(first)
    assert not await runs.store.renew(second[0], 30.0)
    await runs.store.checkpoint(second[0], run, notes=Notes(park=Park(30.0)))
    assert (await runs.run(run_id)).waited == 0
    assert not await runs.store.claim(5, 30.0)
