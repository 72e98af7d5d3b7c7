"""A running audit log for tests, and a superuser who attacks it."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from opsmesh.audit.v1 import audit_service_pb2 as audit
from services.audit.chain import Report, Verifier, link_hash, read_checkpoints
from services.audit.checkpoints import CheckpointFile
from services.audit.events import from_row
from services.audit.sequencer import Sequencer
from services.audit.store import PostgresAppender, PostgresLog
from services.local.waiting import until
from services.mesh.errors import Refusal
from tests.stores import Database

WRITER = "service/gateway"


def opened(database: Database, checkpoints: CheckpointFile) -> Sequencer:
    """Return a sequencer on a database."""

    async def open_log() -> PostgresAppender:
        return await PostgresAppender.open(database.dsn("audit", with_password=False), database.password("audit"))

    return Sequencer(open_log, checkpoints.write, checkpoints.last_kept)


@dataclass(frozen=True, slots=True)
class Audit:
    """One log with everything around it."""

    database: Database
    sequencer: Sequencer
    checkpoints: CheckpointFile
    log: PostgresLog
    file: Path
    key: Ed25519PrivateKey

    async def is_ready(self) -> None:
        """Return once events can be appended."""

        async def ask() -> None:
            _ = self.sequencer.head

        await until(ask, "the audit log", 60, Refusal, pause=0.01)

    async def append(self, events: list[audit.AuditEvent], writer: str = WRITER) -> list[int]:
        """Append events."""
        return await self.sequencer.append(events, writer)

    async def append_again(self, event: audit.AuditEvent) -> None:
        """Append an event as a patient caller does: again while the log is not open."""

        async def ask() -> None:
            await self.append([event])

        await until(ask, "the audit log", 60, Refusal, pause=0.01)

    async def checkpoint(self) -> None:
        """Sign the head."""
        await self.checkpoints.write(self.sequencer.head)

    async def verify(self) -> Report:
        """Verify the log as the command does: export against the checkpoint file."""
        verifier = Verifier(read_checkpoints(self.file, self.key.public_key()))
        async for part in self.log.export(0):
            verifier.feed(part)
        return verifier.finish(datetime.now(UTC))

    async def kinds(self) -> set[str]:
        """Return what a verification finds."""
        return {finding.kind for finding in (await self.verify()).findings}

    async def attack(self, *statements: str) -> None:
        """Run statements as a superuser with the triggers out of the way."""
        connection = await asyncpg.connect(self.database.dsn("postgres"))
        try:
            await connection.execute("SET session_replication_role = replica")
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def rewrite(self, start: int) -> None:
        """Link all rows from `start` on anew, as one who knows everything but the signing key can."""
        connection = await asyncpg.connect(self.database.dsn("postgres"))
        try:
            await connection.execute("SET session_replication_role = replica")
            previous = await connection.fetchval("SELECT hash FROM audit.events WHERE sequence = $1", start - 1)
            rows = await connection.fetch("SELECT * FROM audit.events WHERE sequence >= $1 ORDER BY sequence", start)
            for row in rows:
                link = link_hash(previous or bytes(32), from_row(row))
                await connection.execute(
                    "UPDATE audit.events SET previous_hash = $2, hash = $3 WHERE sequence = $1",
                    row["sequence"],
                    previous or bytes(32),
                    link,
                )
                previous = link
        finally:
            await connection.close()
