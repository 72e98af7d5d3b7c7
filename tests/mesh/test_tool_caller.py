"""Calling any tool without knowing it: exactly these bytes, the grant if there is one, a refusal as it came."""
# ruff: noqa: N802  the names are those of the IDL

from typing import Any

import grpc.aio
import pytest

from opsmesh.tools.workload.v1 import workload_tool_service_pb2 as pb
from opsmesh.tools.workload.v1 import workload_tool_service_pb2_grpc as rpc
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.call import Call, current
from services.mesh.client import refusal_of
from services.mesh.errors import Refusal
from services.mesh.tool_caller import GRANT_KEY, ToolCaller
from services.mesh.tools import find_tool
from tests.mesh.world import World

TARGET = "svc:demo/checkout"


class FakeWorkloads(rpc.WorkloadToolServiceServicer):
    """Keeps what reaches it; answers reads, refuses effects."""

    def __init__(self) -> None:
        self.seen: list[tuple[Call, bytes]] = []

    def _see(self, request: Any) -> None:
        self.seen.append((current(), request.SerializeToString(deterministic=True)))

    async def GetWorkload(self, request: pb.GetWorkloadRequest, _: Any) -> pb.GetWorkloadResponse:
        """Say that it runs."""
        self._see(request)
        return pb.GetWorkloadResponse(workload=pb.Workload(target_id=request.target_id))

    async def CheckHealth(self, request: pb.CheckHealthRequest, _: Any) -> pb.CheckHealthResponse:
        """Say nothing of note."""
        self._see(request)
        return pb.CheckHealthResponse()

    async def RestartWorkload(self, request: pb.RestartWorkloadRequest, _: Any) -> pb.RestartWorkloadResponse:
        """Refuse."""
        self._see(request)
        raise Refusal(error_reason_pb2.ERROR_REASON_GRANT_INVALID, what="it is for other bytes")


async def test_the_bytes_arrive_as_they_were_given_and_the_answer_is_typed(world: World) -> None:
    """With a grant it travels beside them, without one there is none, and the answer is the tool's own message."""
    fake, tool = FakeWorkloads(), find_tool("GetWorkload")
    raw = pb.GetWorkloadRequest(target_id=TARGET).SerializeToString(deterministic=True)
    servicers = [(rpc.add_WorkloadToolServiceServicer_to_server, fake)]
    async with world.serving("gateway", servicers) as server, world.channel(server, "automation") as channel:
        caller = ToolCaller(channel)
        answer = await caller.call(tool, raw, 5.0, b"granted")
        await caller.call(tool, raw, 5.0)
    assert isinstance(answer, pb.GetWorkloadResponse)
    assert answer.workload.target_id == TARGET
    assert [sent for _, sent in fake.seen] == [raw, raw]
    assert [call.metadata.get(GRANT_KEY) for call, _ in fake.seen] == [b"granted", None]


async def test_a_refusal_reaches_the_caller_with_its_reason(world: World) -> None:
    """It is the call's own error: who asks says what it means."""
    fake, tool = FakeWorkloads(), find_tool("RestartWorkload")
    request = pb.RestartWorkloadRequest(
        request_id="00000000-0000-4000-8000-000000000001", target_id=TARGET, reason="a test"
    )
    servicers = [(rpc.add_WorkloadToolServiceServicer_to_server, fake)]
    async with world.serving("gateway", servicers) as server, world.channel(server, "automation") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await ToolCaller(channel).call(tool, request.SerializeToString(), 5.0, b"granted")
    refusal = refusal_of(raised.value)
    assert refusal is not None
    assert refusal.name == "GRANT_INVALID"
