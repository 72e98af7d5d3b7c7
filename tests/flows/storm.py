"""A storm: incidents one after the other on several workloads while processes are killed at random moments."""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from services.local import supervise
from tests.flows.payloads import alertmanager, now
from tests.flows.world import TILLS, Incident, World, until

VICTIMS = ("automation", "gateway", "guardrails", "temporal")
KILLS = int(os.environ.get("FLOWS_KILLS", "32"))
SEED = int(os.environ.get("FLOWS_SEED", "1"))
# The longest pause before a kill, and the longest after a webhook, in seconds: a repair in calm takes about as long.
PAUSE = 2.4
REPAIR = 1.6
# The supervisor gives up what ends five times in a row within ten seconds; more than this many is not what we test.
QUICK_MAX = 2
REPAIR_SECONDS = 200
ENDED = (Incident.STATE_RESOLVED, Incident.STATE_AWAITING_MODEL, Incident.STATE_AWAITING_PERSON)


@dataclass(slots=True)
class Storm:
    """What was done and what was seen."""

    world: World
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))  # noqa: S311  a reproducible order
    over: asyncio.Event = field(default_factory=asyncio.Event)
    posted: asyncio.Event = field(default_factory=asyncio.Event)
    kills: Counter[str] = field(default_factory=Counter)
    hit: Counter[str] = field(default_factory=Counter)
    ends: dict[str, str] = field(default_factory=dict)
    signals: list[str] = field(default_factory=list)
    mends: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    async def rage(self) -> None:
        """Keep all workloads failing and being repaired until the kills are done, then wait for the last repair."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._kill_all())
            for name in TILLS:
                tasks.create_task(self._fail_on(name))

    async def _kill_all(self) -> None:
        """Kill one process after the other, whichever may be killed, at random moments."""
        quick: Counter[str] = Counter()
        try:
            while self.kills.total() < KILLS:
                await self._let_go_on()
                for one in await asyncio.to_thread(supervise.status, self.world.mesh.supervisor):
                    quick[one.name] = 0 if one.state == "RUNNING" else quick[one.name]
                victim = self.chance.choice([name for name in VICTIMS if quick[name] < QUICK_MAX] or VICTIMS[:1])
                if quick[victim] < QUICK_MAX and await self._kill(victim):
                    quick[victim] += 1
        finally:
            self.over.set()

    async def _let_go_on(self) -> None:
        """Let the mesh work until a random moment: half of them shortly after a webhook, when a playbook begins."""
        if self.chance.random() < 0.5:
            self.posted.clear()
            await self._wait(self.posted, PAUSE)
            await self._wait(self.over, self.chance.uniform(0, REPAIR))
        else:
            await self._wait(self.over, self.chance.uniform(0, PAUSE))

    @staticmethod
    async def _wait(event: asyncio.Event, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), seconds)

    async def _kill(self, victim: str) -> bool:
        """Kill -9 a process and note at which steps that was; False when it was not running."""
        steps = await self.world.rows("SELECT step_id FROM automation.steps WHERE state = 'RUNNING'")
        process = await asyncio.to_thread(self.world.process, victim)
        if process is None:
            return False
        with suppress(psutil.NoSuchProcess):
            process.kill()
            self.kills[victim] += 1
            self.hit.update({row["step_id"] for row in steps} or {"between steps"})
            return True
        return False

    async def _fail_on(self, name: str) -> None:
        """Break a workload and have it repaired, again and again."""
        while not self.over.is_set():
            await self.world.break_down(name)
            began = time.monotonic()
            signal_id = await self.world.accepted("alertmanager", alertmanager(now(), service=name))
            self.signals.append(signal_id)
            self.posted.set()
            _, incident_id = await self.world.recorded(signal_id)
            incident = await self.world.reaches(incident_id, *ENDED, seconds=REPAIR_SECONDS)
            self.ends[incident_id] = Incident.State.Name(incident.state).removeprefix("STATE_")
            self.seconds.append(time.monotonic() - began)
            if incident.state != Incident.STATE_RESOLVED:
                self.mends[name] += 1
                await self.world.mend(name)
                await self.world.resolve(incident_id)

    async def settled(self) -> None:
        """Wait until every execution of the storm has ended and every effect is known, audit included."""
        await until(self._nothing_open, "the end of every execution and effect", 120, 0.25)

    async def _nothing_open(self) -> bool:
        incidents = list(self.ends)
        open_executions = await self.world.value(
            "SELECT count(*) FROM automation.executions WHERE incident_id = ANY($1::uuid[])"
            " AND state IN ('PENDING', 'RUNNING', 'AWAITING_APPROVAL')",
            incidents,
        )
        started = "SELECT count(*) FROM gateway.effects WHERE state = 'STARTED' AND incident_id = ANY($1::text[])"
        waiting = await self.world.value("SELECT count(*) FROM gateway.outbox")
        return not open_executions and not await self.world.value(started, incidents) and not waiting

    def summary(self, effects: Mapping[str, int], wrong: int) -> Sequence[str]:
        """Return what happened, for the reader of the test's output."""
        kills = self.kills.total()
        middle = sorted(self.seconds)[len(self.seconds) // 2]
        # The rule of three: nothing seen in n tries is, with 95 % confidence, rarer than 3/n.
        bound = f"; with 95 % confidence fewer than {3 / kills:.1%} of such kills do that" if not wrong else ""
        return [
            f"{kills} kills with seed {SEED}: {_counted(self.kills)}",
            f"steps under way at the kills: {_counted(self.hit)}",
            f"{len(self.ends)} incidents ended: {_counted(Counter(self.ends.values()))}",
            f"seconds from webhook to end: median {middle:.1f}, longest {max(self.seconds):.1f}",
            f"restarts by the gateway's record: {_counted(effects)}; repeated or lost: {wrong}{bound}",
        ]


def _counted(counter: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))
