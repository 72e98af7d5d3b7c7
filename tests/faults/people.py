"""The people of a storm: they approve, reject, forget to answer, resolve, stop everything and let it go again."""

import asyncio
import random
import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_fixed

from opsmesh.guardrails.v1 import (
    approval_service_pb2,
    approval_service_pb2_grpc,
    kill_switch_service_pb2,
    kill_switch_service_pb2_grpc,
)
from opsmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from services.mesh.loop import wait
from tests.faults.world import channel
from tests.flows.world import RESTART, TILLS, World

PENDING = approval_service_pb2.Approval.STATE_PENDING
Scope = kill_switch_service_pb2.KillScope
# Passing: somebody is away, or was when it was asked.
PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED)
PATIENCE = 90
LOOK_SECONDS = 0.4
HOLD = (2.5, 4.5)


def passing(error: BaseException) -> bool:
    """Say whether to ask again, under the same request id."""
    return isinstance(error, grpc.aio.AioRpcError) and error.code() in PASSING


def new_id() -> str:
    """Return a request id."""
    return str(uuid.uuid4())


@dataclass(slots=True)
class People:
    """Approvers and operators, each with a certificate of their own.

    `over`: no more faults come; `done_with`: nobody needs an answer any more.
    """

    world: World
    chance: random.Random
    over: asyncio.Event
    done_with: asyncio.Event
    done: Counter[str] = field(default_factory=Counter)

    async def answer(self) -> None:
        """Answer approvals: most yes, some no, some not at all."""
        forgotten: set[str] = set()
        async with channel(self.world.mesh, "guardrails", "approver") as guardrails:
            stub = approval_service_pb2_grpc.ApprovalServiceStub(guardrails)
            while not await wait(self.done_with, LOOK_SECONDS):
                request = approval_service_pb2.ListApprovalsRequest(state=PENDING, page_size=50)
                with suppress(grpc.aio.AioRpcError):
                    for one in (await stub.ListApprovals(request, timeout=3)).approvals:
                        if one.approval_id not in forgotten:
                            forgotten.add(one.approval_id)
                            await self._say(stub, one)

    async def _say(
        self, stub: "approval_service_pb2_grpc.ApprovalServiceAsyncStub", one: approval_service_pb2.Approval
    ) -> None:
        """Answer one approval, once; the first one with yes."""
        word = (
            self.chance.choices(("approve", "reject", "nothing"), (8, 1, 1))[0] if self.done["approved"] else "approve"
        )
        answer = {"request_id": new_id(), "approval_id": one.approval_id, "request_digest": one.short_digest}
        if word == "approve":
            await self._ask(stub.Approve, approval_service_pb2.ApproveRequest(**answer))
        elif word == "reject":
            await self._ask(stub.Reject, approval_service_pb2.RejectRequest(**answer))
        self.done[{"approve": "approved", "reject": "rejected", "nothing": "did not answer"}[word]] += 1

    async def _ask(self, method: Any, request: Any) -> Any:
        """Call until there is an answer or a refusal for good, which is passed on."""
        retrying = AsyncRetrying(
            retry=retry_if_exception(passing), stop=stop_after_delay(PATIENCE), wait=wait_fixed(0.3), reraise=True
        )

        async def call() -> Any:
            return await method(request, timeout=5)

        return await retrying(call)

    async def resolve(self, incident_id: str) -> None:
        """Resolve an incident that the mesh left to people."""
        request = ingest_service_pb2.ResolveIncidentRequest(
            request_id=new_id(), incident_id=incident_id, reason="looked at it"
        )
        async with channel(self.world.mesh, "ingest", "operator") as ingest:
            await self._ask(ingest_service_pb2_grpc.IngestServiceStub(ingest).ResolveIncident, request)
        self.done["resolved by a person"] += 1

    async def switch(self, times: int, pause: float) -> None:
        """Engage the kill switch, hold it, and release it with as many people as it takes."""
        scopes = [
            Scope(everything=True),
            Scope(environment="demo"),
            Scope(target_id=f"svc:demo/{TILLS[0]}"),
            Scope(tool=RESTART),
            Scope(playbook_id="restart-workload"),
        ]
        first = self.chance.randrange(len(scopes))
        for number in range(first, first + times):
            await wait(self.over, self.chance.uniform(3, 5) * pause)
            await self._engaged(scopes[number % len(scopes)])

    async def _engaged(self, scope: Scope) -> None:
        """Stop a scope for some seconds."""
        engage = kill_switch_service_pb2.EngageRequest(request_id=new_id(), scope=scope, reason="a storm")
        async with channel(self.world.mesh, "guardrails", "operator") as guardrails:
            stub = kill_switch_service_pb2_grpc.KillSwitchServiceStub(guardrails)
            kill = (await self._ask(stub.Engage, engage)).kill
            self.done[f"stopped {scope.WhichOneof('scope')}"] += 1
        await wait(self.done_with, self.chance.uniform(*HOLD))
        for person in ("operator", "approver", "approver2"):
            if await self._released(kill.kill_id, person):
                self.done["released"] += 1
                return

    async def _released(self, kill_id: str, person: str) -> bool:
        """Release a kill as one person; say whether that was enough."""
        release = kill_switch_service_pb2.ReleaseRequest(request_id=new_id(), kill_id=kill_id, reason="all clear")
        async with channel(self.world.mesh, "guardrails", person) as guardrails:
            stub = kill_switch_service_pb2_grpc.KillSwitchServiceStub(guardrails)
            kill = (await self._ask(stub.Release, release)).kill
        return bool(kill.state == kill_switch_service_pb2.Kill.STATE_RELEASED)
