"""Tells guardrails what a kill stopped here: nothing yet, for agents has no runs; silence would look like a fault."""

import asyncio
import os
import socket
from typing import Final

import grpc
import grpc.aio
import structlog

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc as rpc
from services.mesh.call import working
from services.mesh.loop import every

IDENTITY: Final = "service/agents"
WATCH_SECONDS: Final = 3600.0
REPORT_SECONDS: Final = 5.0
PERIOD: Final = 1.0
log = structlog.get_logger("opsmesh.agents.stops")


class StopReports:
    """Follows the lease and reports on every kill that holds, once per stream: a repeated report changes nothing."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._kills: rpc.KillSwitchServiceAsyncStub = rpc.KillSwitchServiceStub(channel)
        self._instance = f"agents@{socket.gethostname()}/{os.getpid()}"[:128]
        self._reported: set[str] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Follow until `stop`; a stream that ends is opened again."""
        following = asyncio.create_task(every(stop, PERIOD, self.follow))
        try:
            await stop.wait()
        finally:
            # The stream says something every 10 s only: nobody shall wait for that.
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def follow(self) -> None:
        """Report on what one stream tells, as long as it lives."""
        self._reported.clear()
        try:
            with working(IDENTITY, "agents/stops", WATCH_SECONDS):
                async for answer in self._kills.WatchLease(pb.WatchLeaseRequest(instance=self._instance)):
                    await self._report([kill.kill_id for kill in answer.lease.kills if not kill.released])
        except grpc.aio.AioRpcError as error:
            # Looked at again in a second: the kill switch must not wait for a backoff once guardrails is back.
            log.debug("guardrails does not tell its lease", code=error.code().name)

    async def _report(self, kills: list[str]) -> None:
        """Report on those that were not reported on yet."""
        for kill_id in kills:
            if kill_id not in self._reported:
                with working(IDENTITY, "agents/stops", REPORT_SECONDS):
                    await self._kills.ReportStops(pb.ReportStopsRequest(kill_id=kill_id))
                self._reported.add(kill_id)
