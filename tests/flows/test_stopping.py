"""The kill switch from the outside: one scope stops and the rest goes on, whatever else is down; nothing is lost."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil

from opsmesh.automation.v1 import automation_service_pb2
from opsmesh.guardrails.v1 import kill_switch_service_pb2 as kills
from tests.flows.payloads import alertmanager, now
from tests.flows.people import Approval, Kill, approval_of, asked, guarded, inbox, let_go, now_is, people
from tests.flows.world import GUARDED, RESTART, SPARE, Execution, Incident, World, until

BYSTANDERS = ("audit", "router", "agents", "valkey", "temporal")
# In seconds: less than the deadline that an Engage would hang until, and more than the one second that it gives to
# PostgreSQL, whose constant tests/guardrails/test_kill_file.py bounds; the rest is what a busy machine adds.
ACKNOWLEDGED = 4.0


async def test_a_kill_of_one_environment_leaves_the_others_working(world: World) -> None:
    """What waits there is CANCELLED and void, a new alert is HELD and seen with its age, another environment repairs.

    After the release the held one goes on, to its approval and its restart; people were told of both once.
    """
    incident_id, approval = await guarded(world)
    async with let_go(world):
        await stopped_and_released(world, incident_id, approval)


async def stopped_and_released(world: World, incident_id: str, approval: Approval) -> None:
    """Engage and release the kill of that story, and look at everybody meanwhile."""
    starts = world.workloads[SPARE].start_count()
    execution_id = (await world.decisions(incident_id))[0].execution_id
    kill = await asked(world, "kill", "engage", "--environment", GUARDED, "--reason", "look first")
    assert kill["durable"]

    async def cancelled() -> Execution | None:
        found = await world.execution(execution_id)
        return found if found.state == Execution.STATE_CANCELLED else None

    ended = await until(cancelled, "the end of the execution")
    assert ended is not None
    assert ended.kill_id == kill["kill_id"]
    void = await now_is(world, approval)
    assert (void.state, void.close_reason) == (Approval.STATE_VOID, "KILLED")
    await world.reaches(incident_id, Incident.STATE_AWAITING_MODEL)
    await world.resolve(incident_id)

    held = await alerted(world, SPARE, GUARDED)
    await world.reaches(held, Incident.STATE_HELD)
    await world.reaches(await alerted(world, "checkout", "demo"), Incident.STATE_RESOLVED)
    waiting = (await asked(world, "status"))["waiting"]
    (row,) = [one for one in waiting["incidents"] if one["incident"] == held]
    assert row["state"] == "HELD"
    assert row["age"]
    assert kill["kill_id"] in row["why"]
    (row,) = [one for one in waiting["kills"] if one["kill"] == kill["kill_id"]]
    assert row["waits_for"] == "released by 0 of 1"

    async def reported() -> bool:
        (shown,) = (await asked(world, "kill", "status"))["kills"]
        return {one["state"] for one in shown["stops"]} == {"STATE_STOPPED"}

    await until(reported, "a report of everybody")

    assert (await asked(world, "kill", "release", kill["kill_id"]))["state"] == "STATE_RELEASED"
    await world.reaches(held, Incident.STATE_AWAITING_APPROVAL)
    async with people(world, "approver") as (approver,):
        await approver.approve(await approval_of(world, held))
    await world.reaches(held, Incident.STATE_RESOLVED)
    assert world.workloads[SPARE].start_count() == starts + 1

    async def told() -> bool:
        kinds = Counter(one["kind"] for one in inbox(world) if one["kill_id"] == kill["kill_id"])
        return kinds == {"KILL_ENGAGED": 1, "KILL_RELEASED": 1}

    await until(told, "one notice of each")


async def alerted(world: World, workload: str, env: str) -> str:
    """Break a workload and post the alert about the checkout of ENV; return its incident."""
    await world.break_down(workload)
    _, incident_id = await world.recorded(await world.accepted("alertmanager", alertmanager(now(), env=env)))
    return incident_id


async def test_a_kill_is_acknowledged_while_everybody_else_is_paused(world: World) -> None:
    """With audit, Valkey, Temporal, router and agents under SIGSTOP a kill is on disk within seconds."""
    async with let_go(world), people(world, "operator") as (operator,):
        async with paused(world):
            began = time.monotonic()
            kill = await operator.engage(kills.KillScope(tool=RESTART))
            assert time.monotonic() - began < ACKNOWLEDGED
            assert kill.durable
            assert (await operator.kill(kill.kill_id)).state == Kill.STATE_ENGAGED
        await world.whole()
        incident_id = await alerted(world, "checkout", "demo")
        await world.reaches(incident_id, Incident.STATE_HELD)
        await operator.release(kill.kill_id)
    await world.reaches(incident_id, Incident.STATE_RESOLVED)


@asynccontextmanager
async def paused(world: World) -> AsyncIterator[None]:
    """Pause everybody whom the kill switch must not need."""
    found: list[psutil.Process] = []
    for name in BYSTANDERS:
        process = await asyncio.to_thread(world.process, name)
        assert process is not None
        found += [process, *process.children(recursive=True)]
    for one in found:
        one.suspend()
    try:
        yield
    finally:
        for one in reversed(found):
            one.resume()


async def test_a_kill_without_postgresql_holds_and_is_stored_later(world: World) -> None:
    """It is acknowledged as not durable, nothing starts, and once PostgreSQL is back it holds, now stored."""
    starts = world.workloads["checkout"].start_count()
    async with let_go(world), people(world, "operator") as (operator,):
        await world.program("stop", "stores:postgres")
        try:
            began = time.monotonic()
            kill = await operator.engage(kills.KillScope(environment="demo"))
            assert time.monotonic() - began < ACKNOWLEDGED
            assert not kill.durable

            async def degraded() -> bool:
                return "postgres" in (await world.readiness())[1]["degraded"]

            await until(degraded, "a bridge that says so")
        finally:
            await world.program("start", "stores:postgres")
        await world.whole()
        incident_id = await alerted(world, "checkout", "demo")
        await world.reaches(incident_id, Incident.STATE_HELD)

        async def stored() -> bool:
            return (await operator.kill(kill.kill_id)).durable

        await until(stored, "a stored kill")
        assert world.workloads["checkout"].start_count() == starts
        assert (await operator.release(kill.kill_id)).state == Kill.STATE_RELEASED
    await world.reaches(incident_id, Incident.STATE_RESOLVED)
    assert world.workloads["checkout"].start_count() == starts + 1


async def test_five_on_one_target_act_one_after_another(world: World) -> None:
    """Five executions at once on one target: no two restarts overlap, each fence is higher, all succeed."""
    starts = world.workloads["checkout"].start_count()
    await world.break_down("checkout")
    incidents = []
    for number in range(5):
        signal_id = await world.accepted("alertmanager", alertmanager(now(), name=f"Strange{number}"))
        incidents.append((await world.recorded(signal_id))[1])
    for one in incidents:
        await world.reaches(one, Incident.STATE_AWAITING_MODEL)
    begun = await asyncio.gather(
        *(
            world.stubs.automation.StartExecution(
                automation_service_pb2.StartExecutionRequest(
                    request_id=one, playbook_id="restart-workload", incident_id=one
                )
            )
            for one in incidents
        )
    )
    ids = [one.execution.execution_id for one in begun]

    async def ended() -> bool:
        found = [await world.execution(one) for one in ids]
        return all(one.state == Execution.STATE_SUCCEEDED for one in found)

    await until(ended, "the end of all five", 60)
    query = "SELECT start_time, end_time, fence FROM gateway.effects WHERE method = $1 AND execution_id = ANY($2)"
    effects = sorted(await world.rows(query, RESTART, ids), key=lambda row: row["start_time"])
    assert len(effects) > 1
    for before, after in itertools.pairwise(effects):
        assert before["end_time"] <= after["start_time"]
        assert before["fence"] < after["fence"]
    assert world.workloads["checkout"].start_count() == starts + len(effects)
    for one in incidents:
        await world.resolve(one)
