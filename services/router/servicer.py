"""DecisionService and RuleService: proto in, proto out."""

import asyncio
import hashlib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from opsmesh.config.v1 import rules_pb2
from opsmesh.ingest.v1 import ingest_service_pb2
from opsmesh.router.v1 import (
    decision_service_pb2,
    decision_service_pb2_grpc,
    rule_service_pb2,
    rule_service_pb2_grpc,
)
from opsmesh.type.v1 import error_reason_pb2
from services.mesh import paging
from services.mesh.call import current
from services.mesh.errors import FieldViolation, Refusal
from services.mesh.writes import Subject, Writes
from services.router import deciding, domain, messages, records, rule_store, rules
from services.router.book import RuleBook
from services.router.domain import Decision, History, RuleSetRow, Wishes
from services.router.reasoning.journal import Journal
from services.router.rule_store import RuleStore
from services.router.store import DecisionStore, Filter

# A version must fit into the answer of GetRuleSet, and a message is at most 4 MiB.
RULE_SET_BYTES_MAX: Final = 4_000_000
# What an answer may carry of them: the newest.
CALLS_MAX: Final = 32
Clock = Callable[[], datetime]


class Playbooks(Protocol):
    """Which playbooks can be started."""

    async def published(self) -> frozenset[str]:
        """Return the ids of all published playbooks."""


@dataclass(frozen=True, slots=True)
class Rest:
    """What is asked beside the rules: what models were told and said, and what people confirmed in conversations."""

    journal: Journal
    wishes: Wishes


class DecisionServicer(decision_service_pb2_grpc.DecisionServiceServicer):
    """Decides, and shows what was decided. `wake` is told which decisions may need work now."""

    def __init__(
        self,
        store: DecisionStore,
        book: RuleBook,
        wake: Callable[[Sequence[Decision]], None],
        rest: Rest,
        clock: Clock = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._book = book
        self._wake = wake
        self._rest = rest
        self._clock = clock

    async def DecideIncident(  # noqa: N802  the IDL's name
        self, request: decision_service_pb2.DecideIncidentRequest, context: Any
    ) -> decision_service_pb2.DecideIncidentResponse:
        """Make the one decision of each (incident, revision), or return it."""
        del context
        _check(request.incidents)
        snapshots = [messages.snapshot_of(incident) for incident in request.incidents]
        # One index for the whole batch: a version activated meanwhile decides the next one.
        index, now = self._book.index, self._clock()
        chats = [snapshot for snapshot in snapshots if snapshot.facts.get("source") == domain.CHAT]
        wishes = {snapshot.incident_id: await self._rest.wishes.of(snapshot) for snapshot in chats}
        decisions = await self._store.decide(
            snapshots,
            lambda snapshot, history: deciding.decide(snapshot, index, history, now, wishes.get(snapshot.incident_id)),
            records.decided,
            current().trace.header,
        )
        self._wake(decisions)
        return decision_service_pb2.DecideIncidentResponse(decisions=map(messages.decision_message, decisions))

    async def GetDecision(  # noqa: N802  the IDL's name
        self, request: decision_service_pb2.GetDecisionRequest, context: Any
    ) -> decision_service_pb2.GetDecisionResponse:
        """Read one decision, with the calls of models and what they were told."""
        del context
        found = await self._store.read([uuid.UUID(request.decision_id)])
        if not found:
            raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="decision", id=request.decision_id)
        decision = messages.decision_message(found[0])
        record = await self._rest.journal.record(found[0].decision_id)
        decision.model_calls.extend(record.calls[-CALLS_MAX:])
        decision.context_sources.extend(record.sources)
        return decision_service_pb2.GetDecisionResponse(decision=decision)

    async def BatchGetDecisions(  # noqa: N802  the IDL's name
        self, request: decision_service_pb2.BatchGetDecisionsRequest, context: Any
    ) -> decision_service_pb2.BatchGetDecisionsResponse:
        """Read those decisions that exist."""
        del context
        found = await self._store.read([uuid.UUID(one) for one in request.decision_ids])
        return decision_service_pb2.BatchGetDecisionsResponse(decisions=map(messages.decision_message, found))

    async def ListDecisions(  # noqa: N802  the IDL's name
        self, request: decision_service_pb2.ListDecisionsRequest, context: Any
    ) -> decision_service_pb2.ListDecisionsResponse:
        """List decisions, newest first."""
        del context
        size = paging.page_size(request.page_size)
        chosen = Filter(
            incident_id=messages.uuid_of(request.incident_id),
            rule_id=request.rule_id,
            state=messages.state_of(request.state),
            before=paging.read_token(request, datetime, uuid.UUID),
        )
        found = await self._store.page(chosen, size + 1)
        token = ""
        if len(found) > size:
            token = paging.write_token(request, found[size - 1].create_time, found[size - 1].decision_id)
        return decision_service_pb2.ListDecisionsResponse(
            decisions=map(messages.decision_message, found[:size]), next_page_token=token
        )

    async def PreviewDecision(  # noqa: N802  the IDL's name
        self, request: decision_service_pb2.PreviewDecisionRequest, context: Any
    ) -> decision_service_pb2.PreviewDecisionResponse:
        """Decide, do nothing, and say why."""
        del context
        snapshot, index = messages.snapshot_of(request.incident), self._book.index
        history = await self._store.history(snapshot)
        # Whether a newer revision exists does not matter to what would be decided on this one.
        started = history.started | frozenset(request.incident.started_rule_ids)
        history = History(started, starts=history.starts, flapping=history.flapping)
        verdict = deciding.decide(snapshot, index, history, self._clock())
        return messages.preview_response(snapshot, verdict, index.explain(snapshot.facts, history.started))


