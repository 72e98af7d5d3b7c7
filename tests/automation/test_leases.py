"""What automation believes about kills: the newest news, and nothing for long without news."""

from typing import cast

import pytest

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc as rpc
from services.mesh.errors import Refusal
from services.mesh.kills import facts
from services.mesh.leases import FRESH_SECONDS, Leases

KILL = "8a2b6d6e-2f6f-4d0b-9d86-0a6f0f4b7c11"


class Switch:
    """Answers polls with what a test says holds now."""

    def __init__(self) -> None:
        self.lease = lease(100)

    async def PollLease(self, _: pb.PollLeaseRequest, **__: float) -> pb.PollLeaseResponse:  # noqa: N802  the IDL's name
        """Answer."""
        return pb.PollLeaseResponse(lease=self.lease)


def lease(second: int, *, killed: bool = False) -> pb.Lease:
    """Return a lease of that second of the database's clock."""
    made = pb.Lease()
    made.lease_time.FromSeconds(second)
    if killed:
        made.kills.add(kill_id=KILL, scope=pb.KillScope(environment="demo"), epoch=1)
    return made


class Desk:
    """Leases on a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.switch = Switch()
        stub = cast("rpc.KillSwitchServiceAsyncStub", self.switch)
        self.leases = Leases(stub, "a test", lambda: self.now)

    def pushed(self, message: pb.Lease) -> None:
        """Push."""
        self.leases._pushed(pb.WatchLeaseResponse(lease=message))

    def refusal(self) -> str:
        """Return why something in environment demo may not begin, empty when it may."""
        try:
            self.leases.admit(facts(environment="demo"))
        except Refusal as refused:
            return refused.name
        return ""


async def test_stale() -> None:
    """Nothing begins before the first news, nor 5 s after the last."""
    desk = Desk()
    assert desk.refusal() == "LEASE_STALE"
    await desk.leases._ask()
    assert desk.refusal() == ""
    desk.now += FRESH_SECONDS + 0.1
    assert desk.refusal() == "LEASE_STALE"


async def test_overtaken_answer() -> None:
    """An answer that a push has overtaken does not undo the kill that was pushed."""
    desk = Desk()
    desk.pushed(lease(101, killed=True))
    await desk.leases._ask()
    assert desk.refusal() == "KILLED"


async def test_clock_set_back() -> None:
    """A database whose clock was set back is believed again after a moment."""
    desk = Desk()
    desk.pushed(lease(5000))
    desk.switch.lease = lease(100, killed=True)
    for _ in range(4):
        desk.now += 1.0
        await desk.leases._ask()
    assert desk.refusal() == "KILLED"


async def test_withdrawn() -> None:
    """A withdrawn lease holds everything until a poll that was sent later is answered."""
    desk = Desk()
    await desk.leases._ask()
    desk.pushed(pb.Lease(withdrawn=True))
    desk.pushed(lease(200))
    assert desk.refusal() == "LEASE_STALE"
    desk.now += 1.0
    await desk.leases._ask()
    assert desk.refusal() == ""


async def test_other_scope() -> None:
    """A kill holds back what it covers and nothing else, and says so."""
    desk = Desk()
    desk.pushed(lease(101, killed=True))
    desk.leases.admit(facts(environment="production"))
    with pytest.raises(Refusal) as refused:
        desk.leases.admit(facts(environment="demo"))
    assert refused.value.metadata == {"kill_id": KILL, "scope": "environment demo"}
