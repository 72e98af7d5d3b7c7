"""Guardrails and the gateway as a run sees them: in memory, or in a folder for runs whose process is killed."""

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from opsmesh.gateway.v1 import effect_service_pb2 as effects
from opsmesh.guardrails.v1 import approval_service_pb2 as approvals
from opsmesh.guardrails.v1 import guardrails_service_pb2 as guardrails
from opsmesh.tools.workload.v1 import workload_tool_service_pb2 as workload
from services.agents.runs.domain import Run
from services.agents.runs.peers import ReadPass
from services.mesh.failures import After, CallError
from services.mesh.tools import Tool

GRANT = b"grant"
PASS = b"read pass"
Hook = Callable[[str], None]


def no(reason: str, detail: str = "no", after: After = After.FAIL) -> CallError:
    """Return a refusal."""
    return CallError(reason, detail, after, 0.0)


@dataclass
class Outside:
    """Plays both; `verdicts` are used up in their order, ALLOW is what comes after. Every call is in `calls`."""

    folder: Path | None = None
    verdicts: "list[guardrails.Verdict.ValueType]" = field(default_factory=list)
    people: "approvals.Approval.State.ValueType" = approvals.Approval.STATE_PENDING
    amended: bytes = b""
    healthy: bool = True
    answers: dict[str, Message | CallError] = field(default_factory=dict)
    failures: dict[str, list[CallError]] = field(default_factory=dict)
    hook: Hook = lambda _: None
    # While it is cleared, effects happen and their answers wait.
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    acting: asyncio.Event = field(default_factory=asyncio.Event)
    # How the gateway says that an effect stands, the next times it is asked.
    stands: "list[effects.Effect.State.ValueType]" = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    registered: dict[str, Run] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    claims: dict[str, str] = field(default_factory=dict)
    locks: dict[str, tuple[str, int]] = field(default_factory=dict)
    fence: int = 0
    made: dict[str, str] = field(default_factory=dict)
    count: int = 0
    asked: int = 0
    person: str = ""

    def __post_init__(self) -> None:
        """Let everything be answered at once."""
        self.answering.set()

    def load(self) -> None:
        """Read what another process left."""
        path = self.folder / "outside.json" if self.folder else None
        if path is None or not path.exists():
            return
        known = json.loads(path.read_text())
        self.made, self.claims, self.fence = known["made"], known["claims"], known["fence"]
        self.locks = {target: (holder, fence) for target, (holder, fence) in known["locks"].items()}
        self.ended, self.count = set(known["ended"]), known["count"]

    def save(self) -> None:
        """Keep it for other processes, whole or not at all."""
        if self.folder is None:
            return
        known = {
            "made": self.made,
            "claims": self.claims,
            "locks": self.locks,
            "fence": self.fence,
            "ended": sorted(self.ended),
            "count": self.count,
        }
        fresh = self.folder / f"outside.{uuid.uuid4()}"
        fresh.write_text(json.dumps(known))
        fresh.replace(self.folder / "outside.json")

    def _fail(self, what: str) -> None:
        """Raise what was put there for a call."""
        self.hook(what)
        self.load()
        if waiting := self.failures.get(what):
            raise waiting.pop(0)

    async def register(self, run: Run) -> str:
        """Bind it; without a token guardrails knows only who registers."""
        self._fail("register")
        self.registered[run.run_id] = run
        return self.person or "service/agents"

    async def end(self, run_id: str) -> None:
        """End it."""
        self._fail("end")
        self.ended.add(run_id)
        self.save()

    async def claim(self, root_run_id: str, target_id: str) -> None:
        """Claim a target that nobody else has."""
        self._fail("claim")
        if self.claims.setdefault(target_id, root_run_id) != root_run_id:
            raise no("CLAIM_HELD")
        self.save()

    async def release_claim(self, root_run_id: str, target_id: str) -> None:
        """Give it back."""
        self._fail("release_claim")
        if self.claims.get(target_id) == root_run_id:
            del self.claims[target_id]
        self.save()

    async def read_pass(self, run_id: str) -> ReadPass:
        """Mint one."""
        self._fail("read_pass")
        if self.registered and run_id not in self.registered:
            raise no("RUN_NOT_OPEN")
        return ReadPass(PASS, time.time() + 300)

    async def lock(self, run_id: str, target_id: str) -> int:
        """Lock a target that nobody else has."""
        self._fail("lock")
        holder, fence = self.locks.get(target_id, ("", 0))
        if holder not in {"", run_id}:
            raise no("LOCK_HELD", after=After.AGAIN)
        if not holder:
            self.fence = fence = self.fence + 1
        self.locks[target_id] = (run_id, fence)
        self.save()
        return fence

    async def keep_lock(self, run_id: str, target_id: str, fence: int) -> None:
        """Keep it."""
        self._fail("keep_lock")
        if self.locks.get(target_id) != (run_id, fence):
            raise no("LOCK_REQUIRED", after=After.AGAIN)

    async def unlock(self, run_id: str, target_id: str, fence: int) -> None:
        """Give it back."""
        self._fail("unlock")
        if self.locks.get(target_id) == (run_id, fence):
            del self.locks[target_id]
        self.save()

    async def authorize(
        self, tool: Tool, request: bytes, context: guardrails.ActionContext
    ) -> guardrails.AuthorizeActionResponse:
        """Judge as told."""
        self._fail("authorize")
        self.asked += 1
        verdict = self.verdicts.pop(0) if self.verdicts else guardrails.VERDICT_ALLOW
        answer = guardrails.AuthorizeActionResponse(request=request)
        answer.judgement.verdict = verdict
        answer.judgement.method = tool.name
        if verdict == guardrails.VERDICT_ALLOW:
            answer.grant = GRANT
        if verdict == guardrails.VERDICT_REQUIRE_APPROVAL:
            answer.approval_id = str(uuid.uuid5(uuid.UUID(context.run_id), context.step_id))
        if verdict == guardrails.VERDICT_DENY:
            answer.judgement.reason = "POLICY_DENIED"
        return answer

    async def approval(self, approval_id: str) -> approvals.Approval:
        """Return how people answered."""
        self._fail("approval")
        return approvals.Approval(approval_id=approval_id, state=self.people, request=self.amended)

    async def call(self, tool: Tool, request: bytes, _seconds: float, grant: bytes) -> Message:
        """Answer a read; make an effect happen once per request id, recorded before it is answered."""
        self._fail(tool.rpc)
        message: Any = tool.request_class.FromString(request)
        request_id = str(getattr(message, "request_id", ""))
        if request_id and request_id not in self.made:
            assert grant == GRANT, "an effect without a grant"
            self.made[request_id], self.count = tool.rpc, self.count + 1
            self.save()
        if not request_id:
            assert grant == PASS, "a read without a pass"
        self.calls.append((tool.rpc, request_id or str(getattr(message, "target_id", ""))))
        self.hook(f"{tool.rpc} done")
        if request_id:
            self.acting.set()
            await self.answering.wait()
        answer = self.answers.get(tool.rpc)
        if isinstance(answer, CallError):
            raise answer
        if answer is not None:
            return answer
        if tool.rpc == "CheckHealth":
            return workload.CheckHealthResponse(healthy=self.healthy, status_code=200 if self.healthy else 503)
        return tool.response_class()

    async def effect(self, tool: Tool, request_id: str) -> effects.Effect | None:
        """Return what was made."""
        self._fail("effect")
        if request_id not in self.made:
            return None
        state = self.stands.pop(0) if self.stands else effects.Effect.STATE_SUCCEEDED
        return effects.Effect(method=tool.name, request_id=request_id, state=state)

    def rpcs(self) -> list[str]:
        """Return what was called, in order."""
        return [rpc for rpc, _ in self.calls]
