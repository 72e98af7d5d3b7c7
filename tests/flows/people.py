"""What people do from the outside: the `opsmesh` command, and answers with a certificate each."""

import asyncio
import json
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from opsmesh.guardrails.v1 import approval_service_pb2, approval_service_pb2_grpc
from opsmesh.guardrails.v1 import kill_switch_service_pb2 as kills
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc as kills_grpc
from services.local.reach import credentials
from services.mesh.client import connect
from tests.flows.payloads import alertmanager, now
from tests.flows.world import GUARDED, SPARE, Incident, World, until
from tests.mesh.world import ROOT

Approval = approval_service_pb2.Approval
Kill = kills.Kill
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"}


def command(world: World, *words: str) -> list[str]:
    """Return how a person types `opsmesh WORDS` about this mesh."""
    return [sys.executable, "-m", "services.cli", *words, "--state", str(world.mesh.state)]


async def typed(world: World, *words: str) -> "subprocess.CompletedProcess[str]":
    """Type `opsmesh WORDS` and return what came of it."""
    return await asyncio.to_thread(
        subprocess.run,
        command(world, *words),
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def asked(world: World, *words: str) -> Any:
    """Type `opsmesh WORDS --json`, which must succeed and print one JSON document; return that."""
    done = await typed(world, *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def refused(world: World, *words: str) -> str:
    """Type `opsmesh WORDS`, which must be refused and name the next step; return the words of the refusal."""
    done = await typed(world, *words)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "NEXT: " in done.stderr
    return done.stderr


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody with a certificate of their own."""

    approvals: "approval_service_pb2_grpc.ApprovalServiceAsyncStub"
    switch: "kills_grpc.KillSwitchServiceAsyncStub"

    async def approve(self, approval: Approval) -> Approval:
        """Say yes to the bytes that were shown."""
        request = approval_service_pb2.ApproveRequest(
            request_id=str(uuid.uuid4()), approval_id=approval.approval_id, request_digest=approval.short_digest
        )
        return (await self.approvals.Approve(request)).approval

    async def engage(self, scope: kills.KillScope) -> Kill:
        """Stop what is in SCOPE."""
        request = kills.EngageRequest(request_id=str(uuid.uuid4()), scope=scope, reason="a story")
        return (await self.switch.Engage(request)).kill

    async def release(self, kill_id: str) -> Kill:
        """Let go."""
        request = kills.ReleaseRequest(request_id=str(uuid.uuid4()), kill_id=kill_id, reason="seen enough")
        return (await self.switch.Release(request)).kill

    async def kill(self, kill_id: str) -> Kill:
        """Return how a kill stands."""
        (found,) = (await self.switch.GetStatus(kills.GetStatusRequest(kill_id=kill_id))).kills
        return found


@asynccontextmanager
async def let_go(world: World) -> AsyncIterator[None]:
    """Release every kill that a story leaves behind when it fails: the next stories are about something else."""
    before = {one["kill_id"] for one in (await asked(world, "kill", "status"))["kills"]}
    try:
        yield
    except BaseException:
        for one in (await asked(world, "kill", "status"))["kills"]:
            if one["kill_id"] not in before:
                await typed(world, "kill", "release", one["kill_id"])
        raise


@asynccontextmanager
async def people(world: World, *names: str) -> AsyncIterator[Sequence[Person]]:
    """Give these people, each over a connection with their own certificate."""
    peer = world.mesh.peers()["guardrails"]
    opened = [connect(peer, "guardrails", credentials(world.mesh, name)) for name in names]
    try:
        yield [
            Person(approval_service_pb2_grpc.ApprovalServiceStub(one), kills_grpc.KillSwitchServiceStub(one))
            for one in opened
        ]
    finally:
        for one in opened:
            await one.close(None)


async def approval_of(world: World, incident_id: str, number: int = 1) -> Approval:
    """Wait for the NUMBERth approval that was asked for on an incident, and return it."""
    request = approval_service_pb2.ListApprovalsRequest(incident_id=incident_id)

    async def look() -> Sequence[Approval]:
        found = (await world.stubs.approvals.ListApprovals(request)).approvals
        return found if len(found) >= number else []

    found = await until(look, f"approval {number} of incident {incident_id}")
    return sorted(found, key=lambda one: one.create_time.ToNanoseconds())[number - 1]


async def now_is(world: World, approval: Approval) -> Approval:
    """Return an approval as it is now."""
    request = approval_service_pb2.GetApprovalRequest(approval_id=approval.approval_id)
    return (await world.stubs.approvals.GetApproval(request)).approval


async def guarded(world: World, env: str = GUARDED) -> tuple[str, Approval]:
    """Break the workload where people must approve, and post its alert; return incident and approval.

    People were told by then: whoever answers before that makes that notice needless.
    """
    await world.break_down(SPARE)
    _, incident_id = await world.recorded(await world.accepted("alertmanager", alertmanager(now(), env=env)))
    await world.reaches(incident_id, Incident.STATE_AWAITING_APPROVAL)
    approval = await approval_of(world, incident_id)

    async def asked_for() -> bool:
        return "APPROVAL_REQUESTED" in told(world, approval)

    await until(asked_for, "the notice of the approval")
    return incident_id, approval


def inbox(world: World) -> Sequence[Mapping[str, str]]:
    """Return what people were told, in order."""
    path = world.mesh.state / "services" / "gateway" / "inbox.jsonl"
    return [json.loads(one) for one in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def told(world: World, approval: Approval) -> Sequence[str]:
    """Return the kinds of the notices about an approval, in order."""
    return [one["kind"] for one in inbox(world) if one["approval_id"] == approval.approval_id]
