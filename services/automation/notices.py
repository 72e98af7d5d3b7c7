"""People are told what waits for them, what became of it, and what was stopped; each of it once, whatever restarts.

The words are a function of what guardrails keeps, and the request id one of subject and kind: a notice that is sent
again after a crash is the same notice.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc.aio
import structlog

from opsmesh.guardrails.v1 import approval_service_pb2, guardrails_service_pb2, kill_switch_service_pb2
from opsmesh.guardrails.v1 import approval_service_pb2_grpc as people_rpc
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc as kills_rpc
from opsmesh.tools.notify.v1 import notify_tool_service_pb2 as notify
from services.automation.calls import Calls
from services.automation.engines import Engine, EngineUnavailableError
from services.automation.telling import CLOSED, Telling, of_approval, of_kill
from services.automation.tries import IDENTITY
from services.mesh.call import working
from services.mesh.failures import After, CallError
from services.mesh.leases import Leases
from services.mesh.loop import every
from services.mesh.postgres import Pool
from services.mesh.streams import Follower
from services.mesh.tools import find_tool

PERIOD: Final = 1.0
SECONDS: Final = 30.0
# What nobody has closed is asked for again this often: it may have changed while nobody followed.
LOOK_SECONDS: Final = 15.0
OPEN_MAX: Final = 1000
# So many notices that do not go out say that the channel is down; a single one says something about itself.
FAILURES_MAX: Final = 3
# What may go out later; everything else would be refused again.
PASSING: Final = frozenset({After.AGAIN, After.AUTHORISE, After.RETRY})
Approval = approval_service_pb2.Approval
log = structlog.get_logger("opsmesh.automation.notices")


@dataclass(frozen=True, slots=True)
class Said:
    """What people were told about a subject so far."""

    subject: str
    kinds: frozenset[str]


class NoticeStore:
    """What people were told, in schema `automation`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def said(self, subjects: Sequence[str]) -> dict[str, set[str]]:
        """Return what was said about each of these subjects."""
        if not subjects:
            return {}
        rows = await self._pool.fetch(
            "SELECT subject::text, kind FROM automation.notices WHERE subject = ANY($1::uuid[])", subjects
        )
        found: dict[str, set[str]] = {}
        for row in rows:
            found.setdefault(row["subject"], set()).add(row["kind"])
        return found

    async def open(self) -> list[Said]:
        """Return the subjects about which more may be said, newest first."""
        rows = await self._pool.fetch(
            "SELECT subject::text, array_agg(kind) AS kinds FROM automation.notices GROUP BY subject "
            "HAVING NOT bool_or(kind = $1) ORDER BY max(create_time) DESC LIMIT $2",
            CLOSED,
            OPEN_MAX,
        )
        return [Said(row["subject"], frozenset(row["kinds"])) for row in rows]

    async def say(self, subject: str, kind: str) -> None:
        """Record that people were told."""
        await self._pool.execute(
            "INSERT INTO automation.notices (subject, kind) VALUES ($1, $2) ON CONFLICT DO NOTHING", subject, kind
        )


