"""AgentService before real PostgreSQL and mTLS: who may start what on which targets, and what becomes of a wish."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from opsmesh.agents.v1 import agent_service_pb2 as pb
from opsmesh.audit.v1 import audit_service_pb2 as audit_pb
from opsmesh.guardrails.v1 import kill_switch_service_pb2 as kills
from opsmesh.ingest.v1 import ingest_service_pb2 as ingest
from tests.agents.api_house import CHECKOUT, PAYMENTS, STRANGER, Api, living, start, template
from tests.agents.test_template_service import reason
from tests.mesh.world import World
from tests.stores import Database


@pytest.fixture
async def api(mesh: World, postgres: Database) -> AsyncIterator[Api]:
    """Serve agents with one published template on a database of its own."""
    async with postgres.fresh() as database, living(mesh, database) as api:
        await api.publish(template())
        yield api


async def test_a_run_is_kept_as_it_was_asked_for(api: Api) -> None:
    """It is PENDING, with the targets of the incident that the inventory knows, and on record; the runner is woken."""
    incident_id, decision_id, execution_id = api.ingest.open(), str(uuid.uuid4()), str(uuid.uuid4())
    stub = await api.runs("router")
    wish = start(incident_id, decision_id=decision_id, execution_id=execution_id, execution_trace="it failed")
    run = (await stub.StartRun(wish)).run
    assert (run.state, run.depth, run.requester) == (pb.Run.STATE_PENDING, 1, "service/router")
    assert (run.template_id, run.template_version, run.goal) == ("looker", 1, "look")
    assert list(run.target_ids) == [CHECKOUT, PAYMENTS]
    assert (run.incident_id, run.decision_id, run.execution_id) == (incident_id, decision_id, execution_id)
    assert api.woken
    assert (await stub.GetRun(pb.GetRunRequest(run_id=run.run_id))).run == run
    while (event := await asyncio.wait_for(api.audit.events.get(), 20)).action.endswith("PublishTemplate"):
        continue
    assert event.action == "opsmesh.agents.v1.AgentService/StartRun"
    assert (event.outcome, event.target, event.environment) == (
        audit_pb.AuditEvent.OUTCOME_SUCCEEDED,
        CHECKOUT,
        "demo",
    )
    assert (event.incident_id, event.decision_id) == (incident_id, decision_id)


async def test_a_person_may_start_one_on_chosen_targets(api: Api) -> None:
    """The run is theirs; a target that is not the incident's, or not in the inventory, is refused."""
    stub, incident_id = await api.runs("operator"), api.ingest.open()
    run = (await stub.StartRun(start(incident_id, target_ids=[PAYMENTS]))).run
    assert (run.requester, list(run.target_ids)) == ("human/operator", [PAYMENTS])
    assert await reason(stub.StartRun(start(incident_id, target_ids=["svc:demo/x"]))) == "TARGET_NOT_OF_INCIDENT"
    assert await reason(stub.StartRun(start(incident_id, target_ids=[STRANGER]))) == "TARGET_UNKNOWN"


async def test_what_cannot_start_is_refused(api: Api) -> None:
    """No incident, a closed one, no template, a disabled template: each says so, and keeps nothing."""
    stub, incident_id = await api.runs("router"), api.ingest.open()
    assert await reason(stub.StartRun(start(str(uuid.uuid4())))) == "NOT_FOUND"
    for state in (ingest.Incident.STATE_RESOLVED, ingest.Incident.STATE_STALE):
        assert await reason(stub.StartRun(start(api.ingest.open(state)))) == "INCIDENT_NOT_OPEN"
    assert await reason(stub.StartRun(start(incident_id, "nothing"))) == "NOT_FOUND"
    await api.sql("UPDATE agents.templates SET pins[1] = repeat('0', 64)")
    assert await reason(stub.StartRun(start(incident_id))) == "TEMPLATE_DISABLED"
    assert await api.sql("SELECT run_id FROM agents.runs") == []


