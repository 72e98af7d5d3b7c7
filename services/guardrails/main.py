"""The composition root of guardrails: settings, resources, servicers, workers."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from opsmesh.audit.v1 import audit_service_pb2_grpc
from opsmesh.guardrails.v1 import (
    approval_service_pb2_grpc,
    guardrails_service_pb2_grpc,
    kill_switch_service_pb2_grpc,
    policy_service_pb2_grpc,
    target_lock_service_pb2_grpc,
)
from services.guardrails.approvals.board import ApprovalBoard
from services.guardrails.approvals.expiry import Expiry
from services.guardrails.approvals.servicer import ApprovalServicer
from services.guardrails.approvals.store import ApprovalStore
from services.guardrails.authority import Authority
from services.guardrails.grants import Minter
from services.guardrails.identity import TokenReader
from services.guardrails.judge import Judge
from services.guardrails.kills.file import KillFile
from services.guardrails.kills.lease import LeaseBoard
from services.guardrails.kills.servicer import KillSwitchServicer
from services.guardrails.kills.switch import KillSwitch
from services.guardrails.locks import claims
from services.guardrails.locks import queue as locks
from services.guardrails.locks.servicer import TargetLockServicer
from services.guardrails.origin import Origins
from services.guardrails.places import Places
from services.guardrails.policies import ledger
from services.guardrails.policies.servicer import PolicyServicer
from services.guardrails.policies.store import Policies
from services.guardrails.runs import store as runs
from services.guardrails.runs.reads import Reads
from services.guardrails.runs.registry import Registry
from services.guardrails.servicer import GuardrailsServicer
from services.guardrails.settings import GuardrailsSettings
from services.guardrails.store import JudgementStore
from services.guardrails.surroundings import Mesh
from services.mesh.client import Peers
from services.mesh.identities import Identities
from services.mesh.loop import every, wait
from services.mesh.postgres import Pool, answers, check_revision, open_pool
from services.mesh.retention import Retention, request_ids
from services.mesh.server import Servicers, Worker, serve
from services.mesh.settings import load
from services.mesh.writes import Writes

MIGRATIONS = Path(__file__).with_name("migrations")
SWEEP_SECONDS = 0.5
# Connections that judgements cannot take from kills and leases.
RESERVED_MAX = 3
FORGET_SECONDS = 3600.0
log = structlog.get_logger("opsmesh.guardrails")


@dataclass(frozen=True, slots=True)
class Rooms:
    """What guardrails serves and what works in the background."""

    servicers: Servicers
    workers: list[Worker]


def furnish(settings: GuardrailsSettings, pool: Pool, reserved: Pool, peers: Peers) -> Rooms:
    """Wire the servicers and workers to their resources; only kills and leases use the `reserved` pool."""
    identities = Identities.load(settings.identities)
    minter = Minter.load(settings.grant_key_file)
    tokens = TokenReader.load(settings.identity_public_key_file)
    audit = audit_service_pb2_grpc.AuditServiceStub(peers.channel("audit"))
    writes = Writes(pool, "guardrails", audit)
    policies = Policies(pool)
    file = KillFile(settings.state)
    board = LeaseBoard(reserved, file)
    switch = KillSwitch(
        reserved, Writes(reserved, "guardrails", audit), writes, file, board, policies=policies, identities=identities
    )
    store = JudgementStore(pool, writes)
    surroundings = Mesh(gateway=peers.channel("gateway"), ingest=peers.channel("ingest"))
    approvals = ApprovalStore(pool)
    approval_board = ApprovalBoard(approvals)
    expiry = Expiry(pool, writes, approval_board)
    judge = Judge(policies, surroundings, identities, Origins(tokens))
    authority = Authority(store, policies, judge, minter, approval_board)
    registry = Registry(store, writes, policies, surroundings, tokens)
    reads = Reads(store, policies, surroundings, minter)

    async def sweep(stop: asyncio.Event) -> None:
        await every(stop, SWEEP_SECONDS, expiry.sweep)

    retention = Retention(pool, request_ids(settings.request_retention_days), runs.too_old(settings.retention_days))

    async def tidy() -> None:
        await store.forget()
        for table in (ledger, locks, claims):
            await table.forget(pool)

    async def forget(stop: asyncio.Event) -> None:
        await every(stop, FORGET_SECONDS, tidy)

    async def stand_by(stop: asyncio.Event) -> None:
        await every(stop, SWEEP_SECONDS, switch.stand_by)

    ordinary: Servicers = [
        (
            guardrails_service_pb2_grpc.add_GuardrailsServiceServicer_to_server,
            GuardrailsServicer(authority, registry, reads),
        ),
        (
            approval_service_pb2_grpc.add_ApprovalServiceServicer_to_server,
            ApprovalServicer(approvals, approval_board, writes, identities=identities, authority=authority),
        ),
        (
            policy_service_pb2_grpc.add_PolicyServiceServicer_to_server,
            PolicyServicer(policies, writes, identities, board),
        ),
        (
            target_lock_service_pb2_grpc.add_TargetLockServiceServicer_to_server,
            TargetLockServicer(policies, writes, pool),
        ),
    ]
    stops = (kill_switch_service_pb2_grpc.add_KillSwitchServiceServicer_to_server, KillSwitchServicer(switch, board))
    servicers = [*Places().share(ordinary), stops]
    return Rooms(servicers, [writes.outbox_worker, retention.run, sweep, forget, stand_by])


async def run() -> None:
    """Serve until told to stop. Kills must be possible at any time, so it starts without PostgreSQL, too."""
    settings = load(GuardrailsSettings)
    peers = Peers(settings)
    pool = await open_pool(settings, "guardrails", minimum=0)
    reserved = await open_pool(settings, "guardrails", minimum=0, maximum=RESERVED_MAX)
    try:
        if there := await answers(pool):
            await check_revision(pool, MIGRATIONS)
        rooms = furnish(settings, pool, reserved, peers)
        workers = rooms.workers if there else [partial(once_postgres_is_there, pool, rooms.workers)]
        await serve(settings, rooms.servicers, workers=workers, ready=partial(answers, pool))
    finally:
        await peers.close()
        reserved.terminate()
        pool.terminate()


async def once_postgres_is_there(pool: Pool, workers: Sequence[Worker], stop: asyncio.Event) -> None:
    """Run the workers as soon as the database answers and has our schema; a BootError ends the process."""
    while not await answers(pool):
        log.warning("PostgreSQL does not answer; nothing is granted, kills are kept in a file")
        if await wait(stop, 1.0):
            return
    await check_revision(pool, MIGRATIONS)
    async with asyncio.TaskGroup() as group:
        for worker in workers:
            group.create_task(worker(stop))
