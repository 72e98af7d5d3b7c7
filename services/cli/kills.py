"""`opsmesh kill`: stop at once, let go again, and see who has stopped.

Engaging asks nothing back and needs nobody but guardrails: neither audit, nor the stores, nor any other service.
"""

import time
import uuid
from typing import Annotated, Final

import grpc
import grpc.aio
import typer

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as guardrails
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc as guardrails_grpc
from opsmesh.guardrails.v1 import policy_service_pb2, policy_service_pb2_grpc
from services.cli.command import Limit, PageToken, RequestId, command, group, typed
from services.cli.output import Column, age, cell, console, print_json, show_list
from services.cli.session import Session, UnreachableError, UsageError, pages
from services.mesh.kills import words

app = group("Stop, and let go again.")

Kill = guardrails.Kill
Stop = guardrails.Stop


def summary(kill: Kill) -> str:
    """Return how many things stand how, such as `3 STOPPED, 1 UNSTOPPED`; those that have not stopped first."""
    counts: dict[str, int] = {}
    for stop in sorted(kill.stops, key=lambda one: one.state == Stop.STATE_STOPPED):
        state = cell(stop, "state").plain
        counts[state] = counts.get(state, 0) + 1
    return ", ".join(f"{count} {state}" for state, count in counts.items()) or "nothing in scope"


COLUMNS: Final[list[Column]] = [
    ("kill", "kill_id"),
    ("scope", lambda one: words(one.scope)),
    ("state", "state"),
    ("age", lambda one: age(one.engage_time)),
    ("engaged by", "engager"),
    ("released by", lambda one: f"{len(one.releasers)} of {one.releasers_needed} {' '.join(one.releasers)}".strip()),
    ("stored", lambda one: "yes" if one.durable else "NO: only in guardrails' own file"),
    ("what was in its scope", summary),
    ("reason", "reason"),
]
STOPS: Final[list[Column]] = [
    ("what", "kind"),
    ("id", "subject"),
    ("state", "state"),
    ("reported by", "reporter"),
    ("ends until", "deadline_time"),
    ("detail", "detail"),
]
# What still needs an eye comes first; of what has stopped, a few are enough for a terminal.
SHOWN: Final = 20
LOOK_SECONDS: Final = 2.0
SCOPES: Final = "--all, --environment, --target, --tool, --playbook, --execution or --run"


def scope_of(options: dict[str, str], *, everything: bool) -> guardrails.KillScope:
    """Return the one scope that was given. Raises UsageError for none and for several."""
    given = {name: text for name, text in options.items() if text}
    if len(given) + everything != 1:
        raise UsageError(f"say what to stop, once: {SCOPES}\nNEXT: opsmesh kill engage --all --reason TEXT")
    if everything:
        return guardrails.KillScope(everything=True)
    if "tool" in given and "/" not in given["tool"]:
        from services.mesh.tools import find_tool  # noqa: PLC0415  a full name needs no look-up, and no time

        given["tool"] = find_tool(given["tool"]).name
    return guardrails.KillScope(**given)  # type: ignore[arg-type]  # one text of the oneof


@command(app, "engage")
async def engage(
    session: Session,
    reason: Annotated[str, typer.Option(help="Why; kept with it.")],
    everything: Annotated[bool, typer.Option("--all", help="Everything.")] = False,
    environment: Annotated[str, typer.Option(help="Every target of this environment.")] = "",
    target: Annotated[str, typer.Option(help="This target.")] = "",
    tool: Annotated[str, typer.Option(help="This tool; the bare RPC name is enough where it is unique.")] = "",
    playbook: Annotated[str, typer.Option(help="Every execution of this playbook.")] = "",
    execution: Annotated[str, typer.Option(help="This execution.")] = "",
    run: Annotated[str, typer.Option(help="This agent run.")] = "",
    request_id: RequestId = "",
) -> None:
    """Stop everything in a scope, at once and without asking back; it holds until it is released."""
    options = {"environment": environment, "target_id": target, "tool": tool, "playbook_id": playbook}
    scope = scope_of(options | {"execution_id": execution, "run_id": run}, everything=everything)
    request = guardrails.EngageRequest(request_id=request_id or str(uuid.uuid4()), scope=scope, reason=reason)
    stub = guardrails_grpc.KillSwitchServiceStub(session.channel("guardrails"))
    began = time.monotonic()
    try:
        kill: Kill = (await stub.Engage(request)).kill
    except grpc.aio.AioRpcError as error:
        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise
        again = typed(session, "kill", "engage", *_scope_words(scope), "--reason", reason)
        raise UnreachableError(
            f"guardrails did not acknowledge it: {error.details()}. While it is down it gives no lease, and without a "
            f"lease nothing new starts within 2 s; once it is back, the mesh goes on\nNEXT: {again}"
        ) from error
    took = (time.monotonic() - began) * 1000
    if session.as_json:
        print_json(kill)
        return
    stored = "on disk" if kill.durable else "on guardrails' own disk only, for PostgreSQL is down: no lease is given"
    console().print(
        cell(f"{words(kill.scope)} is stopped: kill {kill.kill_id}, acknowledged after {took:.0f} ms, {stored}", str),
        soft_wrap=True,
    )
    if not await _borne(session, kill.scope):
        warning = f"WARNING: nothing in the inventory is {words(kill.scope)}: is it a typo? The kill holds all the same"
        console().print(cell(warning, str), soft_wrap=True)
    console().print(cell(f"NEXT: {typed(session, 'kill', 'status')}", str), soft_wrap=True)


