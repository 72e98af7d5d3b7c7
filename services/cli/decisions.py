"""`opsmesh decisions`: what was decided, and why; and the answers of people to what is asked."""

import uuid
from pathlib import Path
from typing import Annotated, Any

import typer

from opsmesh.ingest.v1 import ingest_service_pb2 as ingest
from opsmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from opsmesh.router.v1 import conversation_service_pb2 as conversations
from opsmesh.router.v1 import conversation_service_pb2_grpc as conversations_grpc
from opsmesh.router.v1 import decision_service_pb2 as router
from opsmesh.router.v1 import decision_service_pb2_grpc as router_grpc
from services.cli.command import Limit, PageToken, RequestId, command, group, typed
from services.cli.output import Column, cell, console, duration, print_json, show_list, show_one
from services.cli.session import Session, UsageError, pages
from services.mesh.config import load_yaml

app = group("What was decided, and why.")

COLUMNS: list[Column] = [
    ("decision", "decision_id"),
    ("state", "state"),
    ("outcome", "outcome"),
    ("result", "result"),
    ("rule", lambda one: f"{one.rule_id} (set {one.rule_set_version})" if one.rule_id else ""),
    ("models called", "model_call_count"),
    ("age", lambda one: duration(one.age_seconds)),
    ("incident", "incident_id"),
]


def _wanted(one: router.Decision) -> str:
    """Return what kind of answer a question wants."""
    ask = one.question
    match ask.WhichOneof("answer"):
        case "yes_no":
            return "yes or no"
        case "choice":
            return "one of: " + ", ".join(ask.choice.options)
        case "number":
            return f"a number from {ask.number.minimum:g} to {ask.number.maximum:g} {ask.number.unit}".rstrip()
        case "text":
            return "a few words"
        case _:
            return ""


def _given(one: router.Decision) -> str:
    """Return what a person answered."""
    kind = one.answer.WhichOneof("value")
    if kind is None:
        return ""
    if kind == "yes":
        return "yes" if one.answer.yes else "no"
    return f"{one.answer.number:g}" if kind == "number" else str(getattr(one.answer, kind))


def _confidence(one: router.Decision) -> str:
    """Return how sure the model said it was."""
    return f"{one.model_outcome.confidence:.2f}" if one.HasField("model_outcome") else ""


def _absent(one: router.Decision) -> str:
    """Return what the model was not told, and why."""
    return "; ".join(f"{source.name} ({source.detail})" for source in one.context_sources if not source.present)


SHEET: list[Column] = [
    *COLUMNS,
    ("revision", "revision"),
    ("kept back by", lambda one: cell(one, "brake") if one.brake else "nothing"),
    ("why", "reason"),
    ("confidence", _confidence),
    ("playbook", "playbook_id"),
    ("execution", "execution_id"),
    ("template", "template_id"),
    ("run", "run_id"),
    ("question", lambda one: one.question.question),
    ("wants", _wanted),
    ("answer", _given),
    ("answered by", "answerer"),
    ("conversation", "conversation_id"),
    ("told the model", lambda one: ", ".join(source.name for source in one.context_sources if source.present)),
    ("absent", _absent),
    ("recorded", lambda one: "replies were replayed from files: no model was asked" if one.recorded else ""),
    ("notice", "notice_execution_id"),
    ("asked for", "create_time"),
    ("closed", "close_time"),
]
CALL: list[Column] = [
    ("model", "model"),
    ("tokens", lambda one: f"{one.input_tokens} in, {one.output_tokens} out"),
    ("cost", lambda one: f"{one.cost_micros / 1_000_000:.6f}"),
    ("took", lambda one: f"{one.latency_duration.ToTimedelta().total_seconds():.2f} s"),
    ("prompt", lambda one: f"{one.prompt_id} {one.prompt_hash[:12]}"),
    ("shown", lambda one: one.prompt_digest[:12]),
    ("came of it", "detail"),
]


@command(app, "list")
async def list_decisions(
    session: Session,
    incident: Annotated[str, typer.Option(help="Only this incident.")] = "",
    rule: Annotated[str, typer.Option(help="Only this rule.")] = "",
    limit: Limit = 50,
    page_token: PageToken = "",
) -> None:
    """List decisions, newest first."""
    request = router.ListDecisionsRequest(page_token=page_token, incident_id=incident, rule_id=rule)
    stub = router_grpc.DecisionServiceStub(session.channel("router"))
    show_list(session, await pages(stub.ListDecisions, request, "decisions", limit), "decisions", COLUMNS)


@command(app, "show")
async def show_decision(session: Session, decision_id: str) -> None:
    """Show one decision: why, by which calls of models, and what is asked."""
    stub = router_grpc.DecisionServiceStub(session.channel("router"))
    answer = await stub.GetDecision(router.GetDecisionRequest(decision_id=decision_id))
    show_one(session, answer.decision, SHEET)
    if session.as_json:
        return
    for number, call in enumerate(answer.decision.model_calls, 1):
        told = ", ".join(f"{name} {cell(call, column).plain}" for name, column in CALL)
        console().print(f"  call {number}{' (recorded)' if call.recorded else ''}: {told}", markup=False)
        for read in call.reads:
            console().print(f"    read {_read(read)}", markup=False)
    decision = answer.decision
    if decision.HasField("question") and decision.state == router.Decision.STATE_DECIDED:
        answering = typed(session, "decisions", "answer", decision.decision_id)
        console().print(f"  answer it: {answering} TEXT", markup=False)


def _read(read: Any) -> str:
    """Return a read that a model asked for; its arguments are the model's, so nothing in them becomes control."""
    arguments = cell(read, "arguments_json").plain
    return f"{read.tool} {arguments} -> {read.reason or read.result_digest[:12]}"


@command(app, "answer")
async def answer_question(session: Session, question_id: str, text: str, request_id: RequestId = "") -> None:
    """Answer a question: that of a decision, or one that a conversation asks before it acts."""
    stub = conversations_grpc.ConversationServiceStub(session.channel("router"))
    answer = await stub.AnswerQuestion(
        conversations.AnswerQuestionRequest(
            request_id=request_id or str(uuid.uuid4()), question_id=question_id, text=text
        )
    )
    if answer.HasField("decision"):
        show_one(session, answer.decision, SHEET)
    elif session.as_json:
        print_json(answer)
    else:
        console().print(f"answered; signal {answer.signal_id}" if answer.signal_id else "answered", markup=False)


@command(app, "preview")
async def preview_decision(
    session: Session,
    incident: Annotated[str, typer.Option(help="An incident there is.")] = "",
    file: Annotated[Path | None, typer.Option(help="An incident as YAML or JSON.")] = None,
) -> None:
    """Say what would be decided, and why the other rules do not match; nothing happens."""
    if (file is None) == (not incident):
        raise UsageError("name either --incident or --file")
    if file is None:
        reader = ingest_grpc.IngestServiceStub(session.channel("ingest"))
        subject = (await reader.GetIncident(ingest.GetIncidentRequest(incident_id=incident))).incident
    else:
        subject = load_yaml(file, ingest.Incident)
    stub = router_grpc.DecisionServiceStub(session.channel("router"))
    answer = await stub.PreviewDecision(router.PreviewDecisionRequest(incident=subject))
    if session.as_json:
        print_json(answer)
        return
    show_one(session, answer.decision, SHEET)
    for line in answer.matched:
        console().print(f"  matched: {line}", markup=False)
    for one in answer.not_matched:
        console().print(f"  not {one.rule_id}: {one.reason}", markup=False)
