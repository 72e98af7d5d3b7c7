"""Real embedded stores for tests: each a context manager that starts the server and stops it."""

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from services.local import postgres as pg
from services.local import temporal as tp
from services.local import valkey as vk
from services.local.files import free_port
from services.local.process import Program, write_spec

TEMPLATE = "opsmesh_template"


@asynccontextmanager
async def running(program: Program, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run PROGRAM on its leash (it dies with the test process) with its output in FOLDER; stop it at the end."""
    command = write_spec(program, folder / "run")
    with (folder / f"{program.name}.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.Signals[f"SIG{program.stop}"])
        try:
            await asyncio.wait_for(process.wait(), 60)
        except TimeoutError:
            process.kill()
            await process.wait()


@dataclass(frozen=True, slots=True)
class Database:
    """One migrated database of a running PostgreSQL."""

    server: pg.Postgres
    name: str = pg.DATABASE

    def dsn(self, role: str, *, with_password: bool = True) -> str:
        """Return the URL that connects as ROLE (`opsmesh_ingest`, or just `ingest`)."""
        return self.server.dsn(_role(role), self.name, with_password=with_password)

    def password(self, role: str) -> str:
        """Return ROLE's password."""
        return self.server.password(_role(role))

    def password_file(self, role: str) -> Path:
        """Return the file with ROLE's password, as OPSMESH_POSTGRES_PASSWORD_FILE wants it."""
        return self.server.password_file(_role(role))

    @asynccontextmanager
    async def fresh(self) -> AsyncIterator["Database"]:
        """Give an empty migrated database of its own (a copy of the template, some 50 ms), dropped at the end."""
        name = f"t_{secrets.token_hex(6)}"
        await pg.provision(self.server, name, TEMPLATE)
        try:
            yield Database(self.server, name)
        finally:
            await admin(self.server, f'DROP DATABASE "{name}" WITH (FORCE)')


def _role(role: str) -> str:
    return role if role == pg.SUPERUSER or role.startswith("opsmesh_") else f"opsmesh_{role}"


async def admin(server: pg.Postgres, statement: str) -> None:
    """Run one statement as the superuser."""
    connection = await asyncpg.connect(server.dsn(pg.SUPERUSER, "postgres"), timeout=10)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@asynccontextmanager
async def running_postgres(folder: Path) -> AsyncIterator[Database]:
    """Run a PostgreSQL with all roles and migrations; yields its `opsmesh` database."""
    server = pg.Postgres(folder / "postgres", folder / "secrets" / "postgres", free_port())
    pg.initialise(server)
    async with running(pg.program(server), folder):
        await pg.wait_ready(server)
        await pg.provision(server, TEMPLATE)
        await pg.migrate(server.dsn(pg.OWNER, TEMPLATE))
        await pg.provision(server, pg.DATABASE, TEMPLATE)
        yield Database(server)


@asynccontextmanager
async def running_valkey(folder: Path) -> AsyncIterator[vk.Valkey]:
    """Run a Valkey with the mesh's users; connect with `.url("ingest")` or `.url("observer")`."""
    server = vk.Valkey(folder / "valkey", folder / "secrets" / "valkey", free_port())
    async with running(vk.program(server), folder):
        await vk.wait_ready(server)
        yield server


@asynccontextmanager
async def running_temporal(folder: Path) -> AsyncIterator[tp.Temporal]:
    """Run a Temporal development server; connect to `.address`, namespace default."""
    server = tp.Temporal(folder / "temporal", free_port(), free_port(), free_port())
    async with running(tp.program(server), folder):
        await tp.wait_ready(server)
        yield server
