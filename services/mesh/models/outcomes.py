"""The five outcomes a routing model may answer with, and the answers of people to its questions.

Out of whatever a model sends comes exactly one outcome or one reason. What is offered is what exists: playbooks,
templates, targets and read-only tools of this moment become choices of the schema, and an outcome with nothing to
choose from is not offered at all. The reads of "gather context" are parsed as strictly as any call of a tool.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from opsmesh.router.v1 import decision_service_pb2 as decisions
from opsmesh.router.v1 import outcome_pb2
from services.mesh import policy
from services.mesh.models.tool_calls import Dropped, Fault, Parsed, ToolCall, quoted, read_call
from services.mesh.models.tool_schema import Offer, offer_message

NAME: Final = "decide"
DESCRIPTION: Final = (
    "Decide what is done about this incident: exactly one outcome. Prefer a playbook that is known to help; gather "
    "context or delegate to an agent when the cause is not clear; ask a person when only a person can know; respond "
    "when nothing is to be done."
)
KINDS: Final[Mapping[str, "decisions.Decision.Outcome.ValueType"]] = MappingProxyType(
    {
        "gather_context": decisions.Decision.OUTCOME_GATHER_CONTEXT,
        "delegate_agent": decisions.Decision.OUTCOME_DELEGATE_AGENT,
        "trigger_automation": decisions.Decision.OUTCOME_TRIGGER_AUTOMATION,
        "ask_human": decisions.Decision.OUTCOME_ASK_HUMAN,
        "respond": decisions.Decision.OUTCOME_RESPOND,
    }
)
TEXT_LENGTH: Final = 500
_PACKAGE: Final = "opsmesh.router.v1"
_YES: Final = frozenset({"yes", "y", "true"})
_NO: Final = frozenset({"no", "n", "false"})


@dataclass(frozen=True, slots=True)
class Available:
    """What a model may choose from now; of `reads`, only tools that change nothing are offered."""

    playbooks: Sequence[str] = ()
    templates: Sequence[str] = ()
    targets: Sequence[str] = ()
    reads: Mapping[str, Offer] = field(default_factory=dict)

    def read_only(self) -> Mapping[str, Offer]:
        """Return the offers whose method reads, by the IDL's word and no other."""
        return {
            name: one
            for name, one in self.reads.items()
            if (found := policy.table().get(one.method)) is not None and found.access in policy.READS
        }


@dataclass(frozen=True, slots=True)
class Chosen:
    """One outcome: valid and possible, authorised by nobody yet. `reads` is filled for GATHER_CONTEXT."""

    outcome: outcome_pb2.ModelOutcome
    kind: "decisions.Decision.Outcome.ValueType"
    reads: tuple[Parsed, ...] = ()


def offer(available: Available) -> Offer:
    """Return what a routing model is offered: as a tool it must call, or as the schema of its whole answer."""
    choices = {
        f"{_PACKAGE}.TriggerAutomation.playbook_id": tuple(available.playbooks),
        f"{_PACKAGE}.DelegateAgent.template_id": tuple(available.templates),
        f"{_PACKAGE}.DelegateAgent.target_ids": tuple(available.targets),
        f"{_PACKAGE}.ContextRead.tool": tuple(available.read_only()),
    }
    return offer_message(NAME, DESCRIPTION, outcome_pb2.ModelOutcome, choices)


def read_reply(calls: Sequence[ToolCall], available: Available) -> Chosen | Dropped:
    """Return the one outcome of a reply with tool calls; none and several are both no answer."""
    if len(calls) != 1:
        reason = f"call {NAME} exactly once; this reply has {len(calls)} calls"
        return Dropped(calls[0] if calls else ToolCall("", NAME, ""), Fault.NOT_ONE, reason)
    return _read(calls[0], available)


def read_text(text: str, available: Available) -> Chosen | Dropped:
    """Return the one outcome of a reply that is the text of one JSON object, from a model without tool calling."""
    return _read(ToolCall("", NAME, text), available)


def _read(call: ToolCall, available: Available) -> Chosen | Dropped:
    """Return the outcome of one call."""
    found = read_call(call, {NAME: offer(available)})
    if isinstance(found, Dropped):
        return found
    outcome: Any = found.request
    detail = outcome.WhichOneof("detail")
    if detail == "gather_context":
        return _gather(call, outcome, available)
    if detail == "ask_human" and (wrong := question_error(outcome.ask_human)):
        return Dropped(call, Fault.BOUND_BROKEN, wrong)
    return Chosen(outcome, KINDS[detail])


