"""Automation and the real guardrails: people answer, amend and stop, through the APIs that they use."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from opsmesh.guardrails.v1 import approval_service_pb2
from opsmesh.guardrails.v1 import kill_switch_service_pb2 as switch
from services.guardrails.main import RESERVED_MAX, furnish
from services.guardrails.settings import GuardrailsSettings
from services.local.temporal import Temporal
from services.mesh.client import Peers
from services.mesh.errors import Refusal
from services.mesh.postgres import open_pool
from tests.automation.fakes import Hold
from tests.automation.playbooks import TRIED
from tests.automation.world import Execution, Mesh, state_of
from tests.guardrails.people import asks
from tests.guardrails.world import NOTICE, RESTART, Context, House, failures, restart, rule
from tests.mesh.world import World
from tests.stores import Database

AWAITING = frozenset({"AWAITING_APPROVAL"})
Approval = approval_service_pb2.Approval
Stop = switch.Stop


@dataclass
class Pair:
    """Automation in its process, guardrails in this one, people on both."""

    mesh: Mesh
    home: House

    async def policy(self, *, ask: bool) -> None:
        """Let restarts pass, or ask one person about each; notices pass."""
        restarts = asks(methods=[RESTART]) if ask else rule("go", "ALLOW", methods=[RESTART])
        await self.home.publish(restarts, rule("tell", "ALLOW", methods=[NOTICE]))

    async def waiting(self) -> tuple[str, Approval]:
        """Start an execution and return it with the approval that it waits for."""
        execution = await self.mesh.reached(await self.mesh.start("tried"), AWAITING)
        return execution.execution_id, await self.approval(execution)

    async def approval(self, execution: Execution) -> Approval:
        """Read the approval of its step."""
        request = approval_service_pb2.GetApprovalRequest(approval_id=execution.steps[0].approval_id)
        return (await self.home.approvals().GetApproval(request)).approval

    async def approve(self, approval: Approval) -> None:
        """Let the approver say yes."""
        request = approval_service_pb2.ApproveRequest(
            request_id=str(uuid.uuid4()), approval_id=approval.approval_id, request_digest=approval.short_digest
        )
        await self.home.approvals("approver").Approve(request)

    async def engage(self, **scope: Any) -> str:
        """Let the operator stop something."""
        request = switch.EngageRequest(
            request_id=str(uuid.uuid4()), scope=switch.KillScope(**scope), reason="a test of the switch"
        )
        return (await self.home.leases("operator").Engage(request)).kill.kill_id

    async def release(self, kill_id: str) -> None:
        """Let two people let go."""
        for name in ("operator", "approver"):
            request = switch.ReleaseRequest(request_id=str(uuid.uuid4()), kill_id=kill_id)
            kill = (await self.home.leases(name).Release(request)).kill
            if kill.state == switch.Kill.STATE_RELEASED:
                return

    async def stops(self, kill_id: str) -> list[Stop]:
        """Read who has stopped."""
        request = switch.GetStatusRequest(kill_id=kill_id, include_released=True)
        (kill,) = (await self.home.leases("operator").GetStatus(request)).kills
        return list(kill.stops)

    async def reads(self, read: Callable[[], Awaitable[Any]], holds: Callable[[Any], object]) -> Any:
        """Read until something holds, and return it."""
        found: list[Any] = []

        async def look() -> None:
            found[:] = [await read()]

        await self.mesh.until_true(look, lambda: holds(found[0]))
        return found[0]


@pytest.fixture(scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory, postgres: Database, temporal: Temporal) -> AsyncIterator[Pair]:
    """Run both on a database of their own."""
    folder: Path = tmp_path_factory.mktemp("pair")
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(postgres.fresh())
        mesh = Mesh(World(folder / "world"), database, temporal, folder, {})
        mesh.gateway.signed = True
        for name, servicers in mesh.servers():
            if name != "guardrails":
                server = await stack.enter_async_context(mesh.world.serving(name, servicers))
                mesh.peers[name] = f"127.0.0.1:{server.port}"
        values = mesh.world.settings("guardrails").model_dump() | {
            "peers": dict(mesh.peers),
            "state": folder,
            "postgres_dsn": database.dsn("guardrails", with_password=False),
            "postgres_password_file": database.password_file("guardrails"),
            "grant_key_file": mesh.world.pki / "grant.key",
            "identity_public_key_file": mesh.world.pki / "identity.pub",
        }
        settings = GuardrailsSettings(**values)
        pool = await open_pool(settings, "guardrails")
        reserved = await open_pool(settings, "guardrails", maximum=RESERVED_MAX)
        peers, stop = Peers(settings), asyncio.Event()
        rooms = furnish(settings, pool, reserved, peers)
        workers = [asyncio.create_task(worker(stop)) for worker in rooms.workers]
        server = await stack.enter_async_context(mesh.world.serving("guardrails", rooms.servicers))
        mesh.peers["guardrails"] = f"127.0.0.1:{server.port}"
        gateway, ingest, audit = cast("Any", mesh.gateway), cast("Any", mesh.ingest), cast("Any", mesh.audit)
        home = House(mesh.world, database, gateway, ingest, audit, server)
        await Pair(mesh, home).policy(ask=True)
        await mesh.start_process()
        await mesh.publish(TRIED)
        try:
            yield Pair(mesh, home)
        finally:
            await mesh.stop_process()
            for caller in home.callers.values():
                await caller.close()
            stop.set()
            await asyncio.wait_for(asyncio.gather(*workers), 30)
            await peers.close()
            await reserved.close()
            await pool.close()


@pytest.fixture(autouse=True)
def fresh(pair: Pair) -> None:
    """Forget what the gateway saw."""
    pair.mesh.gateway.__dict__ |= type(pair.mesh.gateway)().__dict__ | {"signed": True}


async def test_approved(pair: Pair) -> None:
    """A yes of another person lets the step go on under a grant that names the approval; people were told both."""
    execution_id, approval = await pair.waiting()
    assert approval.requester == "service/automation"
    await pair.approve(approval)
    execution = await pair.mesh.reached(execution_id)
    assert state_of(execution) == "SUCCEEDED", execution
    (grant,) = [one for one in pair.mesh.gateway.grants if one.method == RESTART]
    assert (grant.approval_id, grant.playbook_id) == (approval.approval_id, "tried")
    await pair.mesh.until(lambda: len(pair.mesh.gateway.told) == 2)


async def test_amended(pair: Pair) -> None:
    """What the operator amends and the approver approves is what is sent."""
    execution_id, approval = await pair.waiting()
    wanted = json.loads(approval.judgement.request_json) | {"reason": "gently"}
    request = approval_service_pb2.AmendRequest(
        request_id=str(uuid.uuid4()),
        approval_id=approval.approval_id,
        request_digest=approval.short_digest,
        request_json=json.dumps(wanted),
    )
    amended = (await pair.home.approvals().Amend(request)).approval
    await pair.approve(amended)
    execution = await pair.mesh.reached(execution_id)
    assert state_of(execution) == "SUCCEEDED", execution
    (sent,) = [one for rpc, one in pair.mesh.gateway.seen if rpc == "RestartWorkload"]
    assert sent.reason == "gently"
    assert execution.steps[0].approval_id == amended.approval_id


async def test_drift(pair: Pair) -> None:
    """A state that changed since the question is asked about once more, and then it runs."""
    execution_id, approval = await pair.waiting()
    pair.mesh.gateway.process_id = 77
    await pair.approve(approval)

    async def now() -> Approval:
        return await pair.approval(await pair.mesh.get(execution_id))

    renewed = await pair.reads(now, lambda found: found.renewal == 1)
    assert renewed.amends_approval_id == approval.approval_id
    assert pair.mesh.gateway.done == []
    await pair.approve(renewed)
    assert state_of(await pair.mesh.reached(execution_id)) == "SUCCEEDED"


async def test_killed(pair: Pair) -> None:
    """A kill stops what waits, status says STOPPED by automation, starts are refused, two people let go."""
    execution_id, _ = await pair.waiting()
    kill_id = await pair.engage(everything=True)
    execution = await pair.mesh.reached(execution_id)
    assert (state_of(execution), execution.kill_id) == ("CANCELLED", kill_id)

    def stopped(stops: list[Stop]) -> bool:
        mine = [(one.subject, one.state) for one in stops if one.reporter == "service/automation"]
        return (execution_id, Stop.STATE_STOPPED) in mine

    await pair.reads(lambda: pair.stops(kill_id), stopped)
    with pytest.raises(Refusal) as refused:
        await pair.mesh.start("tried")
    assert refused.value.name == "KILLED"
    await pair.release(kill_id)
    # Whoever still calls for what was stopped is refused for ever.
    about = Context(incident_id=execution.incident_id, execution_id=execution_id, playbook_id="tried")
    assert failures(await pair.home.authorize(restart(), about))["safety"] == "KILLED"
    kinds = "KIND_KILL_ENGAGED", "KIND_KILL_RELEASED"
    name = type(pair.mesh.gateway.told[0]).Kind.Name
    await pair.mesh.until(lambda: [name(one.kind) for one in pair.mesh.gateway.told if one.kill_id] == list(kinds))
    execution_id, approval = await pair.waiting()
    await pair.approve(approval)
    assert state_of(await pair.mesh.reached(execution_id)) == "SUCCEEDED"


async def test_five_on_one_target(pair: Pair) -> None:
    """Five executions act one after another under five growing fences of guardrails."""
    await pair.policy(ask=False)
    holds = [Hold() for _ in range(5)]
    pair.mesh.gateway.turns["RestartWorkload"] = list(holds)
    started = [await pair.mesh.start("tried") for _ in holds]
    for place, hold in enumerate(holds):
        await hold.began.wait()
        assert not any(later.began.is_set() for later in holds[place + 1 :])
        hold.go.set()
    assert {state_of(await pair.mesh.reached(one)) for one in started} == {"SUCCEEDED"}
    fences = [one.fence for one in pair.mesh.gateway.grants if one.method == RESTART]
    assert fences == sorted(set(fences))
    assert len(fences) == len(started)
