"""Puts the reasoning together: the sources, the mind, runs, and what brings parked decisions back."""

from collections.abc import Mapping
from dataclasses import dataclass

from opsmesh.agents.v1 import agent_service_pb2_grpc, model_service_pb2_grpc, template_service_pb2_grpc
from opsmesh.automation.v1 import automation_service_pb2_grpc, playbook_service_pb2_grpc
from opsmesh.guardrails.v1 import guardrails_service_pb2_grpc, policy_service_pb2_grpc
from opsmesh.ingest.v1 import ingest_service_pb2_grpc
from services.mesh.client import Peers
from services.mesh.postgres import Pool
from services.mesh.tool_caller import ToolCaller
from services.router.book import RuleBook
from services.router.domain import Stage
from services.router.lanes import Job
from services.router.reasoning import mind
from services.router.reasoning.context import Source
from services.router.reasoning.journal import PostgresJournal
from services.router.reasoning.mind import Mind
from services.router.reasoning.past import DecisionsSource, HistorySource
from services.router.reasoning.reads import MeshGate
from services.router.reasoning.reasoner import Reasoner
from services.router.reasoning.runs import RunHands
from services.router.reasoning.sources import (
    ChangesSource,
    IncidentSource,
    InventorySource,
    PlaybooksSource,
    PoliciesSource,
    ReadsSource,
    RulesSource,
    RunbooksSource,
    TemplatesSource,
)
from services.router.store import DecisionStore

# At once: a provider has its limits, and so has the wish to know how an agent does.
MODEL_LIMIT = 4
RUN_LIMIT = 8


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The parts that the router's other rooms use; `jobs` are for the lanes."""

    journal: PostgresJournal
    reasoner: Reasoner
    runs: RunHands
    jobs: Mapping[Stage, Job]


def compose(peers: Peers, pool: Pool, decisions: DecisionStore, book: RuleBook) -> Reasoning:
    """Put the parts together."""
    agents, guardrails = peers.channel("agents"), peers.channel("guardrails")
    automation = automation_service_pb2_grpc.AutomationServiceStub(peers.channel("automation"))
    playbooks = playbook_service_pb2_grpc.PlaybookServiceStub(peers.channel("automation"))
    incidents = ingest_service_pb2_grpc.IngestServiceStub(peers.channel("ingest"))
    templates = template_service_pb2_grpc.TemplateServiceStub(agents)
    starter = agent_service_pb2_grpc.AgentServiceStub(agents)
    policies = policy_service_pb2_grpc.PolicyServiceStub(guardrails)
    gate = MeshGate(guardrails_service_pb2_grpc.GuardrailsServiceStub(guardrails), ToolCaller(peers.channel("gateway")))

    journal = PostgresJournal(pool)
    reasoner = Reasoner(model_service_pb2_grpc.ModelServiceStub(agents), journal)
    sources: list[Source] = [
        IncidentSource(),
        HistorySource(decisions, automation, starter),
        RulesSource(lambda: book.index),
        PoliciesSource(policies),
        InventorySource(policies),
        PlaybooksSource(playbooks),
        TemplatesSource(templates),
        DecisionsSource(decisions, incidents),
        RunbooksSource(),
        ChangesSource(),
        ReadsSource(),
    ]
    thinking = Mind(reasoner, sources, mind.Peers(incidents, templates, gate))
    runs = RunHands(decisions, starter, automation, incidents)
    jobs = {
        Stage.MODEL: Job(thinking.think, MODEL_LIMIT, mind.SECONDS),
        Stage.START_RUN: Job(runs.begin, RUN_LIMIT),
        Stage.FOLLOW_RUN: Job(runs.follow, RUN_LIMIT),
    }
    return Reasoning(journal, reasoner, runs, jobs)
