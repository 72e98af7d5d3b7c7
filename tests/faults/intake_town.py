"""The processes of the intake that is killed: stores, bridge, ingest and router, started again when they died."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import psutil
from redis.asyncio import Redis

from services.ingest import stream
from services.local import postgres as pg
from services.local import valkey as vk
from services.local.files import free_port
from services.local.process import Program
from services.mesh.loop import wait
from tests import stores
from tests.bridge.test_processes import UNREACHABLE, Mesh
from tests.ingest.house import eventually
from tests.ingest.test_faults import Machine

MORTALS = ("bridge", "ingest", "valkey")
PAUSE_SECONDS = 0.1
READY_SECONDS = 120
QUIET_SECONDS = 300


class Town:
    """A bridge, an ingest and a router on real stores; agents, automation, guardrails and audit do not exist."""

    def __init__(self, folder: Path, claim_seconds: float) -> None:
        self.folder = folder
        self.machine = Machine(folder)
        pg.initialise(self.machine.postgres)
        self.mesh = Mesh(self.machine)
        router = f"127.0.0.1:{free_port()}"
        ingest = f"127.0.0.1:{self.mesh.ingest_port}"
        bridge, worker = self.mesh.programs()
        peers = json.loads(worker.env["OPSMESH_PEERS"]) | {"router": router}
        own = {"OPSMESH_PEERS": json.dumps(peers), "OPSMESH_CLAIM_SECONDS": str(claim_seconds)}
        worker = replace(worker, env={**worker.env, **own})
        self.programs = {one.name: one for one in (bridge, worker, self._router(router, ingest))}
        self.programs["valkey"] = vk.program(self.machine.valkey)
        self.running: dict[str, psutil.Process] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._over = asyncio.Event()
        self._redis = Redis.from_url(self.machine.valkey.url("observer"))

    def _router(self, address: str, ingest: str) -> Program:
        database = stores.Database(self.machine.postgres)
        absent = dict.fromkeys(("automation", "agents", "guardrails", "gateway", "audit"), UNREACHABLE)
        return self.mesh.program(
            "router",
            LISTEN=address,
            PEERS=json.dumps({"ingest": ingest} | absent),
            POSTGRES_DSN=database.dsn("router", with_password=False),
            POSTGRES_PASSWORD_FILE=str(database.password_file("router")),
            IDENTITY_KEY_FILE=str(self.mesh.pki / "identity.key"),
        )

    @asynccontextmanager
    async def up(self) -> AsyncIterator["Town"]:
        """Start everything, keep it started, and stop it at the end."""
        machine = self.machine
        async with AsyncExitStack() as stack:
            await machine.start("postgres")
            stack.push_async_callback(machine.close)
            await pg.provision(machine.postgres)
            await pg.migrate(machine.postgres.dsn(pg.OWNER))
            stack.push_async_callback(self._stop)
            for program in self.programs.values():
                self._tasks[program.name] = asyncio.create_task(self._keep(program))
            await self.ready()
            yield self

    async def _keep(self, program: Program) -> None:
        """Run a program; when it dies, run it again soon, as a supervisor does."""
        while not await wait(self._over, PAUSE_SECONDS):
            async with stores.running(program, self.folder) as process:
                self.running[program.name] = psutil.Process(process.pid)
                await process.wait()
                self.running.pop(program.name, None)

    async def _stop(self) -> None:
        self._over.set()
        await self.mesh.http.aclose()
        await self._redis.aclose()
        for process in list(self.running.values()):
            process.terminate()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def ready(self) -> None:
        """Wait until webhooks are taken and nothing is degraded; a busy machine takes its time."""

        async def probe() -> bool:
            return await self.mesh.readiness() == (200, [])

        await eventually(probe, READY_SECONDS)

    async def kill(self, name: str) -> None:
        """Kill -9 a process, as soon as there is one to kill."""

        async def there() -> bool:
            return name in self.running

        await eventually(there, READY_SECONDS)
        self.running.pop(name).send_signal(signal.SIGKILL)

    async def quiet(self, say: Callable[[str], None]) -> None:
        """Wait until everything that was accepted has its row and every incident its decision."""
        await self.ready()
        seen: list[int] = []

        async def nothing_waits() -> bool:
            waits = await stream.waiting(self._redis)
            if seen[-1:] != [waits]:
                say(f"waiting for rows: {waits} deliveries")
                seen.append(waits)
            return not waits

        await eventually(nothing_waits, QUIET_SECONDS)
        undecided = "SELECT 1 FROM ingest.incidents WHERE needs_decision OR decision_id = ''"

        async def all_decided() -> bool:
            return not await self.rows(undecided)

        await eventually(all_decided, QUIET_SECONDS)

    async def left_in_stream(self) -> int:
        """Return how many entries trimming has left."""
        return await stream.left(self._redis)

    async def rows(self, query: str, *arguments: Any) -> Sequence[asyncpg.Record]:
        """Read from the stores."""
        connection = await asyncpg.connect(self.machine.postgres.dsn(pg.READER))
        try:
            return list(await connection.fetch(query, *arguments))
        finally:
            await connection.close()
