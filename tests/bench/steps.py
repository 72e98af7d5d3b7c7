"""What a run adds to its model's own time: a model step, a read and an action, beside a bare Generate.

The real engine and boundary on PostgreSQL with a recorded provider, before the real guardrails and gateway over mTLS;
played are audit, the incident, and the process manager, which does at once what it is told. The engine's pieces are
done one after the other by this process, as the runner does them; no pause between two pieces counts.
"""

import asyncio
import json
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from opsmesh.agents.v1 import model_service_pb2 as pb
from opsmesh.config.v1 import policies_pb2
from opsmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from services.agents.runs.domain import Run, RunState
from services.agents.runs.engine import MODEL_SECONDS, advance
from services.agents.runs.thinking import frame_of, question
from services.agents.runs.work import IDENTITY, Work
from services.agents.store import METHOD, PostgresLedger
from services.agents.templates.checking import model_role
from services.local.files import LocalError
from services.mesh.call import working
from services.mesh.client import Peers
from services.mesh.loop import wait
from services.mesh.writes import Writes
from tests.agents.house import Audit
from tests.agents.run_house import Runs, check, report, restart, running, template
from tests.bench.replay import Exchange, boundary_of, replayed
from tests.bench.table import Row, percentile
from tests.gateway.guarded import guarded
from tests.guardrails.world import FakeIngest
from tests.mesh.world import World
from tests.stores import running_postgres

# Two, by turns: guardrails lets none be restarted more than 60 times an hour.
TARGETS: Final = ("svc:demo/w0", "svc:demo/w1")
RUNS: Final = 100
WARM: Final = 5
LEASE_SECONDS: Final = 60.0
RUN_SECONDS: Final = 15.0
# The steps of such a run, by number; there is none after the report, for its template wants no proof.
FIRST, READ, MODEL, ACTION = 1, 2, 3, 4
KINDS: Final = ["MODEL", "READ", "MODEL", "ACTION", "MODEL", "REPORT"]


@dataclass
class House:
    """The engine before the real ones."""

    runs: Runs
    ingest: FakeIngest

    def open(self, target: str) -> ingest_service_pb2.Incident:
        """Open an incident on a target: each run has its own, for runs of one incident are limited."""
        made = self.ingest.incidents[self.ingest.open(target)]
        made.targets[0].environment = "demo"
        made.source = "alertmanager"
        return made


@asynccontextmanager
async def house(folder: Path) -> AsyncIterator[House]:
    """Run all of it."""
    intake, content = FakeIngest(), template(proof=None)
    models = replayed(folder, model_role(content), [one for target in TARGETS for one in exchanges(target)])
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(running_postgres(folder))
        # Its own certificates are those of the guarded world: made first, found again there.
        world = World(folder / "w")
        add = ingest_service_pb2_grpc.add_IngestServiceServicer_to_server
        server = await stack.enter_async_context(world.serving("ingest", [(add, intake)]))
        inside = await stack.enter_async_context(guarded(folder, database, len(TARGETS), ingest_port=server.port))
        await inside.publish(policies_pb2.AgentAllowance(template_id=content.template_id, tools=content.tools))
        ports = {one: f"127.0.0.1:{port}" for one, port in inside.ports.items()}
        peers = Peers(inside.world.settings("agents", peers=ports))
        stack.push_async_callback(peers.close)

        def mind(pool: Any) -> Any:
            return boundary_of(models, PostgresLedger(pool, Writes(pool, "agents", Audit()), models.limits))

        runs = await stack.enter_async_context(running(inside.world, database, peers=peers, minds=mind, work=False))
        yield House(runs, intake)


def exchanges(target: str) -> list[Exchange]:
    """Return what the model says in a run on a target, turn by turn."""
    said = (check(target), restart(target), report())
    return [
        {
            "turn": turn,
            "contains": [f"Targets: {target}"],
            "tool_calls": [{"name": name, "arguments_json": json.dumps(arguments)}],
        }
        for turn, (name, arguments) in enumerate(said)
    ]


async def carried(place: House, target: str) -> tuple[Run, dict[int, float]]:
    """Carry a run from its start until it is closed; return it with the milliseconds of each step by number."""
    runs, spent = place.runs, defaultdict[int, float](float)
    run = await runs.run(
        await runs.start(template(proof=None), targets=(target,), incident=place.open(target), goal="repair it")
    )
    until = time.monotonic() + RUN_SECONDS
    while not run.closed:
        if time.monotonic() > until:
            raise LocalError(_told("it hangs", run))
        urgent = await runs.store.claim(1, LEASE_SECONDS, urgent=True)
        for held in urgent or await runs.store.claim(1, LEASE_SECONDS):
            work, going = Work(runs.means, held, run, frame_of(run)), True
            while going:
                began = time.perf_counter()
                going = await advance(work)
                newest = work.run.steps[-1].number if work.run.steps else FIRST
                spent[newest] += (time.perf_counter() - began) * 1000
        run = await runs.run(run.run_id)
        await wait(asyncio.Event(), 0.001)
    if run.state is not RunState.SUCCEEDED or [str(one.kind) for one in run.steps] != KINDS:
        raise LocalError(_told("not as recorded", run))
    return run, spent


async def bare(place: House, run: Run) -> float:
    """Ask the boundary what the run's second model step asked, under a new id; return the milliseconds."""
    request = question(run, frame_of(run), MODEL)
    request.request_id = str(uuid.uuid4())
    with working(IDENTITY, METHOD, MODEL_SECONDS, request_id=request.request_id):
        began = time.perf_counter()
        answer: pb.GenerateResponse = await place.runs.boundary.generate(request)
        taken = (time.perf_counter() - began) * 1000
    if not answer.recorded or not answer.tool_calls:
        raise LocalError(f"not as recorded: {answer}")
    return taken


async def rows(folder: Path) -> list[Row]:
    """Measure: after each run, one bare Generate, so that both meet the same machine."""
    found: dict[int, list[float]] = defaultdict(list)
    alone: list[float] = []
    async with house(folder) as place:
        for number in range(WARM + RUNS):
            run, spent = await carried(place, TARGETS[number % len(TARGETS)])
            asked = await bare(place, run)
            if number < WARM:
                continue
            alone.append(asked)
            for step in (FIRST, READ, MODEL, ACTION):
                found[step].append(spent[step])
    half = percentile(alone, 50)
    told = f"a bare Generate of the same question: {_figures(alone)}"
    what = {
        MODEL: ("agent: a model step, without the provider's time", told),
        READ: ("agent: a read step", "a read grant of guardrails, and CheckHealth with it, over mTLS"),
        ACTION: ("agent: an action step", "lock, AuthorizeAction, RestartWorkload, over mTLS"),
        FIRST: ("agent: the first model step", "with registration, claim and the run's first checkpoint"),
    }
    return [
        Row(name, _figures(found[step]), beside, percentile(found[step], 50) / half if step == MODEL else None)
        for step, (name, beside) in what.items()
    ]


def _figures(taken: list[float]) -> str:
    return f"p50 {percentile(taken, 50):.1f} ms, p99 {percentile(taken, 99):.1f} ms"


def _told(what: str, run: Run) -> str:
    """Return what went wrong, with what each step of the run came to."""
    return f"{what}: {run.state} {run.reason} {run.detail} {[(str(one.kind), one.result[:200]) for one in run.steps]}"
