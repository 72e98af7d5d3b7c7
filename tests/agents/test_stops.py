"""The kill switch as runs feel it: what is in scope stops, with what it started, and guardrails is told."""
# ruff: noqa: N802  the names are those of the IDL

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from opsmesh.gateway.v1 import effect_service_pb2 as effects
from opsmesh.guardrails.v1 import guardrails_service_pb2 as guardrails
from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from services.agents.stops import KillStore, Stops
from services.mesh.failures import After
from services.mesh.leases import Leases
from tests.agents.outside import no
from tests.agents.run_house import OTHER, QUICK, TARGET, Runs, check, running, template
from tests.mesh.world import World
from tests.stores import Database


@dataclass
class Switch:
    """Hands out the kills that are put there, and keeps what is reported: (kill, subject, state)."""

    kills: list[pb.LeasedKill] = field(default_factory=list)
    polls: int = 0
    reports: "asyncio.Queue[tuple[str, list[tuple[str, int]]]]" = field(default_factory=asyncio.Queue)
    said: dict[str, dict[str, int]] = field(default_factory=dict)

    async def PollLease(self, _: Any, **__: Any) -> pb.PollLeaseResponse:
        """Answer with what holds now."""
        self.polls += 1
        answer = pb.PollLeaseResponse(lease=pb.Lease(kills=self.kills))
        answer.lease.lease_time.GetCurrentTime()
        return answer

    async def ReportStops(self, request: pb.ReportStopsRequest, **_: Any) -> pb.ReportStopsResponse:
        """Keep it."""
        self.reports.put_nowait((request.kill_id, [(one.subject, one.state) for one in request.stops]))
        assert all(one.kind == pb.Stop.KIND_RUN for one in request.stops)
        return pb.ReportStopsResponse()

    def kill(self, **scope: Any) -> str:
        """Engage one; return its id."""
        kill_id = str(uuid.uuid4())
        self.kills.append(pb.LeasedKill(kill_id=kill_id, scope=pb.KillScope(**scope), epoch=len(self.kills) + 1))
        return kill_id

    async def told(self, kill_id: str, *wanted: tuple[str, int]) -> None:
        """Wait until exactly this was reported, at once or one after the other: the newest word on each counts."""
        async with asyncio.timeout(20):
            while True:
                found, stops = await self.reports.get()
                said = self.said.setdefault(found, {})
                said.update(stops)
                if found == kill_id and said == dict(wanted):
                    return


@asynccontextmanager
async def stopping(runs: Runs) -> AsyncIterator[Switch]:
    """Follow the lease."""
    switch, stop = Switch(), asyncio.Event()
    stub: Any = switch
    leases = Leases(stub, "agents@test")
    stops = Stops(leases, KillStore(runs.pool), runs.runner.halt, stub)
    workers = [asyncio.create_task(one(stop)) for one in (leases.poll, stops.work)]
    try:
        yield switch
    finally:
        stop.set()
        await asyncio.gather(*workers)


@pytest.fixture
async def runs(mesh: World, database: Database) -> AsyncIterator[Runs]:
    """Run the engine."""
    async with running(mesh, database) as one:
        yield one


async def test_a_kill_without_runs_is_reported(runs: Runs) -> None:
    """Every kill that holds gets a report, so that nobody waits for one."""
    async with stopping(runs) as switch:
        await switch.told(switch.kill(everything=True))


async def test_a_kill_of_a_target_stops_its_runs(runs: Runs) -> None:
    """A run that waits for people ends CANCELLED with the kill's id; one on another target goes on."""
    runs.outside.verdicts = [guardrails.VERDICT_REQUIRE_APPROVAL] * 2
    here = await runs.until(await runs.start(), "AWAITING_APPROVAL")
    runs.script.lines = {"": ([check(OTHER)], [("workload_RestartWorkload", {"target_id": OTHER})])}
    there = await runs.until(await runs.start(targets=(OTHER,)), "AWAITING_APPROVAL")
    async with stopping(runs) as switch:
        kill_id = switch.kill(target_id=TARGET)
        run = await runs.until(here.run_id, closed=True)
        assert (run.state, run.kill_id, run.reason) == ("CANCELLED", kill_id, "KILLED")
        await switch.told(kill_id, (run.run_id, pb.Stop.STATE_STOPPED))
    assert (await runs.run(there.run_id)).state == "AWAITING_APPROVAL"
    assert runs.outside.made == {}


