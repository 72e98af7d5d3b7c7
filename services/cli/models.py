"""`opsmesh models list`: which model answers for which role, how it does, and what may still be spent."""

from typing import Annotated, Final

import typer

from opsmesh.agents.v1 import model_service_pb2 as models
from opsmesh.agents.v1 import model_service_pb2_grpc as models_grpc
from services.cli.agents import money
from services.cli.command import command, group
from services.cli.output import Column, console, print_json, show_list
from services.cli.session import Session

app = group("Which model answers for which role.")

MODELS: Final[list[Column]] = [
    ("role", "role"),
    ("model", "model"),
    ("provider", "provider"),
    ("place", lambda one: f"fallback {one.fallback_index}" if one.fallback_index else "its own"),
    ("answers", lambda one: "recorded: from files, no model is asked" if one.recorded else "live"),
    ("writes recordings", lambda one: "yes" if one.recording else ""),
    ("breaker", "breaker_state"),
    ("retry", "retry_time"),
    ("last failure", "last_failure"),
]
BUDGETS: Final[list[Column]] = [
    ("budget", "scope"),
    ("for", "subject"),
    ("tokens left", "tokens_left"),
    ("token limit", "token_limit"),
    ("money left", lambda one: money(one.cost_left_micros) or "0"),
    ("money limit", lambda one: money(one.cost_limit_micros)),
]


@command(app, "list")
async def list_models(
    session: Session,
    incident: Annotated[str, typer.Option(help="Also what is left for this incident.")] = "",
    requester: Annotated[str, typer.Option(help="Also what is left for this person (human/...) or sender.")] = "",
) -> None:
    """List roles, models, breakers and budgets; say whether a model can be asked at all, and if not, why."""
    stub = models_grpc.ModelServiceStub(session.channel("agents"))
    answer = await stub.ListModels(models.ListModelsRequest(incident_id=incident, requester=requester))
    if session.as_json:
        print_json(answer)
        return
    if answer.automation_only:
        out = console()
        out.print("[red]automation-only[/red]: rules go on, what they do not know waits")
        out.print(f"why: {answer.automation_only_reason}", markup=False)
        out.print()
    show_list(session, answer, "models", MODELS)
    console().print()
    show_list(session, answer, "budgets", BUDGETS)
