"""Hand-written services for the command: they answer as the real ones do, from what a test puts into them."""
# ruff: noqa: N802, ARG002  names and parameters are those of the IDL

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from opsmesh.audit.v1 import audit_service_pb2 as audit
from opsmesh.audit.v1 import audit_service_pb2_grpc as audit_grpc
from opsmesh.guardrails.v1 import guardrails_service_pb2 as guardrails
from opsmesh.guardrails.v1 import guardrails_service_pb2_grpc as guardrails_grpc
from opsmesh.guardrails.v1 import target_lock_service_pb2 as locks
from opsmesh.guardrails.v1 import target_lock_service_pb2_grpc as locks_grpc
from opsmesh.ingest.v1 import ingest_service_pb2 as ingest
from opsmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from opsmesh.ingest.v1 import letters_pb2 as letters
from opsmesh.ingest.v1 import signal_pb2, signals_pb2
from opsmesh.router.v1 import decision_service_pb2 as router
from opsmesh.router.v1 import decision_service_pb2_grpc as router_grpc
from opsmesh.tools.workload.v1 import workload_tool_service_pb2 as workload
from opsmesh.tools.workload.v1 import workload_tool_service_pb2_grpc as workload_grpc
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.chain import current
from services.mesh.errors import Refusal
from services.mesh.paging import page_size, read_token, write_token

GRANT = b"a grant for exactly these bytes"


@dataclass
class Incidents(ingest_grpc.IngestServiceServicer):
    """Serves `incidents`, newest first, and remembers page sizes and resolutions."""

    incidents: list[ingest.Incident] = field(default_factory=list)
    page_sizes: list[int] = field(default_factory=list)
    # What the next lists are refused with; None lets one pass.
    refusals: list[Refusal | None] = field(default_factory=list)
    resolved: list[ingest.ResolveIncidentRequest] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)
    signals: list[ingest.GetSignalResponse] = field(default_factory=list)

    async def GetSignal(self, request: ingest.GetSignalRequest, _: Any) -> ingest.GetSignalResponse:
        """Answer one signal."""
        for one in self.signals:
            if one.record.signal.signal_id == request.signal_id:
                return one
        raise Refusal(error_reason_pb2.ERROR_REASON_SIGNAL_NOT_FOUND, signal_id=request.signal_id)

    async def ListSignals(self, request: signals_pb2.ListSignalsRequest, _: Any) -> signals_pb2.ListSignalsResponse:
        """Remember the request; answer all."""
        self.asked.append(request)
        return signals_pb2.ListSignalsResponse(signals=[one.record for one in self.signals])

    async def ListIncidents(self, request: ingest.ListIncidentsRequest, _: Any) -> ingest.ListIncidentsResponse:
        """Answer a page, at most 40 incidents."""
        if self.refusals and (refusal := self.refusals.pop(0)):
            raise refusal
        self.page_sizes.append(request.page_size)
        position = read_token(request, int)
        start = position[0] if position else 0
        found = [one for one in self.incidents if not request.states or one.state in request.states]
        end = start + min(40, page_size(request.page_size))
        token = write_token(request, end) if end < len(found) else ""
        return ingest.ListIncidentsResponse(incidents=found[start:end], next_page_token=token)

    async def GetIncident(self, request: ingest.GetIncidentRequest, _: Any) -> ingest.GetIncidentResponse:
        """Answer one incident."""
        for one in self.incidents:
            if one.incident_id == request.incident_id:
                signals = [found.record for found in self.signals if found.record.incident_id == one.incident_id]
                return ingest.GetIncidentResponse(incident=one, signals=signals)
        raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="incident", id=request.incident_id)

    async def ResolveIncident(self, request: ingest.ResolveIncidentRequest, _: Any) -> ingest.ResolveIncidentResponse:
        """Remember who resolved what."""
        self.resolved.append(request)
        return ingest.ResolveIncidentResponse(
            incident=ingest.Incident(incident_id=request.incident_id, state=ingest.Incident.STATE_RESOLVED)
        )

    async def SubmitSignals(self, request: ingest.SubmitSignalsRequest, _: Any) -> ingest.SubmitSignalsResponse:
        """Answer nothing."""
        return ingest.SubmitSignalsResponse()

    async def ListChanges(self, request: ingest.ListChangesRequest, _: Any) -> ingest.ListChangesResponse:
        """Answer nothing."""
        return ingest.ListChangesResponse()

    async def ListDeadLetters(self, request: ingest.ListDeadLettersRequest, _: Any) -> ingest.ListDeadLettersResponse:
        """Answer nothing."""
        return ingest.ListDeadLettersResponse()

    async def RedriveDeadLetters(self, request: letters.RedriveDeadLettersRequest, _: Any) -> Any:
        """Redrive the first; the others are not understood."""
        self.asked.append(request)
        results = [
            letters.DeadLetterResult(
                delivery_id=one, state=letters.DeadLetterResult.STATE_MALFORMED, errors=["id: none"]
            )
            for one in request.delivery_ids
        ]
        results[0] = letters.DeadLetterResult(
            delivery_id=request.delivery_ids[0], state=letters.DeadLetterResult.STATE_REDRIVEN, new_delivery_id="new"
        )
        return letters.RedriveDeadLettersResponse(results=results)

    async def DiscardDeadLetters(self, request: letters.DiscardDeadLettersRequest, _: Any) -> Any:
        """Throw all away."""
        self.asked.append(request)
        state = letters.DeadLetterResult.STATE_DISCARDED
        results = [letters.DeadLetterResult(delivery_id=one, state=state) for one in request.delivery_ids]
        return letters.DiscardDeadLettersResponse(results=results)