class RuleServicer(rule_service_pb2_grpc.RuleServiceServicer):
    """Publishes and shows rule sets."""

    def __init__(self, store: RuleStore, book: RuleBook, writes: Writes, playbooks: Playbooks) -> None:
        self._store = store
        self._book = book
        self._writes = writes
        self._playbooks = playbooks

    async def PublishRuleSet(  # noqa: N802  the IDL's name
        self, request: rule_service_pb2.PublishRuleSetRequest, context: Any
    ) -> rule_service_pb2.PublishRuleSetResponse:
        """Validate a rule set and make it the active version; the active one answers for itself."""
        del context
        published = await self._playbooks.published()
        # In a thread: thousands of patterns take longer to compile than a decision may wait.
        problems = await asyncio.to_thread(_problems, request.rule_set, published)
        if problems:
            violations = [FieldViolation(problem.field, problem.description) for problem in problems]
            raise Refusal(error_reason_pb2.ERROR_REASON_RULE_SET_INVALID, violations=violations)
        content = request.rule_set.SerializeToString(deterministic=True)
        digest, count = hashlib.sha256(content).hexdigest(), len(request.rule_set.rules)
        if request.validate_only:
            return rule_service_pb2.PublishRuleSetResponse(
                rule_set=messages.rule_set_message(await self._would_be(digest, count))
            )

        async def change(connection: Any) -> rule_service_pb2.PublishRuleSetResponse:
            row = await rule_store.publish(connection, digest, count, current().identity, content)
            return rule_service_pb2.PublishRuleSetResponse(rule_set=messages.rule_set_message(row))

        subject = Subject(detail={"digest": digest, "rule_count": str(count)})
        response = await self._writes.once(request, rule_service_pb2.PublishRuleSetResponse, change, subject)
        await self._book.refresh()
        return response

    async def GetRuleSet(  # noqa: N802  the IDL's name
        self, request: rule_service_pb2.GetRuleSetRequest, context: Any
    ) -> rule_service_pb2.GetRuleSetResponse:
        """Read a version, or the active one."""
        del context
        row = await self._store.read(request.version)
        if row is None:
            which = f"version {request.version}" if request.version else "that is active"
            raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="rule", id=f"set {which}")
        return rule_service_pb2.GetRuleSetResponse(rule_set=messages.rule_set_message(row))

    async def ListRuleSets(  # noqa: N802  the IDL's name
        self, request: rule_service_pb2.ListRuleSetsRequest, context: Any
    ) -> rule_service_pb2.ListRuleSetsResponse:
        """List versions, newest first."""
        del context
        size = paging.page_size(request.page_size)
        (before,) = paging.read_token(request, int) or (0,)
        found = await self._store.page(before, size + 1)
        return rule_service_pb2.ListRuleSetsResponse(
            rule_sets=map(messages.rule_set_message, found[:size]),
            next_page_token=paging.write_token(request, found[size - 1].version) if len(found) > size else "",
        )

    async def _would_be(self, digest: str, count: int) -> RuleSetRow:
        """Return the version that publishing would answer with."""
        active = await self._store.read(0)
        if active and active.digest == digest:
            return active
        newest = await self._store.page(0, 1)
        version = newest[0].version + 1 if newest else 1
        return RuleSetRow(version, False, digest, count, current().identity, None)


def _problems(rule_set: rules_pb2.RuleSet, playbooks: frozenset[str]) -> list[rules.Problem]:
    """Return what is wrong with a rule set."""
    if rule_set.ByteSize() > RULE_SET_BYTES_MAX:
        return [rules.Problem("rules", f"all rules together must not be larger than {RULE_SET_BYTES_MAX} bytes")]
    return rules.validate(messages.rules_of(rule_set), playbooks)


def _check(incidents: Sequence[ingest_service_pb2.Incident]) -> None:
    """Refuse incidents that have no identity of their own within the request."""
    wrong: list[FieldViolation] = []
    seen: set[str] = set()
    for number, incident in enumerate(incidents):
        if messages.uuid_of(incident.incident_id) is None:
            wrong.append(FieldViolation(f"incidents[{number}].incident_id", "must be a UUID"))
        if incident.revision < 1:
            wrong.append(FieldViolation(f"incidents[{number}].revision", "must be at least 1"))
        if incident.incident_id in seen:
            wrong.append(FieldViolation(f"incidents[{number}].incident_id", "is in this request twice"))
        seen.add(incident.incident_id)
    if wrong:
        raise Refusal(error_reason_pb2.ERROR_REASON_INVALID_ARGUMENT, violations=wrong)
