"""Keywords: the whole message, word for word, or no keyword at all."""

import json
import re
import uuid

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from opsmesh.guardrails.v1 import approval_service_pb2, kill_switch_service_pb2
from opsmesh.router.v1 import conversation_service_pb2
from services.mesh import intents, policy
from services.mesh.intents import Help, Order, Status, Usage

ID = "0b7a3f6e-8f0c-4a44-9c64-5f2f4a0c9d11"
DIGEST = "0123456789abcdef"
REQUESTS = {
    "opsmesh.guardrails.v1.ApprovalService/Approve": approval_service_pb2.ApproveRequest,
    "opsmesh.guardrails.v1.ApprovalService/Reject": approval_service_pb2.RejectRequest,
    "opsmesh.router.v1.ConversationService/AnswerQuestion": conversation_service_pb2.AnswerQuestionRequest,
    "opsmesh.guardrails.v1.KillSwitchService/Engage": kill_switch_service_pb2.EngageRequest,
}


def check(order: Order) -> None:
    """Assert that a client can send what an order says."""
    request = json_format.ParseDict(json.loads(order.request_json), REQUESTS[order.method]())
    request.request_id = str(uuid.uuid4())
    policy.validate(request)


@pytest.mark.parametrize("text", ["status", "Status", "  STATUS \n"])
def test_status(text: str) -> None:
    """One word, in any case, with blanks around it."""
    assert intents.read(text) == Status()


def test_help() -> None:
    """One word."""
    assert intents.read("help") == Help()


def test_approve_names_the_bytes() -> None:
    """An approval and its digest give the call and the command that does the same."""
    order = intents.read(f"approve {ID.upper()} {DIGEST.upper()}")
    assert isinstance(order, Order)
    assert order.request == {"approval_id": ID, "request_digest": DIGEST}
    assert order.command == f"opsmesh approvals approve {ID} --digest {DIGEST}"
    check(order)


def test_reject_says_why() -> None:
    """The rest of the line is the reason."""
    order = intents.read(f"reject {ID} {DIGEST} not during the sale; 'really'")
    assert isinstance(order, Order)
    assert order.request["comment"] == "not during the sale; 'really'"
    check(order)


def test_answer_is_for_the_question_of_a_decision() -> None:
    """The rest of the line is the answer; the router reads it in the type that was asked for."""
    order = intents.read(f"answer {ID} yes, until noon")
    assert isinstance(order, Order)
    assert order.request == {"question_id": ID, "text": "yes, until noon"}
    check(order)
    assert isinstance(intents.read(f"answer {ID}"), Usage)
    assert intents.read("answer me") is None


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("kill all", {"everything": True}),
        ("kill --all --reason it burns", {"everything": True}),
        ("kill environment production", {"environment": "production"}),
        ("Kill --target svc:production/payments", {"target_id": "svc:production/payments"}),
        ("kill tool RestartWorkload", {"tool": "opsmesh.tools.workload.v1.WorkloadToolService/RestartWorkload"}),
        ("kill playbook restart-workload --reason no", {"playbook_id": "restart-workload"}),
        (f"kill execution {ID}", {"execution_id": ID}),
        (f"kill run {ID}", {"run_id": ID}),
    ],
)
def test_a_kill_has_the_scopes_of_the_command(text: str, scope: dict[str, object]) -> None:
    """Each scope of `opsmesh kill engage`, with or without a reason."""
    order = intents.read(text)
    assert isinstance(order, Order)
    assert order.request["scope"] == scope
    check(order)


@pytest.mark.parametrize(
    "text",
    [
        f"please approve {ID} {DIGEST}",
        f"I would not approve {ID} {DIGEST}",
        f'"approve {ID} {DIGEST}"',
        f"approve {ID} {DIGEST}\nreject {ID} {DIGEST} no",
        "please approve",
        "approve it",
        "kill all the zombie processes on web-1",
        "kill the payments process",
        "do not kill all",
        "kill all?",
        "kill all\nthanks",
        "statuses",
        "what is the status?",
        "help me restart payments",
        "\u212aill all",
        "ki\u200bll all",
        "kill\u00a0all",
        "yes",
    ],
)
def test_a_keyword_within_a_sentence_is_none(text: str) -> None:
    """What is more than the keyword, or looks like it, is a wish at most."""
    assert intents.read(text) is None


@pytest.mark.parametrize(
    "text",
    [
        f"approve {ID}",
        f"approve {ID} abc",
        f"reject {ID} {DIGEST}",
        "kill target",
        "kill run away",
        "kill tool NoSuchTool",
        f"kill environment production --reason {'x' * 600}",
        f"reject {ID} {DIGEST} {'x' * 600}",
    ],
)
def test_a_keyword_that_lacks_something_does_nothing(text: str) -> None:
    """It says how it is written."""
    assert isinstance(intents.read(text), Usage)


@given(st.text(max_size=300))
def test_no_text_is_an_order_by_accident(text: str) -> None:
    """Whatever is an order begins with its keyword, is one line, and passes the bounds of the IDL."""
    found = intents.read(text)
    if isinstance(found, Order):
        assert re.match(r"\s*(approve|reject|answer|kill) ", text, re.IGNORECASE | re.ASCII)
        assert "\n" not in text.strip()
        check(found)


@given(
    st.sampled_from(["approve", "reject", "kill", "status", "help", "kill all", f"approve {ID} {DIGEST}"]),
    st.text(min_size=1, max_size=40).filter(lambda text: bool(text.strip())),
)
def test_nothing_may_stand_before_a_keyword(keyword: str, before: str) -> None:
    """A word before it makes it a sentence."""
    assert not isinstance(intents.read(f"{before} {keyword}"), Order) or intents.read(before) is not None


@given(st.text(max_size=200), st.text(max_size=200))
def test_lines_around_a_keyword_make_it_text(above: str, below: str) -> None:
    """What somebody pastes is no order, whichever of its lines is one."""
    if above.strip() or below.strip():
        pasted = f"{above.strip() or 'x'}\nkill all\n{below.strip() or 'x'}"
        assert intents.read(pasted) is None


@given(
    st.from_regex(
        r"kill (--)?(all|environment|target|tool|playbook|execution|run)( [!-~]{1,220})?( --reason [ -~]{1,600})?",
        fullmatch=True,
    )
)
def test_every_order_can_be_sent(text: str) -> None:
    """Whatever is read as an order passes the bounds of its request."""
    found = intents.read(text)
    if isinstance(found, Order):
        check(found)
