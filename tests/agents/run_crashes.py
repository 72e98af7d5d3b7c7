"""A process that is killed: forks workers that go on with one run, each killed at the first point nobody died at yet.

Run as `python -m tests.agents.run_crashes FILE`, where FILE is JSON: settings, folder, run_id, lines. Forking from a
process without a loop costs a few milliseconds where starting Python anew costs seconds.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from services.agents.domain import Endpoint, Question, RawReply
from services.agents.runs.domain import Run, Step
from services.agents.runs.runner import Runner
from services.agents.runs.store import Held, Notes, PostgresRuns
from services.agents.runs.work import Means, Pace
from services.agents.settings import AgentsSettings
from services.agents.templates.store import PostgresTemplates
from services.mesh.loop import wait
from services.mesh.postgres import Pool, open_pool
from tests.agents.outside import Outside
from tests.agents.run_house import Script, boundary_of

# Long enough for a busy machine; who comes next lets it run out instead of waiting.
LEASE: Final = 20.0
RUN_OUT: Final = "UPDATE runs SET lease_until = clock_timestamp() WHERE lease_until IS NOT NULL"
WORKERS_MAX: Final = 80
PAUSED: Final = "RestartWorkload done"
PACE: Final = Pace(0.05, 0.1, 0.05, 0.1, 0.05, 0.1, 0.02, 3)
Meet = Callable[[str], None]


class Crashing(PostgresRuns):
    """The store, with a point before and after every checkpoint."""

    def __init__(self, pool: Pool, meet: Meet) -> None:
        super().__init__(pool)
        self._meet = meet

    async def checkpoint(self, held: Held, run: Run, *steps: Step, notes: Notes | None = None) -> bool:
        """Write, if nobody dies."""
        name = "/".join([run.state, str(run.closed), *(f"{one.number}{one.state}{one.sent}" for one in steps)])
        self._meet(f"before {name}")
        asked = await super().checkpoint(held, run, *steps, notes=notes)
        self._meet(f"after {name}")
        return asked


class Counting(Script):
    """The model; every question it is really asked leaves a line in a file."""

    path: Path = Path()

    async def generate(self, endpoint: Endpoint, question: Question) -> RawReply:
        """Count, and answer."""
        with self.path.open("a") as told:
            told.write(f"{sum(one.speaker.value == 'assistant' for one in question.messages)}\n")
        return await super().generate(endpoint, question)


def dying(folder: Path) -> Meet:
    """Return what kills this process at a point where none died before."""

    def meet(point: str) -> None:
        path = folder / f"died {point.replace('/', ' ')}"
        if not point.startswith(("before", "after")) and not point.endswith("done"):
            return
        if not path.exists():
            path.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return meet


def pausing(folder: Path) -> Meet:
    """Return what stops this process, once, when the effect has happened and its answer is not written."""

    def meet(point: str) -> None:
        path = folder / "paused"
        if point == PAUSED and not path.exists():
            path.touch()
            os.kill(os.getpid(), signal.SIGSTOP)

    return meet


async def carry(told: dict[str, Any], meet: Meet) -> None:
    """Work until the run is closed, and whoever has lost it has noticed."""
    pool = await open_pool(AgentsSettings(**told["settings"]), "agents")
    await pool.execute(RUN_OUT)
    outside = Outside(Path(told["folder"]), hook=meet)
    script = Counting({"": [[(name, made) for name, made in turn] for turn in told["lines"]]})
    script.path = Path(told["folder"]) / "asked"
    store = Crashing(pool, meet)
    runner = Runner(Means(store, PostgresTemplates(pool), outside, boundary_of(pool, script), PACE), 1, LEASE)
    stop = asyncio.Event()
    worker = asyncio.create_task(runner.work(stop))
    while (run := await store.run(told["run_id"])) is None or not run.closed or runner._tasks:
        runner.wake()
        await wait(stop, 0.05)
    stop.set()
    await worker
    await pool.close()


def fork(work: Callable[[], None]) -> int:
    """Do work in a process of its own."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return process


def killed(told: dict[str, Any]) -> Sequence[int]:
    """Let one worker after the other die, until one lives to see the end; return how each ended."""
    ends: list[int] = []
    for _ in range(WORKERS_MAX):
        process = fork(lambda: asyncio.run(carry(told, dying(Path(told["folder"])))))
        ends.append(os.waitpid(process, 0)[1])
        if os.WIFEXITED(ends[-1]):
            break
    return ends


def paused(told: dict[str, Any]) -> Sequence[int]:
    """Pause a worker in the middle of its action, let another finish the run, and let the first go on."""
    folder = Path(told["folder"])
    first = fork(lambda: asyncio.run(carry(told, pausing(folder))))
    os.waitpid(first, os.WUNTRACED)
    second = fork(lambda: asyncio.run(carry(told, pausing(folder))))
    ends = [os.waitpid(second, 0)[1]]
    os.kill(first, signal.SIGCONT)
    return [*ends, os.waitpid(first, 0)[1]]


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    ways = {"killed": killed, "paused": paused}
    sys.stdout.write(json.dumps(list(ways[given["way"]](given))))
