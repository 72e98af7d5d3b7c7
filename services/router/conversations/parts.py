"""The parts of conversations, put together."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from opsmesh.agents.v1 import model_service_pb2_grpc, template_service_pb2_grpc
from opsmesh.automation.v1 import playbook_service_pb2_grpc
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc, policy_service_pb2_grpc
from opsmesh.ingest.v1 import ingest_service_pb2_grpc
from opsmesh.router.v1 import decision_service_pb2
from services.mesh.client import Peers
from services.mesh.identities import Identities
from services.mesh.postgres import Pool
from services.mesh.retention import Retention
from services.mesh.server import Worker
from services.mesh.writes import Writes
from services.router.conversations.confirming import Confirming
from services.router.conversations.servicer import ConversationServicer, Questions
from services.router.conversations.store import PostgresConversations, too_old
from services.router.conversations.tokens import Minter
from services.router.conversations.turns import Sense, Turns
from services.router.conversations.views import Stubs, Views
from services.router.conversations.wishes import Wishes
from services.router.domain import State, decision_id
from services.router.messages import decision_message, question_of
from services.router.reasoning.reasoner import Reasoner
from services.router.settings import RouterSettings
from services.router.store import DecisionStore, Filter

FIRST: Final = 1
# Of the newest decisions, those that ask are shown.
ASKED_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class Parts:
    """What the router runs of conversations."""

    servicer: ConversationServicer
    workers: Sequence[Worker]


def wishes_of(settings: RouterSettings, peers: Peers, pool: Pool) -> Wishes:
    """Return the wishes, which both conversations and decisions need."""
    ingest = ingest_service_pb2_grpc.IngestServiceStub(peers.channel("ingest"))
    return Wishes(pool, ingest, Minter.load(settings.identity_key_file))


@dataclass(frozen=True, slots=True)
class Rest:
    """What conversations need of the rest of the router."""

    writes: Writes
    wishes: Wishes
    reasoner: Reasoner
    questions: Questions
    decisions: DecisionStore


def compose(settings: RouterSettings, peers: Peers, pool: Pool, rest: Rest) -> Parts:
    """Put the parts together."""

    async def asked() -> list[tuple[str, str]]:
        found = await rest.decisions.page(Filter(state=State.DECIDED), ASKED_MAX)
        questions = [(str(one.decision_id), question_of(one)) for one in found]
        return [(one, question.question) for one, question in questions if question is not None]

    views = Views(
        Stubs(
            playbook_service_pb2_grpc.PlaybookServiceStub(peers.channel("automation")),
            template_service_pb2_grpc.TemplateServiceStub(peers.channel("agents")),
            policy_service_pb2_grpc.PolicyServiceStub(peers.channel("guardrails")),
            ingest_service_pb2_grpc.IngestServiceStub(peers.channel("ingest")),
            model_service_pb2_grpc.ModelServiceStub(peers.channel("agents")),
            kill_switch_service_pb2_grpc.KillSwitchServiceStub(peers.channel("guardrails")),
        ),
        asked,
    )

    async def decided(incident: uuid.UUID) -> decision_service_pb2.Decision | None:
        found = await rest.decisions.read([decision_id(incident, FIRST)])
        return decision_message(found[0]) if found else None

    store = PostgresConversations(pool)
    confirming = Confirming(pool, store, rest.wishes, views.catalogue, decided)
    sense = Sense(views, rest.reasoner, Identities.load(settings.identities))
    turns = Turns(pool, store, rest.wishes, confirming, sense)
    servicer = ConversationServicer(store, rest.writes, turns, confirming, rest.questions)
    retention = Retention(pool, too_old(settings.conversation_retention_days))
    return Parts(servicer, [rest.wishes.run, retention.run])
