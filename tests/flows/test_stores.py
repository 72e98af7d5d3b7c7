"""What goes on while a store or audit is away, and that everything comes back without help."""

import asyncio

import httpx

from opsmesh.automation.v1 import automation_service_pb2
from tests.flows.payloads import alertmanager, generic, now
from tests.flows.world import RESTART, Event, Incident, World, until

Step = automation_service_pb2.StepRecord
UNKNOWN_ALERTS = 20


async def until_ready(world: World, code: int, *degraded: str) -> None:
    """Wait until /readyz answers CODE and names what is degraded."""

    async def look() -> bool:
        status, body = await world.readiness()
        return status == code and set(degraded) <= set(body["degraded"])

    await until(look, f"/readyz {code} {degraded}")


async def test_without_postgresql_signals_are_accepted(world: World) -> None:
    """While PostgreSQL is down webhooks are 202 and /readyz degraded; then each signal has one row, without help."""
    started = now()
    await world.program("stop", "stores:postgres")
    try:
        await until_ready(world, httpx.codes.OK, "postgres")
        posts = [world.accepted("generic", generic(f"disk {number}", "db-1")) for number in range(UNKNOWN_ALERTS)]
        signals = [*await asyncio.gather(*posts), await world.accepted("alertmanager", alertmanager(started))]
    finally:
        await world.program("start", "stores:postgres")
    await world.whole()
    rows = [await world.recorded(one) for one in signals]
    assert {disposition for disposition, _ in rows} == {"OPENED"}
    query = "SELECT count(*) FROM ingest.signals WHERE signal_id = ANY($1::uuid[])"
    assert await world.value(query, signals) == len(signals)
    for _, incident_id in rows[:-1]:
        await world.reaches(incident_id, Incident.STATE_AWAITING_MODEL)
    await world.reaches(rows[-1][1], Incident.STATE_RESOLVED)


async def test_a_stuck_postgresql_delays_no_sender(world: World) -> None:
    """A PostgreSQL that answers nothing is degraded like one that is gone: 202 within half a second.

    The fastest of five says so: what else the machine does may delay one, but not all of them.
    """
    children = await asyncio.to_thread(world.process, "postgres")
    assert children is not None
    stuck = [children, *children.children(recursive=True)]
    for one in stuck:
        one.suspend()
    try:
        await until_ready(world, httpx.codes.OK, "postgres")
        answers = [await world.post("generic", generic(f"stuck {number}", "db-2")) for number in range(5)]
        assert {answer.status_code for answer in answers} == {httpx.codes.ACCEPTED}
        assert min(answer.elapsed.total_seconds() for answer in answers) < 0.5
    finally:
        for one in reversed(stuck):
            one.resume()
    await world.whole()
    for answer in answers:
        _, incident_id = await world.recorded(answer.json()["results"][0]["signal_id"])
        await world.reaches(incident_id, Incident.STATE_AWAITING_MODEL)


async def test_without_valkey_nothing_is_accepted(world: World) -> None:
    """While Valkey is down a webhook is 503 and so is /readyz; what comes afterwards is accepted, without help."""
    await world.program("stop", "stores:valkey")
    try:
        answer = await world.post("generic", generic("lost", "db-3"))
        assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE
        assert "Retry-After" in answer.headers
        await until_ready(world, httpx.codes.SERVICE_UNAVAILABLE, "valkey")
    finally:
        await world.program("start", "stores:valkey")
    await world.whole()
    _, incident_id = await world.recorded(await world.accepted("generic", generic("found", "db-3")))
    await world.reaches(incident_id, Incident.STATE_AWAITING_MODEL)


async def test_without_audit_no_effect_begins(world: World) -> None:
    """While audit is down a restart waits, refused as AUDIT_UNAVAILABLE; once it is back it happens, once."""
    workload = world.workloads["checkout"]
    starts = workload.start_count()
    await world.break_down("checkout")
    await world.program("stop", "services:audit")
    try:
        _, incident_id = await world.recorded(await world.accepted("alertmanager", alertmanager(now())))

        async def refused() -> bool:
            decisions = await world.decisions(incident_id)
            if not decisions or not decisions[0].execution_id:
                return False
            execution = await world.execution(decisions[0].execution_id)
            reasons = {step.step_id: step.reason for step in execution.steps}
            return reasons.get("restart") == "AUDIT_UNAVAILABLE"

        await until(refused, "a refusal for want of audit")
        assert workload.start_count() == starts
        assert await world.health("checkout") == httpx.codes.SERVICE_UNAVAILABLE
    finally:
        await world.program("start", "services:audit")
    await world.reaches(incident_id, Incident.STATE_RESOLVED)
    assert workload.start_count() == starts + 1

    async def outcomes() -> list[Event]:
        found = await world.events(incident_id, RESTART)
        return [event for event in found if event.outcome == Event.OUTCOME_SUCCEEDED]

    assert len(await until(outcomes, "the outcome of the restart")) == 1
