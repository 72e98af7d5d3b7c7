"""Out of whatever a routing model sends comes exactly one outcome that is possible now, or one reason."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opsmesh.router.v1 import decision_service_pb2, outcome_pb2
from services.mesh import policy
from services.mesh.models import outcomes
from services.mesh.models.outcomes import NAME, Available, Chosen, answer_error, read_answer, read_reply, read_text
from services.mesh.models.tool_calls import Dropped, Fault, ToolCall
from services.mesh.models.tool_schema import catalogue
from services.mesh.tools import tools
from tests.mesh.schemas import Validator, anything, nearly, values

ALL = catalogue(tools().values())
NOW = Available(playbooks=("restart-web",), templates=("diagnose-repair",), targets=("svc:prod/web",), reads=ALL)
READ = {"tool": "workload_GetWorkload", "arguments": '{"target_id": "web"}'}
QUESTION = {"question": "Is this the maintenance of tonight?", "answer": {"yes_no": {}}}
DETAILS: Mapping[str, dict[str, Any]] = {
    "gather_context": {"reads": [READ]},
    "delegate_agent": {"template_id": "diagnose-repair", "target_ids": ["svc:prod/web"], "goal": "find out why"},
    "trigger_automation": {"playbook_id": "restart-web"},
    "ask_human": QUESTION,
    "respond": {"text": "Nothing to do.", "references": ["runbook web"]},
}


def answer(**detail: Any) -> dict[str, Any]:
    """Return a model's answer with this detail."""
    return {"confidence": 0.7, "reason": "because", "detail": detail}


def read(data: Any, available: Available = NOW) -> Chosen | Dropped:
    """Read data as the text of a model's answer."""
    return read_text(json.dumps(data), available)


def properties(available: Available) -> list[str]:
    """Return the outcomes that are offered."""
    detail = outcomes.offer(available).schema["properties"]["detail"]
    return [name for one in detail.get("anyOf", [detail]) for name in one["properties"]]


@pytest.mark.parametrize("kind", DETAILS)
def test_each_outcome_is_understood(kind: str) -> None:
    """As the text of an answer and as a call of the one tool; its kind is that of the decision."""
    data = answer(**{kind: DETAILS[kind]})
    Validator(dict(outcomes.offer(NOW).schema)).validate(data)
    for found in (read(data), read_reply([ToolCall("1", NAME, json.dumps(data))], NOW)):
        assert isinstance(found, Chosen), found
        assert found.outcome.WhichOneof("detail") == kind
        assert found.kind == outcomes.KINDS[kind]
        assert policy.violations(found.outcome) == []


def test_the_five_kinds_are_those_of_a_decision() -> None:
    """The IDL's enum and the oneof name the same five."""
    kinds = [one.number for one in decision_service_pb2.Decision.Outcome.DESCRIPTOR.values if one.number]
    assert sorted(outcomes.KINDS.values()) == kinds
    detail = outcome_pb2.ModelOutcome.DESCRIPTOR.oneofs_by_name["detail"]
    assert [one.name for one in detail.fields] == list(outcomes.KINDS)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (answer(), "exactly one of"),
        (answer(respond=DETAILS["respond"], ask_human=QUESTION), "exactly one of"),
        ({"confidence": 0.7, "reason": "because"}, "detail"),
        ({"reason": "because", "detail": {"respond": {"text": "x"}}}, "confidence"),
        ({**answer(respond={"text": "x"}), "confidence": 1.5}, "confidence"),
        ({**answer(respond={"text": "x"}), "outcome": "RESPOND"}, "outcome"),
        (answer(trigger_automation={"playbook_id": "drop-database"}), "restart-web"),
        (answer(trigger_automation={"playbook_id": "restart-web", "arguments": {"replicas": 0}}), "arguments"),
        (answer(delegate_agent={"template_id": "root", "goal": "x"}), "diagnose-repair"),
        (answer(delegate_agent={**DETAILS["delegate_agent"], "target_ids": ["svc:prod/other"]}), "svc:prod/web"),
        (answer(ask_human={"question": "?"}), "answer"),
        (answer(ask_human={"question": "?", "answer": {"number": {"minimum": 2, "maximum": 1}}}), "below"),
        (answer(ask_human={"question": "?", "answer": {"choice": {"options": ["one"]}}}), "options"),
        (answer(ask_human={"question": "?", "answer": {"choice": {"options": ["a", "a"]}}}), "options"),
        (answer(gather_context={"reads": []}), "reads"),
        (answer(gather_context={"reads": [READ] * 9}), "reads"),
        (answer(gather_context={"reads": [{"tool": "workload_RestartWorkload", "arguments": "{}"}]}), "must be one of"),
        (answer(gather_context={"reads": [{**READ, "arguments": '{"target_id": "-rf"}'}]}), "reads[0]"),
        (answer(gather_context={"reads": [READ, {**READ, "arguments": '{"a": 1}'}]}), "reads[1]"),
        (answer(gather_context={"reads": [{**READ, "arguments": {"target_id": "web"}}]}), "a text"),
    ],
)
def test_each_way_to_be_wrong_has_its_reason(data: dict[str, Any], word: str) -> None:
    """None, two, one that does not exist, one with more than it may say, a read that writes."""
    found = read(data)
    assert isinstance(found, Dropped), found
    assert word in found.reason


