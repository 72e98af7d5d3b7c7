"""The model boundary: one question, at most a few tries, each reserved, bounded in time, settled and on record.

Served as ModelService.Generate, and called by agent runs inside `working("service/agents", METHOD, seconds)`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final
from uuid import UUID

import structlog
from prometheus_client import Counter
from tenacity import AsyncRetrying, retry_if_exception_type

from opsmesh.agents.v1 import model_service_pb2 as pb
from opsmesh.audit.v1 import audit_service_pb2 as audit_pb
from opsmesh.type.v1 import error_reason_pb2
from services.agents import domain
from services.agents.breaker import Breaker, State
from services.agents.corrections import correction
from services.agents.domain import Endpoint, Finish, Models, Question, RawReply, Reply, Usage
from services.agents.messages import Generation, attribution_of, question_of, response_of
from services.agents.providers import Kind, Provider, ProviderError, Why, useless
from services.agents.providers.structured import without_fences
from services.agents.retries import USELESS_RETRIES_MAX, RetryBudget, pause, stop_when
from services.agents.store import METHOD, Hold, Ledger, Purpose, Verdict
from services.agents.strict_json import UnreadableError, canonical, read_object
from services.mesh import policy
from services.mesh.call import current
from services.mesh.errors import FieldViolation, Refusal, reason_name
from services.mesh.writes import Subject, event

# What is kept of the caller's time to settle and to answer, in seconds.
MARGIN: Final = 0.5
# Of the time left, what one model may take while others come after it.
SHARE: Final = 0.6
SHORTEST: Final = 0.2
# A reservation outlives its call by this, in seconds: then nobody will settle it.
SETTLING: Final = 10.0
NOTHING: Final = Usage(0, 0)
REASONS: Final = {
    Why.UNAVAILABLE: error_reason_pb2.ERROR_REASON_MODEL_UNAVAILABLE,
    Why.REFUSED: error_reason_pb2.ERROR_REASON_MODEL_REFUSED,
    Why.UNREADABLE: error_reason_pb2.ERROR_REASON_MODEL_REPLY_INVALID,
    Why.TOO_LARGE: error_reason_pb2.ERROR_REASON_CONTEXT_TOO_LARGE,
}
Event = audit_pb.AuditEvent
CALLS: Final = Counter("opsmesh_model_calls_total", "Calls to model providers.", ["role", "provider", "outcome"])
TOKENS: Final = Counter("opsmesh_model_tokens_total", "Tokens used.", ["role", "kind"])
COST: Final = Counter("opsmesh_model_cost_micros_total", "Money spent, in millionths.", ["role"])
log = structlog.get_logger("opsmesh.agents.models")


@dataclass(slots=True)
class _Journey:
    """One question on its way through tries and models."""

    request: pb.GenerateRequest
    question: Question
    purpose: Purpose
    started: float = field(default_factory=time.monotonic)
    index: int = 0
    attempts: int = 0
    usage: Usage = NOTHING
    cost_micros: int = 0
    model: str = ""
    useless: int = 0
    more: bool = False
    failures: list[tuple[Endpoint, ProviderError]] = field(default_factory=list)


class _ClosedError(ProviderError):
    """Not asked: its breaker is open, or there is no time left. Never tried again at once."""


class Boundary:
    """Asks the models of roles; `hosted` and `recorded` are the two providers, `warm` readies the first."""

    def __init__(
        self,
        models: Models,
        ledger: Ledger,
        hosted: Provider,
        recorded: Provider,
        warm: Callable[[], Awaitable[None]],
    ) -> None:
        self.models = models
        self._ledger = ledger
        self._hosted = hosted
        self._recorded = recorded
        self._warm = warm
        self._retries = RetryBudget()
        names = {one.provider for role in models.roles.values() for one in role}
        self.breakers: Mapping[str, Breaker] = {name: Breaker() for name in names}

    async def generate(self, request: pb.GenerateRequest) -> pb.GenerateResponse:
        """Answer, once per request_id; refuses with one of the reasons 60 to 65 when no model can."""
        journey = self._begin(request)
        if stored := await self._ledger.stored(journey.purpose):
            return stored
        wait = [0.0]
        endpoints = self.models.roles.get(request.role, ())
        for journey.index, endpoint in enumerate(endpoints):
            journey.more = journey.index + 1 < len(endpoints)
            # Another model is asked what was asked, not to mend what this one said.
            journey.question = replace(journey.question, corrections=())
            try:
                return await self._ask(journey, endpoint)
            except Refusal as stopped:
                stopped.metadata |= _spent(journey)
                raise
            except ProviderError as error:
                journey.failures.append((endpoint, error))
                wait.append(self.breakers[endpoint.provider].seconds_left)
            if journey.useless > USELESS_RETRIES_MAX:
                break
        refusal = _refusal(journey, max(wait))
        if journey.attempts:
            words = {"failure": refusal.metadata.get("detail", "")} | _spent(journey)
            failed = self._event(journey, Event.OUTCOME_FAILED, words)
            failed.reason = reason_name(refusal.reason)
            await self._ledger.record(failed)
        raise refusal

    def _begin(self, request: pb.GenerateRequest) -> _Journey:
        """Look at the question as a whole."""
        question = question_of(request)
        found = domain.problems(question)
        if not (request.attribution.incident_id or request.attribution.conversation_id):
            found.append(("attribution", "tokens are spent for an incident or a conversation: name one"))
        if found:
            violations = [FieldViolation(where, what) for where, what in found]
            raise Refusal(error_reason_pb2.ERROR_REASON_INVALID_ARGUMENT, violations=violations)
        purpose = Purpose(
            request_id=UUID(request.request_id),
            digest=policy.digest(METHOD, request),
            attribution=attribution_of(request.attribution, current().identity),
            role=request.role,
            prompt_digest=domain.prompt_digest(question),
        )
        return _Journey(request, question, purpose)

    async def _ask(self, journey: _Journey, endpoint: Endpoint) -> pb.GenerateResponse:
        """Ask one model, again where that may help; raises the last ProviderError."""
        call = current()
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(ProviderError),
            stop=stop_when(self._retries, lambda: call.remaining - MARGIN, lambda: journey.useless, more=journey.more),
            wait=pause,
            reraise=True,
        )
        return await retrying(self._once, journey, endpoint)

    async def _once(self, journey: _Journey, endpoint: Endpoint) -> pb.GenerateResponse:
        """One call to one provider, reserved before and settled after."""
        breaker = self.breakers[endpoint.provider]
        if not endpoint.replays:
            await self._ready()
        remaining = current().remaining - MARGIN
        # A model that hangs must leave time for those after it.
        seconds = min(endpoint.seconds, remaining * SHARE if journey.more else remaining)
        if seconds < SHORTEST:
            raise _ClosedError(Kind.PERMANENT, "there was no time left", at_fault=False)
        if not breaker.enter(seconds + MARGIN):
            said = breaker.last_failure or "it is being tried"
            raise _ClosedError(Kind.PERMANENT, f"its breaker is open: {said}", at_fault=False)
        settled = False
        try:
            usage = domain.expected(journey.question, endpoint)
            hold = await self._ledger.reserve(journey.purpose, endpoint, usage, seconds + SETTLING)
            journey.attempts += 1
            journey.model = endpoint.model
            try:
                raw = await self._call(endpoint, journey.question, seconds)
                reply = _look(journey.question, raw)
            except ProviderError as error:
                settled = True
                await self._failed(journey, endpoint, hold, error)
                if error.said is not None:
                    journey.useless += 1
                    told = journey.question.corrections + correction(journey.question, endpoint, error)
                    journey.question = replace(journey.question, corrections=told)
                raise
            settled = True
            breaker.succeeded()
            self._retries.earn()
            return await self._succeeded(journey, endpoint, hold, raw, reply)
        finally:
            if not settled:
                breaker.leave()

    async def _ready(self) -> None:
        """Wait for the provider's library, whose import takes seconds: neither a failure nor a cost of the provider."""
        try:
            async with asyncio.timeout(max(0.0, current().remaining - MARGIN)):
                await self._warm()
        except TimeoutError:
            raise _ClosedError(Kind.PERMANENT, "its library is still being loaded", at_fault=False) from None

    async def _call(self, endpoint: Endpoint, question: Question, seconds: float) -> RawReply:
        """Ask, within `seconds`; a provider that hangs is left alone."""
        provider = self._recorded if endpoint.replays else self._hosted
        try:
            async with asyncio.timeout(seconds):
                return await provider.generate(endpoint, question)
        except TimeoutError:
            raise ProviderError(Kind.UNKNOWN, f"it did not answer within {seconds:.1f} s") from None

    async def _failed(self, journey: _Journey, endpoint: Endpoint, hold: Hold, error: ProviderError) -> None:
        """Settle a call without a reply: what may have been paid for stays counted."""
        breaker = self.breakers[endpoint.provider]
        if error.at_fault:
            breaker.failed(error.detail, error.retry_after)
        else:
            breaker.leave()
        unknown = error.kind is Kind.UNKNOWN or error.why is Why.UNREADABLE
        usage = error.usage or (hold.usage if unknown else NOTHING)
        cost = _spend(journey, endpoint, usage)
        CALLS.labels(journey.request.role, endpoint.provider, error.kind.value).inc()
        log.warning("model failed", **_words(journey, endpoint), failure=str(error))
        verdict = Verdict("UNKNOWN" if unknown else "FAILED", usage, cost, str(error))
        await asyncio.shield(self._ledger.settle(journey.purpose, hold, verdict))

    async def _succeeded(
        self, journey: _Journey, endpoint: Endpoint, hold: Hold, raw: RawReply, reply: Reply
    ) -> pb.GenerateResponse:
        """Settle a call with its reply, keep the answer, and tell audit."""
        usage = domain.counted(journey.question, raw)
        cost = _spend(journey, endpoint, usage)
        made = Generation(
            reply=reply,
            usage=journey.usage,
            cost_micros=journey.cost_micros,
            endpoint=endpoint,
            fallback_index=journey.index,
            attempts=journey.attempts,
            seconds=time.monotonic() - journey.started,
            recorded=raw.recorded,
            prompt_digest=journey.purpose.prompt_digest,
        )
        response = response_of(made)
        words = _words(journey, endpoint) | {
            "input_tokens": str(journey.usage.input_tokens),
            "output_tokens": str(journey.usage.output_tokens),
            "cost_micros": str(journey.cost_micros),
            "recorded": str(raw.recorded).lower(),
        }
        CALLS.labels(journey.request.role, endpoint.provider, "recorded" if raw.recorded else "succeeded").inc()
        log.info("model answered", **words, seconds=round(made.seconds, 3), calls=len(reply.tool_calls))
        done = self._event(journey, Event.OUTCOME_SUCCEEDED, words)
        verdict = Verdict("SUCCEEDED", usage, cost)
        # It is paid for: whether the caller still waits or not, it is kept for its next try.
        await asyncio.shield(self._ledger.settle(journey.purpose, hold, verdict, response, done))
        return response

    def _event(self, journey: _Journey, outcome: "Event.Outcome.ValueType", detail: Mapping[str, str]) -> Event:
        """Return what audit learns: figures and digests, never the text."""
        whom = journey.purpose.attribution
        named = {"requester": whom.requester, "run_id": whom.run_id, "conversation_id": whom.conversation_id}
        subject = Subject(
            incident_id=whom.incident_id,
            decision_id=whom.decision_id,
            detail={**{key: text for key, text in named.items() if text}, **detail},
        )
        return event(Event.PHASE_RECORD, outcome, subject, request=journey.request, action=METHOD)

    def available(self, endpoint: Endpoint) -> bool:
        """Say whether a call to a model would go out now."""
        return self.breakers[endpoint.provider].state is not State.OPEN


