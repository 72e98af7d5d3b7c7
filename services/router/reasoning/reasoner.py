"""Asks a model for one outcome: at most two retries, three rounds of reads, each call in the journal before it is made.

What comes out is an outcome that is valid and possible, and authorised by nobody yet; or nothing, with why, which is a
case for a person. While no model can be asked, ModelsAway is raised and nothing is decided.
"""

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import grpc
import grpc.aio

from opsmesh.agents.v1 import model_service_pb2, model_service_pb2_grpc
from opsmesh.ingest.v1 import ingest_service_pb2
from opsmesh.router.v1 import decision_service_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal, from_rpc_error
from services.mesh.models import outcomes
from services.mesh.models.outcomes import Available, Chosen
from services.mesh.models.paid import paid
from services.mesh.models.tool_calls import Dropped, Parsed, ToolCall
from services.mesh.models.tool_schema import catalogue
from services.mesh.models.untrusted import Marks
from services.mesh.tools import tools
from services.router.domain import shorten
from services.router.reasoning import prompts
from services.router.reasoning.context import Context, Section
from services.router.reasoning.journal import Asked, Journal, Offered, Opened, Record

ROLE: Final = "routing"
RETRIES_MAX: Final = 2
ROUNDS_MAX: Final = 3
HISTORY_MAX: Final = 40
# Longer than any message of the IDL: said in full, or cut where the text of all of them would be too much.
SAID_MAX: Final = 4000
AWAY: Final = frozenset(
    {
        error_reason_pb2.ERROR_REASON_MODEL_UNAVAILABLE,
        error_reason_pb2.ERROR_REASON_BUDGET_EXHAUSTED,
        error_reason_pb2.ERROR_REASON_MODEL_REFUSED,
    }
)
USELESS: Final = frozenset(
    {error_reason_pb2.ERROR_REASON_MODEL_REPLY_INVALID, error_reason_pb2.ERROR_REASON_CONTEXT_TOO_LARGE}
)
# A question that the boundary does not take is none that another try could answer.
WRONG: Final = frozenset(
    {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.PERMISSION_DENIED}
)
MODEL_MAX: Final = 200
DIGEST_LENGTH: Final = 64
GIVEN_UP: Final = "the model gave no usable answer"
pb = model_service_pb2


class ModelsAway(Exception):  # noqa: N818  a state of the world that callers wait out, not an error
    """No model can be asked now (automation-only): rules go on, this waits. `str()` says why, in a sentence."""


@dataclass(frozen=True, slots=True)
class Read:
    """What a read gave: `text` fit to be shown, or the error reason without prefix."""

    text: str
    digest: str = ""
    reason: str = ""


class Reader(Protocol):
    """Does the reads that a model asked for, under whatever grant it has."""

    async def read(self, wanted: Parsed, marks: Marks) -> Read:
        """Read; what fails is an answer, too."""


@dataclass(frozen=True, slots=True)
class Case:
    """A question to a model.

    `key` is the decision, or the message of a conversation: request ids and the journal hang on it. `context` says what
    the model is told, and `context.available` from what it may choose; `marks` must be those that the context was
    rendered with. `history` is what was said before, as (speaker, text). Without a `reader` no reads are offered.
    """

    key: uuid.UUID
    prompt_id: str
    attribution: model_service_pb2.Attribution
    context: Context
    marks: Marks
    incident: ingest_service_pb2.Incident | None = None
    history: tuple[tuple[str, str], ...] = ()
    sections: tuple[Section, ...] = ()
    reader: Reader | None = None


@dataclass(frozen=True, slots=True)
class Reasoned:
    """What came of it; without `chosen` a person must decide, and `why` says why. Figures are of all attempts."""

    chosen: Chosen | None
    why: str
    calls: tuple[decision_service_pb2.ModelCall, ...]
    sources: tuple[decision_service_pb2.ContextSource, ...]
    recorded: bool


@dataclass(slots=True)
class _Talk:
    """An attempt on its way: what was said so far, and what may still be done."""

    case: Case
    marks: Marks
    available: Available
    number: int
    messages: list[model_service_pb2.Message] = field(default_factory=list)
    retries: int = 0
    rounds: int = 0