async def test_a_kill_of_a_run_stops_what_it_started(runs: Runs) -> None:
    """Parent and child end CANCELLED, the child first; each is reported."""
    await runs.publish(template("child"))
    runs.outside.verdicts = [guardrails.VERDICT_REQUIRE_APPROVAL]
    runs.script.lines = {
        "a parent agent": ([("delegate_run", {"template_id": "child", "goal": "restart it"})],),
        "a child agent": ([check()], [("workload_RestartWorkload", {"target_id": TARGET})]),
    }
    content = template("parent", child_templates=["child"], max_depth=1)
    parent = await runs.until(await runs.start(content), "AWAITING_CHILD")
    child_id = (await runs.run(parent.run_id)).steps[1].child_run_id
    await runs.until(child_id, "AWAITING_APPROVAL")
    async with stopping(runs) as switch:
        kill_id = switch.kill(run_id=parent.run_id)
        ended = await runs.until(parent.run_id, closed=True)
        child = await runs.until(child_id, closed=True)
        await switch.told(kill_id, (parent.run_id, pb.Stop.STATE_STOPPED), (child_id, pb.Stop.STATE_STOPPED))
    assert (ended.state, child.state) == ("CANCELLED", "CANCELLED")
    assert (ended.kill_id, child.kill_id) == (kill_id, kill_id)
    assert str(child.end_time) <= str(ended.end_time)


async def test_a_kill_ends_the_wait_for_a_model(runs: Runs) -> None:
    """A run whose model takes its time is stopped while it waits; its model's answer is worth nothing."""
    runs.script.hangs = True
    run_id = await runs.start()
    await asyncio.wait_for(runs.script.hanging.wait(), 20)
    async with stopping(runs) as switch:
        kill_id = switch.kill(environment="demo")
        run = await runs.until(run_id, closed=True)
        assert (run.state, run.kill_id) == ("CANCELLED", kill_id)


async def test_a_kill_in_the_middle_of_an_action(runs: Runs) -> None:
    """What was begun ends first, and is on record as done; nothing is begun after it, and the lock is given back."""
    runs.outside.answering.clear()
    run_id = await runs.start()
    await asyncio.wait_for(runs.outside.acting.wait(), 20)
    async with stopping(runs) as switch:
        kill_id = switch.kill(run_id=run_id)
        await switch.told(kill_id, (run_id, pb.Stop.STATE_UNSTOPPED))
        assert (await runs.run(run_id)).open
        runs.outside.answering.set()
        run = await runs.until(run_id, closed=True)
        await switch.told(kill_id, (run_id, pb.Stop.STATE_STOPPED))
    assert (run.state, run.kill_id) == ("CANCELLED", kill_id)
    assert [one.state for one in run.steps] == ["SUCCEEDED"] * 4
    assert (runs.outside.locks, runs.outside.claims) == ({}, {})


@pytest.mark.parametrize(
    ("stands", "step", "state"),
    [
        ([effects.Effect.STATE_STARTED, effects.Effect.STATE_SUCCEEDED], "SUCCEEDED", "CANCELLED"),
        ([effects.Effect.STATE_UNKNOWN], "UNKNOWN", "UNKNOWN"),
        ([effects.Effect.STATE_NOT_STARTED], "FAILED", "CANCELLED"),
    ],
)
async def test_a_cancel_asks_how_an_action_ended(
    mesh: World, database: Database, stands: list[Any], step: str, state: str
) -> None:
    """Its answer was lost when the run is asked to stop: the gateway is asked, and what is under way is waited for."""
    async with running(mesh, database, pace=replace(QUICK, again=4.0)) as runs:
        lost = [no("UNAVAILABLE", after=After.AGAIN)]

        def lose(what: str) -> None:
            if what == "RestartWorkload done" and lost:
                raise lost.pop()

        runs.outside.hook, runs.outside.stands = lose, stands
        run_id = await runs.start()
        await runs.until_tried(run_id, 4)
        assert await runs.cancel(run_id)
        run = await runs.until(run_id, closed=True)
        assert (run.state, run.steps[3].state) == (state, step)
        assert runs.outside.count == 1


async def test_a_run_stopped_by_a_refusal_is_told_of(runs: Runs) -> None:
    """Guardrails refuses before anybody looked which runs the kill is about: CANCELLED, and reported as stopped."""
    async with stopping(runs) as switch:
        kill_id = str(uuid.uuid4())
        runs.outside.failures["authorize"] = [no("KILLED", f"stopped by kill {kill_id} (tool)")]
        run = await runs.until(await runs.start(), closed=True)
        assert (run.state, run.reason, run.kill_id) == ("CANCELLED", "KILLED", kill_id)
        assert runs.outside.locks == {}
        await switch.told(kill_id, (run.run_id, pb.Stop.STATE_STOPPED))