def _look(question: Question, raw: RawReply) -> Reply:
    """Return what may be handed on of a reply, or raise when that is nothing."""
    kept, dropped = domain.sort_calls(question, raw.tool_calls)
    text, finish = raw.text, raw.finish
    if question.response_schema:
        try:
            text = canonical(read_object(without_fences(text)))
        except UnreadableError as error:
            raise useless(question, raw, f"the answer is {error}") from None
    elif question.must_call and not raw.tool_calls:
        raise useless(question, raw, "no tool was called")
    elif not raw.tool_calls and not text.strip():
        raise useless(question, raw, "it is empty")
    if kept or dropped:
        finish = Finish.TOOL_CALLS if finish is Finish.STOP else finish
    elif finish is Finish.TOOL_CALLS:
        finish = Finish.STOP
    return Reply(text, kept, dropped, finish)


def _spend(journey: _Journey, endpoint: Endpoint, usage: Usage) -> int:
    """Count what a try used, whatever came of it, and return what it cost."""
    cost = endpoint.price.cost(usage)
    journey.usage += usage
    journey.cost_micros += cost
    TOKENS.labels(journey.request.role, "input").inc(usage.input_tokens)
    TOKENS.labels(journey.request.role, "output").inc(usage.output_tokens)
    COST.labels(journey.request.role).inc(cost)
    return cost