async def test_a_kill_keeps_runs_from_starting(api: Api) -> None:
    """What a kill is about does not start, and says which kill; the same wish starts once it is over."""
    stub, incident_id = await api.runs("router"), api.ingest.open()
    api.kills.append(kills.LeasedKill(kill_id="k", scope=kills.KillScope(target_id=CHECKOUT)))
    wish = start(incident_id)
    assert await reason(stub.StartRun(wish)) == "KILLED"
    assert (await stub.StartRun(start(incident_id, target_ids=[PAYMENTS]))).run.run_id
    api.kills.clear()
    assert (await stub.StartRun(wish)).run.state == pb.Run.STATE_PENDING
    api.kills.append(kills.LeasedKill(kill_id="k", scope=kills.KillScope(environment="demo")))
    assert (await stub.StartRun(wish)).run.state == pb.Run.STATE_PENDING, "it had started before"
    assert await reason(stub.StartRun(start(incident_id))) == "KILLED"


@pytest.mark.parametrize("who", ["automation", "agents", "gateway", "approver"])
async def test_nobody_else_starts_runs(api: Api, who: str) -> None:
    """Playbooks never start agents, agents start theirs within themselves, and an approver asks for nothing."""
    stub = await api.runs(who)
    assert await reason(stub.StartRun(start(api.ingest.open()))) == "PERMISSION_DENIED"


async def test_the_same_request_is_one_run(api: Api) -> None:
    """A repeated request_id gets the stored run, also after the incident closed; other content is refused."""
    stub, incident_id = await api.runs("router"), api.ingest.open()
    wish = start(incident_id)
    first = (await stub.StartRun(wish)).run
    api.ingest.incidents[incident_id].state = ingest.Incident.STATE_RESOLVED
    await api.sql("UPDATE agents.templates SET pins[1] = repeat('0', 64)")
    assert (await stub.StartRun(wish)).run == first
    wish.goal = "something else"
    assert await reason(stub.StartRun(wish)) == "REQUEST_ID_REUSED"
    assert len(await api.sql("SELECT run_id FROM agents.runs")) == 1


async def test_lists_have_filters_and_pages(api: Api) -> None:
    """Newest first, without steps; a token fits only the same filter."""
    await api.publish(template("other"))
    stub, incident_id = await api.runs("operator"), api.ingest.open()
    made = [(await stub.StartRun(start(incident_id))).run.run_id for _ in range(3)]
    elsewhere = (await stub.StartRun(start(api.ingest.open(), "other"))).run.run_id
    first = await stub.ListRuns(pb.ListRunsRequest(page_size=3))
    assert [one.run_id for one in first.runs] == [elsewhere, made[2], made[1]]
    rest = await stub.ListRuns(pb.ListRunsRequest(page_size=3, page_token=first.next_page_token))
    assert ([one.run_id for one in rest.runs], rest.next_page_token) == ([made[0]], "")

    async def found(**wanted: object) -> list[str]:
        answer = await stub.ListRuns(pb.ListRunsRequest(**wanted))  # type: ignore[arg-type]  # the test's own
        return [one.run_id for one in answer.runs]

    assert await found(incident_id=incident_id) == made[::-1]
    assert await found(template_id="other") == [elsewhere]
    assert await found(state=pb.Run.STATE_SUCCEEDED) == []
    assert len(await found(state=pb.Run.STATE_PENDING)) == 4
    other = pb.ListRunsRequest(page_size=3, page_token=first.next_page_token, template_id="other")
    assert await reason(stub.ListRuns(other)) == "INVALID_PAGE_TOKEN"


async def test_a_wish_to_stop_is_noted_once(api: Api) -> None:
    """An open run takes it, whoever may cancel; one that has ended, or never was, does not."""
    stub, incident_id = await api.runs("operator"), api.ingest.open()
    run_id = (await stub.StartRun(start(incident_id))).run.run_id
    wish = pb.CancelRunRequest(request_id=str(uuid.uuid4()), run_id=run_id, reason="enough")
    run = (await stub.CancelRun(wish)).run
    assert run.cancel_requested
    assert (await stub.CancelRun(wish)).run == run
    await api.sql("UPDATE agents.runs SET state = 'CANCELLED', end_time = now()")
    again = pb.CancelRunRequest(request_id=str(uuid.uuid4()), run_id=run_id, reason="enough")
    assert await reason(stub.CancelRun(again)) == "CONFLICT"
    again.run_id = str(uuid.uuid4())
    assert await reason(stub.CancelRun(again)) == "NOT_FOUND"
    assert await reason(stub.GetRun(pb.GetRunRequest(run_id=again.run_id))) == "NOT_FOUND"
    router = await api.runs("router")
    assert await reason(router.CancelRun(again)) == "PERMISSION_DENIED"
