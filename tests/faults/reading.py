"""Reads a history: from the stores with the read-only role, from the APIs, and from what lies outside the mesh."""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg
from google.protobuf.timestamp_pb2 import Timestamp

from opsmesh.audit.v1.audit_service_pb2 import AuditEvent
from opsmesh.guardrails.v1 import (
    approval_service_pb2,
    approval_service_pb2_grpc,
    grant_pb2,
    kill_switch_service_pb2,
    kill_switch_service_pb2_grpc,
)
from services.local.checkout import NAME
from services.mesh import policy
from services.mesh.tools import find_tool
from tests.faults.records import (
    Approval,
    Decision,
    Effect,
    Event,
    Fence,
    History,
    Incident,
    Kill,
    Published,
    Signal,
    Start,
)
from tests.faults.world import channel
from tests.flows.world import SPARE, TILLS, World

Vote = approval_service_pb2.Vote
PAGE: Final = 200
# What asking a PostgreSQL that was just killed may end with.
AWAY: Final = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
SPAWNED: Final = re.compile(r"^(\S+ \S+) INFO spawned: 'checkout' with pid (\d+)$", re.MULTILINE)
EFFECTS: Final = (
    "SELECT method, request_id::text, state, tries, digest, caller, target_id, environment, fence, start_time,"
    " end_time, authority, response FROM gateway.effects"
)
EVENTS: Final = (
    "SELECT sequence, event_id::text, phase, action, request_id, outcome, request_digest, append_time, reason"
    " FROM audit.events ORDER BY sequence"
)
LOOK: Final = (
    "SELECT 'guardrails', target_id, fence FROM guardrails.locks"
    " UNION ALL SELECT 'gateway', target_id, fence FROM gateway.fences"
)


def targets() -> Mapping[str, str]:
    """Return the workload behind each target."""
    return {f"svc:demo/{name}": name for name in (NAME, *TILLS)} | {"svc:production/checkout": SPARE}


@dataclass(slots=True)
class Outside:
    """What only those outside of the mesh know: accepted ids, starts before and past it, fences as time went by."""

    accepted: list[str] = field(default_factory=list)
    before: frozenset[tuple[str, int, datetime]] = frozenset()
    mended: set[tuple[str, int]] = field(default_factory=set)
    fences: list[Fence] = field(default_factory=list)


