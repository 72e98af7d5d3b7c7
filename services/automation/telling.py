"""Which notices an approval or a kill makes, and their words. Pure: the same facts give the same bytes."""

import uuid
from dataclasses import dataclass
from typing import Final

from opsmesh.guardrails.v1 import approval_service_pb2, kill_switch_service_pb2
from opsmesh.tools.notify.v1 import notify_tool_service_pb2 as notify
from services.mesh.failures import sentence
from services.mesh.kills import words

CHANNEL: Final = "ops"
# In the record of what was said: nothing more will be.
CLOSED: Final = "CLOSED"
TITLE_MAX: Final = 200
DETAIL_MAX: Final = 1000
Approval = approval_service_pb2.Approval
Kill = kill_switch_service_pb2.Kill
Request = notify.SendNoticeRequest


@dataclass(frozen=True, slots=True)
class Telling:
    """One notice about one subject, the id of an approval or a kill."""

    subject: str
    kind: str
    request: Request


def of_approval(approval: Approval, now: float) -> list[Telling]:
    """Return what people should have been told by `now` (seconds since 1970) about an approval."""
    if approval.state == Approval.STATE_PENDING:
        asked = [_asked(approval, Request.KIND_APPROVAL_REQUESTED, "Waits for approval")]
        half = (approval.create_time.ToNanoseconds() + approval.expire_time.ToNanoseconds()) / 2e9
        if now >= half and not approval.votes:
            asked.append(_asked(approval, Request.KIND_APPROVAL_REMINDER, "Still waits for approval"))
        return asked
    # Votes that came later than the answer are none: they are in order of time.
    by = "; ".join(f"{vote.person}{': ' + vote.comment if vote.comment else ''}" for vote in approval.votes)
    if approval.state == Approval.STATE_APPROVED:
        return [_about(approval, Request.KIND_APPROVAL_ANSWERED, "Approved", by)]
    if approval.state == Approval.STATE_REJECTED:
        return [_about(approval, Request.KIND_APPROVAL_ANSWERED, "Rejected", by)]
    if approval.state in {Approval.STATE_EXPIRED, Approval.STATE_VOID}:
        word = "Expired" if approval.state == Approval.STATE_EXPIRED else "Worth nothing any more"
        return [_about(approval, Request.KIND_APPROVAL_EXPIRED, word, approval.close_detail)]
    return []


def _asked(approval: Approval, kind: "Request.Kind.ValueType", title: str) -> Telling:
    """Return a notice that asks people to look."""
    until = approval.expire_time.ToDatetime().strftime("%H:%M:%S UTC")
    short = approval.short_digest or approval.request_digest[:12]
    detail = (
        f"asked by {approval.requester}; digest {short}; no answer until {until} means no. "
        f"{approval.judgement.risk_detail}"
    )
    return _about(approval, kind, title, detail)


def _about(approval: Approval, kind: "Request.Kind.ValueType", title: str, detail: str) -> Telling:
    target = approval.judgement.target_id
    rpc = approval.method.rpartition("/")[2]
    return _telling(
        approval.approval_id,
        Request(
            kind=kind,
            title=f"{title}: {rpc}" + (f" on {target}" if target else ""),
            detail=detail,
            target_id=target,
            incident_id=approval.context.incident_id,
            approval_id=approval.approval_id,
        ),
    )


def of_kill(kill: Kill) -> list[Telling]:
    """Return what people should have been told about a kill."""
    scope = words(kill.scope)
    engaged = Request(
        kind=Request.KIND_KILL_ENGAGED,
        title=f"Kill switch engaged: {scope}",
        detail=f"by {kill.engager}: {kill.reason}. See: opsmesh kill status",
        kill_id=kill.kill_id,
    )
    if kill.state != Kill.STATE_RELEASED:
        return [_telling(kill.kill_id, engaged)]
    released = Request(
        kind=Request.KIND_KILL_RELEASED,
        title=f"Kill switch released: {scope}",
        detail=f"by {', '.join(kill.releasers)}",
        kill_id=kill.kill_id,
    )
    return [_telling(kill.kill_id, engaged), _telling(kill.kill_id, released)]


def _telling(subject: str, request: Request) -> Telling:
    """Return a notice within its bounds, under an id that every process gives it."""
    kind = Request.Kind.Name(request.kind).removeprefix("KIND_")
    request.channel = CHANNEL
    request.request_id = str(uuid.uuid5(uuid.UUID(subject), kind))
    request.title = sentence(request.title, TITLE_MAX)
    request.detail = sentence(request.detail, DETAIL_MAX)
    return Telling(subject, kind, request)
