"""Agents on a whole mesh, with recorded models: what no rule knows, what failed, what was wished, what is stopped."""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from opsmesh.agents.v1 import agent_service_pb2 as agents
from opsmesh.router.v1 import decision_service_pb2
from tests.flows.payloads import alertmanager, now
from tests.flows.people import Approval, approval_of, asked, let_go, now_is, people, refused, typed
from tests.flows.world import GUARDED, RESTART, SPARE, Incident, World, running_world, until

Decision = decision_service_pb2.Decision
Run = agents.Run
RECORDINGS = Path(__file__).parent / "recordings"
UNKNOWN = "PoolExhausted"


@pytest.fixture(scope="module")
def stage() -> Path:
    """Give a folder with a short path that PostgreSQL's user, who is not root, can be let through to."""
    path = Path(tempfile.mkdtemp(prefix="opsmesh-agents-"))
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
async def mesh(stage: Path) -> AsyncIterator[World]:
    """Give a mesh of its own: the other stories are about a mesh without models."""
    async with running_world(stage, RECORDINGS) as running:
        yield running


async def run_of(world: World, incident_id: str, *states: "Run.State.ValueType") -> Run:
    """Wait for the one run of an incident in one of STATES, with its steps."""

    async def look() -> Run | None:
        try:
            runs = (await world.stubs.agents.ListRuns(agents.ListRunsRequest(incident_id=incident_id))).runs
        except grpc.aio.AioRpcError as error:
            # It was killed a moment ago.
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return None
        assert len(runs) <= 1
        if not runs or runs[0].state not in states:
            return None
        return (await world.stubs.agents.GetRun(agents.GetRunRequest(run_id=runs[0].run_id))).run

    found = await until(look, f"the run of incident {incident_id}", 60)
    assert found is not None
    return found


async def waiting(world: World) -> tuple[str, Approval]:
    """Break the guarded checkout and post an alert that no rule knows; return incident and the agent's approval."""
    await world.break_down(SPARE)
    body = alertmanager(now(), name=UNKNOWN, env=GUARDED)
    _, incident_id = await world.recorded(await world.accepted("alertmanager", body))
    await world.reaches(incident_id, Incident.STATE_AWAITING_APPROVAL, seconds=60)
    return incident_id, await approval_of(world, incident_id)


async def restarts(world: World, incident_id: str) -> int:
    """Return how many restarts the gateway began for an incident."""
    query = "SELECT count(*) FROM gateway.effects WHERE method = $1 AND incident_id = $2"
    return int(await world.value(query, RESTART, incident_id))


async def test_an_agent_repairs_once_across_kill_9(mesh: World) -> None:
    """Delegated, diagnosed, asked; agents and router are killed -9 while people think; approved, done once, proved."""
    starts = mesh.workloads[SPARE].start_count()
    incident_id, approval = await waiting(mesh)
    for name in ("agents", "router"):
        process = mesh.process(name)
        assert process is not None
        process.kill()
    async with people(mesh, "approver") as (approver,):
        await approver.approve(approval)
    run = await run_of(mesh, incident_id, Run.STATE_SUCCEEDED)
    assert run.health_proved
    assert [agents.RunStep.Kind.Name(step.kind).removeprefix("KIND_") for step in run.steps] == [
        "MODEL",
        "READ",
        "MODEL",
        "ACTION",
        "MODEL",
        "REPORT",
        "PROOF",
    ]
    await mesh.reaches(incident_id, Incident.STATE_RESOLVED, seconds=60)
    (decision,) = await mesh.decisions(incident_id)
    assert (decision.outcome, decision.result) == (Decision.OUTCOME_DELEGATE_AGENT, Decision.RESULT_REPAIRED)
    assert decision.recorded
    assert (decision.rule_id, decision.model_call_count) == ("", 1)
    assert await restarts(mesh, incident_id) == 1
    assert mesh.workloads[SPARE].start_count() == starts + 1
    shown = await asked(mesh, "agents", "show", run.run_id)
    assert shown["steps"][3]["approval_id"] == approval.approval_id
    assert "[replayed" in (await typed(mesh, "agents", "show", run.run_id)).stdout


