"""The storm: alerts in, people who answer, kill switches, and one fault after the other; then quiet. All of it seeded.

Faults: `kill -9` of each service and each store in turn; the gateway that ends itself between two of its steps; a disk
on which Valkey's fsync does not return, sometimes with a kill -9 while it hangs. Nobody helps the mesh: its own
supervisor starts what died. What senders got a 202 for, and all else that only the outside knows, is kept in `outside`.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import asyncpg
import httpx
import psutil
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from services.local import supervise
from services.local.checkout import NAME
from services.local.files import LocalError
from services.mesh.loop import wait
from tests.faults import slow_fsync
from tests.faults.gateway_that_dies import BOUNDARIES
from tests.faults.people import People
from tests.faults.reading import AWAY, Outside, look_at_fences
from tests.faults.tally import counted
from tests.faults.world import plan_file, replace_programs, stall_file
from tests.flows.payloads import alertmanager, generic, now
from tests.flows.world import SPARE, TILLS, World, until

SERVICES = ("bridge", "ingest", "router", "agents", "automation", "guardrails", "gateway", "audit")
STORES = ("postgres", "valkey", "temporal")
# The supervisor gives up what ends five times in a row within ten seconds; more than this many is not what we test.
QUICK_MAX = 2
STABLE_SECONDS = 11
SENDER_SECONDS = 120
END_SECONDS = 150
HANG_SECONDS = 0.9
ENDED = ("RESOLVED", "AWAITING_MODEL", "AWAITING_PERSON", "OBSERVED", "STALE")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong: `kill`, `boundary` or `stall`, and of or where."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything: rounds of kills, boundaries and stalls, alerts, kill switches, seconds between faults."""

    rounds: int
    boundaries: int
    stalls: int
    alerts: int
    switches: int
    pause: float


SHORT = Size(rounds=1, boundaries=2, stalls=1, alerts=40, switches=1, pause=1.0)
LONG = Size(rounds=4, boundaries=2 * len(BOUNDARIES), stalls=4, alerts=300, switches=8, pause=3.0)


def plan(size: Size, chance: random.Random) -> list[Fault]:
    """Return the faults in their order; each round kills each process once."""
    rounds: list[Fault] = []
    for _ in range(size.rounds):
        rounds += chance.sample([Fault("kill", name) for name in (*SERVICES, *STORES)], len(SERVICES) + len(STORES))
    first = chance.randrange(len(BOUNDARIES))
    others = [Fault("boundary", BOUNDARIES[(first + number) % len(BOUNDARIES)]) for number in range(size.boundaries)]
    others += [Fault("stall", "valkey")] * size.stalls
    for other in others:
        rounds.insert(chance.randrange(1, len(rounds)), other)
    return rounds


