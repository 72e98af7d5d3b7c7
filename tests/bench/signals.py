"""From the 202 of a webhook to what it leads to, by the database's own times: a started playbook, a rule's decision."""

import asyncio
import time
from collections.abc import Sequence
from statistics import median
from typing import Final

from tests.bench.quiet import settle
from tests.bench.table import Row, percentile
from tests.flows.payloads import alertmanager, now
from tests.flows.world import Incident, World, until

STARTS: Final = 25
START_MAX_MS: Final = 50.0
UNMATCHED: Final = 60
DECISIONS: Final = 250
PER_SECOND: Final = 25.0
SLOWER_MAX: Final = 1.5
STARTED = """
    SELECT s.signal_id::text, extract(epoch FROM e.start_time)::float8,
           extract(epoch FROM min(t.start_time))::float8
    FROM ingest.signals s JOIN automation.executions e USING (incident_id) JOIN automation.steps t USING (execution_id)
    WHERE s.signal_id = ANY($1::uuid[]) GROUP BY s.signal_id, e.start_time
"""
DECIDED = """
    SELECT s.signal_id::text, extract(epoch FROM d.create_time)::float8
    FROM ingest.signals s JOIN router.decisions d USING (incident_id)
    WHERE s.signal_id = ANY($1::uuid[]) AND d.rule_id = 'watchdog'
"""
WAITING = "SELECT count(*) FROM ingest.incidents WHERE state = 'AWAITING_MODEL'"


async def start_row(world: World) -> Row:
    """Post alerts one after the other on an idle mesh, each when the one before has been worked off."""
    posted: dict[str, float] = {}
    for _ in range(STARTS):
        signal_id = await world.accepted("alertmanager", alertmanager(now()))
        posted[signal_id] = time.time()
        _, incident_id = await world.recorded(signal_id)
        await world.reaches(incident_id, Incident.STATE_RESOLVED)
    rows = await world.rows(STARTED, list(posted))
    # The first one meets caches that are empty.
    rows = [one for one in rows if one[0] != next(iter(posted))]
    running = [(one[1] - posted[one[0]]) * 1000 for one in rows]
    first_step = [(one[2] - posted[one[0]]) * 1000 for one in rows]
    half = median(first_step)
    return Row(
        "signal accepted -> first step of the playbook begins",
        f"p50 {half:.0f} ms, p99 {percentile(first_step, 99):.0f} ms",
        f"-> Temporal has it (RUNNING): p50 {median(running):.0f} ms",
        bar=f"p50 < {START_MAX_MS:g} ms",
        met=half < START_MAX_MS,
    )


async def model_row(world: World) -> Row:
    """Measure rule decisions with an idle model lane; then with one whose every place hangs in a call to agents."""
    await wait_for_model(world, 1)
    free = await decide(world, "free")
    agents = world.process("agents")
    if agents is None:
        raise RuntimeError("agents does not run")
    # Stopped, not killed: the router's connection stands, so its calls hang until their deadline.
    agents.suspend()
    try:
        await wait_for_model(world, UNMATCHED)
        stuck = await decide(world, "stuck")
    finally:
        agents.resume()
    ratio = percentile(stuck, 99) / percentile(free, 99)
    return Row(
        f"rule decision while agents is stopped and {UNMATCHED} incidents wait for it",
        f"p99 {percentile(stuck, 99):.0f} ms, p50 {median(stuck):.0f} ms",
        f"without: p99 {percentile(free, 99):.0f} ms, p50 {median(free):.0f} ms",
        ratio,
        f"<= {SLOWER_MAX:g} (p99)",
        ratio <= SLOWER_MAX,
    )


async def wait_for_model(world: World, count: int) -> None:
    """Post alerts that no rule knows, and wait until their incidents wait for a model."""
    before = await world.value(WAITING)
    for number in range(count):
        body = alertmanager(now(), name=f"Bench{before + number}", service=f"unknown-{before + number}")
        await world.accepted("alertmanager", body)

    async def waiting() -> bool:
        return bool(await world.value(WAITING) >= before + count)

    await until(waiting, "incidents that wait for the model", 30)


async def decide(world: World, word: str) -> Sequence[float]:
    """Post alerts that a rule answers, at a steady rate; return the milliseconds from each 202 to its decision."""
    posted: dict[str, float] = {}

    async def post(number: int) -> None:
        await settle(number / PER_SECOND)
        body = alertmanager(now(), name="Watchdog", service=f"{word}-{number}")
        signal_id = await world.accepted("alertmanager", body)
        posted[signal_id] = time.time()

    await asyncio.gather(*(post(number) for number in range(DECISIONS)))

    async def decided() -> bool:
        return len(await world.rows(DECIDED, list(posted))) == len(posted)

    await until(decided, "the decisions", 30)
    return [(at - posted[signal_id]) * 1000 for signal_id, at in await world.rows(DECIDED, list(posted))]