def _gather(call: ToolCall, outcome: outcome_pb2.ModelOutcome, available: Available) -> Chosen | Dropped:
    """Return the outcome with its reads parsed; one that is not understood spoils it, with its place and reason."""
    reads = []
    offers = available.read_only()
    for place, wanted in enumerate(outcome.gather_context.reads):
        found = read_call(ToolCall(call.call_id, wanted.tool, wanted.arguments), offers)
        if isinstance(found, Dropped):
            reason = f"detail.gather_context.reads[{place}] ({quoted(wanted.tool)}): {found.reason}"
            return Dropped(call, found.fault, reason)
        reads.append(found)
    return Chosen(outcome, KINDS["gather_context"], tuple(reads))


def question_error(question: outcome_pb2.AskHuman) -> str:
    """Return why a question cannot be answered, or nothing."""
    if question.WhichOneof("answer") == "number" and question.number.minimum >= question.number.maximum:
        return "detail.ask_human.answer.number: minimum must be below maximum"
    return ""


def answer_error(question: outcome_pb2.AskHuman, answer: outcome_pb2.HumanAnswer) -> str:
    """Return why an answer is not one to this question, or nothing; both are valid messages by themselves."""
    wanted, given = question.WhichOneof("answer"), answer.WhichOneof("value")
    fits = {"yes_no": "yes", "choice": "option", "number": "number", "text": "text"}
    if wanted is None or given != fits[wanted]:
        return f"the question wants {wants(question)}"
    if wanted == "choice" and answer.option not in question.choice.options:
        return f"the question wants {wants(question)}"
    if wanted == "number" and not question.number.minimum <= answer.number <= question.number.maximum:
        return f"the question wants {wants(question)}"
    if wanted == "text" and len(answer.text) > (question.text.max_length or TEXT_LENGTH):
        return f"the question wants {wants(question)}"
    return ""


def read_answer(question: outcome_pb2.AskHuman, text: str) -> outcome_pb2.HumanAnswer | str:
    """Return what a person's words mean as an answer to a question, or what it wants: nothing is guessed."""
    word = text.strip()
    readers: dict[str, Callable[[str], outcome_pb2.HumanAnswer | None]] = {
        "yes_no": _yes_no,
        "choice": lambda said: _option(question, said),
        "number": _number,
        "text": lambda said: outcome_pb2.HumanAnswer(text=said) if said else None,
    }
    found = readers[question.WhichOneof("answer") or "text"](word)
    if found is None:
        return f"the question wants {wants(question)}"
    return answer_error(question, found) or found


def _yes_no(word: str) -> outcome_pb2.HumanAnswer | None:
    """Return yes or no."""
    said = word.casefold()
    return outcome_pb2.HumanAnswer(yes=said in _YES) if said in _YES | _NO else None


def _option(question: outcome_pb2.AskHuman, word: str) -> outcome_pb2.HumanAnswer | None:
    """Return the option that was named, by its words or, where no option is a number, by its place from 1."""
    options = list(question.choice.options)
    named = [one for one in options if one.casefold() == word.casefold()]
    places = {str(place): one for place, one in enumerate(options, 1)}
    if not named and word in places and not any(one.strip().isdigit() for one in options):
        named = [places[word]]
    return outcome_pb2.HumanAnswer(option=named[0]) if len(named) == 1 else None


def _number(word: str) -> outcome_pb2.HumanAnswer | None:
    """Return a finite number."""
    try:
        value = float(word)
    except ValueError:
        return None
    return outcome_pb2.HumanAnswer(number=value) if math.isfinite(value) else None


def wants(question: outcome_pb2.AskHuman) -> str:
    """Return what a question wants, in words for a person."""
    match question.WhichOneof("answer"):
        case "yes_no":
            return "yes or no"
        case "choice":
            return "one of: " + ", ".join(question.choice.options)
        case "number":
            return f"a number from {question.number.minimum:g} to {question.number.maximum:g}"
        case _:
            return f"some words, at most {question.text.max_length or TEXT_LENGTH} characters"
