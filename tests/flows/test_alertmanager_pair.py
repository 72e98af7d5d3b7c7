"""Senders that we did not write: a Prometheus and an HA pair of Alertmanagers, from rule to repair, through outages."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx
import pytest

from tests.flows.senders import MISSING, Monitoring, monitoring
from tests.flows.world import Incident, World, until

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} is not installed (apt: prometheus, prometheus-alertmanager)"),
    pytest.mark.timeout(480),
]
LABELS = {"severity": "critical", "env": "demo", "replica": "pair"}
# The last value there was: to a rule about the value of now, a scrape that a busy machine missed is the end of it.
RULES = [
    {
        "alert": "CheckoutDown",
        "expr": 'sum by (service) (last_over_time(trouble{service="checkout"}[1m])) > 0',
        "labels": LABELS,
        "annotations": {"summary": "checkout answers 503"},
    },
    # no rule of ours knows it, so nobody but the sender ends it
    {
        "alert": "Queueing",
        "expr": 'sum by (service) (last_over_time(trouble{service!="checkout"}[1m])) > 0',
        "labels": LABELS,
        "annotations": {"summary": "{{ $labels.service }} has a queue"},
    },
]


@dataclass(frozen=True, slots=True)
class Told:
    """What the mesh has of one alert."""

    world: World
    fingerprint: str

    async def rows(self, status: str) -> Sequence[asyncpg.Record]:
        """Return the signals of this status, each with what became of it."""
        query = (
            "SELECT disposition, incident_id::text, delivery_id::text FROM ingest.signals "
            "WHERE source = 'alertmanager' AND dedup_key = $1 AND status = $2"
        )
        return await self.world.rows(query, self.fingerprint, status)

    async def has(self, status: str, count: int) -> Sequence[asyncpg.Record]:
        """Wait for at least COUNT signals of this status."""
        found: Sequence[asyncpg.Record] = []

        async def enough() -> bool:
            nonlocal found
            found = await self.rows(status)
            return len(found) >= count

        try:
            await until(enough, f"{count} {status} of {self.fingerprint}")
        except AssertionError as error:
            raise AssertionError(f"{error}; there are {found}") from None
        return found

    async def incidents(self) -> set[str]:
        """Return the incidents that any signal of it belongs to."""
        query = "SELECT DISTINCT incident_id::text FROM ingest.signals WHERE dedup_key = $1 AND incident_id IS NOT NULL"
        return {row[0] for row in await self.world.rows(query, self.fingerprint)}


@asynccontextmanager
async def watched(world: World, folder: Path) -> AsyncIterator[Monitoring]:
    """Watch with the real ones, which tell the mesh's own webhook with its secret."""
    async with monitoring(folder, world.endpoints["webhooks"]["alertmanager"], RULES) as found:
        yield found


async def refused(watch: Monitoring, cause: Callable[[], Awaitable[None]], what: str) -> None:
    """Let CAUSE happen, and wait until the last peer alive has been turned away once more."""
    before = await watch.peers[-1].failures()
    await cause()

    async def more() -> bool:
        return await watch.peers[-1].failures() > before

    await until(more, what)


async def test_a_pair_of_alertmanagers_is_one_sender(world: World, tmp_path: Path) -> None:
    """Both peers' notices of an alert are one incident, one decision and one restart; nothing is lost when one dies.

    Nor while the bridge is gone, nor while it answers 503: what begins and ends meanwhile arrives by their retries.
    """
    async with watched(world, tmp_path) as watch:
        await both_tell(world, watch)
        await watch.peers[0].kill()
        await one_is_left(world, watch)
        await an_outage(world, watch)


async def both_tell(world: World, watch: Monitoring) -> None:
    """Show the duplicate counted and not acted on, and the end as both tell it."""
    workload = world.workloads["checkout"]
    starts = workload.start_count()
    await world.break_down("checkout")
    watch.gauges["checkout"] = 1
    names = {await watch.fingerprint(peer, "checkout") for peer in watch.peers}
    assert len(names) == 1
    told = Told(world, names.pop())
    firing = await told.has("FIRING", 2)
    # Both may come in one batch, recorded at one moment.
    assert sorted(row["disposition"] for row in firing) == ["DUPLICATE", "OPENED"]
    assert len({row["delivery_id"] for row in firing}) == 2
    incident_id = firing[0]["incident_id"]
    incident = await world.reaches(incident_id, Incident.STATE_RESOLVED)
    assert (incident.signal_count, incident.duplicate_count) == (2, 1)
    assert await world.health("checkout") == httpx.codes.OK
    watch.gauges["checkout"] = 0
    await told.has("RESOLVED", 2)
    assert await told.incidents() == {incident_id}
    (decision,) = await world.decisions(incident_id)
    assert (decision.rule_id, decision.model_call_count) == ("checkout-down", 0)
    executions = "SELECT execution_id::text FROM automation.executions WHERE incident_id = $1::uuid"
    ran = [row[0] for row in await world.rows(executions, incident_id)]
    assert ran == [decision.execution_id]
    assert workload.start_count() == starts + 1


async def one_is_left(world: World, watch: Monitoring) -> None:
    """Show that the peer which is left tells, and that the sender's resolve closes an incident."""
    watch.gauges["mail"] = 1
    told = Told(world, await watch.fingerprint(watch.peers[1], "mail"))
    (first, *_) = await told.has("FIRING", 1)
    assert first["disposition"] == "OPENED"
    await world.reaches(first["incident_id"], Incident.STATE_AWAITING_MODEL)
    watch.gauges["mail"] = 0
    await told.has("RESOLVED", 1)
    ended = await world.reaches(first["incident_id"], Incident.STATE_RESOLVED)
    assert ended.duplicate_count == 0
    assert await told.incidents() == {first["incident_id"]}


async def an_outage(world: World, watch: Monitoring) -> None:
    """Show that what begins while nobody listens, and ends while nothing can be kept, arrives all the same."""

    async def begin() -> None:
        watch.gauges["search"] = 1

    async def end() -> None:
        watch.gauges["search"] = 0

    await world.program("stop", "services:bridge")
    try:
        await refused(watch, begin, "a connection that is refused")
    finally:
        await world.program("start", "services:bridge")
    told = Told(world, await watch.fingerprint(watch.peers[1], "search"))
    (first, *_) = await told.has("FIRING", 1)
    await world.reaches(first["incident_id"], Incident.STATE_AWAITING_MODEL)

    await world.whole()
    await world.program("stop", "stores:valkey")
    try:
        await refused(watch, end, "a 503")
        assert await told.rows("RESOLVED") == []
    finally:
        await world.program("start", "stores:valkey")
    await told.has("RESOLVED", 1)
    await world.reaches(first["incident_id"], Incident.STATE_RESOLVED)
    assert await told.incidents() == {first["incident_id"]}
    await world.whole()
