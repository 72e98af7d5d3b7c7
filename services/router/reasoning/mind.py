"""The model lane: what no rule knew is put to a model; its one outcome becomes the decision, or a question to people.

While no model can be asked a decision is parked: it keeps its state, its age and its reason, and comes back by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import grpc
import grpc.aio
import structlog

from opsmesh.agents.v1 import model_service_pb2, template_service_pb2_grpc
from opsmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from opsmesh.router.v1 import outcome_pb2
from services.mesh.models.outcomes import Chosen
from services.mesh.models.untrusted import Marks
from services.router import work as steps
from services.router.deciding import flapping
from services.router.domain import CHAT, Decision, Order, Outcome, Result, Stage, State, Verdict, shorten
from services.router.messages import OVER
from services.router.reasoning import context, prompts
from services.router.reasoning.context import About, Context, Source
from services.router.reasoning.reads import DecisionReads, Gate
from services.router.reasoning.reasoner import Case, ModelsAway, Reasoned, Reasoner
from services.router.reasoning.sources import enabled_templates, targets_of
from services.router.work import Made, Step, Work

# The whole of one look: gathering, and every call of the model.
SECONDS: Final = 120.0
# How often agents may fail to answer before a decision is parked.
TRIES: Final = 3
# How often a look may take longer than it has.
TRIES_MAX: Final = 6
REPAIR: Final = "diagnose-repair"
# When another try is worth it: the provider may be back at once; a template or a budget takes a person, or a day. What
# keeps failing although a model can be asked waits half as long again as it has waited, for each try costs the others.
SOON: Final = 2.0
LATER: Final = 60.0
LATEST: Final = 900.0
OUTCOMES: Final = {
    "delegate_agent": Outcome.DELEGATE_AGENT,
    "trigger_automation": Outcome.TRIGGER_AUTOMATION,
    "ask_human": Outcome.ASK_HUMAN,
    "respond": Outcome.RESPOND,
}
QUESTION: Final = "No model gave a usable answer about this incident. What shall be done?"
SPENT: Final = "The model budget of this incident is used up. What shall be done?"
log = structlog.get_logger("opsmesh.router.model")


@dataclass(frozen=True, slots=True)
class Peers:
    """Who is asked beside the model."""

    incidents: "ingest_service_pb2_grpc.IngestServiceAsyncStub"
    templates: "template_service_pb2_grpc.TemplateServiceAsyncStub"
    gate: Gate


class Mind:
    """Makes the decisions that no rule could make. Raises grpc.aio.AioRpcError: the same work is then tried again."""

    def __init__(self, reasoner: Reasoner, sources: Sequence[Source], peers: Peers) -> None:
        self._reasoner = reasoner
        self._sources = sources
        self._peers = peers

    async def think(self, work: Work) -> Step:
        """Have a decision made, or park it."""
        decision = work.decision
        if work.attempts > TRIES_MAX:
            return park(decision, "no decision came about in its time", later(decision))
        try:
            if why := await self._reasoner.away(str(decision.incident_id)):
                # What only this incident has used up never comes back: people go on.
                passing = bool(await self._reasoner.away())
                return park(decision, why, SOON) if passing else asked(decision, SPENT, why)
            return await (self._repair(decision) if decision.order.cause else self._decide(work))
        except ModelsAway as error:
            return park(decision, str(error), later(decision))
        except grpc.aio.AioRpcError as error:
            if work.attempts < TRIES:
                raise
            log.warning("not decided", decision_id=str(decision.decision_id), code=error.code().name)
            return park(decision, "agents does not answer", SOON)

    async def _repair(self, decision: Decision) -> Step:
        """Open the one run for an execution that failed: what is to be done first needs no model."""
        answer = await self._incident(decision)
        if answer and answer.incident.flapping:
            # It may have waited for long: what flaps starts nothing, whoever chose it.
            return _made(flapping(decision.rule_set_version), decision.model_call_count, recorded=decision.recorded)
        found = [one.template_id for one in await enabled_templates(self._peers.templates)]
        if REPAIR not in found:
            return park(decision, f"no template {REPAIR} is published and enabled", LATER)
        goal = (
            f"Execution {decision.order.cause} did not end well: its trace is given. Find out why, and repair the "
            "targets if the cause is confirmed and a tool for it is allowed."
        )
        verdict = Verdict(
            State.DECIDED,
            shorten(f"{decision.reason}; an agent looks into it"),
            Outcome.DELEGATE_AGENT,
            template_id=REPAIR,
            order=replace(decision.order, goal=goal),
        )
        return _made(verdict, decision.model_call_count, recorded=decision.recorded)

    async def _decide(self, work: Work) -> Step:
        """Put it to the model."""
        decision = work.decision
        answer = await self._incident(decision)
        if answer is None:
            return steps.give_up(work, Result.STALE, "its incident is not kept any more")
        incident = answer.incident
        if incident.state in OVER:
            return steps.give_up(work, Result.SUPERSEDED, "its incident is over")
        if incident.revision > decision.revision:
            # The newer revision is on its way to be decided, and that ends this one.
            return steps.again(work)
        if incident.flapping and incident.source != CHAT:
            return _made(flapping(decision.rule_set_version), decision.model_call_count, recorded=decision.recorded)
        reads = DecisionReads(self._peers.gate, str(decision.decision_id), incident.incident_id)
        about = About(incident, tuple(answer.signals), str(decision.decision_id), reads)
        marks = Marks()
        # What was told before a restart is told again as it was: gathering it anew would be for nothing.
        under_way = await self._reasoner.under_way(decision.decision_id)
        known = Context() if under_way else await context.gather(self._sources, about, marks)
        case = Case(
            key=decision.decision_id,
            prompt_id=prompts.INCIDENT,
            attribution=model_service_pb2.Attribution(
                incident_id=incident.incident_id, decision_id=str(decision.decision_id), sender=incident.source
            ),
            context=known,
            marks=marks,
            incident=incident,
            reader=reads,
        )
        return decided(decision, incident, await self._reasoner.decide(case))

    async def _incident(self, decision: Decision) -> ingest_service_pb2.GetIncidentResponse | None:
        """Return the incident as it is now; None when ingest does not keep it any more."""
        request = ingest_service_pb2.GetIncidentRequest(incident_id=str(decision.incident_id))
        try:
            return await self._peers.incidents.GetIncident(request)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise


def later(decision: Decision) -> float:
    """Return after how many seconds another try is worth it for what has failed until now."""
    return min(LATEST, max(LATER, decision.age.total_seconds() / 2))


def asked(decision: Decision, question: str, why: str, count: int = 0, *, recorded: bool = False) -> Step:
    """Return the decision that people are asked, in a few words, because no model can say."""
    message = outcome_pb2.AskHuman(question=question, text=outcome_pb2.FreeText())
    verdict = Verdict(
        State.DECIDED,
        shorten(f"{decision.reason}; {why}"),
        Outcome.ASK_HUMAN,
        question=message.SerializeToString(),
    )
    return _made(verdict, count, recorded=recorded)


def park(decision: Decision, why: str, seconds: float) -> Step:
    """Keep a decision until a model can be asked; a person is told, once."""
    step = steps.park(f"{why}; a person is notified", seconds)
    return replace(step, delay=steps.NEVER) if decision.notice_execution_id else step


def decided(decision: Decision, incident: ingest_service_pb2.Incident, reasoned: Reasoned) -> Step:
    """Return the decision that an outcome of a model is; without one, people are asked."""
    count = len(reasoned.calls)
    if reasoned.chosen is None:
        return asked(decision, QUESTION, reasoned.why, count, recorded=reasoned.recorded)
    return _made(verdict_of(reasoned.chosen, reasoned.why, incident), count, recorded=reasoned.recorded)


def verdict_of(chosen: Chosen, why: str, incident: ingest_service_pb2.Incident) -> Verdict:
    """Return what an outcome means for an incident.

    A response does not close what still fires: a text that talked a model into silence must not silence an alert. What
    was wished in a chat is no alert: who wished it is answered, and that is all.
    """
    outcome = chosen.outcome
    detail = outcome.WhichOneof("detail") or ""
    question = outcome.ask_human.SerializeToString() if detail == "ask_human" else b""
    reason = f"{why} {outcome.respond.text}" if detail == "respond" else why
    order = Order()
    if detail == "delegate_agent":
        wanted = tuple(outcome.delegate_agent.target_ids) or targets_of(incident)
        order = Order(target_ids=wanted, goal=outcome.delegate_agent.goal)
    over = detail == "respond" and incident.source == CHAT
    return Verdict(
        State.CLOSED if over else State.DECIDED,
        shorten(reason),
        OUTCOMES[detail],
        result=Result.RESPONDED if over else Result.UNSPECIFIED,
        playbook_id=outcome.trigger_automation.playbook_id,
        template_id=outcome.delegate_agent.template_id,
        order=order,
        model_outcome=outcome.SerializeToString(),
        question=question,
    )


def _made(verdict: Verdict, count: int, *, recorded: bool) -> Step:
    return Step(Stage.NONE, verdict.state, made=Made(verdict, count, recorded))
