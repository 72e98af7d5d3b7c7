"""Hand-written approvals, kill switch, effects and executions for the command: they answer from what a test puts in."""
# ruff: noqa: N802, ARG002  names and parameters are those of the IDL

import hashlib
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format

from opsmesh.automation.v1 import automation_service_pb2 as automation
from opsmesh.automation.v1 import automation_service_pb2_grpc as automation_grpc
from opsmesh.gateway.v1 import effect_service_pb2 as gateway
from opsmesh.gateway.v1 import effect_service_pb2_grpc as gateway_grpc
from opsmesh.guardrails.v1 import approval_service_pb2 as approvals
from opsmesh.guardrails.v1 import approval_service_pb2_grpc as approvals_grpc
from opsmesh.guardrails.v1 import guardrails_service_pb2 as guardrails
from opsmesh.guardrails.v1 import kill_switch_service_pb2 as kills
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc as kills_grpc
from opsmesh.guardrails.v1 import policy_service_pb2 as policies
from opsmesh.guardrails.v1 import policy_service_pb2_grpc as policies_grpc
from opsmesh.policy.v1 import policy_pb2
from opsmesh.tools.workload.v1 import workload_tool_service_pb2 as workload
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.chain import current
from services.mesh.errors import Refusal

RESTART = "opsmesh.tools.workload.v1.WorkloadToolService/RestartWorkload"


def approval(number: int, reason: str = "checkout answers 503") -> approvals.Approval:
    """Return a pending approval of a restart in production, asked for by automation."""
    request = workload.RestartWorkloadRequest(
        request_id=str(uuid.UUID(int=1000 + number)), target_id="svc:production/checkout", reason=reason
    )
    made = approvals.Approval(
        approval_id=str(uuid.UUID(int=number)),
        state=approvals.Approval.STATE_PENDING,
        method=RESTART,
        request=request.SerializeToString(deterministic=True),
        request_id=request.request_id,
        requester="service/automation",
        requesters=["service/automation", "human/operator"],
        approvers_needed=2,
        groups_needed=["leads"],
        judgement=guardrails.Judgement(
            verdict=guardrails.VERDICT_REQUIRE_APPROVAL,
            target_id="svc:production/checkout",
            environment="production",
            region="eu-west-1",
            risk=policy_pb2.RISK_HIGH,
            risk_detail="the inventory says HIGH",
            policy_set_version=3,
            policy_rule_id="risky-writes",
            precondition={"process_id": "41", "state": "STATE_RUNNING"},
            affected_targets=["svc:production/checkout", "svc:production/shop"],
            affected_target_count=2,
            checks=[guardrails.Check(name="policy", passed=True, detail="a person must approve")],
        ),
        context=guardrails.ActionContext(incident_id=str(uuid.UUID(int=5)), playbook_id="restart-workload"),
        changes=[approvals.FieldChange(field="reason", before="noise", after=reason)],
    )
    made.request_digest = hashlib.sha256(RESTART.encode() + b"\0" + made.request).hexdigest()
    made.short_digest = made.request_digest[:12]
    made.create_time.GetCurrentTime()
    made.expire_time.FromSeconds(made.create_time.seconds + 290)
    return made