def incident(number: int) -> ingest.Incident:
    """Return an incident; its title is what a hostile sender might write."""
    made = ingest.Incident(
        incident_id=str(uuid.UUID(int=number)),
        title=f"[red]checkout[/red] {number} is down\x1b[31m\u202e",
        state=ingest.Incident.STATE_RUNNING,
        signal_count=3,
        duplicate_count=2,
    )
    made.open_time.GetCurrentTime()
    return made


def signal(number: int, body: bytes) -> ingest.GetSignalResponse:
    """Return a signal of incident 1 that came as BODY; its words are what a hostile sender might write."""
    made = ingest.GetSignalResponse(body_size=len(body))
    made.record.signal.signal_id, made.record.signal.source = str(uuid.UUID(int=number)), "alertmanager"
    made.record.signal.summary = "[red]disk[/red]\x1b[31m"
    made.record.disposition = signal_pb2.SignalRecord.DISPOSITION_JOINED
    made.record.incident_id = str(uuid.UUID(int=1))
    made.delivery.body, made.delivery.content_type = body, "application/json"
    made.delivery.authenticity.method, made.delivery.authenticity.verified = signal_pb2.Authenticity.METHOD_BEARER, True
    made.delivery.headers["x-github-event"] = "push\x1b[31m"
    return made


class Decisions(router_grpc.DecisionServiceServicer):
    """Previews with one rule, `checkout-down`, for the alert CheckoutDown."""

    async def PreviewDecision(self, request: router.PreviewDecisionRequest, _: Any) -> router.PreviewDecisionResponse:
        """Say whether the one rule matches."""
        if request.incident.labels["alertname"] == "CheckoutDown":
            return router.PreviewDecisionResponse(
                decision=router.Decision(rule_id="checkout-down"), matched=["labels.alertname is CheckoutDown"]
            )
        why = router.NotMatched(rule_id="checkout-down", reason="labels.alertname is not CheckoutDown")
        return router.PreviewDecisionResponse(decision=router.Decision(), not_matched=[why])

    async def DecideIncident(self, request: router.DecideIncidentRequest, _: Any) -> router.DecideIncidentResponse:
        """Answer nothing."""
        return router.DecideIncidentResponse()

    async def GetDecision(self, request: router.GetDecisionRequest, _: Any) -> router.GetDecisionResponse:
        """Answer nothing."""
        return router.GetDecisionResponse()

    async def BatchGetDecisions(
        self, request: router.BatchGetDecisionsRequest, _: Any
    ) -> router.BatchGetDecisionsResponse:
        """Answer nothing."""
        return router.BatchGetDecisionsResponse()

    async def ListDecisions(self, request: router.ListDecisionsRequest, _: Any) -> router.ListDecisionsResponse:
        """Answer nothing."""
        return router.ListDecisionsResponse()