class Reasoner:
    """Asks the models of agents, in the caller's time."""

    def __init__(self, models: "model_service_pb2_grpc.ModelServiceAsyncStub", journal: Journal) -> None:
        self._models = models
        self._journal = journal

    async def away(self, incident_id: str = "", requester: str = "") -> str:
        """Return why no model can be asked now; empty when one can. Raises grpc.aio.AioRpcError."""
        answer = await self._models.ListModels(pb.ListModelsRequest(incident_id=incident_id, requester=requester))
        return (answer.automation_only_reason or "no model is configured") if answer.automation_only else ""

    async def record(self, key: uuid.UUID) -> Record:
        """Return the calls and sources of a decision or message, of all attempts."""
        return await self._journal.record(key)

    async def under_way(self, key: uuid.UUID) -> bool:
        """Say whether an attempt waits to be gone on with: its context need not be gathered again."""
        return await self._journal.opened(key) is not None

    async def decide(self, case: Case) -> Reasoned:
        """Return what the model decides.

        Raises ModelsAway, and grpc.aio.AioRpcError when agents does not answer: then the same case may be tried again,
        and goes on where it was.
        """
        talk, asked = await self._open(case)
        try:
            chosen, why = await self._converse(talk, asked)
        except ModelsAway:
            await self._journal.close(case.key)
            raise
        await self._journal.close(case.key)
        record = await self._journal.record(case.key)
        recorded = any(call.recorded for call in record.calls)
        return Reasoned(chosen, shorten(why), record.calls, record.sources, recorded)

    async def _open(self, case: Case) -> tuple[_Talk, list[Asked]]:
        """Go on with the attempt under way, or begin one."""
        opened = await self._journal.opened(case.key)
        if opened is not None and opened.prompt_id == case.prompt_id:
            talk = _Talk(case, Marks(opened.token), _available(opened.offered), opened.first)
            return talk, await self._journal.calls(case.key, opened.first)
        available = replace(case.context.available, reads=case.context.available.reads if case.reader else {})
        offered = Offered(
            tuple(available.playbooks),
            tuple(available.templates),
            tuple(available.targets),
            tuple(one.method for one in available.read_only().values()),
        )
        new = Opened(0, case.prompt_id, case.marks.token, offered, case.context.sources)
        return _Talk(case, case.marks, available, await self._journal.begin(case.key, new)), []

    async def _converse(self, talk: _Talk, asked: Sequence[Asked]) -> tuple[Chosen | None, str]:
        """Ask until there is an outcome, or no try left."""
        talk.messages = [pb.Message(role=pb.Message.ROLE_USER, text=_told(talk))]
        known = {one.number: one for one in asked}
        while True:
            one = known.get(talk.number)
            if one is not None:
                # As it was sent: what was told then is what it answers.
                del talk.messages[:]
                talk.messages.extend(one.request.messages)
            if one is not None and one.call is not None and one.response is None:
                # It was refused, and paid for, before whoever asked went away.
                return None, GIVEN_UP
            request = one.request if one is not None else self._request(talk)
            if one is None or one.response is None:
                await self._journal.ask(talk.case.key, talk.number, request)
                one = await self._generate(talk, request)
                if one is None or one.response is None:
                    return None, GIVEN_UP
            response = one.response
            found = _read(response, talk)
            if isinstance(found, Chosen) and not found.reads:
                await self._note(talk, one, f"outcome {found.outcome.WhichOneof('detail')}")
                return found, found.outcome.reason
            if isinstance(found, Dropped):
                await self._note(talk, one, f"not taken: {found.reason}")
                talk.retries += 1
                if talk.retries > RETRIES_MAX:
                    return None, f"{GIVEN_UP}: {found.reason}"
                _answer(talk, response, found.reason, failed=True)
            else:
                talk.rounds += 1
                # What the next question tells was read already.
                gathered = "" if talk.number + 1 in known else await self._gather(talk, one, found.reads)
                _answer(talk, response, gathered, failed=False)
            talk.number += 1

    def _request(self, talk: _Talk) -> model_service_pb2.GenerateRequest:
        """Return the next question; its id follows from what is in it."""
        prompt = prompts.load(talk.case.prompt_id)
        offer = outcomes.offer(_left(talk))
        request = pb.GenerateRequest(
            role=ROLE,
            system=f"{prompt.text}\n{talk.marks.rules()}\n",
            messages=talk.messages,
            tools=[
                pb.ToolDefinition(
                    name=offer.name, description=offer.description, parameters_json_schema=offer.schema_json
                )
            ],
            tool_use=pb.GenerateRequest.TOOL_USE_REQUIRED,
            attribution=talk.case.attribution,
        )
        content = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        request.request_id = str(uuid.uuid5(talk.case.key, f"generate/{talk.number}/{content}"))
        return request

    async def _generate(self, talk: _Talk, request: model_service_pb2.GenerateRequest) -> Asked | None:
        """Ask; None when the model's answer is of no use to anybody. What it cost is noted at once."""
        try:
            response = await self._models.Generate(request)
        except grpc.aio.AioRpcError as error:
            refusal = from_rpc_error(error)
            if refusal and refusal.reason in AWAY:
                raise ModelsAway(str(refusal)) from error
            if (refusal and refusal.reason in USELESS) or error.code() in WRONG:
                said = refusal or error.code().name
                call = self._call(talk, _refused(refusal), f"not taken: {said}")
                await self._journal.answer(talk.case.key, Asked(talk.number, request, None, call))
                return None
            raise
        asked = Asked(talk.number, request, response, self._call(talk, response, "answered"))
        await self._journal.answer(talk.case.key, asked)
        return asked

    async def _note(self, talk: _Talk, asked: Asked, detail: str) -> None:
        """Note what came of an answer."""
        if asked.call is not None:
            asked.call.detail = shorten(detail)
            await self._journal.answer(talk.case.key, asked)

    def _call(
        self, talk: _Talk, response: model_service_pb2.GenerateResponse, detail: str
    ) -> decision_service_pb2.ModelCall:
        """Return the record of a call."""
        prompt = prompts.load(talk.case.prompt_id)
        return decision_service_pb2.ModelCall(
            prompt_id=prompt.prompt_id,
            prompt_hash=prompt.digest,
            prompt_digest=response.prompt_digest,
            model=response.model,
            input_tokens=response.usage.input_tokens,
            output_tokens=response.usage.output_tokens,
            cost_micros=response.cost_micros,
            latency_duration=response.latency_duration,
            recorded=response.recorded,
            detail=shorten(detail),
        )

    async def _gather(self, talk: _Talk, asked: Asked, reads: Sequence[Parsed]) -> str:
        """Do the reads of one round and return what they gave."""
        told: list[str] = []
        results: list[decision_service_pb2.ContextResult] = []
        for place, wanted in enumerate(reads):
            done = await talk.case.reader.read(wanted, talk.marks) if talk.case.reader else Read("", reason="NO_READER")
            told.append(f"reads[{place}] {wanted.offer.name}: {done.text or f'(failed: {done.reason})'}")
            results.append(
                decision_service_pb2.ContextResult(
                    tool=wanted.offer.method,
                    arguments_json=wanted.call.arguments[:4096],
                    result_digest=done.digest,
                    reason=done.reason[:64],
                )
            )
        if asked.call is not None:
            del asked.call.reads[:]
            asked.call.reads.extend(results)
        await self._note(talk, asked, f"outcome gather_context, round {talk.rounds} of {ROUNDS_MAX}")
        if talk.rounds >= ROUNDS_MAX:
            told.append("There are no more reads: decide on what is known.")
        return "\n\n".join(told)


