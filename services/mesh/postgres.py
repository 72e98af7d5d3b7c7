"""PostgreSQL: one small pool per service, bounded in time, opened only on a schema of the revision we know."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from services.mesh.errors import BootError, name_unavailable, name_unstorable
from services.mesh.settings import PostgresSettings

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection = PoolConnectionProxy[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
else:
    Connection = Any
    Pool = asyncpg.Pool

POOL_MIN: Final = 1
POOL_MAX: Final = 4
STATEMENT_SECONDS: Final = 5
BOOT_SECONDS: Final = 30
# What says "not now" rather than "not so".
ABSENT: Final = (
    OSError,
    TimeoutError,
    asyncpg.CannotConnectNowError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.ConnectionFailureError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    # Raised when a connection is used that the server has just ended.
    asyncpg.InternalClientError,
)
name_unstorable(asyncpg.CharacterNotInRepertoireError, asyncpg.UntranslatableCharacterError)
name_unavailable("PostgreSQL", ConnectionError, asyncpg.QueryCanceledError, *ABSENT[2:])


async def open_pool(
    settings: PostgresSettings, schema: str, *, minimum: int = POOL_MIN, maximum: int = POOL_MAX
) -> Pool:
    """Open the pool of a service on its schema; waits up to 30 s for the store, then raises BootError.

    With a `minimum` of 0 nothing is connected yet, so a service may start without its store.
    """
    try:
        password = settings.postgres_password_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BootError(
            f"cannot read OPSMESH_POSTGRES_PASSWORD_FILE={settings.postgres_password_file}: {error.strerror}. "
            "NEXT: `opsmesh up` makes it; elsewhere put the role's password into that file"
        ) from None
    retrying = AsyncRetrying(
        retry=retry_if_exception_type(ABSENT),
        stop=stop_after_delay(BOOT_SECONDS),
        wait=wait_random_exponential(multiplier=0.1, max=2),
        reraise=True,
    )
    try:
        return await retrying(_connect, settings.postgres_dsn, password, schema, (minimum, maximum))
    except ABSENT as error:
        raise BootError(
            f"PostgreSQL does not answer at OPSMESH_POSTGRES_DSN={settings.postgres_dsn}: {error!r}. NEXT: start it"
        ) from None
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
        raise BootError(f"PostgreSQL refuses {settings.postgres_dsn}: {error}. NEXT: opsmesh migrate") from None


async def _connect(dsn: str, password: str, schema: str, size: tuple[int, int]) -> Pool:
    """Open a pool whose connections see one schema and give up on statements that take too long."""
    return await asyncpg.create_pool(
        dsn,
        password=password,
        min_size=size[0],
        max_size=size[1],
        timeout=STATEMENT_SECONDS,
        # The server's own limit comes first: then the connection stays usable.
        command_timeout=STATEMENT_SECONDS + 1,
        server_settings={
            "application_name": f"opsmesh {schema}",
            "search_path": schema,
            "statement_timeout": f"{STATEMENT_SECONDS}s",
            "idle_in_transaction_session_timeout": f"{4 * STATEMENT_SECONDS}s",
            "timezone": "UTC",
            "jit": "off",
        },
    )


async def check_revision(pool: Pool, migrations: Path) -> None:
    """Raise BootError when a migration in the folder has not been run on the database."""
    known = _versions(migrations)
    if not known:
        raise BootError(f"there are no migrations in {migrations}. NEXT: install opsmesh again")
    try:
        rows = await pool.fetch("SELECT version FROM public.schema_migrations")
    except (asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError):
        rows = []
    missing = sorted(known - {row["version"] for row in rows})
    if missing:
        raise BootError(f"the database lacks migrations {', '.join(missing)}. NEXT: opsmesh migrate")


def _versions(migrations: Path) -> set[str]:
    """Return the versions of the migrations in a folder."""
    return {path.name.partition("_")[0] for path in migrations.glob("*.sql")}


async def answers(pool: Pool, seconds: float = 1.0) -> bool:
    """Say whether the store answers within `seconds`, for a `ready` check."""
    try:
        async with asyncio.timeout(seconds):
            return bool(await pool.fetchval("SELECT true"))
    except (*ABSENT, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