@dataclass
class Approvals(approvals_grpc.ApprovalServiceServicer):
    """Serves `asked`; two different people approve one, who is among the requesters may not."""

    asked: list[approvals.Approval] = field(default_factory=list)
    amended: list[approvals.AmendRequest] = field(default_factory=list)
    watched: int = 0

    def find(self, approval_id: str, digest: str = "") -> approvals.Approval:
        """Return one approval, refused under another digest."""
        for one in self.asked:
            if one.approval_id == approval_id:
                if not one.request_digest.startswith(digest):
                    raise Refusal(
                        error_reason_pb2.ERROR_REASON_APPROVAL_DIGEST_MISMATCH, approval_id=approval_id, given=digest
                    )
                return one
        raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="approval", id=approval_id)

    async def GetApproval(self, request: approvals.GetApprovalRequest, _: Any) -> approvals.GetApprovalResponse:
        """Answer one."""
        return approvals.GetApprovalResponse(approval=self.find(request.approval_id))

    async def ListApprovals(self, request: approvals.ListApprovalsRequest, _: Any) -> approvals.ListApprovalsResponse:
        """Answer those in a state."""
        found = [one for one in self.asked if request.state in (0, one.state)]
        return approvals.ListApprovalsResponse(approvals=found[: request.page_size or 50])

    async def WatchApprovals(
        self, request: approvals.WatchApprovalsRequest, _: Any
    ) -> AsyncIterator[approvals.WatchApprovalsResponse]:
        """Stream what is open and a sign of life, then end, well or not, as a service that restarts does."""
        self.watched += 1
        for one in self.asked:
            yield approvals.WatchApprovalsResponse(approval=one)
        yield approvals.WatchApprovalsResponse()
        if self.watched % 2:
            raise Refusal(error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE, store="guardrails")

    async def Approve(self, request: approvals.ApproveRequest, _: Any) -> approvals.ApproveResponse:
        """Count a yes."""
        found = self.find(request.approval_id, request.request_digest)
        person = current().identity
        if person in found.requesters:
            raise Refusal(
                error_reason_pb2.ERROR_REASON_APPROVER_IS_REQUESTER, person=person, approval_id=found.approval_id
            )
        found.votes.add(person=person, answer=approvals.Vote.ANSWER_APPROVE, comment=request.comment)
        if len(found.votes) == found.approvers_needed:
            found.state = approvals.Approval.STATE_APPROVED
            found.execute_before_time.FromSeconds(found.expire_time.seconds + 300)
        return approvals.ApproveResponse(approval=found)

    async def Reject(self, request: approvals.RejectRequest, _: Any) -> approvals.RejectResponse:
        """Take a no."""
        found = self.find(request.approval_id, request.request_digest)
        found.votes.add(person=current().identity, answer=approvals.Vote.ANSWER_REJECT, comment=request.comment)
        found.state = approvals.Approval.STATE_REJECTED
        return approvals.RejectResponse(approval=found)

    async def Amend(self, request: approvals.AmendRequest, _: Any) -> approvals.AmendResponse:
        """Replace one."""
        self.amended.append(request)
        old = self.find(request.approval_id, request.request_digest)
        wanted = json_format.ParseDict(json.loads(request.request_json), workload.RestartWorkloadRequest())
        made = approval(77, wanted.reason)
        made.amends_approval_id = old.approval_id
        old.state, old.superseded_by = approvals.Approval.STATE_AMENDED, made.approval_id
        self.asked.append(made)
        return approvals.AmendResponse(approval=made)


@dataclass
class KillSwitch(kills_grpc.KillSwitchServiceServicer):
    """Keeps `engaged`; everything needs two people to be released."""

    engaged: list[kills.Kill] = field(default_factory=list)

    async def Engage(self, request: kills.EngageRequest, _: Any) -> kills.EngageResponse:
        """Stop."""
        made = kills.Kill(
            kill_id=request.request_id,
            scope=request.scope,
            state=kills.Kill.STATE_ENGAGED,
            epoch=len(self.engaged) + 1,
            reason=request.reason,
            engager=current().identity,
            releasers_needed=2 if request.scope.everything else 1,
            durable=True,
        )
        made.engage_time.GetCurrentTime()
        self.engaged.insert(0, made)
        return kills.EngageResponse(kill=made)

    async def Release(self, request: kills.ReleaseRequest, _: Any) -> kills.ReleaseResponse:
        """Let go once enough people said so."""
        for one in self.engaged:
            if one.kill_id == request.kill_id:
                if current().identity not in one.releasers:
                    one.releasers.append(current().identity)
                enough = len(one.releasers) >= one.releasers_needed
                one.state = kills.Kill.STATE_RELEASED if enough else kills.Kill.STATE_RELEASE_PENDING
                return kills.ReleaseResponse(kill=one)
        raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="kill", id=request.kill_id)

    async def GetStatus(self, request: kills.GetStatusRequest, _: Any) -> kills.GetStatusResponse:
        """Answer those in force."""
        found = [one for one in self.engaged if request.include_released or one.state != kills.Kill.STATE_RELEASED]
        return kills.GetStatusResponse(kills=found)

    async def PollLease(self, request: kills.PollLeaseRequest, _: Any) -> kills.PollLeaseResponse:
        """Answer nothing."""
        return kills.PollLeaseResponse()

    async def WatchLease(self, request: kills.WatchLeaseRequest, _: Any) -> AsyncIterator[kills.WatchLeaseResponse]:
        """Answer nothing."""
        yield kills.WatchLeaseResponse()

    async def ReportStops(self, request: kills.ReportStopsRequest, _: Any) -> kills.ReportStopsResponse:
        """Answer nothing."""
        return kills.ReportStopsResponse()


