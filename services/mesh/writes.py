"""Writes that happen once and are on record: idempotency, audit intent and outcome in the transaction of the change."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4

import grpc
import grpc.aio
import structlog
from google.protobuf.message import Message

from opsmesh.audit.v1 import audit_service_pb2 as audit_pb
from opsmesh.policy.v1 import policy_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.mesh import policy
from services.mesh.call import current
from services.mesh.errors import Refusal, reason_name
from services.mesh.loop import every
from services.mesh.outbox import APPEND_SECONDS, AuditClient, Outbox
from services.mesh.postgres import Connection, Pool

R = TypeVar("R", bound=Message)
Event = audit_pb.AuditEvent

PERIOD: Final = 1.0
# An outcome nobody wrote is told this long after the deadline of its call.
SILENCE: Final = 30.0
DETAIL_MAX: Final = 1024
DETAILS_MAX: Final = 32
log = structlog.get_logger("opsmesh.writes")


@dataclass(frozen=True, slots=True)
class Subject:
    """What a write is about, as far as audit has columns for it; `detail` is bounded and holds no secrets."""

    target: str = ""
    environment: str = ""
    region: str = ""
    incident_id: str = ""
    decision_id: str = ""
    execution_id: str = ""
    step_id: str = ""
    rule_set_version: int = 0
    policy_set_version: int = 0
    detail: Mapping[str, str] = field(default_factory=dict)


NOTHING: Final = Subject()


def event(
    phase: "Event.Phase.ValueType",
    outcome: "Event.Outcome.ValueType" = Event.OUTCOME_UNSPECIFIED,
    subject: Subject = NOTHING,
    *,
    reason: str = "",
    request: Message | None = None,
    event_id: UUID | None = None,
    action: str = "",
) -> audit_pb.AuditEvent:
    """Build an audit event of the current call; `action` is its method unless told otherwise."""
    call = current()
    made = audit_pb.AuditEvent(
        event_id=str(event_id or uuid4()),
        phase=phase,
        outcome=outcome,
        actor=call.identity,
        on_behalf_of=call.on_behalf_of,
        action=action or call.method,
        target=subject.target,
        environment=subject.environment,
        region=subject.region,
        incident_id=subject.incident_id,
        decision_id=subject.decision_id,
        execution_id=subject.execution_id,
        step_id=subject.step_id,
        rule_set_version=subject.rule_set_version,
        policy_set_version=subject.policy_set_version,
        reason=reason,
        request_id=call.request_id,
        request_digest=policy.digest(call.method, request).hex() if request is not None else "",
        trace_id=call.trace_id,
    )
    for key, text in list(subject.detail.items())[:DETAILS_MAX]:
        made.details[key[:64]] = text[:DETAIL_MAX]
    made.event_time.GetCurrentTime()
    return made


class Writes:
    """Idempotent, audited writes of one service on its own schema (tables `requests` and `outbox`)."""

    def __init__(self, pool: Pool, service_name: str, audit: AuditClient) -> None:
        self._pool = pool
        self._audit = audit
        self._outbox = Outbox(pool, service_name if "/" in service_name else f"service/{service_name}", audit)
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Let the outbox worker look now: call it after the commit of a transaction that used `enqueue`."""
        self._wake.set()

    async def enqueue(self, connection: Connection, *events: audit_pb.AuditEvent) -> None:
        """Put events into the outbox, in the caller's transaction; they are delivered after its commit."""
        for one in events:
            policy.validate(one)
        await connection.executemany(
            "INSERT INTO outbox (event_id, event) VALUES ($1, $2) ON CONFLICT (event_id) DO NOTHING",
            [(UUID(one.event_id), one.SerializeToString()) for one in events],
        )

    async def once(
        self,
        request: Any,
        response_class: type[R],
        change: Callable[[Connection], Awaitable[R]],
        subject: Subject = NOTHING,
    ) -> R:
        """Make a change at most once per (method, request_id), recorded as the method's audit mode says.

        The same request again gets the stored answer; other content or another caller is refused.
        """
        claim = _Claim(current().identity, current().method, UUID(request.request_id), request)
        mode = current().policy.audit
        if mode == policy_pb2.AUDIT_MODE_INTENT:
            return await self._with_intent(claim, response_class, change, subject)
        async with self._pool.acquire() as connection, connection.transaction():
            if not await claim.take(connection):
                return await claim.stored(connection, response_class)
            response = await change(connection)
            await claim.answer(connection, response)
            if mode == policy_pb2.AUDIT_MODE_OUTBOX:
                done = event(Event.PHASE_RECORD, Event.OUTCOME_SUCCEEDED, subject, request=request)
                await self.enqueue(connection, done)
        self.wake()
        return response

    async def _with_intent(
        self,
        claim: "_Claim",
        response_class: type[R],
        change: Callable[[Connection], Awaitable[R]],
        subject: Subject,
    ) -> R:
        """Write the outcome nobody may owe, get the intent acknowledged, then change and correct the outcome."""
        async with self._pool.acquire() as connection:
            if await claim.known(connection):
                return await claim.stored(connection, response_class)
        owed = await self._intend(claim, subject)
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                detail = {}
                if await claim.take(connection):
                    response = await change(connection)
                    await claim.answer(connection, response)
                else:
                    # Another worker was faster: this intent changed nothing of its own.
                    response = await claim.stored(connection, response_class)
                    detail = {"stored": "true"}
                await owed.settle(connection, Event.OUTCOME_SUCCEEDED, "", detail, must=True)
        except Exception as error:
            reason = error.name if isinstance(error, Refusal) else reason_name(error_reason_pb2.ERROR_REASON_INTERNAL)
            await self._failed(owed, reason)
            raise
        self.wake()
        return response

    async def _intend(self, claim: "_Claim", subject: Subject) -> "_Owed":
        """Put the pessimistic outcome into the outbox, then get the intent acknowledged by audit, or refuse."""
        reason = reason_name(error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED)
        owed = _Owed(event(Event.PHASE_OUTCOME, Event.OUTCOME_FAILED, subject, reason=reason, request=claim.request))
        intent = event(Event.PHASE_INTENT, subject=subject, request=claim.request)
        await self._pool.execute(
            "INSERT INTO outbox (event_id, event, ready_time) VALUES ($1, $2, now() + make_interval(secs => $3))",
            owed.event_id,
            owed.written,
            current().remaining + SILENCE,
        )
        try:
            await self._audit.AppendEvents(audit_pb.AppendEventsRequest(events=[intent]), timeout=APPEND_SECONDS)
        except grpc.aio.AioRpcError as error:
            # Audit may have kept the intent all the same, so its outcome goes out.
            await self._failed(owed, reason_name(error_reason_pb2.ERROR_REASON_AUDIT_UNAVAILABLE))
            raise Refusal(error_reason_pb2.ERROR_REASON_AUDIT_UNAVAILABLE, retry_after=1.0) from error
        return owed

    async def _failed(self, owed: "_Owed", reason: str) -> None:
        """Let the outcome FAILED go out now, with its reason; if even that fails, it goes out after the deadline."""
        async with self._pool.acquire() as connection:
            await owed.settle(connection, Event.OUTCOME_FAILED, reason, {})
        self.wake()

    async def outbox_worker(self, stop: asyncio.Event) -> None:
        """Deliver ready events to audit until `stop`; woken after each commit, backs off while audit is down."""
        await every(stop, PERIOD, self.deliver, self._wake)

    async def deliver(self) -> None:
        """Deliver every event that is ready; raises what audit or the store answered otherwise."""
        await self._outbox.deliver()