def _spent(journey: _Journey) -> dict[str, str]:
    """Return what a refusal says of the tries before it, so that whoever asked can count them; nothing without any."""
    if not journey.attempts:
        return {}
    return {
        "input_tokens": str(journey.usage.input_tokens),
        "output_tokens": str(journey.usage.output_tokens),
        "cost_micros": str(journey.cost_micros),
        "model": journey.model,
        "attempts": str(journey.attempts),
        "prompt_digest": journey.purpose.prompt_digest,
    }


def _words(journey: _Journey, endpoint: Endpoint) -> dict[str, str]:
    """Return what every line about a call names."""
    return {
        "role": journey.request.role,
        "model": endpoint.model,
        "provider": endpoint.provider,
        "prompt_digest": journey.purpose.prompt_digest,
        "incident_id": journey.purpose.attribution.incident_id,
        "attempts": str(journey.attempts),
    }


def _refusal(journey: _Journey, wait: float) -> Refusal:
    """Return why no model answered.

    That one may answer later comes before that one cannot; but what the role's own model said is not asked for, and
    paid, again and again because a fallback is away.
    """
    role = journey.request.role
    if not journey.failures:
        detail = "no model is configured for it"
        return Refusal(error_reason_pb2.ERROR_REASON_MODEL_UNAVAILABLE, role=role, detail=detail)
    whys = [error.why for _, error in journey.failures]
    final = Why.UNAVAILABLE if Why.UNAVAILABLE in whys else whys[-1]
    why = whys[0] if whys[0] is Why.UNREADABLE else final
    detail = "; ".join(f"{endpoint.model}: {error.detail}" for endpoint, error in journey.failures)
    refusal = Refusal(REASONS[why], role=role, detail=detail, retry_after=wait or None)
    refusal.metadata |= _spent(journey)
    return refusal
