"""A kill holds incidents back: alerts are accepted, nothing acts, and after the release it all comes out in order."""

import uuid
from collections.abc import Sequence

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as kills
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc
from services.local.reach import channels
from tests.flows.payloads import alertmanager, now
from tests.flows.people import let_go
from tests.flows.world import RESTART, TILLS, Incident, World, until

Kill = kills.Kill


async def test_what_a_kill_held_is_repaired_after_the_release(world: World) -> None:
    """Under a kill of `demo`, with the router killed -9 in the middle, every alert is HELD and names the kill.

    Status names nobody who has not reported; after the release each is repaired by one restart, oldest first.
    """
    async with let_go(world), channels(world.mesh) as channel:
        switch = kill_switch_service_pb2_grpc.KillSwitchServiceStub(channel("guardrails"))
        scope = kills.KillScope(environment="demo")
        engage = kills.EngageRequest(request_id=str(uuid.uuid4()), scope=scope, reason="a story")
        kill = (await switch.Engage(engage)).kill

        incidents = [await held(world, name, kill.kill_id) for name in TILLS]

        async def reported() -> bool:
            (status,) = (await switch.GetStatus(kills.GetStatusRequest(kill_id=kill.kill_id))).kills
            return all(stop.state == kills.Stop.STATE_STOPPED for stop in status.stops)

        await until(reported, "a report of everybody")
        router = world.process("router")
        assert router is not None
        router.kill()
        assert await restarts(world, incidents) == []
        again = [await world.reaches(one, Incident.STATE_HELD) for one in incidents]
        assert {one.revision for one in again} == {1}

        async def back() -> bool:
            newcomer = world.process("router")
            return newcomer is not None and newcomer.pid != router.pid

        await until(back, "the router")
        release = kills.ReleaseRequest(request_id=str(uuid.uuid4()), kill_id=kill.kill_id, reason="seen enough")
        assert (await switch.Release(release)).kill.state == Kill.STATE_RELEASED
    for one in incidents:
        await world.reaches(one, Incident.STATE_RESOLVED, seconds=60)
    assert sorted(await restarts(world, incidents)) == sorted(incidents)
    started = await world.rows(
        "SELECT incident_id::text FROM automation.executions WHERE incident_id = ANY($1::uuid[]) ORDER BY create_time",
        incidents,
    )
    assert [row["incident_id"] for row in started] == incidents


async def held(world: World, workload: str, kill_id: str) -> str:
    """Break a workload and post its alert; return its incident once it is held by that kill."""
    await world.break_down(workload)
    signal_id = await world.accepted("alertmanager", alertmanager(now(), service=workload))
    _, incident_id = await world.recorded(signal_id)

    async def names_the_kill() -> bool:
        # On a busy machine automation may miss its lease for a moment: that holds it, too, until it hears again.
        incident = await world.incident(incident_id)
        named = f"held: kill {kill_id} (environment demo)" in incident.state_detail
        return incident.state == Incident.STATE_HELD and named

    await until(names_the_kill, f"incident {incident_id} held by the kill")
    return incident_id


async def restarts(world: World, incidents: Sequence[str]) -> list[str]:
    """Return the incident of each restart that was begun on these incidents."""
    query = "SELECT incident_id FROM gateway.effects WHERE method = $1 AND incident_id = ANY($2::text[])"
    return [row["incident_id"] for row in await world.rows(query, RESTART, list(incidents))]