@dataclass(slots=True)
class Storm:
    """What is done, and what was seen."""

    world: World
    outside: Outside
    seed: int
    size: Size
    say: Say
    chance: random.Random = field(init=False)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    done_with: asyncio.Event = field(default_factory=asyncio.Event)
    kills: Counter[str] = field(default_factory=Counter)
    boundaries: Counter[str] = field(default_factory=Counter)
    stalls: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    alerts: int = 0
    lies: int = 0
    people: People = field(init=False)
    _quick: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        """Give every player a chance of its own, so that the faults do not depend on how fast the others are."""
        self.chance = random.Random(self.seed)  # noqa: S311  a reproducible order
        self.people = People(self.world, random.Random(self.seed + 1), self.over, self.done_with)  # noqa: S311  the same

    async def rage(self) -> None:
        """Let everything loose until all faults and alerts are through."""
        replace_programs(self.world.mesh)
        await self._settle_in("gateway", "valkey")
        async with asyncio.TaskGroup() as tasks:
            players = [tasks.create_task(self._fail_on(number, name)) for number, name in enumerate(TILLS)]
            players += [tasks.create_task(self._fail_in_production()), tasks.create_task(self._unknown())]
            players.append(tasks.create_task(self.people.switch(self.size.switches, self.size.pause)))
            tasks.create_task(self.people.answer())
            tasks.create_task(self._watch_fences())
            try:
                await self._faults()
            finally:
                self.over.set()
            await asyncio.wait(players)
            self.done_with.set()

    async def _settle_in(self, *names: str) -> None:
        """Kill what was replaced, so that its double comes."""
        for name in names:
            await self._kill(name)
        await self.world.whole()

    async def _faults(self) -> None:
        """Do one fault after the other, then wait until enough alerts were sent."""
        faults = plan(self.size, self.chance)
        for number, fault in enumerate(faults, start=1):
            await wait(self.over, self.chance.uniform(0.2, self.size.pause))
            self.say(
                f"[{number:3}/{len(faults)}] {fault.kind} {fault.name}"
                f"  (alerts accepted {self.alerts}, kills {self.kills.total()})"
            )
            if fault.kind == "kill":
                await self._kill(fault.name)
            elif fault.kind == "boundary":
                await self._die_at(fault.name)
            else:
                await self._stall()
        await until(self._enough, f"{self.size.alerts} alerts", 600, 0.5)

    async def _enough(self) -> bool:
        """Say whether enough alerts were accepted."""
        return self.alerts >= self.size.alerts

    async def _kill(self, name: str) -> None:
        """Kill -9 one process."""
        process = await self._mortal(name)
        with suppress(psutil.NoSuchProcess):
            process.kill()
        self.kills[name] += 1
        self._quick[name] += 1

    async def _mortal(self, name: str) -> psutil.Process:
        """Wait until a process runs, and may die without being given up by the supervisor."""

        async def running() -> psutil.Process | None:
            with suppress(LocalError):
                for one in await asyncio.to_thread(supervise.status, self.world.mesh.supervisor):
                    if one.name == name and one.pid:
                        self._quick[name] *= one.uptime_seconds < STABLE_SECONDS
                        if self._quick[name] < QUICK_MAX:
                            return psutil.Process(one.pid)
            return None

        process = await until(running, f"a {name} to kill", 60, 0.2)
        assert process is not None
        return process

    async def _die_at(self, name: str) -> None:
        """Let the gateway end itself at a boundary of the next effect that comes to it."""
        await self._mortal("gateway")
        file = plan_file(self.world.mesh)
        file.write_text(name, encoding="utf-8")

        async def died() -> bool:
            return not file.exists()

        await until(died, f"a gateway that dies {name}", 90, 0.1)
        self.boundaries[name] += 1
        self._quick["gateway"] += 1

    async def _stall(self) -> None:
        """Let no fsync of Valkey return for a while; every second time it is killed while it waits."""
        if not slow_fsync.supported():
            await self._freeze()
            return
        file = stall_file(self.world.mesh)
        seen = file.with_name(f"{file.name}.seen")
        before = seen.stat().st_size if seen.exists() else 0
        file.touch()
        try:

            async def hangs() -> bool:
                return seen.exists() and seen.stat().st_size > before

            await until(hangs, "an fsync that hangs", 60, 0.05)
            await self._refused_meanwhile()
            await wait(self.over, self.chance.uniform(1, 3))
            if self.stalls.total() % 2:
                await self._kill("valkey")
                self.stalls["killed while it hung"] += 1
            else:
                self.stalls["went on"] += 1
        finally:
            file.unlink()

    async def _refused_meanwhile(self) -> None:
        """Post while nothing reaches the disk: whatever happens, it may not be a 202."""
        with suppress(httpx.HTTPError, TimeoutError):
            answer = await asyncio.wait_for(self.world.post("generic", generic("while it hangs", "db-0")), HANG_SECONDS)
            self.lies += answer.status_code == httpx.codes.ACCEPTED

    async def _freeze(self) -> None:
        """Stop all of Valkey for a while: where the kernel cannot hold back a single call."""
        process = await asyncio.to_thread(self.world.process, "valkey")
        if process is not None:
            process.suspend()
            await self._refused_meanwhile()
            await wait(self.over, self.chance.uniform(1, 3))
            process.resume()
            self.stalls["frozen as a whole"] += 1

    async def _accepted(self, source: str, body: object) -> str:
        """Post like a sender: again and again until there is a 202; return the id of the signal."""

        async def post() -> str:
            answer = await self.world.post(source, body)
            if answer.status_code != httpx.codes.ACCEPTED:
                self.refused[str(answer.status_code)] += 1
                raise httpx.HTTPError(answer.text)
            (result,) = answer.json()["results"]
            return str(result["signal_id"])

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(httpx.HTTPError), stop=stop_after_delay(SENDER_SECONDS), wait=wait_fixed(0.3)
        )
        signal_id = str(await retrying(post))
        self.outside.accepted.append(signal_id)
        self.alerts += 1
        return signal_id

    async def _end_of(self, signal_id: str) -> tuple[str, str]:
        """Wait until the incident of a signal has ended; return its id and state."""
        query = (
            "SELECT incident_id::text, i.state FROM ingest.signals s JOIN ingest.incidents i USING (incident_id)"
            " WHERE signal_id = $1::uuid AND i.state = ANY($2)"
        )

        async def ended() -> Sequence[asyncpg.Record]:
            with suppress(*AWAY):
                return await self.world.rows(query, signal_id, ENDED)
            return []

        (row,) = await until(ended, f"the end of the incident of signal {signal_id}", END_SECONDS, 0.2)
        self.ends[row[1]] += 1
        return row[0], row[1]

    async def _fail_on(self, number: int, name: str) -> None:
        """Break a workload and have it repaired, again and again; some senders repeat themselves."""
        chance = random.Random(self.seed + 100 + number)  # noqa: S311  a reproducible order
        while not self.over.is_set():
            await self._repaired(name, alertmanager(now(), service=name), repeats=chance.choice((0, 0, 0, 1, 2)))

    async def _fail_in_production(self) -> None:
        """Break what nobody may restart without a person."""
        while not self.over.is_set():
            await self._repaired(SPARE, alertmanager(now(), env="production"))

    async def _repaired(self, name: str, body: object, repeats: int = 0) -> None:
        """Break a workload, post an alert and wait for its end; mend what the mesh has given up."""
        await self.world.break_down(name)
        signal_id = await self._accepted("alertmanager", body)
        for _ in range(repeats):
            await self._accepted("alertmanager", body)
        incident_id, state = await self._end_of(signal_id)
        if state != "RESOLVED":
            await self._mend(name)
            await self.people.resolve(incident_id)

    async def _mend(self, name: str) -> None:
        """Restart a workload past the mesh, and remember that it was not the mesh."""
        await self.world.mend(name)
        info = await asyncio.to_thread(
            supervise.call, self.world.workloads[name].instance, "supervisor.getProcessInfo", NAME
        )
        target = "svc:production/checkout" if name == SPARE else f"svc:demo/{name}"
        self.outside.mended.add((target, info["pid"]))

    async def _unknown(self) -> None:
        """Post what no rule knows."""
        number = 0
        while not self.over.is_set():
            number += 1
            await self._accepted("generic", generic(f"disk {number} is full", f"db-{number % 7}"))
            await wait(self.over, self.size.pause / 4)

    async def _watch_fences(self) -> None:
        """Look at all fences, all the time."""
        while not await wait(self.done_with, 0.3):
            with suppress(*AWAY):
                await look_at_fences(self.world, self.outside)

    def summary(self) -> list[tuple[str, str]]:
        """Return what happened, as (what, how often)."""
        return [
            (f"{self.kills.total()} times kill -9", counted(self.kills)),
            (f"{self.boundaries.total()} deaths of the gateway of its own", counted(self.boundaries) or "none"),
            (f"{self.stalls.total()} stalls of Valkey's fsync", counted(self.stalls) or "none"),
            ("202 while an fsync hung", f"{self.lies} of {self.stalls.total()} tries"),
            (f"{self.alerts} alerts accepted", f"refused, and sent again: {counted(self.refused) or 'none'}"),
            ("incidents with a broken workload", counted(self.ends)),
            ("people", counted(self.people.done) or "did nothing"),
        ]
