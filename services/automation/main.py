"""The composition root of automation: settings, resources, servicers, lanes, the engine's worker."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

from opsmesh.audit.v1 import audit_service_pb2_grpc
from opsmesh.automation.v1 import automation_service_pb2_grpc, playbook_service_pb2_grpc
from opsmesh.guardrails.v1 import approval_service_pb2_grpc, kill_switch_service_pb2_grpc
from services.automation.activities import Activities
from services.automation.approvals import Approvals
from services.automation.book import Library
from services.automation.calls import Calls
from services.automation.ends import Ends
from services.automation.engines.temporal import TemporalEngine
from services.automation.lanes import Lanes
from services.automation.locks import Locks
from services.automation.notices import Notices, NoticeStore
from services.automation.observed import observed
from services.automation.progress import Progress
from services.automation.servicer import AutomationServicer, PlaybookServicer
from services.automation.settings import AutomationSettings
from services.automation.steps import Runner
from services.automation.stops import KillStore, Stops
from services.automation.store import PostgresStore
from services.mesh.client import Peers
from services.mesh.leases import Leases
from services.mesh.postgres import Pool, answers, check_revision, open_pool
from services.mesh.retention import Retention, TooOld, request_ids
from services.mesh.server import Servicers, Worker, serve
from services.mesh.settings import load
from services.mesh.writes import Writes

MIGRATIONS: Final = Path(__file__).with_name("migrations")
# Activities of many executions share the pool with the servicers.
POOL_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Automation:
    """The parts of a running automation."""

    servicers: Servicers
    workers: Sequence[Worker]
    engine: TemporalEngine


def compose(settings: AutomationSettings, peers: Peers, pool: Pool) -> Automation:
    """Put the parts together."""
    writes = Writes(pool, "automation", audit_service_pb2_grpc.AuditServiceStub(peers.channel("audit")))
    store, progress, calls = PostgresStore(pool), Progress(pool), Calls(peers)
    library, locks = Library(store), Locks(progress, calls)
    approvals = Approvals(store, progress, calls)
    ends = Ends(store, progress, library, calls, locks)
    runner = Runner(store, progress, library, calls, locks, approvals=approvals)
    histories = timedelta(days=settings.history_retention_days)
    engine = TemporalEngine(settings.temporal, Activities(runner, approvals, ends).all(), histories)
    lanes = Lanes(store, progress, engine, ends)
    guardrails = peers.channel("guardrails")
    switch = kill_switch_service_pb2_grpc.KillSwitchServiceStub(guardrails)
    people = approval_service_pb2_grpc.ApprovalServiceStub(guardrails)
    leases = Leases(switch, settings.listen)
    stops = Stops(leases, store, KillStore(pool), library, watcher=lanes, switch=switch)
    notices = Notices(NoticeStore(pool), calls, leases, people=people, switch=switch, engine=engine)
    retention = Retention(
        pool,
        request_ids(settings.request_retention_days),
        TooOld("executions", "end_time < now() - $1::interval", settings.retention_days),
        TooOld("notices", "create_time < now() - $1::interval", settings.retention_days),
    )
    return Automation(
        [
            (
                automation_service_pb2_grpc.add_AutomationServiceServicer_to_server,
                AutomationServicer(store, writes, calls, lanes, leases=leases, observed=partial(observed, pool)),
            ),
            (playbook_service_pb2_grpc.add_PlaybookServiceServicer_to_server, PlaybookServicer(store, writes)),
        ],
        [
            *(writes.outbox_worker, retention.run, lanes.start, lanes.watch, engine.work, engine.watch),
            *(leases.watch, leases.poll, stops.work, notices.watch, notices.work),
        ],
        engine,
    )


async def run() -> None:
    """Serve until told to stop."""
    settings = load(AutomationSettings)
    peers = Peers(settings)
    pool = await open_pool(settings, "automation", maximum=POOL_MAX)
    try:
        await check_revision(pool, MIGRATIONS)
        automation = compose(settings, peers, pool)

        async def ready() -> bool:
            # The engine must have been there once; later it may be away: executions wait as PENDING.
            return automation.engine.working.is_set() and await answers(pool)

        await serve(settings, automation.servicers, workers=automation.workers, ready=ready)
    finally:
        await peers.close()
        pool.terminate()