def starts(world: World) -> list[Start]:
    """Return every start that the process managers have written down, oldest first for each."""
    found = []
    for target, name in targets().items():  # the time is local, as supervisord writes it
        text = (world.workloads[name].instance.logs / "supervisord.log").read_text(encoding="utf-8")
        found += [
            Start(target, int(pid), datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").astimezone(UTC))
            for stamp, pid in SPAWNED.findall(text)
        ]
    return found


async def look_at_fences(world: World, outside: Outside) -> None:
    """Note every fence that has changed since the last look."""
    last = {(one.place, one.target_id): one.fence for one in outside.fences}
    for place, target_id, fence in await world.rows(LOOK):
        if last.get((place, target_id)) != fence:
            outside.fences.append(Fence(place, target_id, fence))


async def read(world: World, outside: Outside) -> History:
    """Return the whole history."""
    signals = await world.rows("SELECT signal_id::text, disposition, incident_id::text FROM ingest.signals")
    incidents = await world.rows("SELECT incident_id::text, revision FROM ingest.incidents")
    decisions = await world.rows("SELECT incident_id::text, revision FROM router.decisions")
    published = await world.rows("SELECT version, publish_time FROM guardrails.policy_sets")
    ours = [one for one in starts(world) if (one.target_id, one.process_id) not in outside.mended]
    return History(
        accepted=tuple(outside.accepted),
        signals=[Signal(row[0], row[1], row[2] or "") for row in signals],
        incidents=[Incident(*row) for row in incidents],
        decisions=[Decision(*row) for row in decisions],
        effects=await effects(world),
        events=[_event(row) for row in await world.rows(EVENTS)],
        starts=[one for one in ours if (one.target_id, one.process_id, one.time) not in outside.before],
        approvals=await _approvals(world),
        kills=await _kills(world),
        fences=tuple(outside.fences),
        policies=[Published(*row) for row in published],
        notices=_notices(world),
        person_environments=frozenset({"production"}),
    )


async def effects(world: World) -> list[Effect]:
    """Return all effects, with what their grants said."""
    return [_effect(row) for row in await world.rows(EFFECTS)]


def _effect(row: Any) -> Effect:
    """Return a row as an effect."""
    tool = find_tool(row["method"])
    grant = grant_pb2.Grant.FromString(row["authority"])
    answer = tool.response_class.FromString(row["response"]) if row["response"] else None
    return Effect(
        method=row["method"],
        request_id=row["request_id"],
        state=row["state"],
        tries=row["tries"],
        digest=row["digest"].hex(),
        caller=row["caller"],
        target_id=row["target_id"],
        environment=row["environment"],
        fence=row["fence"],
        begun=row["start_time"],
        ended=row["end_time"],
        guarded=tool.policy.access in policy.EFFECTS,
        policy_set_version=grant.policy_set_version,
        kill_epoch=grant.kill_epoch,
        approval_id=grant.approval_id,
        execution_id=grant.execution_id,
        playbook_id=grant.playbook_id,
        process_id=getattr(answer, "process_id", 0),
    )


def _event(row: Any) -> Event:
    """Return a row as an event."""
    phase = AuditEvent.Phase.Name(row["phase"]).removeprefix("PHASE_")
    outcome = AuditEvent.Outcome.Name(row["outcome"]).removeprefix("OUTCOME_")
    return Event(
        *(row["sequence"], row["event_id"], phase, row["action"], row["request_id"], outcome),
        *(row["request_digest"], row["append_time"], row["reason"]),
    )


async def _approvals(world: World) -> Sequence[Approval]:
    """Return all approvals, as the API tells of them."""
    found, token = list[Approval](), ""
    async with channel(world.mesh, "guardrails", "operator") as guardrails:
        stub = approval_service_pb2_grpc.ApprovalServiceStub(guardrails)
        while True:
            request = approval_service_pb2.ListApprovalsRequest(page_size=PAGE, page_token=token)
            page = await stub.ListApprovals(request)
            found += [_approval(one) for one in page.approvals]
            token = page.next_page_token
            if not token:
                return found


def _approval(one: approval_service_pb2.Approval) -> Approval:
    """Return an approval of the API as one of the history."""

    def said(answer: "Vote.Answer.ValueType") -> tuple[str, ...]:
        return tuple(vote.person for vote in one.votes if vote.answer == answer)

    return Approval(
        approval_id=one.approval_id,
        state=approval_service_pb2.Approval.State.Name(one.state).removeprefix("STATE_"),
        method=one.method,
        request_id=one.request_id,
        digest=one.request_digest,
        requesters=frozenset({one.requester, *one.requesters}),
        approvers=said(Vote.ANSWER_APPROVE),
        rejecters=said(Vote.ANSWER_REJECT),
        needed=one.approvers_needed,
    )


async def _kills(world: World) -> Sequence[Kill]:
    """Return all kills, also those released."""
    found, token = list[Kill](), ""
    async with channel(world.mesh, "guardrails", "operator") as guardrails:
        stub = kill_switch_service_pb2_grpc.KillSwitchServiceStub(guardrails)
        while True:
            request = kill_switch_service_pb2.GetStatusRequest(include_released=True, page_size=PAGE, page_token=token)
            page = await stub.GetStatus(request)
            found += [
                Kill(
                    *(one.kill_id, one.epoch, one.scope, moment(one.engage_time)),
                    moment(one.release_time) if one.HasField("release_time") else None,
                )
                for one in page.kills
            ]
            token = page.next_page_token
            if not token:
                return found


def moment(stamp: Timestamp) -> datetime:
    """Return a time of the API."""
    return stamp.ToDatetime(UTC)


def _notices(world: World) -> Sequence[str]:
    """Return the ids of all notices in the gateway's inbox, in the order in which they came."""
    inbox = world.mesh.state / "services" / "gateway" / "inbox.jsonl"
    lines = inbox.read_text(encoding="utf-8").splitlines() if inbox.exists() else []
    return [str(json.loads(line)["notice_id"]) for line in lines]


async def note_starts(world: World, outside: Outside) -> None:
    """Remember the starts so far: they were not the mesh's doing."""
    found = await asyncio.to_thread(starts, world)
    outside.before = frozenset((one.target_id, one.process_id, one.time) for one in found)
