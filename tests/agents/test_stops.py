"""What agents tells guardrails about a kill: that nothing of its own goes on."""
# ruff: noqa: N802  the names are those of the IDL

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc as rpc
from services.agents.stops import StopReports
from services.local.files import free_port
from services.mesh.call import current
from services.mesh.client import Peers
from services.mesh.server import Server
from tests.mesh.world import World


class FakeKillSwitch(rpc.KillSwitchServiceServicer):
    """Streams the leases that are put into `leases`; None ends the stream."""

    def __init__(self) -> None:
        self.leases: asyncio.Queue[pb.Lease | None] = asyncio.Queue()
        self.reports: asyncio.Queue[tuple[str, str, int]] = asyncio.Queue()

    async def WatchLease(self, _: Any, __: Any) -> AsyncIterator[pb.WatchLeaseResponse]:
        """Stream."""
        while (lease := await self.leases.get()) is not None:
            yield pb.WatchLeaseResponse(lease=lease)

    async def ReportStops(self, request: pb.ReportStopsRequest, _: Any) -> pb.ReportStopsResponse:
        """Keep who reported how many stops of which kill."""
        await self.reports.put((current().identity, request.kill_id, len(request.stops)))
        return pb.ReportStopsResponse()

    async def PollLease(self, _: Any, __: Any) -> pb.PollLeaseResponse:
        """Answer nothing: not asked by agents."""
        return pb.PollLeaseResponse()

    async def Engage(self, _: Any, __: Any) -> pb.EngageResponse:
        """Answer nothing: not asked by agents."""
        return pb.EngageResponse()

    async def Release(self, _: Any, __: Any) -> pb.ReleaseResponse:
        """Answer nothing: not asked by agents."""
        return pb.ReleaseResponse()

    async def GetStatus(self, _: Any, __: Any) -> pb.GetStatusResponse:
        """Answer nothing: not asked by agents."""
        return pb.GetStatusResponse()


def lease(*kills: str, released: str = "") -> pb.Lease:
    """Return a lease with these kills."""
    scope = pb.KillScope(everything=True)
    return pb.Lease(kills=[pb.LeasedKill(kill_id=one, scope=scope, released=one == released) for one in kills])


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Give certificates."""
    return World(tmp_path)


async def test_each_kill_is_reported_once_per_stream(world: World) -> None:
    """Every kill that holds gets an empty report, released ones none.

    A new stream, also of a guardrails that came back, is told again; stopping waits for nobody.
    """
    first, second, over = (str(uuid.uuid4()) for _ in range(3))
    fake, port = FakeKillSwitch(), free_port()
    peers = Peers(world.settings("agents", peers={"guardrails": f"127.0.0.1:{port}"}))
    stop = asyncio.Event()
    task = asyncio.create_task(StopReports(peers.channel("guardrails")).run(stop))

    def serve() -> Server:
        servicers: list[tuple[Any, Any]] = [(rpc.add_KillSwitchServiceServicer_to_server, fake)]
        return Server(world.settings("guardrails", listen=f"127.0.0.1:{port}"), servicers)

    async def told(*kills: str) -> None:
        for one in kills:
            assert await asyncio.wait_for(fake.reports.get(), 20) == ("service/agents", one, 0)

    server = serve()
    await server.start()
    fake.leases.put_nowait(lease())
    fake.leases.put_nowait(lease(first, over, released=over))
    await told(first)
    fake.leases.put_nowait(lease(first, second))
    await told(second)
    fake.leases.put_nowait(None)
    fake.leases.put_nowait(lease(first, second))
    await told(first, second)
    await server.stop(grace=0.1)
    fake.leases = asyncio.Queue()
    fake.leases.put_nowait(lease(second))
    server = serve()
    await server.start()
    await told(second)
    stop.set()
    await asyncio.wait_for(task, 5)
    await peers.close()
    await server.stop(grace=0.1)