class _Claim:
    """The place of one request in the `requests` table."""

    def __init__(self, caller: str, method: str, request_id: UUID, request: Message) -> None:
        self.caller, self.method, self.request_id, self.request = caller, method, request_id, request
        self.digest = policy.digest(method, request)

    async def known(self, connection: Connection) -> bool:
        """Say whether this request was answered before."""
        sql = "SELECT true FROM requests WHERE method = $1 AND request_id = $2"
        return bool(await connection.fetchval(sql, self.method, self.request_id))

    async def take(self, connection: Connection) -> bool:
        """Claim the request in this transaction; waits for a concurrent one, False when that has answered."""
        sql = (
            "INSERT INTO requests (caller, method, request_id, digest, response) VALUES ($1, $2, $3, $4, '') "
            "ON CONFLICT (method, request_id) DO NOTHING RETURNING true"
        )
        return bool(await connection.fetchval(sql, self.caller, self.method, self.request_id, self.digest))

    async def stored(self, connection: Connection, response_class: type[R]) -> R:
        """Return the stored answer of the same request, or refuse."""
        sql = "SELECT caller, digest, response FROM requests WHERE method = $1 AND request_id = $2"
        row = await connection.fetchrow(sql, self.method, self.request_id)
        if row is None or row["digest"] != self.digest or row["caller"] != self.caller:
            raise Refusal(error_reason_pb2.ERROR_REASON_REQUEST_ID_REUSED, request_id=str(self.request_id))
        return response_class.FromString(row["response"])

    async def answer(self, connection: Connection, response: Message) -> None:
        """Keep the answer."""
        sql = "UPDATE requests SET response = $3 WHERE method = $1 AND request_id = $2"
        await connection.execute(sql, self.method, self.request_id, response.SerializeToString())


class _Owed:
    """An outcome that is owed to audit: in the outbox as FAILED until somebody knows better."""

    def __init__(self, pessimistic: audit_pb.AuditEvent) -> None:
        policy.validate(pessimistic)
        self.event_id = UUID(pessimistic.event_id)
        self.written = pessimistic.SerializeToString()

    async def settle(
        self,
        connection: Connection,
        outcome: "Event.Outcome.ValueType",
        reason: str,
        detail: Mapping[str, str],
        *,
        must: bool = False,
    ) -> None:
        """Replace the pessimistic outcome and let it go out; where it `must`, refuse when it has gone out already.

        What a lost commit may have written meanwhile is never overwritten.
        """
        known = audit_pb.AuditEvent.FromString(self.written)
        known.outcome, known.reason = outcome, reason
        known.details.update(detail)
        known.event_time.GetCurrentTime()
        done = await connection.execute(
            "UPDATE outbox SET event = $2, ready_time = now() WHERE event_id = $1 AND event = $3",
            self.event_id,
            known.SerializeToString(),
            self.written,
        )
        if must and not done.endswith(" 1"):
            raise Refusal(error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED, method=known.action)
