"""The router's composition root: stores, the active rules, the servicers and the lanes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from opsmesh.agents.v1 import model_service_pb2_grpc
from opsmesh.audit.v1 import audit_service_pb2_grpc
from opsmesh.automation.v1 import automation_service_pb2_grpc, playbook_service_pb2_grpc
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc
from opsmesh.ingest.v1 import ingest_service_pb2_grpc
from opsmesh.router.v1 import decision_service_pb2_grpc, rule_service_pb2_grpc
from services.mesh.client import Peers
from services.mesh.postgres import Pool, answers, check_revision, open_pool
from services.mesh.retention import Retention, request_ids
from services.mesh.server import Servicers, Worker, serve
from services.mesh.settings import load
from services.mesh.writes import Writes
from services.router.book import RuleBook
from services.router.forgetting import Forgetting, PostgresOldDecisions
from services.router.lanes import Hands, Lanes
from services.router.pace import Pace
from services.router.playbooks import AutomationPlaybooks
from services.router.resume import Eyes, Resumer
from services.router.rule_store import PostgresRuleStore
from services.router.servicer import DecisionServicer, RuleServicer
from services.router.settings import RouterSettings
from services.router.store import PostgresDecisionStore

MIGRATIONS: Final = Path(__file__).parent / "migrations"


@dataclass(frozen=True, slots=True)
class Router:
    """The parts of a running router."""

    book: RuleBook
    servicers: Servicers
    workers: Sequence[Worker]


def compose(settings: RouterSettings, peers: Peers, pool: Pool) -> Router:
    """Put the parts together."""
    audit = audit_service_pb2_grpc.AuditServiceStub(peers.channel("audit"))
    automation = automation_service_pb2_grpc.AutomationServiceStub(peers.channel("automation"))
    playbooks = playbook_service_pb2_grpc.PlaybookServiceStub(peers.channel("automation"))
    models = model_service_pb2_grpc.ModelServiceStub(peers.channel("agents"))
    incidents = ingest_service_pb2_grpc.IngestServiceStub(peers.channel("ingest"))
    kills = kill_switch_service_pb2_grpc.KillSwitchServiceStub(peers.channel("guardrails"))

    writes = Writes(pool, "router", audit)
    decisions, rule_sets = PostgresDecisionStore(pool, writes), PostgresRuleStore(pool)
    book = RuleBook(rule_sets)
    hands = Hands(automation, models)
    lanes = Lanes(decisions, hands)
    eyes, pace = Eyes(kills, incidents), Pace(pool, settings.resume_per_second)
    resumer = Resumer(decisions, pace, eyes, hands.start, lanes.later)
    retention = Retention(pool, request_ids(settings.request_retention_days))
    forgetting = Forgetting(PostgresOldDecisions(pool), eyes, settings.retention_days)
    decision_servicer = DecisionServicer(decisions, book, lanes.wake)
    rule_servicer = RuleServicer(rule_sets, book, writes, AutomationPlaybooks(playbooks))
    return Router(
        book,
        [
            (decision_service_pb2_grpc.add_DecisionServiceServicer_to_server, decision_servicer),
            (rule_service_pb2_grpc.add_RuleServiceServicer_to_server, rule_servicer),
        ],
        [*lanes.workers, resumer.run, book.follow, writes.outbox_worker, retention.run, forgetting.run],
    )


async def run() -> None:
    """Serve until told to stop."""
    settings = load(RouterSettings)
    peers = Peers(settings)
    pool = await open_pool(settings, "router")
    try:
        await check_revision(pool, MIGRATIONS)
        router = compose(settings, peers, pool)
        # Before the first call: a decision without the rules that are published would be a wrong one.
        await router.book.refresh()
        await serve(settings, router.servicers, workers=router.workers, ready=lambda: answers(pool))
    finally:
        await peers.close()
        pool.terminate()
