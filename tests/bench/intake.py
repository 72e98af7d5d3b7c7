"""Webhooks under load: bridge and ingest as processes, mTLS, the full chain, on disk before the 202, 64 connections.

Beside it, in the same rounds on the same store: redis-py with 64 tasks that each append one entry after the other.
Clients are processes of their own. They and the servers share the cores, so the CPU time of an item is told, too.
First with everything that follows the 202 (ingest's worker writes the rows meanwhile), then, with PostgreSQL stopped,
what the 202 itself takes; then the same with a store that answers before it is on disk.
"""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil
from redis.asyncio import Redis

from services.ingest.stream import waiting
from services.local import postgres as pg
from services.local import valkey as vk
from services.local.process import Program
from tests import stores
from tests.bench.load import Load
from tests.bench.table import Row
from tests.bridge.test_processes import Mesh
from tests.ingest.house import alert, eventually, notification
from tests.ingest.test_faults import Machine

CONNECTIONS: Final = 64
SECONDS: Final = 3.0
ROUNDS: Final = 3
RATIO_MIN: Final = 0.35
FSYNC_MIN: Final = 0.75
SERVERS: Final = ("bridge", "ingest", "valkey", "postgres")


@dataclass(frozen=True, slots=True)
class Run:
    """What a client saw, and the CPU time of an item in microseconds by server."""

    load: Load
    cpu: Mapping[str, float]

    @property
    def all_cpu(self) -> float:
        """Return the CPU time of an item, client and servers."""
        return self.load.cpu + sum(self.cpu.values())

    @property
    def detail(self) -> str:
        """Return the CPU time of an item by process."""
        parts = [f"{name} {cpu:.0f}" for name, cpu in (("client", self.load.cpu), *self.cpu.items())]
        return f"{self.all_cpu:.0f} us ({', '.join(parts)})"


Pair = tuple[Run, Run]


class Bench:
    """A bridge and an ingest on stores of their own, and the clients that load them."""

    def __init__(self, machine: Machine, mesh: Mesh, processes: Mapping[str, psutil.Process]) -> None:
        self._machine, self._mesh, self.processes = machine, mesh, processes
        self._bodies = [notification(alert(f"Alert{number}")).decode() for number in range(CONNECTIONS)]
        self._observer = Redis.from_url(machine.valkey.url("observer"))

    async def close(self) -> None:
        """Close what the bench itself holds."""
        await self._observer.aclose()
        await self._mesh.http.aclose()

    async def webhooks(self) -> Run:
        """Post as Alertmanager does."""
        order = {"host": "127.0.0.1", "port": self._mesh.http_port, "path": "/v1/webhooks/alertmanager"}
        return await self._run("webhooks", order | {"authorization": "Bearer new-secret"}, SERVERS)

    async def xadd(self) -> Run:
        """Append as redis-py does."""
        return await self._run("xadd", {"url": self._machine.valkey.url("ingest")}, ("valkey",))

    async def recorded(self) -> None:
        """Wait until what was accepted has its rows, so that the next run starts on an idle machine."""

        async def probe() -> bool:
            return await waiting(self._observer) == 0

        await eventually(probe, 60)

    async def fsync(self, policy: str) -> None:
        """Let the store confirm what is on disk (`always`), or what will be within a second (`everysec`)."""
        admin = Redis(port=self._machine.valkey.port, username="bench", password="bench")
        await admin.config_set("appendfsync", policy)
        await admin.aclose()

    async def stop_postgres(self) -> None:
        """Stop writing rows: accepting goes on."""
        # Its "fast" shutdown: it does not wait for those who are connected.
        self.processes["postgres"].send_signal(signal.SIGINT)
        await self._mesh.says(200, "postgres")

    async def _run(self, kind: str, order: dict[str, Any], names: Sequence[str]) -> Run:
        alive = {name: self.processes[name] for name in names if self.processes[name].is_running()}
        before = {name: _cpu(process) for name, process in alive.items()}
        order |= {"bodies": self._bodies, "seconds": SECONDS}
        command = [sys.executable, "-m", "tests.bench.load", kind, json.dumps(order)]
        client = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        out, _ = await client.communicate()
        load = Load(**json.loads(out))
        return Run(load, {name: (_cpu(alive[name]) - before[name]) / load.items * 1e6 for name in alive})