def _refused(refusal: Refusal | None) -> model_service_pb2.GenerateResponse:
    """Return what a refusal says of the replies that were paid for and of no use."""
    if refusal is None:
        return pb.GenerateResponse()
    tokens = pb.Usage(input_tokens=paid(refusal, "input_tokens"), output_tokens=paid(refusal, "output_tokens"))
    return pb.GenerateResponse(
        usage=tokens,
        cost_micros=paid(refusal, "cost_micros"),
        model=refusal.metadata.get("model", "")[:MODEL_MAX],
        prompt_digest=refusal.metadata.get("prompt_digest", "")[:DIGEST_LENGTH],
    )


def _told(talk: _Talk) -> str:
    """Return everything a model is told at first."""
    parts = [f"## {one.name}\n{one.text}" for one in (*talk.case.context.sections, *talk.case.sections)]
    if talk.case.history:
        said = [f"{who}: {talk.marks.span(f'conversation/{who}', text, SAID_MAX)}" for who, text in talk.case.history]
        parts.append("## conversation\n" + "\n".join(said[-HISTORY_MAX:]))
    return "\n\n".join(parts) or "(nothing is known)"


def _left(talk: _Talk) -> Available:
    """Return what may still be chosen: after the last round no more reads."""
    return talk.available if talk.rounds < ROUNDS_MAX else replace(talk.available, reads={})


def _available(offered: Offered) -> Available:
    """Return what was offered, from its names."""
    known = tools()
    reads = catalogue((known[name] for name in offered.reads if name in known), targets=offered.targets)
    return Available(offered.playbooks, offered.templates, offered.targets, reads)


def _read(response: model_service_pb2.GenerateResponse, talk: _Talk) -> Chosen | Dropped:
    """Return the outcome of a reply, or why it is none."""
    calls = [ToolCall(one.call_id, one.name, one.arguments_json) for one in response.tool_calls]
    calls += [ToolCall(one.call_id, one.name, "") for one in response.dropped_calls]
    return outcomes.read_reply(calls, _left(talk))


def _answer(talk: _Talk, response: model_service_pb2.GenerateResponse, text: str, *, failed: bool) -> None:
    """Hand the model what its reply gave; every call in it gets its answer."""
    calls = list(response.tool_calls)
    talk.messages.append(
        pb.Message(
            role=pb.Message.ROLE_ASSISTANT, text=response.text or ("" if calls else "(no call)"), tool_calls=calls
        )
    )
    talk.messages.extend(
        pb.Message(role=pb.Message.ROLE_TOOL, text=text, call_id=one.call_id, failed=failed) for one in calls
    )
    if not calls:
        talk.messages.append(pb.Message(role=pb.Message.ROLE_USER, text=f"Your reply was not taken: {text}"))
