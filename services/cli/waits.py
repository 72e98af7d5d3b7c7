"""What waits for whom, and since when: the second half of `opsmesh status`.

Each part is asked of the service that knows it, all at once and for two seconds at most; a part whose service does not
answer is named as missing, and the others are shown all the same.

With --json the object `waiting` has the lists `approvals`, `incidents`, `runs`, `kills`, `locks` and `effects`, each of
at most 20 objects of texts (`since` and `until` are ISO times); `truncated` names the lists that are longer, and
`missing` has {part, service, why} of each part that could not be asked. `models` has {mode, why}: whether a model can
be asked at all (automation-only), and whether what answers is a model (recorded); nothing is said of live ones.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import grpc.aio
from rich.table import Table

from opsmesh.agents.v1 import agent_service_pb2 as agents
from opsmesh.agents.v1 import agent_service_pb2_grpc as agents_grpc
from opsmesh.agents.v1 import model_service_pb2 as models
from opsmesh.agents.v1 import model_service_pb2_grpc as models_grpc
from opsmesh.gateway.v1 import effect_service_pb2 as gateway
from opsmesh.gateway.v1 import effect_service_pb2_grpc as gateway_grpc
from opsmesh.guardrails.v1 import approval_service_pb2 as approvals
from opsmesh.guardrails.v1 import approval_service_pb2_grpc as approvals_grpc
from opsmesh.guardrails.v1 import kill_switch_service_pb2 as kills
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc as kills_grpc
from opsmesh.guardrails.v1 import target_lock_service_pb2 as locks
from opsmesh.guardrails.v1 import target_lock_service_pb2_grpc as locks_grpc
from opsmesh.ingest.v1 import ingest_service_pb2 as ingest
from opsmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from services.cli import approval_sheet
from services.cli.kills import summary
from services.cli.output import cell, console, duration, moment
from services.cli.session import Session, UnreachableError
from services.mesh.client import refusal_of
from services.mesh.kills import words

ROWS: Final = 20
SECONDS: Final = 2.0
WAITING_STATES: Final = (
    ingest.Incident.STATE_HELD,
    ingest.Incident.STATE_AWAITING_MODEL,
    ingest.Incident.STATE_AWAITING_PERSON,
    ingest.Incident.STATE_AWAITING_APPROVAL,
)
WAITING_RUNS: Final = (
    agents.Run.STATE_PENDING,
    agents.Run.STATE_AWAITING_APPROVAL,
    agents.Run.STATE_AWAITING_CHILD,
)
MODELS: Final = "models"
Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits, by part; what could not be asked; which parts have more than is shown."""

    parts: dict[str, list[Row]] = field(default_factory=dict)
    missing: list[Row] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)
    models: list[Row] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return it for --json."""
        rest = {"missing": self.missing, "truncated": self.truncated, MODELS: self.models}
        return {"waiting": self.parts, **rest}


async def gather(session: Session) -> Waiting:
    """Ask for every part; never raises for a service that is down."""
    found = Waiting()
    modes, *answers = await asyncio.gather(
        _asked(session, _models), *(_asked(session, ask) for _, ask in PARTS.values())
    )
    if isinstance(modes, str):
        found.missing.append({"part": MODELS, "service": "agents", "why": modes})
    else:
        found.models.extend(modes)
    for (part, (service, _)), answer in zip(PARTS.items(), answers, strict=True):
        if isinstance(answer, str):
            found.missing.append({"part": part, "service": service, "why": answer})
            found.parts[part] = []
            continue
        found.parts[part] = answer[:ROWS]
        if len(answer) > ROWS:
            found.truncated.append(part)
    return found


async def _asked(session: Session, ask: Callable[[Session], Awaitable[list[Row]]]) -> list[Row] | str:
    """Return the rows, or why there are none to be had."""
    try:
        return await ask(session)
    except grpc.aio.AioRpcError as error:
        refusal = refusal_of(error)
        return refusal.name if refusal is not None else str(error.code().name)
    except UnreachableError as error:
        return str(error).partition("\n")[0]


async def _approvals(session: Session) -> list[Row]:
    stub = approvals_grpc.ApprovalServiceStub(session.channel("guardrails"))
    request = approvals.ListApprovalsRequest(page_size=ROWS + 1, state=approvals.Approval.STATE_PENDING)
    answer = await stub.ListApprovals(request, timeout=SECONDS)
    return [
        {
            "approval": one.approval_id,
            "tool": approval_sheet.tool(one),
            "target": one.judgement.target_id,
            "risk": cell(one.judgement, "risk").plain,
            "waits_for": f"approved by {approval_sheet.needs(one)}; not {', '.join(one.requesters)}",
            "since": _time(one, "create_time"),
            "until": _time(one, "expire_time"),
        }
        for one in answer.approvals
    ]


async def _incidents(session: Session) -> list[Row]:
    stub = ingest_grpc.IngestServiceStub(session.channel("ingest"))
    request = ingest.ListIncidentsRequest(page_size=ROWS + 1, states=WAITING_STATES)
    answer = await stub.ListIncidents(request, timeout=SECONDS)
    return [
        {
            "incident": one.incident_id,
            "state": cell(one, "state").plain,
            "title": cell(one, "title").plain[:80],
            "why": cell(one, "state_detail").plain,
            # the last change is the moment from which on it waits
            "since": _time(one, "update_time") or _time(one, "open_time"),
            "age": duration(one.age_seconds),
        }
        for one in answer.incidents
    ]


async def _runs(session: Session) -> list[Row]:
    stub = agents_grpc.AgentServiceStub(session.channel("agents"))
    asked = (agents.ListRunsRequest(page_size=ROWS + 1, state=state) for state in WAITING_RUNS)
    answers = await asyncio.gather(*(stub.ListRuns(one, timeout=SECONDS) for one in asked))
    return [
        {
            "run": one.run_id,
            "template": one.template_id,
            "state": cell(one, "state").plain,
            "incident": one.incident_id,
            "waits_for": f"approval {one.approval_id}" if one.approval_id else f"{one.reason} {one.detail}".strip(),
            "since": _time(one, "create_time"),
        }
        for answer in answers
        for one in answer.runs
    ]


async def _models(session: Session) -> list[Row]:
    stub = models_grpc.ModelServiceStub(session.channel("agents"))
    answer = await stub.ListModels(models.ListModelsRequest(), timeout=SECONDS)
    rows = []
    if answer.automation_only:
        rows.append({"mode": "automation-only", "why": answer.automation_only_reason})
    if recorded := sorted({one.role for one in answer.models if one.recorded}):
        said = f"no model is asked for: {', '.join(recorded)}; replies come from files"
        rows.append({"mode": "recorded", "why": said})
    return rows


async def _kills(session: Session) -> list[Row]:
    stub = kills_grpc.KillSwitchServiceStub(session.channel("guardrails"))
    answer = await stub.GetStatus(kills.GetStatusRequest(page_size=ROWS + 1), timeout=SECONDS)
    return [
        {
            "kill": one.kill_id,
            "scope": words(one.scope),
            "state": cell(one, "state").plain,
            "waits_for": f"released by {len(one.releasers)} of {one.releasers_needed}",
            "stops": summary(one),
            "engaged_by": one.engager,
            "reason": cell(one, "reason").plain[:80],
            "since": _time(one, "engage_time"),
        }
        for one in answer.kills
    ]


async def _locks(session: Session) -> list[Row]:
    stub = locks_grpc.TargetLockServiceStub(session.channel("guardrails"))
    answer = await stub.ListLocks(locks.ListLocksRequest(page_size=1000), timeout=SECONDS)
    return [
        {
            "target": one.target_id,
            "held_by": one.holder or "(free)",
            "waiting": f"{len(one.waiters)}: "
            + ", ".join(f"{cell(waiter, 'rank').plain} {waiter.holder}" for waiter in one.waiters[:3]),
            "since": _time(one.waiters[0], "wait_time"),
            "until": _time(one, "expire_time"),
        }
        for one in answer.locks
        if one.waiters
    ]


async def _effects(session: Session) -> list[Row]:
    stub = gateway_grpc.EffectServiceStub(session.channel("gateway"))
    request = gateway.ListEffectsRequest(page_size=ROWS + 1, state=gateway.Effect.STATE_UNKNOWN)
    answer = await stub.ListEffects(request, timeout=SECONDS)
    return [
        {
            "tool": one.method.rpartition("/")[2],
            "request": one.request_id,
            "target": one.target_id,
            "why": f"{one.reason} {one.detail}".strip(),
            "waits_for": "a person to say how it ended: opsmesh effects settle",
            "since": _time(one, "start_time"),
        }
        for one in answer.effects
    ]


# part -> (who knows it, how to ask)
PARTS: Final[dict[str, tuple[str, Callable[[Session], Awaitable[list[Row]]]]]] = {
    "approvals": ("guardrails", _approvals),
    "incidents": ("ingest", _incidents),
    "runs": ("agents", _runs),
    "kills": ("guardrails", _kills),
    "locks": ("guardrails", _locks),
    "effects": ("gateway", _effects),
}
TITLES: Final = {
    "approvals": "approvals that wait for people",
    "incidents": "incidents that wait",
    "runs": "agent runs that wait",
    "kills": "kills in force",
    "locks": "locks that others wait for",
    "effects": "effects nobody knows the end of",
    MODELS: "models",
}


def _time(message: Any, name: str) -> str:
    """Return a time field in UTC; nothing when it is not set."""
    return moment(getattr(message, name)).replace(" ", "T") if message.HasField(name) else ""


def show(waiting: Waiting) -> None:
    """Show to a person what waits, and what could not be asked."""
    out = console()
    for row in waiting.models:
        out.print()
        out.print(cell(f"{row['mode']}: {row['why']}", str))
    for part, rows in waiting.parts.items():
        if not rows:
            continue
        out.print()
        table = Table(title=TITLES[part], title_justify="left", box=None, pad_edge=False, header_style="bold")
        for header in rows[0]:
            table.add_column(header.replace("_", " "), overflow="fold")
        for row in rows:
            table.add_row(*(cell(_ago(name, text), str) for name, text in row.items()))
        out.print(table)
        if part in waiting.truncated:
            out.print(f"and more: the first {ROWS} are shown")
    if waiting.missing:
        out.print()
        for row in waiting.missing:
            out.print(cell(f"missing: {TITLES[row['part']]}, for {row['service']} says {row['why']}", str))
    elif not any(waiting.parts.values()):
        out.print("\nnothing waits")


def _ago(name: str, text: str) -> str:
    """Return a time as a person wants it: how long since, how long until."""
    if name not in ("since", "until") or not text:
        return text
    seconds = int((datetime.fromisoformat(text) - datetime.now(UTC)).total_seconds())
    if name == "since":
        return f"{duration(max(0, -seconds))} ago"
    return f"in {duration(seconds)}" if seconds > 0 else "over"
