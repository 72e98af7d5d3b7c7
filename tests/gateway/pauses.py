"""Whoever is paused past its lease starts no late effect: real processes, paused with SIGSTOP where it hurts most.

A few rounds are a test; `python -m tests.gateway.pauses [ROUNDS]` does fifty of each. What is counted are the effects
in the process manager's own record.
"""

import asyncio
import random
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc as rpc
from opsmesh.guardrails.v1 import target_lock_service_pb2_grpc as locks_rpc
from opsmesh.tools.workload.v1 import workload_tool_service_pb2_grpc as workload
from services.gateway.domain import LEASE_SECONDS
from services.local.process import base_environment
from services.local.waiting import until
from services.mesh import telemetry
from tests.gateway.guarded import Guarded, guarded
from tests.gateway.holder import DONE, act, take
from tests.mesh.world import ROOT
from tests.stores import Database, running_postgres

LONG: Final = 50
STEPS: Final = ("before admission", "waiting for the intent", "reading the precondition")
WAIT_SECONDS: Final = 40


@dataclass
class Seen:
    """How the paused ones were answered, and how many effects they started although they were late."""

    answers: Counter[str] = field(default_factory=Counter)
    late: int = 0


class NotYetError(Exception):
    """What is waited for does not hold yet."""


async def lapse(since: float, seconds: float) -> None:
    """Wait until so many seconds have gone by since a monotonic second."""

    async def look() -> None:
        if time.monotonic() - since <= seconds:
            raise NotYetError

    await until(look, "the end of the lease", WAIT_SECONDS, NotYetError)


async def usable(house: Guarded, epoch: int, target: str = "", fence: int = 1) -> None:
    """Wait until the gateway lets effects through, on the other target unless one is named."""
    async with house.channel("gateway", "automation") as channel:
        stub = workload.WorkloadToolServiceStub(channel)

        async def look() -> None:
            # The newest fence there can be: another would stand in the way of those that follow.
            if await act(stub, *house.grant(target or house.targets[1], epoch=epoch, fence=fence)) != DONE:
                raise NotYetError

        await until(look, "the gateway", WAIT_SECONDS, NotYetError)


async def pause_gateway(house: Guarded, rounds: int, chance: random.Random) -> Seen:
    """Pause the gateway amid an effect until its lease is over; meanwhile kill the target, or cut the gateway off."""
    seen, epoch, target = Seen(), 0, house.targets[0]
    async with house.channel("guardrails", "operator") as person, house.channel("gateway", "automation") as channel:
        await channel.channel_ready()
        switch, stub = rpc.KillSwitchServiceStub(person), workload.WorkloadToolServiceStub(channel)
        for number in range(rounds):
            await usable(house, epoch)
            step, kill = STEPS[number % len(STEPS)], None
            before = len(house.recorder.stops[target])
            calling = await held(house, step, act(stub, *house.grant(target, epoch=epoch)))
            paused = time.monotonic()
            if number // len(STEPS) % 2:
                house.cable.cut()
            else:
                order = pb.EngageRequest(request_id=str(uuid.uuid4()), reason="a test")
                order.scope.target_id = target
                kill = (await switch.Engage(order)).kill
                epoch = kill.epoch
            await lapse(paused, LEASE_SECONDS + chance.random() / 4)
            let_go(house)
            seen.answers[await asyncio.wait_for(calling, WAIT_SECONDS)] += 1
            house.cable.mend()
            seen.late += len(house.recorder.stops[target]) - before
            if kill:
                release = pb.ReleaseRequest(request_id=str(uuid.uuid4()), kill_id=kill.kill_id)
                await switch.Release(release)
    return seen


