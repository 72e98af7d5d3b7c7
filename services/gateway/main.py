"""The composition root of the gateway: settings, resources, servicers, workers."""

import asyncio
import secrets
from functools import partial
from pathlib import Path

from opsmesh.audit.v1 import audit_service_pb2_grpc
from opsmesh.gateway.v1 import catalog_service_pb2_grpc, effect_service_pb2_grpc
from services.gateway import backends
from services.gateway.grants import GrantReader
from services.gateway.lease import LeaseKeeper
from services.gateway.pipeline import Pipeline
from services.gateway.record import MeshAudit
from services.gateway.resolver import Resolver
from services.gateway.runbook_index import PostgresRunbooks
from services.gateway.servicer import CatalogServicer, EffectServicer
from services.gateway.settings import GatewaySettings
from services.gateway.stop_store import PostgresStops
from services.gateway.stops import StopReporter
from services.gateway.store import PostgresEffects, finished
from services.gateway.tools.autoscaling import AutoscalingTools
from services.gateway.tools.change import ChangeTools
from services.gateway.tools.inventory import InventoryTools
from services.gateway.tools.logs import LogsTools
from services.gateway.tools.metrics import MetricsTools
from services.gateway.tools.notify import NotifyTools
from services.gateway.tools.runbook import RunbookTools
from services.gateway.tools.toolbox import ConnectedFamily, Toolbox
from services.gateway.tools.workload import WorkloadTools
from services.mesh.client import Peers
from services.mesh.identities import Identities
from services.mesh.loop import every
from services.mesh.postgres import answers, check_revision, open_pool
from services.mesh.retention import Retention, request_ids
from services.mesh.server import serve
from services.mesh.settings import load
from services.mesh.writes import Writes

MIGRATIONS = Path(__file__).with_name("migrations")
RESOLVE_PERIOD = 1.0
INDEX_PERIOD = 60.0


async def run() -> None:
    """Serve until told to stop."""
    settings = load(GatewaySettings)
    reader = GrantReader.load(settings.grant_public_key_file)
    reachable = backends.load(settings.backends_file, settings.state)
    identities = Identities.load(settings.identities)
    peers = Peers(settings)
    pool = await open_pool(settings, "gateway")
    await check_revision(pool, MIGRATIONS)
    writes = Writes(pool, "gateway", audit_service_pb2_grpc.AuditServiceStub(peers.channel("audit")))
    store = PostgresEffects(pool, writes)
    audit = MeshAudit(peers.channel("audit"))
    lease = LeaseKeeper(peers.channel("guardrails"), instance=f"gateway-{secrets.token_hex(4)}")
    runbooks = RunbookTools(reachable.runbooks, PostgresRunbooks(pool))
    acting: list[ConnectedFamily] = [
        WorkloadTools(reachable.workloads),
        NotifyTools(reachable.channels),
        MetricsTools(reachable.metrics),
        LogsTools(reachable.logs),
        AutoscalingTools(reachable.groups),
    ]

    def version() -> int | None:
        return lease.lease.policy_set_version if lease.lease else None

    inventory, changes = InventoryTools(peers.channel("guardrails"), version), ChangeTools(peers.channel("ingest"))
    toolbox = Toolbox([*acting, runbooks, inventory, changes])
    resolver = Resolver(store, audit, toolbox)
    pipeline = Pipeline(
        store=store,
        audit=audit,
        reader=reader,
        lease=lease,
        toolbox=toolbox,
        resolver=resolver,
        reads_need_grant=identities.reads_need_grant,
    )

    stops = StopReporter(PostgresStops(pool), lease, peers.channel("guardrails"), toolbox)
    retention = Retention(pool, request_ids(settings.request_retention_days), finished(settings.effect_retention_days))

    async def resolve(stop: asyncio.Event) -> None:
        await every(stop, RESOLVE_PERIOD, resolver.sweep)

    async def index(stop: asyncio.Event) -> None:
        await every(stop, INDEX_PERIOD, runbooks.refresh)

    try:
        await serve(
            settings,
            [
                *toolbox.servicers(pipeline.serve),
                (catalog_service_pb2_grpc.add_CatalogServiceServicer_to_server, CatalogServicer(toolbox)),
                (effect_service_pb2_grpc.add_EffectServiceServicer_to_server, EffectServicer(store, resolver, writes)),
            ],
            workers=[lease.follow, stops.run, resolve, index, writes.outbox_worker, pipeline.drain, retention.run],
            ready=partial(answers, pool),
        )
    finally:
        for family in acting:
            await family.close()
        await peers.close()
        await pool.close()