def _cpu(process: psutil.Process) -> float:
    """Return the CPU seconds of a process and its children, those that ended included."""
    own = process.cpu_times()
    ended = own.children_user + own.children_system
    return own.user + own.system + ended + sum(_cpu(child) for child in process.children())


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Bench]:
    """Run stores, bridge and ingest; router, guardrails and audit are away."""
    machine = Machine(folder)
    pg.initialise(machine.postgres)
    valkey = vk.program(machine.valkey)
    with (machine.valkey.directory / "users.acl").open("a") as users:
        users.write("user bench on >bench +config|set\n")
    mesh = Mesh(machine)
    processes: dict[str, psutil.Process] = {}
    async with AsyncExitStack() as stack:

        async def start(program: Program) -> None:
            process = await stack.enter_async_context(stores.running(program, folder))
            processes[program.name] = psutil.Process(process.pid)

        for program in (valkey, pg.program(machine.postgres)):
            await start(program)
        await asyncio.gather(vk.wait_ready(machine.valkey), pg.wait_ready(machine.postgres))
        await pg.provision(machine.postgres)
        await pg.migrate(machine.postgres.dsn(pg.OWNER))
        for program in mesh.programs():
            await start(program)
        await mesh.says(200)
        bench = Bench(machine, mesh, processes)
        stack.push_async_callback(bench.close)
        yield bench


async def rows(folder: Path) -> list[Row]:
    """Measure in rounds; a ratio is the median of those within each round."""
    whole: list[Pair] = []
    alone: list[Pair] = []
    relaxed: list[Pair] = []
    async with running(folder) as bench:
        await bench.webhooks()
        await bench.recorded()
        for _ in range(ROUNDS):
            whole.append((await bench.webhooks(), await bench.xadd()))
            await bench.recorded()
        await bench.stop_postgres()
        for _ in range(ROUNDS):
            durable = await bench.webhooks()
            alone.append((durable, await bench.xadd()))
            await bench.fsync("everysec")
            relaxed.append((durable, await bench.webhooks()))
            await bench.fsync("always")
    return [
        row("webhook: accept, rows written meanwhile", whole, RATIO_MIN, "redis-py XADD, 64 tasks"),
        row("webhook: accept alone (PostgreSQL stopped)", alone, RATIO_MIN, "redis-py XADD, 64 tasks"),
        *cpu_rows(whole, alone),
        row("webhook: accept alone, fsync always", relaxed, FSYNC_MIN, "the same with everysec"),
    ]


def row(what: str, pairs: Sequence[Pair], least: float, other: str) -> Row:
    """Return the row of a rate that is held against another."""
    ratio = median(ours.load.rate / theirs.load.rate for ours, theirs in pairs)
    ours, theirs = (sorted((pair[side] for pair in pairs), key=lambda run: run.load.rate) for side in (0, 1))
    mine, compared = ours[len(ours) // 2].load, theirs[len(theirs) // 2].load
    measured = f"{mine.rate:,.0f}/s, p50 {mine.p50:.1f} ms, p99 {mine.p99:.1f} ms"
    return Row(what, measured, f"{other}: {compared.rate:,.0f}/s", ratio, f">= {least:g}", ratio >= least)


def cpu_rows(whole: Sequence[Pair], alone: Sequence[Pair]) -> list[Row]:
    """Return the CPU time of an item, whose median says which process pays."""
    made = []
    for what, pairs in (("rows written meanwhile", whole), ("accept alone", alone)):
        ours = sorted((pair[0] for pair in pairs), key=lambda run: run.all_cpu)[len(pairs) // 2]
        theirs = sorted((pair[1] for pair in pairs), key=lambda run: run.all_cpu)[len(pairs) // 2]
        made.append(Row(f"  CPU an item, {what}", ours.detail, f"XADD: {theirs.detail}", theirs.all_cpu / ours.all_cpu))
    return made