async def test_a_failed_playbook_opens_one_run_and_then_asks_a_person(mesh: World) -> None:
    """Nobody approves in time: the run gets the trace and hands over; a person is asked, nothing was restarted."""
    starts = mesh.workloads[SPARE].start_count()
    await mesh.break_down(SPARE)
    _, incident_id = await mesh.recorded(await mesh.accepted("alertmanager", alertmanager(now(), env="production")))
    run = await run_of(mesh, incident_id, Run.STATE_SUCCEEDED)
    assert run.report.outcome == agents.RunReport.OUTCOME_ESCALATED
    first, second, *_ = await mesh.decisions(incident_id)
    assert run.execution_id == first.execution_id
    assert (second.outcome, second.model_call_count) == (Decision.OUTCOME_DELEGATE_AGENT, 0)
    await mesh.reaches(incident_id, Incident.STATE_AWAITING_PERSON, seconds=60)
    third = (await mesh.decisions(incident_id))[-1]
    assert third.outcome == Decision.OUTCOME_ASK_HUMAN
    assert run.run_id in third.question.question
    assert mesh.workloads[SPARE].start_count() == starts
    await mesh.resolve(incident_id)


async def test_a_kill_of_a_run_ends_it_and_its_approval(mesh: World) -> None:
    """The run is CANCELLED and reported STOPPED, its approval is void, and what comes next is for people to say."""
    starts = mesh.workloads[SPARE].start_count()
    incident_id, approval = await waiting(mesh)
    run = await run_of(mesh, incident_id, Run.STATE_AWAITING_APPROVAL)
    async with let_go(mesh):
        kill = await asked(mesh, "kill", "engage", "--run", run.run_id, "--reason", "a story")
        ended = await run_of(mesh, incident_id, Run.STATE_CANCELLED)
        assert ended.kill_id == kill["kill_id"]
        assert (await now_is(mesh, approval)).close_reason == "KILLED"

        async def reported() -> bool:
            (shown,) = (await asked(mesh, "kill", "status"))["kills"]
            stops = {(one["kind"], one["subject"]): one["state"] for one in shown["stops"]}
            return stops.get(("KIND_RUN", run.run_id)) == "STATE_STOPPED"

        await until(reported, "a report of the stopped run", pause=0.5)
        assert (await asked(mesh, "kill", "release", kill["kill_id"]))["state"] == "STATE_RELEASED"
    assert mesh.workloads[SPARE].start_count() == starts
    assert await restarts(mesh, incident_id) == 0
    await mesh.resolve(incident_id)


async def test_a_wish_is_asked_back_confirmed_approved_by_another_and_done(mesh: World) -> None:
    """A person chats: a plan, nothing before the yes; the incident of the wish is theirs, so they may not approve."""
    starts = mesh.workloads[SPARE].start_count()
    await mesh.break_down(SPARE)
    said = await typed(
        mesh, "chat", "find out what is wrong with the pool of checkout in guarded, and fix it", "--json"
    )
    assert said.returncode == 0, said.stderr
    before = set(await mesh.rows("SELECT incident_id FROM ingest.incidents WHERE source = 'chat'"))
    assert before == set()
    conversation = said.stdout.split('"conversation_id": "', 1)[1][:36]
    yes = await typed(mesh, "chat", "yes", "--conversation", conversation, "--json")
    assert yes.returncode == 0, yes.stderr

    async def opened() -> str:
        return str(await mesh.value("SELECT incident_id::text FROM ingest.incidents WHERE source = 'chat'") or "")

    incident_id = await until(opened, "the incident of the wish")
    approval = await approval_of(mesh, incident_id)
    answer = ("approvals", "approve", approval.approval_id, "--digest", approval.short_digest)
    assert "APPROVER_IS_REQUESTER" in await refused(mesh, *answer)
    await asked(mesh, *answer, "--as", "approver")
    run = await run_of(mesh, incident_id, Run.STATE_SUCCEEDED)
    assert (run.requester, run.health_proved) == ("human/operator", True)
    await mesh.reaches(incident_id, Incident.STATE_RESOLVED, seconds=60)
    assert mesh.workloads[SPARE].start_count() == starts + 1
