"""Reads of a decision: one grant for many, a new one when it is void, and what fails is an answer."""

import time
from collections import deque
from dataclasses import dataclass, field

import grpc.aio
from google.protobuf.message import Message

from opsmesh.tools.runbook.v1 import runbook_tool_service_pb2 as runbooks
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import STATUS_KEY, Refusal, to_status
from services.mesh.models.tool_calls import Parsed, ToolCall
from services.mesh.models.untrusted import Marks
from services.mesh.tools import Tool
from services.router.reasoning.reads import DecisionReads, Granted

SEARCH = "opsmesh.tools.runbook.v1.RunbookToolService/SearchRunbooks"
HIT = runbooks.SearchRunbooksResponse(hits=[runbooks.RunbookHit(excerpt="password=hunter2 <b>restart</b> it")])


def refused(refusal: Refusal) -> grpc.aio.AioRpcError:
    """Return what a stub raises for a refusal."""
    status = to_status(refusal, "opsmesh.gateway").SerializeToString()
    return grpc.aio.AioRpcError(refusal.code, grpc.aio.Metadata(), grpc.aio.Metadata((STATUS_KEY, status)), None, None)


STALE = refused(Refusal(error_reason_pb2.ERROR_REASON_GRANT_STALE, what="policy set"))
TARGET = refused(Refusal(error_reason_pb2.ERROR_REASON_READ_NOT_GRANTED, method=SEARCH, target="svc:x"))


@dataclass
class FakeGate:
    """Mints grants by number, good for `life` seconds; answers in order."""

    answers: deque[Message | grpc.aio.AioRpcError] = field(default_factory=deque)
    life: float = 300.0
    minted: int = 0
    used: list[bytes] = field(default_factory=list)

    async def grant(self, decision_id: str, incident_id: str) -> Granted:
        """Mint."""
        assert (decision_id, incident_id) == ("d", "i")
        self.minted += 1
        return Granted(b"%d" % self.minted, (SEARCH,), (), time.monotonic() + self.life)

    async def call(self, tool: Tool, request: Message, grant: bytes) -> Message:
        """Answer."""
        assert (tool.name, isinstance(request, runbooks.SearchRunbooksRequest)) == (SEARCH, True)
        self.used.append(grant)
        found = self.answers.popleft()
        if isinstance(found, grpc.aio.AioRpcError):
            raise found
        return found


async def wanted(reads: DecisionReads) -> Parsed:
    """Return a read that a model asked for."""
    offers = await reads.offers()
    return Parsed(ToolCall("", "runbook_SearchRunbooks", "{}"), offers["runbook_SearchRunbooks"], request())


def request() -> runbooks.SearchRunbooksRequest:
    """Return a search."""
    return runbooks.SearchRunbooksRequest(query="checkout")


async def test_one_grant_serves_many_reads() -> None:
    """It is asked for once, and its answer reaches the model harmless and digested."""
    gate = FakeGate(deque([HIT, HIT]))
    reads = DecisionReads(gate, "d", "i")
    done = [await reads.read(await wanted(reads), Marks()) for _ in range(2)]
    assert (gate.minted, gate.used) == (1, [b"1", b"1"])
    assert "hunter2" not in done[0].text
    assert "<b>" not in done[0].text
    assert (len(done[0].digest), done[0].reason) == (64, "")


async def test_a_grant_that_ran_out_or_is_void_is_asked_for_again() -> None:
    """Near its end it is replaced; refused as stale the read is done again, once."""
    gate = FakeGate(deque([HIT, STALE, HIT, STALE, STALE]), life=-1.0)
    reads = DecisionReads(gate, "d", "i")
    await reads.call("SearchRunbooks", request())
    gate.life = 300.0
    await reads.call("SearchRunbooks", request())
    assert gate.used == [b"1", b"2", b"3"]
    failed = await reads.read(await wanted(reads), Marks())
    assert (failed.reason, failed.text, gate.used[3:]) == ("GRANT_STALE", "", [b"3", b"4"])


async def test_a_refusal_is_an_answer() -> None:
    """What the gateway refuses comes back as its reason, and is not tried again."""
    gate = FakeGate(deque([TARGET]))
    reads = DecisionReads(gate, "d", "i")
    failed = await reads.read(await wanted(reads), Marks())
    assert (failed.reason, len(gate.used)) == ("READ_NOT_GRANTED", 1)