@dataclass
class Guardrails(guardrails_grpc.GuardrailsServiceServicer, locks_grpc.TargetLockServiceServicer):
    """Judges with `verdict`; `steps` is what happened in order, shared with the gateway."""

    steps: list[str]
    verdict: "guardrails.Verdict.ValueType" = guardrails.VERDICT_ALLOW
    held: list[locks.TargetLock] = field(default_factory=list)

    async def AuthorizeAction(
        self, request: guardrails.AuthorizeActionRequest, _: Any
    ) -> guardrails.AuthorizeActionResponse:
        """Judge."""
        self.steps.append("authorise")
        checks = [guardrails.Check(name=name, passed=True) for name in ("syntax", "safety", "policy", "sanity")]
        judgement = guardrails.Judgement(
            verdict=self.verdict, method=request.method, target_id="svc:demo/checkout", checks=checks
        )
        allowed = self.verdict == guardrails.VERDICT_ALLOW
        return guardrails.AuthorizeActionResponse(
            judgement=judgement, grant=GRANT if allowed else b"", request=request.request, approval_id="approval-7"
        )

    async def PreviewAction(self, request: guardrails.PreviewActionRequest, _: Any) -> guardrails.PreviewActionResponse:
        """Judge without a grant."""
        self.steps.append("preview")
        return guardrails.PreviewActionResponse(judgement=guardrails.Judgement(verdict=self.verdict))

    async def RegisterRun(self, request: guardrails.RegisterRunRequest, _: Any) -> guardrails.RegisterRunResponse:
        """Answer nothing."""
        return guardrails.RegisterRunResponse()

    async def EndRun(self, request: guardrails.EndRunRequest, _: Any) -> guardrails.EndRunResponse:
        """Answer nothing."""
        return guardrails.EndRunResponse()

    async def AuthorizeReads(
        self, request: guardrails.AuthorizeReadsRequest, _: Any
    ) -> guardrails.AuthorizeReadsResponse:
        """Answer nothing."""
        return guardrails.AuthorizeReadsResponse()

    async def AcquireLock(self, request: locks.AcquireLockRequest, _: Any) -> locks.AcquireLockResponse:
        """Give the lock."""
        self.steps.append("lock")
        return locks.AcquireLockResponse(lock=locks.TargetLock(target_id=request.target_id, holder="me", fence=4))

    async def RenewLock(self, request: locks.RenewLockRequest, _: Any) -> locks.RenewLockResponse:
        """Answer nothing."""
        return locks.RenewLockResponse()

    async def ReleaseLock(self, request: locks.ReleaseLockRequest, _: Any) -> locks.ReleaseLockResponse:
        """Take it back."""
        self.steps.append(f"release {request.fence}")
        return locks.ReleaseLockResponse()

    async def ListLocks(self, request: locks.ListLocksRequest, _: Any) -> locks.ListLocksResponse:
        """List them."""
        return locks.ListLocksResponse(locks=self.held)

    async def AcquireClaim(self, request: locks.AcquireClaimRequest, _: Any) -> locks.AcquireClaimResponse:
        """Answer nothing."""
        return locks.AcquireClaimResponse()

    async def RenewClaim(self, request: locks.RenewClaimRequest, _: Any) -> locks.RenewClaimResponse:
        """Answer nothing."""
        return locks.RenewClaimResponse()

    async def ReleaseClaim(self, request: locks.ReleaseClaimRequest, _: Any) -> locks.ReleaseClaimResponse:
        """Answer nothing."""
        return locks.ReleaseClaimResponse()


@dataclass
class Workloads(workload_grpc.WorkloadToolServiceServicer):
    """Restarts once a grant is there."""

    steps: list[str]
    requests: list[workload.RestartWorkloadRequest] = field(default_factory=list)

    async def GetWorkload(self, request: workload.GetWorkloadRequest, _: Any) -> workload.GetWorkloadResponse:
        """Say that it runs."""
        self.steps.append("read")
        return workload.GetWorkloadResponse(state=workload.Workload.STATE_RUNNING, process_id=42)

    async def CheckHealth(self, request: workload.CheckHealthRequest, _: Any) -> workload.CheckHealthResponse:
        """Say that it is well."""
        return workload.CheckHealthResponse(healthy=True, status_code=200)

    async def RestartWorkload(
        self, request: workload.RestartWorkloadRequest, _: Any
    ) -> workload.RestartWorkloadResponse:
        """Restart, with a grant."""
        if current().metadata.get("opsmesh-grant-bin") != GRANT:
            raise Refusal(error_reason_pb2.ERROR_REASON_GRANT_MISSING, method=current().method)
        self.steps.append("restart")
        self.requests.append(request)
        return workload.RestartWorkloadResponse(previous_process_id=41, process_id=42)


@dataclass
class Audit(audit_grpc.AuditServiceServicer):
    """Exports `rows` in parts of 100."""

    rows: list[audit.ExportedEvent] = field(default_factory=list)

    async def ExportEvents(
        self, request: audit.ExportEventsRequest, _: Any
    ) -> AsyncIterator[audit.ExportEventsResponse]:
        """Stream the rows."""
        rows = [one for one in self.rows if one.event.sequence >= request.start_sequence]
        for start in range(0, len(rows), 100):
            yield audit.ExportEventsResponse(events=rows[start : start + 100])

    async def ListEvents(self, request: audit.ListEventsRequest, _: Any) -> audit.ListEventsResponse:
        """List those of an action."""
        found = [one.event for one in self.rows if request.action in ("", one.event.action)]
        return audit.ListEventsResponse(events=found[: page_size(request.page_size)])

    async def AppendEvents(self, request: audit.AppendEventsRequest, _: Any) -> audit.AppendEventsResponse:
        """Answer nothing."""
        return audit.AppendEventsResponse()

    async def GetEvent(self, request: audit.GetEventRequest, _: Any) -> audit.GetEventResponse:
        """Refuse."""
        raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="event", id=request.event_id)

    async def GetCheckpoint(self, request: audit.GetCheckpointRequest, _: Any) -> audit.GetCheckpointResponse:
        """Answer nothing."""
        return audit.GetCheckpointResponse()