def test_only_what_exists_is_offered() -> None:
    """Without playbooks, templates and tools, a model may ask or respond; nothing else parses either."""
    assert properties(NOW) == list(outcomes.KINDS)
    nothing = Available()
    assert properties(nothing) == ["ask_human", "respond"]
    for kind in ("gather_context", "delegate_agent", "trigger_automation"):
        assert isinstance(read(answer(**{kind: DETAILS[kind]}), nothing), Dropped)


def test_only_tools_that_change_nothing_gather_context() -> None:
    """What a tool does is the IDL's word, whatever a caller puts into the list."""
    offered = NOW.read_only()
    assert "workload_GetWorkload" in offered
    assert {name for name in ALL if name.endswith(("RestartWorkload", "SendNotice"))} & set(offered) == set()


def test_the_pin_does_not_depend_on_what_exists() -> None:
    """The digest is about the IDL."""
    assert outcomes.offer(NOW).digest == outcomes.offer(Available()).digest


@pytest.mark.parametrize("count", [0, 2, 5])
def test_a_reply_has_exactly_one_call(count: int) -> None:
    """None and several are no decision, even when they agree."""
    found = read_reply([ToolCall("1", NAME, json.dumps(answer(respond={"text": "x"})))] * count, NOW)
    assert isinstance(found, Dropped)
    assert found.fault == Fault.NOT_ONE


def test_a_call_of_another_tool_is_no_outcome() -> None:
    """A model that calls what it was not offered is told what there is."""
    found = read_reply([ToolCall("1", "workload_RestartWorkload", '{"target_id": "web"}')], NOW)
    assert isinstance(found, Dropped)
    assert NAME in found.reason


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_one_outcome_or_one_reason(data: st.DataObject) -> None:
    """Whatever is sent: never an exception, never an outcome that is not valid."""
    value = data.draw(st.one_of(nearly(outcomes.offer(NOW).schema), anything()))
    found = read(value)
    if isinstance(found, Chosen):
        assert policy.violations(found.outcome) == []
        assert all(policy.violations(one.request) == [] for one in found.reads)
    else:
        assert found.reason


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_fits_the_schema_is_an_outcome(data: st.DataObject) -> None:
    """But for what no schema can say: the arguments of a read, and that a range is not empty."""
    offered = outcomes.offer(Available(playbooks=NOW.playbooks, templates=NOW.templates, targets=NOW.targets))
    value = data.draw(values(offered.schema))
    found = read(value)
    assert isinstance(found, Chosen) or "below" in found.reason, (value, found)


ASKED: Mapping[str, outcome_pb2.AskHuman] = {
    "yes_no": outcome_pb2.AskHuman(question="?", yes_no=outcome_pb2.YesNo()),
    "choice": outcome_pb2.AskHuman(question="?", choice=outcome_pb2.Choice(options=["wait", "restart"])),
    "places": outcome_pb2.AskHuman(question="?", choice=outcome_pb2.Choice(options=["2", "3"])),
    "number": outcome_pb2.AskHuman(question="?", number=outcome_pb2.Range(minimum=1, maximum=5)),
    "text": outcome_pb2.AskHuman(question="?", text=outcome_pb2.FreeText(max_length=9)),
}


@pytest.mark.parametrize(
    ("asked", "said", "meant"),
    [
        ("yes_no", " Yes ", {"yes": True}), ("yes_no", "n", {"yes": False}), ("yes_no", "yes please", None),
        ("yes_no", "", None), ("choice", "Restart", {"option": "restart"}), ("choice", "1", {"option": "wait"}),
        ("choice", "3", None), ("choice", "0", None), ("choice", "9" * 9000, None), ("choice", "re", None),
        ("places", "2", {"option": "2"}), ("places", "1", None), ("number", "2.5", {"number": 2.5}),
        ("number", "6", None), ("number", "nan", None), ("number", "inf", None), ("number", "two", None),
        ("text", "go on", {"text": "go on"}), ("text", "far too long", None), ("text", "  ", None),
    ],
)  # fmt: skip
def test_a_persons_words_are_an_answer_or_not(asked: str, said: str, meant: dict[str, Any] | None) -> None:
    """Nothing is guessed: what does not fit is answered with what the question wants."""
    found = read_answer(ASKED[asked], said)
    if meant is None:
        assert isinstance(found, str)
        assert "the question wants" in found
    else:
        assert found == outcome_pb2.HumanAnswer(**meant)


@pytest.mark.parametrize("asked", ASKED)
def test_an_answer_of_another_type_is_none(asked: str) -> None:
    """A typed question has a typed answer, whoever sends it."""
    fits = {"yes_no": "yes", "choice": "option", "places": "option", "number": "number", "text": "text"}[asked]
    given_answers: dict[str, Any] = {"yes": True, "option": "wait", "number": 2.0, "text": "go on"}
    for kind, value in given_answers.items():
        wrong = answer_error(ASKED[asked], outcome_pb2.HumanAnswer(**{kind: value}))
        assert bool(wrong) == (kind != fits or asked == "places")
    assert answer_error(ASKED[asked], outcome_pb2.HumanAnswer())


@given(st.text())
def test_no_words_of_a_person_raise(said: str) -> None:
    """Each is an answer that fits or a sentence."""
    for question in ASKED.values():
        found = read_answer(question, said)
        assert isinstance(found, str) or answer_error(question, found) == ""
