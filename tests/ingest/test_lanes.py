"""Incidents and the router: handed over, followed, decided anew; the router is a hand-written one."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
import pytest

from opsmesh.config.v1 import inventory_pb2
from opsmesh.guardrails.v1 import kill_switch_service_pb2, policy_service_pb2
from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from opsmesh.router.v1 import decision_service_pb2 as router_pb
from services.ingest.domain import Inventory
from services.ingest.inventory import InventoryLane
from services.ingest.lanes import DecisionLanes
from services.ingest.retention import rules
from services.mesh.retention import Retention
from tests.bridge.house import unavailable
from tests.ingest.house import House, alert, entry, eventually, notification

Decision = router_pb.Decision


class MemoryRouter:
    """Decides once per (incident, revision), as it is told to."""

    def __init__(self) -> None:
        self.decisions: dict[tuple[str, int], Decision] = {}
        self.seen: list[pb.Incident] = []
        self.error: grpc.aio.AioRpcError | None = None
        self.next = Decision(state=Decision.STATE_AWAITING_MODEL, reason="no rule matched")
        self.asked = asyncio.Event()
        self.tells = asyncio.Event()
        self.tells.set()

    async def DecideIncident(self, request: router_pb.DecideIncidentRequest) -> router_pb.DecideIncidentResponse:  # noqa: N802  the IDL's name
        """Decide; incidents that do not fire are answered with RESPOND."""
        if self.error:
            raise self.error
        self.seen += request.incidents
        return router_pb.DecideIncidentResponse(decisions=[self._decide(one) for one in request.incidents])

    def _decide(self, incident: pb.Incident) -> Decision:
        key = (incident.incident_id, incident.revision)
        if key not in self.decisions:
            made = Decision(decision_id=str(uuid.uuid4()), incident_id=key[0], revision=key[1])
            over = not incident.firing or incident.state == pb.Incident.STATE_RESOLVED
            done = Decision(state=Decision.STATE_CLOSED, result=Decision.RESULT_RESPONDED, reason="the sender resolved")
            made.MergeFrom(done if over else self.next)
            self.decisions[key] = made
        return self.decisions[key]

    async def BatchGetDecisions(  # noqa: N802  the IDL's name
        self, request: router_pb.BatchGetDecisionsRequest
    ) -> router_pb.BatchGetDecisionsResponse:
        """Tell what was decided, once `tells` is set."""
        self.asked.set()
        await self.tells.wait()
        wanted = [one for one in self.decisions.values() if one.decision_id in request.decision_ids]
        return router_pb.BatchGetDecisionsResponse(decisions=wanted)

    def last(self) -> Decision:
        """Return the newest decision."""
        return list(self.decisions.values())[-1]


@asynccontextmanager
async def following(house: House, router: MemoryRouter) -> AsyncIterator[None]:
    """Run the lanes in the background."""
    stop = asyncio.Event()
    task = asyncio.create_task(DecisionLanes(house.store, router, house.wake).run(stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, 60)


@pytest.fixture
def router() -> MemoryRouter:
    """Give a router in memory."""
    return MemoryRouter()


async def arrive(house: House, *alerts: dict[str, Any]) -> None:
    """Let alerts come in."""
    if await house.store.record([entry(notification(*alerts))], house.inventory):
        house.wake.set()


async def reached(house: House, state: str, **wanted: Any) -> Any:
    """Wait until the incident is in a state, and return its row."""

    async def probe() -> Any:
        row = (await house.rows("SELECT * FROM incidents"))[0]
        return row if row["state"] == state and all(row[key] == value for key, value in wanted.items()) else None

    return await eventually(probe)


async def test_an_unmatched_incident_awaits_a_model(house: House, router: MemoryRouter) -> None:
    """No rule: AWAITING_MODEL with the reason, and the router got the snapshot with targets and labels."""
    async with following(house, router):
        await arrive(house, alert())
        row = await reached(house, "AWAITING_MODEL", state_detail="no rule matched")
    assert row["decision_id"] == router.last().decision_id
    sent = router.seen[0]
    assert (sent.labels["alertname"], sent.targets[0].target_id, sent.revision) == (
        "CheckoutDown",
        "svc:demo/checkout",
        1,
    )


async def test_open_decisions_delay_no_new_one(house: House, router: MemoryRouter) -> None:
    """While the router is slow to tell how open decisions stand, a new incident is decided."""
    router.tells.clear()
    async with following(house, router):
        await arrive(house, alert("first"))
        await asyncio.wait_for(router.asked.wait(), 60)
        await arrive(house, alert("second"))

        async def both() -> bool:
            return len(await house.rows("SELECT 1 FROM incidents WHERE state = 'AWAITING_MODEL'")) == 2

        await eventually(both)
        router.tells.set()


async def test_a_repair_resolves_the_incident(house: House, router: MemoryRouter) -> None:
    """RUNNING while the playbook runs, RESOLVED once it succeeded with a proof of health."""
    router.next = Decision(
        state=Decision.STATE_DECIDED, outcome=Decision.OUTCOME_TRIGGER_AUTOMATION, rule_id="restart", execution_id="e-1"
    )
    async with following(house, router):
        await arrive(house, alert())
        row = await reached(house, "RUNNING", execution_id="e-1")
        assert row["started_rule_ids"] == ["restart"]
        router.last().awaiting_approval = True
        await reached(house, "AWAITING_APPROVAL")
        router.last().awaiting_approval = False
        await reached(house, "RUNNING")
        router.last().MergeFrom(Decision(state=Decision.STATE_CLOSED, result=Decision.RESULT_REPAIRED))
        row = await reached(house, "RESOLVED", following=False)
    assert row["resolve_time"] is not None
    assert len(router.decisions) == 1


async def test_failures_are_decided_anew_at_most_five_times(house: House, router: MemoryRouter) -> None:
    """Each failure makes a revision, each revision one decision, and then a person must look."""
    router.next = Decision(
        state=Decision.STATE_CLOSED, outcome=Decision.OUTCOME_TRIGGER_AUTOMATION, result=Decision.RESULT_FAILED
    )
    async with following(house, router):
        await arrive(house, alert())
        row = await reached(house, "AWAITING_PERSON")
    assert row["revision"] == 5
    assert sorted(revision for _, revision in router.decisions) == [1, 2, 3, 4, 5]


async def test_the_senders_resolve_closes_the_incident(house: House, router: MemoryRouter) -> None:
    """The last alert is over: a revision that does not fire, which the router closes."""
    async with following(house, router):
        await arrive(house, alert("a"), alert("a", pod="2"))
        await reached(house, "AWAITING_MODEL")
        await arrive(house, alert("a", "resolved"))
        assert (await house.rows("SELECT firing FROM incidents"))[0]["firing"]
        await arrive(house, alert("a", "resolved", pod="2"))
        row = await reached(house, "RESOLVED")
    assert (row["revision"], row["firing"]) == (2, False)


async def test_a_resolve_during_an_execution_waits_for_its_end(house: House, router: MemoryRouter) -> None:
    """While something acts only `firing` changes; its end then closes the incident."""
    router.next = Decision(
        state=Decision.STATE_DECIDED, outcome=Decision.OUTCOME_TRIGGER_AUTOMATION, rule_id="restart", execution_id="e-1"
    )
    async with following(house, router):
        await arrive(house, alert())
        await reached(house, "RUNNING")
        await arrive(house, alert(status="resolved"))
        row = await reached(house, "RUNNING", firing=False)
        assert row["revision"] == 1
        router.last().MergeFrom(Decision(state=Decision.STATE_CLOSED, result=Decision.RESULT_SUCCEEDED))
        row = await reached(house, "RESOLVED")
    assert row["revision"] == 2


async def test_a_router_that_is_away_delays_and_loses_nothing(house: House, router: MemoryRouter) -> None:
    """The incident stays OPEN and visible, and is decided once the router is back."""
    router.error = unavailable()
    async with following(house, router):
        await arrive(house, alert())
        await eventually(lambda: house.rows("SELECT 1 FROM incidents WHERE attempts >= 2"))
        assert (await house.rows("SELECT state FROM incidents"))[0]["state"] == "OPEN"
        router.error = None
        await reached(house, "AWAITING_MODEL")
    assert len(router.decisions) == 1


async def test_what_a_person_resolved_stays_resolved(house: House, router: MemoryRouter) -> None:
    """The router hears of it by a new revision in state RESOLVED, and its answer changes nothing."""
    async with following(house, router):
        await arrive(house, alert())
        row = await reached(house, "AWAITING_MODEL")
        async with house.pool.acquire() as connection:
            await house.store.resolve(connection, str(row["incident_id"]), "done")
        house.wake.set()
        row = await reached(house, "RESOLVED", needs_decision=False)
    assert (row["revision"], row["state_detail"]) == (2, "done")
    assert router.seen[-1].state == pb.Incident.STATE_RESOLVED


class MemoryGuardrails:
    """Guardrails' leases and policy sets in memory; without an active set it does not answer."""

    def __init__(self) -> None:
        self.active: policy_service_pb2.PolicySetVersion | None = None

    async def PollLease(  # noqa: N802  the IDL's name
        self, _: kill_switch_service_pb2.PollLeaseRequest
    ) -> kill_switch_service_pb2.PollLeaseResponse:
        """Return the active version."""
        if self.active is None:
            raise unavailable()
        lease = kill_switch_service_pb2.Lease(policy_set_version=self.active.version)
        return kill_switch_service_pb2.PollLeaseResponse(lease=lease)

    async def GetPolicySet(  # noqa: N802  the IDL's name
        self, _: policy_service_pb2.GetPolicySetRequest
    ) -> policy_service_pb2.GetPolicySetResponse:
        """Return the active one."""
        return policy_service_pb2.GetPolicySetResponse(policy_set=self.active)

    def publish(self, version: int) -> None:
        """Activate an inventory with the demo's checkout."""
        entry = inventory_pb2.InventoryEntry(target_id="svc:demo/checkout", kind="service", environment="demo")
        self.active = policy_service_pb2.PolicySetVersion(
            version=version, inventory=inventory_pb2.Inventory(entries=[entry])
        )


