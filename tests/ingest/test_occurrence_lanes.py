"""Occurrences in the running lanes: swept, decided anew, closed; also after a restart."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from opsmesh.router.v1 import decision_service_pb2 as router_pb
from services.ingest import backlog
from services.ingest.lanes import DecisionLanes
from tests.ingest.house import House, eventually
from tests.ingest.test_occurrences import WHY, event, stands, wait_for


class OverRouter:
    """Asks a person about what fires, and answers what is over with the reason that it is given."""

    def __init__(self) -> None:
        self.seen: list[pb.Incident] = []

    async def DecideIncident(self, request: router_pb.DecideIncidentRequest) -> router_pb.DecideIncidentResponse:  # noqa: N802  the IDL's name
        """Decide."""
        self.seen += request.incidents
        return router_pb.DecideIncidentResponse(decisions=[_decision(one) for one in request.incidents])

    async def BatchGetDecisions(  # noqa: N802  the IDL's name
        self, _: router_pb.BatchGetDecisionsRequest
    ) -> router_pb.BatchGetDecisionsResponse:
        """Tell how decisions stand."""
        return router_pb.BatchGetDecisionsResponse(decisions=[_decision(one) for one in self.seen])


def _decision(incident: pb.Incident) -> router_pb.Decision:
    made = router_pb.Decision(
        decision_id=incident.incident_id, incident_id=incident.incident_id, revision=incident.revision
    )
    made.state = router_pb.Decision.STATE_DECIDED
    made.outcome = router_pb.Decision.OUTCOME_ASK_HUMAN
    if not incident.firing:
        made.state, made.result = router_pb.Decision.STATE_CLOSED, router_pb.Decision.RESULT_RESPONDED
        made.reason = incident.state_detail
    return made


@asynccontextmanager
async def following(house: House, router: OverRouter) -> AsyncIterator[None]:
    """Run the lanes in the background."""
    stop, oldest = asyncio.Event(), partial(backlog.oldest, house.client)
    task = asyncio.create_task(DecisionLanes(house.store, router, house.wake, oldest).run(stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, 60)


async def test_the_lanes_end_it_also_after_a_restart_and_the_next_one_is_another(house: House) -> None:
    """What was told before the restart is counted from when it was told; then a later one opens another incident."""
    router = OverRouter()

    async def reached(state: str) -> bool:
        return bool(await house.pool.fetchval("SELECT every(state = $1) FROM incidents", state))

    async with following(house, router):
        await house.take(event())
        house.wake.set()
        await eventually(lambda: reached("AWAITING_PERSON"))
    await wait_for(house, 3600)
    async with following(house, router):
        await eventually(lambda: reached("RESOLVED"))
    assert [row[:2] for row in await stands(house)] == [("RESOLVED", WHY)]
    assert router.seen[-1].HasField("expire_time")
    await house.take(event(second=0), event(second=30))
    assert [row[0] for row in await stands(house)] == ["RESOLVED", "OPEN"]
