"""Runs: bound once, judged by what they are bound to, and the read grants that follow from it."""

import uuid

import asyncpg

from opsmesh.guardrails.v1 import grant_pb2
from opsmesh.guardrails.v1 import guardrails_service_pb2 as pb
from services.guardrails.runs.store import too_old
from services.mesh.retention import Retention
from tests.guardrails import running
from tests.guardrails.running import GET, HEALTH, act, claim, context, end, lock, publish, reads, refused, register
from tests.guardrails.world import CHECKOUT, NOTICE, PAYMENTS, RESTART, House, failures, notice

READ_PREFIX = b"opsmesh-read-grant\0"


def opened(home: House, answer: pb.AuthorizeReadsResponse) -> grant_pb2.ReadGrant:
    """Verify a read grant as the gateway would and return it."""
    signed = grant_pb2.SignedGrant.FromString(answer.grant)
    assert not signed.grant
    home.public_key.verify(signed.signature, READ_PREFIX + signed.read_grant)
    return grant_pb2.ReadGrant.FromString(signed.read_grant)


async def test_an_agent_acts_for_its_run(home: House) -> None:
    """With registration, claim and lock a run gets a grant that names it, its fence and its incident."""
    version = await publish(home)
    run = await running.working(home)
    answer = await act(home, run)
    assert failures(answer) == {}
    grant = home.opened(answer.grant)
    assert (grant.caller, grant.run_id, grant.execution_id) == ("service/agents", run.run_id, "")
    assert (grant.incident_id, grant.fence, grant.policy_set_version) == (run.incident_id, 1, version)


async def test_a_run_is_what_it_was_registered_as(home: House) -> None:
    """The answer says what a run is bound to; the same again, under any request id, gets the same."""
    await publish(home)
    incident = home.ingest.open(CHECKOUT, PAYMENTS)
    run_id = str(uuid.uuid4())
    run = await register(home, incident, CHECKOUT, PAYMENTS, run_id=run_id)
    assert (run.template_id, run.depth, run.requester, run.parent_run_id) == ("repair", 1, "service/agents", "")
    assert await register(home, incident, PAYMENTS, CHECKOUT, run_id=run_id) == run


async def test_a_read_grant_of_a_run(home: House) -> None:
    """It covers the reads of the template on the run's targets and what they depend on, for five minutes."""
    version = await publish(home)
    run = await register(home, home.ingest.open(CHECKOUT), CHECKOUT)
    answer = await reads(home, run_id=run.run_id)
    grant = opened(home, answer)
    assert list(grant.methods) == sorted([HEALTH, GET]) == list(answer.methods)
    assert [(one.target_id, one.environment) for one in grant.targets] == [(CHECKOUT, "demo"), (PAYMENTS, "demo")]
    assert (grant.caller, grant.run_id, grant.incident_id) == ("service/agents", run.run_id, run.incident_id)
    assert (grant.policy_set_version, grant.kill_epoch) == (version, 0)
    assert 299 <= grant.expire_time.seconds - grant.issue_time.seconds <= 300
    assert len(answer.grant) < 6 * 1024


async def test_a_read_grant_of_a_decision(home: House) -> None:
    """The router reads what it decides by, on the incident's targets and what they depend on; nothing that changes."""
    await publish(home)
    incident, decision = home.ingest.open(CHECKOUT), str(uuid.uuid4())
    grant = opened(home, await reads(home, "router", decision_id=decision, incident_id=incident))
    assert {name.split(".")[2] for name in grant.methods} == {
        "autoscaling",
        "change",
        "inventory",
        "logs",
        "metrics",
        "runbook",
        "workload",
    }
    assert RESTART not in grant.methods
    assert [one.target_id for one in grant.targets] == [CHECKOUT, PAYMENTS]
    assert (grant.caller, grant.decision_id, grant.run_id) == ("service/router", decision, "")


async def test_a_child_works_under_its_roots_claim(home: House) -> None:
    """A child has its parent's incident and person, one level more, and acts under the claim of the first run."""
    await publish(home)
    root = await register(home, home.ingest.open(CHECKOUT, PAYMENTS), CHECKOUT, PAYMENTS)
    assert await claim(home, root.run_id) == root.run_id
    child = await register(home, root.incident_id, CHECKOUT, parent_run_id=root.run_id)
    assert (child.depth, child.parent_run_id) == (2, root.run_id)
    assert await claim(home, child.run_id) == root.run_id
    await lock(home, child.run_id)
    assert failures(await act(home, child)) == {}


async def test_an_agent_tells_people_without_claim_or_lock(home: House) -> None:
    """A notice has no target: registration and allowance are enough."""
    await publish(home)
    run = await register(home, home.ingest.open(CHECKOUT), CHECKOUT, template_id="tell")
    answer = await home.authorize(notice(), context(run), method=NOTICE, name="agents")
    assert failures(answer) == {}
    assert answer.grant


async def test_runs_long_over_are_forgotten(home: House) -> None:
    """A year after its time a run is deleted, in guardrails' own name; what is younger stays."""
    await publish(home)
    old, young = [await register(home, home.ingest.open(CHECKOUT), CHECKOUT) for _ in range(2)]
    late = "UPDATE guardrails.runs SET expire_time = now() - interval '366 days' WHERE run_id = $1"
    await running.owned(home, late, uuid.UUID(old.run_id))
    async with asyncpg.create_pool(
        home.database.dsn("guardrails"), server_settings={"search_path": "guardrails"}
    ) as pool:
        assert await Retention(pool, too_old(365)).forget() == 1
    assert [str(row["run_id"]) for row in await home.fetch("SELECT run_id FROM guardrails.runs")] == [young.run_id]


async def test_what_runs_are_is_on_record(home: House) -> None:
    """Audit hears of registrations, read grants and ends, and of what was refused."""
    await publish(home)
    run = await register(home, home.ingest.open(CHECKOUT), CHECKOUT)
    await reads(home, run_id=run.run_id)
    await end(home, run.run_id)
    assert await refused(reads(home, run_id=run.run_id)) == "RUN_NOT_OPEN"
    assert await refused(register(home, home.ingest.open(PAYMENTS), CHECKOUT)) == "TARGET_NOT_OF_INCIDENT"
    # Two of the publish, and one of each of the five.
    events = [one for one in await home.events(7) if one.actor == "service/agents"]
    told = [(one.action.rpartition("/")[2], one.outcome, one.reason) for one in events]
    assert sorted(told) == [
        ("AuthorizeReads", 1, ""),
        ("AuthorizeReads", 4, "RUN_NOT_OPEN"),
        ("EndRun", 1, ""),
        ("RegisterRun", 1, ""),
        ("RegisterRun", 4, "TARGET_NOT_OF_INCIDENT"),
    ]
    assert {one.execution_id for one in events if one.outcome == 1} == {run.run_id}