async def test_the_inventory_is_taken_over_and_outlives_guardrails(house: House) -> None:
    """A published inventory is used from then on, and from the store when guardrails is away at the next start."""
    guardrails = MemoryGuardrails()
    lane = InventoryLane(house.store, guardrails, guardrails, house.wake)
    await lane.read()
    assert lane.current().version == 0
    guardrails.publish(3)
    await lane.read()
    assert lane.current().version == 3
    guardrails.active = None
    again = InventoryLane(house.store, guardrails, guardrails, house.wake)
    await again.read()
    assert again.current().version == 3


async def test_what_an_inventory_makes_known_is_decided_anew(house: House, router: MemoryRouter) -> None:
    """An incident about something unknown gets its target when the inventory names it, and a new revision."""
    house.inventory = Inventory()
    guardrails = MemoryGuardrails()
    async with following(house, router):
        await arrive(house, alert())
        await reached(house, "AWAITING_MODEL")
        assert not router.seen[0].targets[0].in_inventory
        guardrails.publish(1)
        await InventoryLane(house.store, guardrails, guardrails, house.wake).read()
        await reached(house, "AWAITING_MODEL", revision=2)
    assert [(one.target_id, one.in_inventory) for one in router.seen[-1].targets] == [("svc:demo/checkout", True)]


async def test_retention_deletes_what_is_old_and_closed(house: House) -> None:
    """Signals, bytes and closed incidents go after their days; what is open stays, with its alerts."""
    await house.take(entry(notification(alert("open"), alert("closed"))), entry(b"bad"))
    for table, column in (
        ("signals", "record_time"),
        ("deliveries", "create_time"),
        ("dead_letters", "create_time"),
        ("incidents", "update_time"),
        ("alerts", "update_time"),
    ):
        await house.pool.execute(f"UPDATE {table} SET {column} = now() - $1::interval", timedelta(days=31))  # noqa: S608  constants only
    await house.pool.execute("UPDATE incidents SET state = 'RESOLVED' WHERE title LIKE 'closed%'")
    assert await Retention(house.pool, *rules(32)).forget() == 0
    assert await Retention(house.pool, *rules(30)).forget() == 3 + 2 + 1 + 1 + 1
    assert [row["title"] for row in await house.rows("SELECT title FROM incidents")] == ["open on checkout"]
    assert len(await house.rows("SELECT 1 FROM alerts")) == 1
