"""Whether the bridge can accept, and what behind it is degraded: ingest's own health, asked every second."""

import asyncio
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.mesh.loop import every

PERIOD = 1.0
TIMEOUT = 1.0
# Without the first nothing can be accepted; without PostgreSQL what is accepted waits; what is not durable may be lost.
INGEST = "ingest"
NEEDED = {INGEST: "", "valkey": "ingest/valkey"}
WISHED = {"postgres": "ingest/postgres", "durability": "ingest/durable"}
SERVING = health_pb2.HealthCheckResponse.SERVING


@dataclass(frozen=True, slots=True)
class Readiness:
    """What /readyz says."""

    ready: bool
    degraded: tuple[str, ...]

    def body(self) -> dict[str, object]:
        """Return the JSON body."""
        status = "unavailable" if not self.ready else "degraded" if self.degraded else "ok"
        return {"status": status, "degraded": list(self.degraded)}


class Watch:
    """Keeps the last known readiness; until it was asked once, not ready."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = health_pb2_grpc.HealthStub(channel)
        self.current = Readiness(ready=False, degraded=tuple(NEEDED))

    async def run(self, stop: asyncio.Event) -> None:
        """Ask until STOP."""
        await every(stop, PERIOD, self.look)

    async def look(self) -> None:
        """Ask ingest once."""
        names = NEEDED | WISHED
        answers = await asyncio.gather(*(self._serves(service) for service in names.values()))
        serves = dict(zip(names, answers, strict=True))
        if None in answers:
            # An ingest that does not answer says nothing about its stores.
            self.current = Readiness(ready=False, degraded=(INGEST,))
            return
        failing = [name for name, one in serves.items() if not one]
        # Ingest as a whole fails because a part of it does: that is the name a person needs.
        named = [name for name in failing if name != INGEST] or failing
        self.current = Readiness(ready=not set(failing) & set(NEEDED), degraded=tuple(named))

    async def _serves(self, service: str) -> bool | None:
        """Say whether ingest, or a part of it, serves; None when it does not answer."""
        try:
            answer = await self._stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT)
        except grpc.aio.AioRpcError:
            return None
        return bool(answer.status == SERVING)