class Policies(policies_grpc.PolicyServiceServicer):
    """Knows an inventory of one production service."""

    async def PublishPolicySet(self, request: policies.PublishPolicySetRequest, context: Any) -> Any:
        """Publish nothing."""
        raise Refusal(error_reason_pb2.ERROR_REASON_NO_POLICY_SET)

    async def ListPolicySets(self, request: policies.ListPolicySetsRequest, context: Any) -> Any:
        """List nothing."""
        return policies.ListPolicySetsResponse()

    async def GetPolicySet(self, request: policies.GetPolicySetRequest, context: Any) -> Any:
        """Tell the inventory."""
        answer = policies.GetPolicySetResponse()
        answer.policy_set.inventory.entries.add(
            target_id="svc:production/checkout", kind="service", environment="production"
        )
        return answer


@dataclass
class Effects(gateway_grpc.EffectServiceServicer):
    """Lists `effects`."""

    effects: list[gateway.Effect] = field(default_factory=list)

    async def GetEffect(self, request: gateway.GetEffectRequest, _: Any) -> gateway.GetEffectResponse:
        """Answer nothing."""
        return gateway.GetEffectResponse()

    async def ListEffects(self, request: gateway.ListEffectsRequest, _: Any) -> gateway.ListEffectsResponse:
        """Answer those in a state."""
        return gateway.ListEffectsResponse(effects=[one for one in self.effects if request.state in (0, one.state)])

    async def SettleEffect(self, request: gateway.SettleEffectRequest, _: Any) -> gateway.SettleEffectResponse:
        """Answer nothing."""
        return gateway.SettleEffectResponse()


@dataclass
class Automation(automation_grpc.AutomationServiceServicer):
    """Reports one observed step, and remembers over what time, and which states were listed."""

    spans: list[int] = field(default_factory=list)
    states: list[int] = field(default_factory=list)

    async def StartExecution(
        self, request: automation.StartExecutionRequest, _: Any
    ) -> automation.StartExecutionResponse:
        """Answer nothing."""
        return automation.StartExecutionResponse()

    async def GetExecution(self, request: automation.GetExecutionRequest, _: Any) -> automation.GetExecutionResponse:
        """Answer nothing."""
        return automation.GetExecutionResponse()

    async def ListExecutions(
        self, request: automation.ListExecutionsRequest, _: Any
    ) -> automation.ListExecutionsResponse:
        """Remember the states."""
        self.states += request.states
        return automation.ListExecutionsResponse()

    async def ReportObserved(
        self, request: automation.ReportObservedRequest, _: Any
    ) -> automation.ReportObservedResponse:
        """Answer one row."""
        self.spans.append(request.since_duration.seconds)
        row = automation.ObservedRow(
            rule_id="checkout-down",
            playbook_id="restart-workload",
            tool=RESTART,
            environment="production",
            execution_count=12,
            target_count=1,
            targets=["svc:production/checkout"],
        )
        return automation.ReportObservedResponse(rows=[row])

    async def CancelExecution(
        self, request: automation.CancelExecutionRequest, _: Any
    ) -> automation.CancelExecutionResponse:
        """Answer nothing."""
        return automation.CancelExecutionResponse()