async def held(house: Guarded, step: str, calling: Coroutine[Any, Any, str]) -> asyncio.Task[str]:
    """Begin a call and pause the gateway when it has come to a step."""
    if step == STEPS[1]:
        house.audit.held.clear()
        house.audit.go.clear()
        house.audit.mode = "hold"
    elif step == STEPS[2]:
        house.recorder.go.clear()
        house.recorder.asked.clear()
    else:
        house.processes["gateway"].send_signal(signal.SIGSTOP)
    task = asyncio.create_task(calling)
    if step == STEPS[1]:
        await asyncio.wait_for(house.audit.held.wait(), WAIT_SECONDS)
    elif step == STEPS[2]:
        await asyncio.to_thread(house.recorder.asked.wait, WAIT_SECONDS)
    house.processes["gateway"].send_signal(signal.SIGSTOP)
    return task


def let_go(house: Guarded) -> None:
    """Answer what the paused gateway waits for, and wake it."""
    house.audit.mode = "keep"
    house.audit.go.set()
    house.recorder.go.set()
    house.processes["gateway"].send_signal(signal.SIGCONT)


@asynccontextmanager
async def running_holder(house: Guarded) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the client that will be paused."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.gateway.holder", str(house.world.folder)),
        *(str(house.ports["guardrails"]), str(house.ports["gateway"]), house.targets[0]),
        cwd=ROOT,
        env=base_environment(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def pause_client(house: Guarded, rounds: int) -> Seen:
    """Pause a client that holds lock and grant until another has taken the lock and acted; then let it act."""
    seen, target = Seen(), house.targets[0]
    async with (
        running_holder(house) as holder,
        house.channel("guardrails", "automation") as channel,
    ):
        keeper = locks_rpc.TargetLockServiceStub(channel)
        for _ in range(rounds):
            fence = int(await say(holder, "take"))
            request, grant = house.grant(target, epoch=0, fence=fence)
            await say(holder, f"grant {request.SerializeToString().hex()} {grant.hex()}")
            holder.send_signal(signal.SIGSTOP)
            answering = asyncio.create_task(say(holder, "act"))
            newer = await take(keeper, target)
            if newer <= fence:
                raise RuntimeError(f"the lock with fence {fence} was not taken over")
            await usable(house, 0, target, newer)
            before = len(house.recorder.stops[target])
            holder.send_signal(signal.SIGCONT)
            seen.answers[await answering] += 1
            seen.late += len(house.recorder.stops[target]) - before
    return seen


async def say(holder: asyncio.subprocess.Process, line: str) -> str:
    """Tell the holder something and return its answer."""
    if holder.stdin is None or holder.stdout is None:
        raise RuntimeError("the holder has no pipes")
    holder.stdin.write(f"{line}\n".encode())
    answer = await asyncio.wait_for(holder.stdout.readline(), WAIT_SECONDS)
    return answer.decode().strip()


@asynccontextmanager
async def apart(folder: Path, postgres: Database) -> AsyncIterator[Guarded]:
    """Give a house of its own, with two targets, published."""
    await asyncio.to_thread(folder.mkdir)
    async with postgres.fresh() as database, guarded(folder, database, 2) as house:
        await house.publish()
        yield house


async def main(rounds: int) -> int:
    """Do the long form; the exit code is 1 when anything started late."""
    with tempfile.TemporaryDirectory(prefix="pauses-") as name:
        folder = Path(name)
        # Embedded PostgreSQL runs as an ordinary user even when root starts it.
        await asyncio.to_thread(folder.chmod, 0o755)
        async with running_postgres(folder / "stores") as database:
            async with apart(folder / "gateway", database) as house:
                found = {"gateway": await pause_gateway(house, rounds, random.Random(rounds))}  # noqa: S311  no secret
            async with apart(folder / "client", database) as house:
                found["client"] = await pause_client(house, rounds)
    for who, seen in found.items():
        sys.stdout.write(f"{who} paused: {rounds} rounds, {seen.late} late effects, answers {dict(seen.answers)}\n")
    return int(any(seen.late for seen in found.values()))


if __name__ == "__main__":
    telemetry.setup("pauses", "warning")
    sys.exit(asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else LONG)))
