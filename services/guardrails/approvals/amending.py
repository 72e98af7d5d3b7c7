"""Puts other arguments of the same tool in the place of a pending question: read, judged and asked for as if anew."""

import json
from dataclasses import replace
from typing import Any, Final

from opsmesh.guardrails.v1 import guardrails_service_pb2 as pb
from opsmesh.type.v1 import error_reason_pb2
from services.guardrails import action as actions
from services.guardrails import convert
from services.guardrails.action import SyntaxFault
from services.guardrails.approvals import answers, asking
from services.guardrails.approvals.answers import Said
from services.guardrails.approvals.rules import Approval
from services.guardrails.authority import Authority
from services.guardrails.domain import Verdict
from services.guardrails.judge import Proposal
from services.guardrails.judgement import Asked, Judged
from services.mesh.errors import FieldViolation, Refusal
from services.mesh.postgres import Connection

FIELD: Final = "request_json"
# People who may change one action, with whoever asked for it.
REQUESTERS_MAX: Final = 16


async def propose(authority: Authority, approval: Approval, request_json: str) -> Proposal:
    """Read what a person wants instead, as the original requester would ask for it; refuses what cannot be read."""
    context = pb.ActionContext.FromString(approval.context)
    payload = json.dumps(_completed(approval, request_json))
    # What waits for people holds no lock, so none is asked for here.
    asked = Asked(approval.method, payload, approval.requester, context, binding=False)
    try:
        action = actions.read(asked.method, payload)
    except SyntaxFault as fault:
        raise _wrong(str(fault)) from None
    old = actions.read(approval.method, approval.request)
    actions.keep_masked(action.message, old.message)
    action = actions.read(approval.method, action.message.SerializeToString(deterministic=True))
    if action.digest == approval.digest:
        raise _wrong("it asks for exactly what the approval asks for already")
    return await authority.look(asked, action)


async def amend(
    connection: Connection, authority: Authority, approval: Approval, proposal: Proposal, said: Said
) -> Approval:
    """Judge the proposal and put it in the place of the approval, in the caller's transaction."""
    judged = await authority.judge(connection, proposal)
    verdict = judged.conclusion[0]
    if verdict not in {Verdict.REQUIRE_APPROVAL, Verdict.ALLOW}:
        raise refused(judged)
    if len(answers.requesters(approval)) >= REQUESTERS_MAX:
        raise Refusal(error_reason_pb2.ERROR_REASON_OVERLOADED, limit=f"{REQUESTERS_MAX} people who want it otherwise")
    old = actions.read(approval.method, approval.request)
    question = replace(
        asking.question(judged),
        amenders=tuple(dict.fromkeys((*approval.amenders, said.person))),
        changes=actions.changes(old.message, proposal.action.message),
        amends_approval_id=approval.approval_id,
    )
    return await answers.amend(connection, approval.approval_id, said, question)


def refused(judged: Judged) -> Refusal:
    """Return why nobody needs to be asked about this."""
    verdict, reason = judged.conclusion
    wrong = next((finding for finding in judged.findings if not finding.passed), None)
    if wrong is None or verdict is Verdict.OBSERVE:
        words = f"rule {judged.ruling.rule_id} only observes it"
        target = judged.case.target_id or "(no target)"
        denied = error_reason_pb2.ERROR_REASON_POLICY_DENIED
        return Refusal(denied, method=judged.case.method, target=target, rule=words)
    violations = [FieldViolation(FIELD, wrong.detail)] if wrong.detail else []
    retry_after = 1.0 if wrong.passing else None
    return Refusal(convert.reason_value(reason), violations=violations, retry_after=retry_after, **dict(wrong.facts))


def _completed(approval: Approval, request_json: str) -> dict[str, Any]:
    """Return the new request with the request id of the old one, or refuse."""
    try:
        value = json.loads(request_json)
    except (ValueError, RecursionError) as error:
        raise _wrong(f"it is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise _wrong("it is no JSON object")
    given = [value.pop(name) for name in ("request_id", "requestId") if name in value]
    if any(one != str(approval.request_id) for one in given):
        raise _wrong(f"request_id must stay {approval.request_id}, or be left out")
    return value | {"request_id": str(approval.request_id)}


def _wrong(words: str) -> Refusal:
    """Return the refusal of arguments that cannot be used."""
    violation = FieldViolation(FIELD, words)
    return Refusal(error_reason_pb2.ERROR_REASON_INVALID_ARGUMENT, violations=[violation])
