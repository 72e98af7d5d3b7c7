"""Runs behind the real guardrails and gateway: what the fakes of the other tests play, played by the real ones."""

import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from opsmesh.config.v1 import policies_pb2
from opsmesh.guardrails.v1 import approval_service_pb2 as approvals
from opsmesh.guardrails.v1 import approval_service_pb2_grpc
from opsmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from opsmesh.type.v1 import type_pb2
from services.mesh.client import Peers
from tests.agents.run_house import QUICK, Runs, check, report, restart, running, template
from tests.gateway.guarded import Guarded, guarded
from tests.guardrails.world import FakeIngest
from tests.mesh.world import World
from tests.stores import Database

HERE, THERE = "svc:demo/w0", "svc:demo/w1"
ALLOWANCE = policies_pb2.AgentAllowance(template_id="repair", tools=["GetWorkload", "CheckHealth", "RestartWorkload"])


@dataclass
class House:
    """The engine before the real ones."""

    runs: Runs
    guarded: Guarded
    ingest: FakeIngest

    def open(self) -> ingest_service_pb2.Incident:
        """Open an incident on two targets."""
        made = self.ingest.incidents[self.ingest.open(HERE, THERE)]
        del made.targets[:]
        for target_id in (HERE, THERE):
            made.targets.append(type_pb2.Target(target_id=target_id, environment="demo", in_inventory=True))
        made.source = "alertmanager"
        return made


@pytest.fixture(scope="module")
async def house(postgres: Database) -> AsyncIterator[House]:
    """Run all of it, once for this file."""
    with tempfile.TemporaryDirectory(prefix="ag-") as name:
        folder, intake = Path(name), FakeIngest()
        async with AsyncExitStack() as stack:
            database = await stack.enter_async_context(postgres.fresh())
            # Its own certificates are those of the guarded world: made first, found again there.
            world = World(folder / "w")
            add = ingest_service_pb2_grpc.add_IngestServiceServicer_to_server
            server = await stack.enter_async_context(world.serving("ingest", [(add, intake)]))
            inside = await stack.enter_async_context(guarded(folder, database, 2, ingest_port=server.port))
            await inside.publish(ALLOWANCE)
            ports = {one: f"127.0.0.1:{port}" for one, port in inside.ports.items()}
            peers = Peers(inside.world.settings("agents", peers=ports))
            stack.push_async_callback(peers.close)
            runs = await stack.enter_async_context(running(inside.world, database, pace=QUICK, peers=peers))
            yield House(runs, inside, intake)


async def test_it_acts_once_and_is_observed(house: House) -> None:
    """Registered, claimed, locked, judged, sent: one restart; its health is read, and is not what the model says."""
    house.runs.script.lines = {"": ([check(HERE)], [restart(HERE)], [report()])}
    before = len(house.guarded.recorder.stops["w0"])
    run = await house.runs.until(await house.runs.start(targets=(HERE,), incident=house.open()), closed=True)
    assert (run.state, run.reason, run.detail) == ("SUCCEEDED", "", "")
    assert len(house.guarded.recorder.stops["w0"]) == before + 1
    assert run.steps[3].verdict == "ALLOW"
    assert run.steps[-1].kind == "PROOF"
    assert run.health_proved is ('"healthy": true' in run.steps[-1].result)
    left = await house.runs.rows("SELECT count(*) AS number FROM runs WHERE NOT closed")
    assert left[0]["number"] == 0


async def test_runs_on_one_target_follow_each_other(house: House) -> None:
    """The real claim lets one in at a time, and every one of them gets its turn."""
    house.runs.script.lines = {"": ([check(HERE)], [restart(HERE)], [report()])}
    before = len(house.guarded.recorder.stops["w0"])
    incident = house.open()
    ids = [await house.runs.start(targets=(HERE,), incident=incident) for _ in range(3)]
    ended = [await house.runs.until(one, closed=True) for one in ids]
    assert [one.state for one in ended] == ["SUCCEEDED"] * 3
    assert len(house.guarded.recorder.stops["w0"]) == before + 3


async def test_people_approve_exactly_this(house: House) -> None:
    """Policy wants a person: nothing happens until one says yes to it, and then it happens once."""
    rule = policies_pb2.PolicyRule(
        rule_id="ask",
        verdict=policies_pb2.PolicyRule.VERDICT_REQUIRE_APPROVAL,
        match=policies_pb2.PolicyMatch(),
        approval=policies_pb2.ApprovalNeed(approvers=1),
    )
    await house.guarded.publish(ALLOWANCE, rule=rule)
    house.runs.script.lines = {"": ([check(HERE)], [restart(HERE)], [report()])}
    before = len(house.guarded.recorder.stops["w0"])
    waiting = await house.runs.until(
        await house.runs.start(targets=(HERE,), incident=house.open()), "AWAITING_APPROVAL"
    )
    assert len(house.guarded.recorder.stops["w0"]) == before
    async with house.guarded.channel("guardrails", "approver") as channel:
        stub = approval_service_pb2_grpc.ApprovalServiceStub(channel)
        asked = approvals.GetApprovalRequest(approval_id=waiting.approval_id)
        approval = (await stub.GetApproval(asked)).approval
        answer = approvals.ApproveRequest(
            request_id=str(uuid.uuid4()), approval_id=approval.approval_id, request_digest=approval.short_digest
        )
        await stub.Approve(answer)
    run = await house.runs.until(waiting.run_id, closed=True)
    assert (run.state, run.steps[3].approval_id) == ("SUCCEEDED", waiting.approval_id)
    assert len(house.guarded.recorder.stops["w0"]) == before + 1
    await house.guarded.publish(ALLOWANCE)


async def test_a_template_that_policy_does_not_name(house: House) -> None:
    """It is published, and its runs fail at their registration, before any model is asked."""
    asked = len(house.runs.script.asked)
    run = await house.runs.until(
        await house.runs.start(template("unknown"), targets=(HERE,), incident=house.open()), closed=True
    )
    assert (run.state, run.reason) == ("FAILED", "TOOL_NOT_OF_RUN")
    assert len(house.runs.script.asked) == asked
