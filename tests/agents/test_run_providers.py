"""A run before a real provider that goes away in the middle, lies, and comes back; and before a recording."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from services.agents import models
from services.agents.boundary import Boundary
from services.agents.main import read_recordings
from services.agents.providers.hosted import Hosted, warm
from services.agents.providers.recorded import Recorded, Recorder
from services.agents.providers.structured import Structured
from services.agents.runs.messages import run_message
from services.agents.store import PostgresLedger
from services.mesh.postgres import Pool
from services.mesh.writes import Writes
from tests.agents.fakes import Behaviour, answer, completion, providing, refuse
from tests.agents.house import Audit, role
from tests.agents.run_house import QUICK, REPAIR, TARGET, report, running
from tests.mesh.world import World
from tests.stores import Database


def minds(folder: Path, **agent: Any) -> Callable[[Pool], Boundary]:
    """Return the boundary as agents makes it, with one model for the role of runs."""
    path = folder / "models.yaml"
    path.write_text(yaml.safe_dump({"roles": {"agent": agent}}))
    known = models.load(path)

    def make(pool: Pool) -> Boundary:
        ledger = PostgresLedger(pool, Writes(pool, "agents", Audit()), known.limits)
        return Boundary(known, ledger, Recorder(Structured(Hosted())), Recorded(read_recordings(known)), warm)

    return make


def says(turn: int) -> Behaviour:
    """Return a provider's answer with the calls of a turn."""
    said = REPAIR[turn]
    assert not isinstance(said, Exception)
    return answer(completion(None, *said))


async def test_it_goes_away_lies_and_comes_back(mesh: World, database: Database, tmp_path: Path) -> None:
    """After its first answer it is down for three tries, then calls what there is not, then works: nothing is lost."""
    lie = answer(completion(None, ("shell", {"command": "reboot"}), ("workload_RestartWorkload", '{"target_id": 7}')))
    down = [refuse("503 Service Unavailable")] * 3
    last = answer(completion(None, report(action=7)))
    # Its seconds are nobody's time to answer, but they are this test's.
    await warm()
    async with providing(says(0), *down, lie, says(1), last) as provider:
        make = minds(tmp_path, **role(provider.api_base))
        async with running(mesh, database, minds=make, pace=replace(QUICK, model=1.0)) as runs:
            waiting = await runs.until_said(await runs.start(), "MODEL_UNAVAILABLE")
            assert (waiting.state, len(waiting.steps)) == ("PENDING", 3)
            run = await runs.until(waiting.run_id)
    assert [one.number for one in run.steps if one.dropped] == [4, 5]
    assert run.state == "SUCCEEDED"
    assert len(provider.requests) == 7
    assert runs.outside.rpcs() == ["CheckHealth", "RestartWorkload", "CheckHealth"]


async def test_a_recording_is_called_one(mesh: World, database: Database, tmp_path: Path) -> None:
    """A run whose model is replayed from files ends as any other, and says of itself what it was."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    exchanges = [
        {
            "role": "agent",
            "turn": turn,
            "tool_calls": [{"name": name, "arguments_json": json.dumps(made)} for name, made in said],
        }
        for turn, said in enumerate(REPAIR)
        if not isinstance(said, Exception)
    ]
    (folder / "runs.yaml").write_text(yaml.safe_dump({"exchanges": exchanges}))
    make = minds(tmp_path, model="recorded", recordings_folder="recordings")
    async with running(mesh, database, minds=make) as runs:
        run = await runs.until(await runs.start(targets=(TARGET,)))
    assert run.state == "SUCCEEDED"
    message = run_message(run)
    assert message.recorded
    assert [one.recorded for one in message.steps if one.kind == one.KIND_MODEL] == [True] * 3