class Notices:
    """Two workers: one follows approvals, and wakes the executions that wait for them; the other tells people."""

    def __init__(
        self,
        store: NoticeStore,
        calls: Calls,
        leases: Leases,
        *,
        people: "people_rpc.ApprovalServiceAsyncStub",
        switch: "kills_rpc.KillSwitchServiceAsyncStub",
        engine: Engine,
    ) -> None:
        self._store = store
        self._calls = calls
        self._leases = leases
        self._people = people
        self._switch = switch
        self._engine = engine
        # The newest state of approvals that are not closed: bounded by what guardrails lets wait.
        self._approvals: dict[str, Approval] = {}
        self._kills: set[tuple[str, bool]] = set()
        self._looked = 0.0
        self._news = asyncio.Event()
        self._waking: set[asyncio.Task[None]] = set()
        self.watch = Follower("approvals", self._follow, self._take).work

    def _follow(self) -> object:
        return self._people.WatchApprovals(approval_service_pb2.WatchApprovalsRequest())

    def _take(self, message: approval_service_pb2.WatchApprovalsResponse) -> None:
        """Keep a change, and let the execution that waits for it look."""
        if not message.HasField("approval"):
            return
        approval = message.approval
        self._approvals[approval.approval_id] = approval
        self._news.set()
        if approval.state != Approval.STATE_PENDING and approval.context.execution_id:
            task = asyncio.create_task(self._wake(approval.context.execution_id))
            self._waking.add(task)
            task.add_done_callback(self._waking.discard)

    async def _wake(self, execution_id: str) -> None:
        """Wake one; without the engine it looks by itself, later."""
        try:
            await self._engine.wake(execution_id)
        except EngineUnavailableError as error:
            log.debug("not woken", execution_id=execution_id, error=str(error))

    async def work(self, stop: asyncio.Event) -> None:
        """Tell people until `stop`; at every start also about what happened while nobody followed."""
        await every(stop, PERIOD, self.tell, self._news)

    async def tell(self) -> None:
        """Tell people everything that they were not told yet; what fails now is tried again."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            await self._look_back()
            self._looked = time.monotonic()
        await self._tell_approvals()
        await self._tell_kills()

    async def _look_back(self) -> None:
        """Ask again for what is open in our own record and nobody speaks of any more."""
        leased = {kill.kill_id for kill in self._leases.kills}
        for said in await self._store.open():
            if said.kinds & {"KILL_ENGAGED"}:
                if said.subject not in leased:
                    self._kills.add((said.subject, True))
            elif said.subject not in self._approvals:
                await self._ask(said.subject)

    async def _ask(self, approval_id: str) -> None:
        with working(IDENTITY, "notices/approval", SECONDS):
            try:
                self._approvals[approval_id] = await self._calls.approval(approval_id)
            except CallError as error:
                if error.reason == "NOT_FOUND":
                    await self._store.say(approval_id, CLOSED)

    async def _tell_approvals(self) -> None:
        said, failures = await self._store.said(list(self._approvals)), 0
        for approval in list(self._approvals.values()):
            known = said.get(approval.approval_id, set())
            if not await self._say([one for one in of_approval(approval, time.time()) if one.kind not in known]):
                failures += 1
                if failures >= FAILURES_MAX:
                    return
            elif (CLOSED in known or _over(approval)) and self._approvals.get(approval.approval_id) is approval:
                del self._approvals[approval.approval_id]
                await self._store.say(approval.approval_id, CLOSED)

    async def _tell_kills(self) -> None:
        wanted = self._kills | {(kill.kill_id, kill.released) for kill in self._leases.kills}
        said = await self._store.said([kill_id for kill_id, _ in wanted])
        for kill_id, released in wanted:
            known = said.get(kill_id, set())
            if CLOSED in known or (not released and "KILL_ENGAGED" in known):
                continue
            kill = await self._kill(kill_id)
            if kill is None:
                continue
            if not await self._say([one for one in of_kill(kill) if one.kind not in known]):
                return
            if kill.state == kill_switch_service_pb2.Kill.STATE_RELEASED:
                await self._store.say(kill_id, CLOSED)
        self._kills.clear()

    async def _say(self, tellings: Sequence[Telling]) -> bool:
        """Send notices in order; False when one must be tried again, with those after it."""
        for telling in tellings:
            if not await self._send(telling):
                return False
        return True

    async def _kill(self, kill_id: str) -> kill_switch_service_pb2.Kill | None:
        request = kill_switch_service_pb2.GetStatusRequest(kill_id=kill_id, include_released=True)
        try:
            found = (await self._switch.GetStatus(request)).kills
        except grpc.aio.AioRpcError as error:
            log.warning("kill not read", kill_id=kill_id, error=str(error.details()))
            return None
        return found[0] if found else None

    async def _send(self, telling: Telling) -> bool:
        """Send one notice and record it; False when it must be tried again."""
        request, tool = telling.request, find_tool("SendNotice")
        # Without an incident, which is in the request: telling people must not wait for ingest.
        context = guardrails_service_pb2.ActionContext()
        with working(IDENTITY, "notices/send", SECONDS, request_id=request.request_id):
            try:
                await self._deliver(tool, request, context)
            except CallError as error:
                if error.after in PASSING:
                    log.warning("notice not sent", kind=telling.kind, subject=telling.subject, error=str(error))
                    return False
                log.warning("notice given up", kind=telling.kind, subject=telling.subject, error=str(error))
        await self._store.say(telling.subject, telling.kind)
        return True

    async def _deliver(self, tool: Any, request: notify.SendNoticeRequest, context: Any) -> None:
        """Have it judged, and send it; raises CallError."""
        judged = await self._calls.authorize(tool, request, context)
        judgement = judged.judgement
        if judgement.verdict != guardrails_service_pb2.VERDICT_ALLOW:
            raise _refused(judgement)
        await self._calls.tool(tool, judged.request, SECONDS, judged.grant)


def _refused(judgement: guardrails_service_pb2.Judgement) -> CallError:
    """Return a verdict other than ALLOW as what it is for a notice: the end of it."""
    return CallError(
        "POLICY_DENIED", judgement.reason or "policy does not let automation tell people", After.FAIL, None
    )


def _over(approval: Approval) -> bool:
    """Say whether nothing more will be said: it is closed, or was executed."""
    if approval.state == Approval.STATE_APPROVED:
        return approval.HasField("execute_time")
    return approval.state != Approval.STATE_PENDING
