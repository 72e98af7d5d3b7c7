"""The audit service: pool and signing key, the one sequencer, checkpoints, the servicer."""

import asyncio
from pathlib import Path
from typing import Final

from opsmesh.audit.v1.audit_service_pb2_grpc import add_AuditServiceServicer_to_server
from services.audit.checkpoints import CheckpointFile, load_key
from services.audit.sequencer import Sequencer
from services.audit.servicer import AuditServicer
from services.audit.settings import AuditSettings
from services.audit.store import PostgresAppender, PostgresLog
from services.mesh.loop import every
from services.mesh.postgres import check_revision, open_pool
from services.mesh.server import serve
from services.mesh.settings import load

MIGRATIONS: Final = Path(__file__).with_name("migrations")
CHECKPOINT_SECONDS: Final = 10.0


async def run() -> None:
    """Serve until told to stop; the last checkpoint is written after the last event."""
    settings = load(AuditSettings)
    checkpoints = CheckpointFile(load_key(settings.log_key_file), settings.checkpoint_file)
    pool = await open_pool(settings, "audit")
    await check_revision(pool, MIGRATIONS)
    password = settings.postgres_password_file.read_text(encoding="utf-8").strip()

    async def open_log() -> PostgresAppender:
        return await PostgresAppender.open(settings.postgres_dsn, password)

    sequencer = Sequencer(open_log, checkpoints.write, checkpoints.last_kept)

    async def checkpoint() -> None:
        if sequencer.last_head is not None:
            await checkpoints.write_if_changed(sequencer.last_head)

    async def append(stop: asyncio.Event) -> None:
        await sequencer.run(stop)
        await checkpoint()

    async def sign(stop: asyncio.Event) -> None:
        await every(stop, CHECKPOINT_SECONDS, checkpoint)

    servicer = AuditServicer(sequencer, PostgresLog(pool), checkpoints)
    try:
        await serve(
            settings,
            [(add_AuditServiceServicer_to_server, servicer)],
            workers=[append, sign],
            ready=sequencer.ready,
        )
    finally:
        await pool.close()
