"""Kills in tests: engaged, released and looked at as people do."""

import uuid
from typing import Any

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from tests.guardrails.world import House

EVERYTHING = pb.KillScope(everything=True)
Stop = pb.Stop
Kill = pb.Kill


async def engage(home: House, scope: pb.KillScope = EVERYTHING, name: str = "operator", **fields: Any) -> pb.Kill:
    """Engage a kill and return it."""
    given: dict[str, Any] = {"request_id": str(uuid.uuid4()), "scope": scope, "reason": "a test"}
    return (await home.leases(name).Engage(pb.EngageRequest(**given | fields))).kill


async def release(home: House, kill: pb.Kill, *names: str) -> pb.Kill:
    """Let people release a kill, one after another, and return what it is then."""
    for name in names or ("operator",):
        request = pb.ReleaseRequest(request_id=str(uuid.uuid4()), kill_id=kill.kill_id, reason="it is over")
        kill = (await home.leases(name).Release(request)).kill
    return kill


async def status(home: House, kill: pb.Kill | None = None, **fields: Any) -> list[pb.Kill]:
    """Return the kills, or one of them."""
    request = pb.GetStatusRequest(kill_id=kill.kill_id if kill else "", **fields)
    return list((await home.leases("approver").GetStatus(request)).kills)


async def report(home: House, kill: pb.Kill, *stops: pb.Stop, name: str = "automation") -> None:
    """Report stops as a service."""
    await home.leases(name).ReportStops(pb.ReportStopsRequest(kill_id=kill.kill_id, stops=stops))


async def lease(home: House) -> pb.Lease:
    """Ask for a lease as the gateway does."""
    return (await home.leases().PollLease(pb.PollLeaseRequest(instance="test"))).lease
