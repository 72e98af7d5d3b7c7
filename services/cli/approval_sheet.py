"""What an approver sees: everything that would happen, rendered here from the bytes that would be sent.

Guardrails renders the request, too; but whoever says yes says it to a digest, so this command computes that digest
itself and shows what its own generated code reads out of the same bytes.
"""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from rich.table import Table

from opsmesh.guardrails.v1 import approval_service_pb2 as guardrails
from opsmesh.policy.v1 import policy_pb2
from services.cli.output import Column, age, cell, console, duration, moment, print_json, show_list, show_one
from services.cli.session import RefusedError, Session
from services.mesh.errors import Refusal
from services.mesh.tools import find_tool

MASK: Final = "(sensitive)"
Approval = guardrails.Approval


def check_digest(approval: Approval) -> None:
    """Raise RefusedError unless the request's bytes have the digest that the approval claims."""
    found = hashlib.sha256(approval.method.encode() + b"\0" + approval.request).hexdigest()
    if found != approval.request_digest:
        raise RefusedError(
            f"the bytes of approval {approval.approval_id} have the digest {found[:12]}, not {approval.short_digest}: "
            "what it shows is not what would be sent\nNEXT: do not approve it; look at: opsmesh logs guardrails"
        )


def request_of(approval: Approval) -> Message | None:
    """Return the request read from its bytes; None for a tool newer than this command."""
    try:
        return find_tool(approval.method).request_class.FromString(approval.request)
    except (Refusal, DecodeError):
        return None


def arguments(approval: Approval) -> list[tuple[str, str]]:
    """Return every argument, those left out included, sensitive ones masked."""
    request = request_of(approval)
    if request is None:
        return [("(as guardrails renders it)", approval.judgement.request_json)]
    content = json_format.MessageToDict(
        request, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    _mask(request, content)
    return list(_flat("", content))


def _mask(message: Message, content: dict[str, Any]) -> None:
    """Replace what the IDL calls sensitive; a repeated or mapped message with such a field is masked whole."""
    for field in message.DESCRIPTOR.fields:
        if field.name not in content:
            continue
        if _sensitive(field, ()):
            single = field.type == field.TYPE_MESSAGE and not field.is_repeated
            if single and not field.GetOptions().Extensions[policy_pb2.field].sensitive:
                _mask(getattr(message, field.name), content[field.name])
            else:
                content[field.name] = MASK


def _sensitive(field: Any, above: tuple[str, ...]) -> bool:
    """Say whether a field is sensitive, or has such a field inside."""
    if field.GetOptions().Extensions[policy_pb2.field].sensitive:
        return True
    kind = field.message_type
    if kind is None or kind.full_name in above:
        return False
    return any(_sensitive(inner, (*above, kind.full_name)) for inner in kind.fields)


def _flat(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield (path, value) of a JSON value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{path}.{key}" if path else key, inner)
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def left(approval: Approval) -> str:
    """Return how long the running clock of an approval still runs; nothing when none does."""
    ends = {Approval.STATE_PENDING: approval.expire_time, Approval.STATE_APPROVED: approval.execute_before_time}
    end = ends.get(approval.state)
    if end is None or approval.HasField("execute_time"):
        return ""
    seconds = int((end.ToDatetime(tzinfo=UTC) - datetime.now(UTC)).total_seconds())
    return duration(seconds) if seconds > 0 else "over"


def needs(approval: Approval) -> str:
    """Return who must say yes, such as `1 of 2 people, with groups leads, ops`."""
    yes = sum(vote.answer == guardrails.Vote.ANSWER_APPROVE for vote in approval.votes)
    people = f"{yes} of {approval.approvers_needed} {'person' if approval.approvers_needed == 1 else 'people'}"
    groups = f", each of these groups through another: {', '.join(approval.groups_needed)}"
    return people + (groups if approval.groups_needed else "")


def tool(approval: Approval) -> str:
    """Return the bare name of the tool."""
    return approval.method.rpartition("/")[2]


def _deadline(approval: Approval, name: str, state: "Approval.State.ValueType") -> str:
    """Return a deadline with the time that is left while its clock runs."""
    if not approval.HasField(name):  # type: ignore[arg-type]  # the stub wants a literal; both callers give one
        return ""
    remaining = left(approval) if approval.state == state else ""
    note = f" ({remaining if remaining == 'over' else remaining + ' left'})" if remaining else ""
    return moment(getattr(approval, name)) + note


def _affected(approval: Approval) -> str:
    judgement = approval.judgement
    named = list(judgement.affected_targets)
    more = judgement.affected_target_count - len(named)
    text = f"{judgement.affected_target_count}: {', '.join(named)}" + (f" and {more} more" if more > 0 else "")
    return text if judgement.affected_target_count else ""


SHEET: Final[list[Column]] = [
    ("approval", "approval_id"),
    ("state", "state"),
    ("why", lambda one: f"{one.close_reason} {one.close_detail}".strip()),
    ("digest", "short_digest"),
    ("RPC", "method"),
    ("target", lambda one: one.judgement.target_id),
    ("environment", lambda one: one.judgement.environment),
    ("region", lambda one: one.judgement.region),
    ("risk", lambda one: cell(one.judgement, "risk")),
    ("why this risk", lambda one: one.judgement.risk_detail),
    ("affects", _affected),
    (
        "precondition",
        lambda one: ", ".join(f"{key}={text}" for key, text in sorted(one.judgement.precondition.items())),
    ),
    ("asked by", lambda one: f"{one.requester}, {age(one.create_time)} ago"),
    ("may not approve", "requesters"),
    ("approved by", needs),
    ("answer until", lambda one: _deadline(one, "expire_time", Approval.STATE_PENDING)),
    ("execute until", lambda one: _deadline(one, "execute_before_time", Approval.STATE_APPROVED)),
    ("executed", "execute_time"),
    ("incident", lambda one: one.context.incident_id),
    ("playbook", lambda one: one.context.playbook_id),
    ("execution", lambda one: f"{one.context.execution_id} {one.context.step_id}".strip()),
    ("agent run", lambda one: one.context.run_id),
    ("policy", lambda one: f"rule {one.judgement.policy_rule_id}, set {one.judgement.policy_set_version}"),
    ("replaces", "amends_approval_id"),
    ("replaced by", "superseded_by"),
    ("read anew", lambda one: one.renewal or ""),
]
CHECKS: Final[list[Column]] = [
    ("check", "name"),
    ("passed", lambda one: "yes" if one.passed else "NO"),
    ("what it found", lambda one: f"{one.reason} {one.detail}".strip()),
]
CHANGES: Final[list[Column]] = [("changed", "field"), ("before", "before"), ("after", "after")]
VOTES: Final[list[Column]] = [
    ("person", "person"),
    ("answer", "answer"),
    ("groups", "groups"),
    ("when", "vote_time"),
    ("comment", "comment"),
]


def show(session: Session, approval: Approval) -> None:
    """Show one approval: as JSON for scripts; for people all that a yes would mean."""
    if session.as_json:
        print_json(approval)
        return
    check_digest(approval)
    show_one(session, approval, SHEET)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("argument", overflow="fold")
    table.add_column("value", overflow="fold")
    for name, value in arguments(approval):
        table.add_row(cell(name, str), cell(value, str))
    console().print()
    console().print(table)
    for message, field, columns in (
        (approval.judgement, "checks", CHECKS),
        (approval, "changes", CHANGES),
        (approval, "votes", VOTES),
    ):
        if getattr(message, field):
            console().print()
            show_list(session, message, field, columns)
