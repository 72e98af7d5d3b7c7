"""The router's composition root: stores, the active rules, the servicers and the lanes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from opsmesh.audit.v1 import audit_service_pb2_grpc
from opsmesh.automation.v1 import automation_service_pb2_grpc, playbook_service_pb2_grpc
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc
from opsmesh.ingest.v1 import ingest_service_pb2_grpc
from opsmesh.router.v1 import conversation_service_pb2_grpc, decision_service_pb2_grpc, rule_service_pb2_grpc
from services.mesh.client import Peers
from services.mesh.postgres import Pool, answers, check_revision, open_pool
from services.mesh.retention import Retention, request_ids
from services.mesh.server import Servicers, Worker, serve
from services.mesh.settings import load
from services.mesh.writes import Writes
from services.router.book import RuleBook
from services.router.conversations import parts
from services.router.domain import Outcome
from services.router.forgetting import Forgetting, PostgresOldDecisions
from services.router.lanes import Hands, Lanes
from services.router.pace import Pace
from services.router.playbooks import AutomationPlaybooks
from services.router.reasoning import journal
from services.router.reasoning import parts as reasoning
from services.router.reasoning.parked import Returner
from services.router.reasoning.questions import DecisionQuestions
from services.router.resume import Eyes, Resumer
from services.router.rule_store import PostgresRuleStore
from services.router.servicer import DecisionServicer, Rest, RuleServicer
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
    incidents = ingest_service_pb2_grpc.IngestServiceStub(peers.channel("ingest"))
    kills = kill_switch_service_pb2_grpc.KillSwitchServiceStub(peers.channel("guardrails"))

    writes = Writes(pool, "router", audit)
    decisions, rule_sets = PostgresDecisionStore(pool, writes, settings.model_starts_per_hour), PostgresRuleStore(pool)
    book = RuleBook(rule_sets)
    hands, minds = Hands(automation), reasoning.compose(peers, pool, decisions, book)
    lanes = Lanes(decisions, hands, minds.jobs)
    eyes, pace = Eyes(kills, incidents), Pace(pool, settings.resume_per_second)
    starts = {Outcome.TRIGGER_AUTOMATION: hands.start, Outcome.DELEGATE_AGENT: minds.runs.start}
    resumer = Resumer(decisions, pace, eyes, lambda work: starts[work.decision.outcome](work), lanes.later)
    returner = Returner(decisions, pace, eyes, minds.reasoner, lanes)
    retention = Retention(
        pool, request_ids(settings.request_retention_days), journal.forgotten(settings.retention_days)
    )
    forgetting = Forgetting(PostgresOldDecisions(pool), eyes, settings.retention_days)
    wishes = parts.wishes_of(settings, peers, pool)
    decision_servicer = DecisionServicer(decisions, book, lanes.wake, Rest(minds.journal, wishes))
    rule_servicer = RuleServicer(rule_sets, book, writes, AutomationPlaybooks(playbooks))
    talk = parts.compose(
        settings,
        peers,
        pool,
        parts.Rest(
            writes=writes,
            wishes=wishes,
            reasoner=minds.reasoner,
            questions=DecisionQuestions(pool),
            decisions=decisions,
        ),
    )
    return Router(
        book,
        [
            (conversation_service_pb2_grpc.add_ConversationServiceServicer_to_server, talk.servicer),
            (decision_service_pb2_grpc.add_DecisionServiceServicer_to_server, decision_servicer),
            (rule_service_pb2_grpc.add_RuleServiceServicer_to_server, rule_servicer),
        ],
        [
            *talk.workers,
            *lanes.workers,
            resumer.run,
            returner.run,
            minds.journal.run,
            book.follow,
            writes.outbox_worker,
            retention.run,
            forgetting.run,
        ],
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