async def _borne(session: Session, scope: guardrails.KillScope) -> bool:
    """Say whether the inventory has what a scope names; yes where it cannot be asked: a stop never waits for it."""
    if not scope.environment and not scope.target_id:
        return True
    stub = policy_service_pb2_grpc.PolicyServiceStub(session.channel("guardrails"))
    try:
        answer = await stub.GetPolicySet(policy_service_pb2.GetPolicySetRequest(), timeout=LOOK_SECONDS)
    except grpc.aio.AioRpcError:
        return True
    entries = answer.policy_set.inventory.entries
    return any(one.environment == scope.environment or one.target_id == scope.target_id for one in entries)


def _scope_words(scope: guardrails.KillScope) -> list[str]:
    """Return the option that gives a scope."""
    kind = scope.WhichOneof("scope") or "everything"
    return ["--all"] if kind == "everything" else [f"--{kind.removesuffix('_id')}", getattr(scope, kind)]


@command(app, "release")
async def release(
    session: Session,
    kill_id: str,
    reason: Annotated[str, typer.Option(help="Why it is safe again.")] = "",
    request_id: RequestId = "",
) -> None:
    """Let go again; where two people are needed, it holds until the second one has said so, too."""
    request = guardrails.ReleaseRequest(request_id=request_id or str(uuid.uuid4()), kill_id=kill_id, reason=reason)
    stub = guardrails_grpc.KillSwitchServiceStub(session.channel("guardrails"))
    kill: Kill = (await stub.Release(request)).kill
    if session.as_json:
        print_json(kill)
        return
    if kill.state == Kill.STATE_RELEASED:
        console().print(cell(f"{words(kill.scope)} is released; what the kill had voided stays void", str))
        return
    said = f"RELEASE_PENDING: {len(kill.releasers)} of {kill.releasers_needed} people released it; the kill holds"
    console().print(cell(said, str))
    following = typed(session, "kill", "release", kill_id, person="NAME")
    console().print(cell(f"NEXT: another person: {following}", str), soft_wrap=True)


@command(app, "status")
async def status(
    session: Session,
    everything: Annotated[bool, typer.Option("--all", help="Also those that were released.")] = False,
    limit: Limit = 50,
    page_token: PageToken = "",
) -> None:
    """Show the kills in force, newest first, and for each who has stopped and who has not."""
    stub = guardrails_grpc.KillSwitchServiceStub(session.channel("guardrails"))
    request = guardrails.GetStatusRequest(page_token=page_token, include_released=everything)
    answer = await pages(stub.GetStatus, request, "kills", limit)
    show_list(session, answer, "kills", COLUMNS)
    if session.as_json:
        return
    if any(not kill.durable for kill in answer.kills):
        console().print("PostgreSQL is down: kills from before are not shown here, and hold all the same")
    for kill in answer.kills:
        if not kill.stops:
            continue
        ordered = sorted(kill.stops, key=lambda one: one.state == Stop.STATE_STOPPED)
        console().print()
        title = f"kill {kill.kill_id} ({words(kill.scope)})"
        show_list(session, Kill(stops=ordered[:SHOWN]), "stops", STOPS, title)
        if len(ordered) > SHOWN:
            console().print(f"and {len(ordered) - SHOWN} more: opsmesh kill status --json")
