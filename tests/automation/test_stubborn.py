"""An engine that stops for nobody: it is reported UNSTOPPED, and nothing it calls is let through."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from opsmesh.guardrails.v1 import guardrails_service_pb2, kill_switch_service_pb2_grpc
from services.automation.approvals import Approvals
from services.automation.book import Library
from services.automation.calls import Calls
from services.automation.contract import Kind, StepTask
from services.automation.ends import Ends
from services.automation.engines import EngineState, Ticket
from services.automation.lanes import Lanes
from services.automation.locks import Locks
from services.automation.progress import Progress
from services.automation.settings import AutomationSettings
from services.automation.steps import Runner
from services.automation.stops import KillStore, Stops
from services.automation.store import NewExecution, PostgresStore
from services.local.temporal import Temporal
from services.mesh.client import Peers
from services.mesh.leases import Leases
from services.mesh.postgres import Pool, open_pool
from services.mesh.tools import find_tool
from tests.automation.fakes import TARGET, incident
from tests.automation.playbooks import SLOW
from tests.automation.world import Mesh
from tests.mesh.world import World
from tests.stores import Database

PAST_GRACE = timedelta(seconds=6)


@dataclass
class Stubborn:
    """Says that it runs whatever it is told."""

    told: list[str] = field(default_factory=list)

    async def start(self, ticket: Ticket) -> None:
        """Take it."""
        self.told.append(f"start {ticket.execution_id}")

    async def cancel(self, execution_id: str) -> None:
        """Ignore it."""
        self.told.append(f"cancel {execution_id}")

    async def terminate(self, execution_id: str) -> None:
        """Ignore that, too."""
        self.told.append(f"terminate {execution_id}")

    async def wake(self, execution_id: str) -> None:
        """Sleep on."""

    async def describe(self, _execution_id: str) -> EngineState:
        """Run for ever."""
        return EngineState.RUNNING

    async def ping(self) -> None:
        """Answer."""


@dataclass
class Parts:
    """An automation in this process, between the fakes, on an engine that does not stop."""

    mesh: Mesh
    pool: Pool
    store: PostgresStore
    calls: Calls
    runner: Runner
    lanes: Lanes
    leases: Leases
    stops: Stops
    engine: Stubborn

    async def started(self) -> str:
        """Store an execution and give it to the engine; its restart is done."""
        content = SLOW.SerializeToString(deterministic=True)
        async with self.pool.acquire() as connection, connection.transaction():
            row = await self.store.publish(connection, SLOW.playbook_id, "0" * 64, content, "human/operator")
            steps = [(step.step_id, find_tool(step.tool).name) for step in SLOW.steps]
            new = NewExecution(
                execution_id=str(uuid.uuid4()),
                playbook=row,
                incident_id=str(uuid.uuid4()),
                incident=incident(str(uuid.uuid4())).SerializeToString(),
                decision_id="",
                rule_set_version=0,
                requester="human/operator",
                on_behalf_of="",
                traceparent="",
                rule_id="",
                identity_token=b"",
                note="",
                steps=steps,
            )
            await self.store.create(connection, new)
        self.lanes.fresh(new.execution_id, row.digest)
        await self.lanes.start_pending()
        return new.execution_id

    async def heard(self, stop: asyncio.Event) -> None:
        """Hear of the kills that hold, once."""
        self.leases.changed.clear()
        await asyncio.wait_for(self.leases.changed.wait(), 10)
        stop.set()


@pytest.fixture
async def parts(tmp_path: Path, database: Database, temporal: Temporal) -> AsyncIterator[Parts]:
    """Give an automation of this process on a database of its own."""
    async with AsyncExitStack() as stack:
        own = await stack.enter_async_context(database.fresh())
        mesh = Mesh(World(tmp_path / "world"), own, temporal, tmp_path, {})
        for name, servicers in mesh.servers():
            server = await stack.enter_async_context(mesh.world.serving(name, servicers))
            mesh.peers[name] = f"127.0.0.1:{server.port}"
        told = {name.removeprefix("OPSMESH_").lower(): text for name, text in mesh.environment().items()}
        known = {name: text for name, text in told.items() if name in AutomationSettings.model_fields}
        settings = AutomationSettings.model_validate(known | {"peers": json.loads(known["peers"])})
        peers, pool = Peers(settings), await open_pool(settings, "automation")
        stack.push_async_callback(pool.close)
        stack.push_async_callback(peers.close)
        store, progress, calls = PostgresStore(pool), Progress(pool), Calls(peers)
        library, locks, engine = Library(store), Locks(progress, calls), Stubborn()
        approvals, ends = Approvals(store, progress, calls), Ends(store, progress, library, calls, locks)
        lanes = Lanes(store, progress, engine, ends)
        switch = kill_switch_service_pb2_grpc.KillSwitchServiceStub(peers.channel("guardrails"))
        leases = Leases(switch, "a test")
        stops = Stops(leases, store, KillStore(pool), library, watcher=lanes, switch=switch)
        runner = Runner(store, progress, library, calls, locks, approvals=approvals)
        yield Parts(mesh, pool, store, calls, runner, lanes, leases, stops, engine)


async def test_nothing_it_calls_is_let_through(parts: Parts) -> None:
    """Told to stop, then terminated, it goes on: UNSTOPPED for as long as that, its calls are refused at every door."""
    guardrails, gateway = parts.mesh.guardrails, parts.mesh.gateway
    execution_id = await parts.started()
    kill_id = guardrails.engage(target_id=TARGET)
    stop = asyncio.Event()
    await asyncio.gather(parts.leases.poll(stop), parts.heard(stop))

    await parts.stops.look()
    await parts.lanes.watch_open()
    assert guardrails.stop_of(kill_id, execution_id) == "UNSTOPPED"
    assert parts.engine.told[1:] == [f"cancel {execution_id}"]

    await parts.pool.execute("UPDATE automation.executions SET kill_time = kill_time - $1::interval", PAST_GRACE)
    await parts.pool.execute("UPDATE automation.executions SET check_time = now()")
    await parts.lanes.watch_open()
    assert parts.engine.told[2:] == [f"terminate {execution_id}"]
    execution = await parts.store.execution(execution_id)
    assert execution is not None
    assert (execution.unstopped, execution.kill_id, execution.state) == (True, kill_id, "RUNNING")
    await parts.stops.look()
    assert "goes on" in guardrails.stops[kill_id, execution_id][-1].detail

    # Automation's own door.
    outcome = await parts.runner.run(StepTask(execution_id, "restart", 1), asyncio.Event())
    assert outcome.kind is Kind.CANCELLED
    assert guardrails.asked == []

    # Around it: guardrails refuses, also after the release.
    tool = find_tool("RestartWorkload")
    request = tool.request_class(request_id=str(uuid.uuid4()), target_id=TARGET)
    context = guardrails_service_pb2.ActionContext(execution_id=execution_id, playbook_id=SLOW.playbook_id)
    guardrails.release(kill_id)
    judged = await parts.calls.authorize(tool, request, context)
    assert judged.judgement.reason == "KILLED"
    assert not judged.grant
    assert gateway.seen == []


async def test_step_that_was_on_its_way(parts: Parts) -> None:
    """A kill between the judgement and the call keeps the call back: the note of sending is one with the bar."""
    execution_id = await parts.started()
    assert await Progress(parts.pool).sending(execution_id, "restart", 0)
    await KillStore(parts.pool).mark(str(uuid.uuid4()), execution_id, "a kill")
    assert not await Progress(parts.pool).sending(execution_id, "restart", 0)
