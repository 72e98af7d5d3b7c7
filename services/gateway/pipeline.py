"""The one way of every tool call, in the order of DESIGN section 6. Nothing here knows a single tool.

A read: identity and permission (the chain), the read grant of callers that need one, then the tool.
An effect: its row by (method, request_id); grant; lease; transaction 1 (STARTED, fence); audit intent, acknowledged;
precondition read again; fence, lease, kills and deadline again; the act, whose first byte passes the gate (lease, kills
and deadline once more); transaction 2 (outcome, answer, audit outbox).
A process that dies anywhere in between leaves a STARTED row, which the resolver ends after its deadline.
"""

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from google.protobuf.message import Message
from prometheus_client import Counter

from opsmesh.guardrails.v1 import grant_pb2
from opsmesh.policy.v1 import policy_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.gateway import domain, grants
from services.gateway.answers import answer, busy, in_flight
from services.gateway.domain import Key, Proposal, Standing, State
from services.gateway.gate import Gate, guarding
from services.gateway.lease import LeaseKeeper, about, about_read
from services.gateway.record import AuditPort, Try
from services.gateway.resolver import Resolver
from services.gateway.store import EffectStore, FenceStaleError, Start, TargetBusyError
from services.gateway.tools.toolbox import EffectFailedError, Toolbox
from services.mesh import policy, precondition
from services.mesh.call import Call, current, working
from services.mesh.errors import Refusal
from services.mesh.tools import Tool

# A row becomes due this long, in seconds, after the act's own deadline: nobody resolves what still runs.
DUE_MARGIN: Final = 1.0
# How often a call looks at its row again when another call of the same id was quicker.
LOOKS_MAX: Final = 3
EFFECTS: Final = Counter("opsmesh_gateway_effects_total", "Tries of effects by how they ended.", ["method", "state"])
log = structlog.get_logger("opsmesh.gateway")


@dataclass(frozen=True, slots=True)
class Job:
    """One call that was admitted: what transaction 1 writes, and what follows it."""

    tool: Tool
    request: Message
    proposal: Proposal
    grant: grant_pb2.Grant
    call: Call

    @property
    def guarded(self) -> bool:
        """Say whether lease and fence apply: to everything but notices."""
        return self.tool.policy.access in policy.EFFECTS

    @property
    def intends(self) -> bool:
        """Say whether audit must acknowledge an intent before the act."""
        return self.tool.policy.audit == policy_pb2.AUDIT_MODE_INTENT

    @property
    def seconds(self) -> float:
        """Return how long everything from transaction 1 to the end of the act may take."""
        return policy.seconds(self.tool.spec.timeout_duration)


class Pipeline:
    """Serves every tool. `reads_need_grant` says of which callers even reads need a grant."""

    def __init__(
        self,
        *,
        store: EffectStore,
        audit: AuditPort,
        reader: grants.GrantReader,
        lease: LeaseKeeper,
        toolbox: Toolbox,
        resolver: Resolver,
        reads_need_grant: Callable[[str], bool],
    ) -> None:
        self._store = store
        self._audit = audit
        self._reader = reader
        self._lease = lease
        self._toolbox = toolbox
        self._resolver = resolver
        self._reads_need_grant = reads_need_grant
        self._running: set[asyncio.Task[Message]] = set()

    async def serve(self, tool: Tool, request: Message) -> Message:
        """Answer one call of a tool, whatever it does; everything else is a Refusal."""
        call = current()
        if tool.policy.access not in policy.READS:
            return await self._effect(tool, request, call)
        if self._reads_need_grant(call.identity):
            await self._may_read(tool, request, call)
        seconds = min(call.remaining, policy.seconds(tool.spec.timeout_duration))
        with working(call.identity, tool.name, seconds, trace=call.trace):
            return await self._read(tool, request)

    async def drain(self, stop: asyncio.Event) -> None:
        """Worker: after `stop`, wait for what still acts; the server cancels this worker when it takes too long."""
        await stop.wait()
        if self._running:
            await asyncio.wait(self._running)

    async def _read(self, tool: Tool, request: Message) -> Message:
        """Call a tool that reads, within the remaining time of the current call."""
        try:
            async with asyncio.timeout(current().remaining):
                return await self._toolbox[tool.name].act(request, {})
        except TimeoutError:
            raise unanswered(target_of(tool, request), "no answer in time") from None

    async def _may_read(self, tool: Tool, request: Message, call: Call) -> None:
        """Refuse a read that its caller's read grant does not cover, or that a kill or another policy set made void."""
        raw = self._reader.read_reads(call.metadata.get(grants.METADATA_KEY), tool.name)
        grant = grants.reads_to_domain(raw)
        if what := domain.read_misfit(grant, call.identity, datetime.now(UTC)):
            raise grants.invalid(what)
        target = target_of(tool, request)
        if not domain.covers(grant, tool.name, target, targeted=bool(tool.spec.target_field)):
            raise Refusal(
                error_reason_pb2.ERROR_REASON_READ_NOT_GRANTED, method=tool.name, target=target or "no target"
            )
        await self._lease.check(grant, about_read(grant, tool.name, target))

    async def _effect(self, tool: Tool, request: Message, call: Call) -> Message:
        """Answer from the effects table, or admit the call and act."""
        proposal = propose(tool, request, call.identity)
        for _ in range(LOOKS_MAX):
            effect = await self._store.read(proposal.key)
            found = domain.standing(effect, proposal)
            if found is Standing.REUSED:
                raise Refusal(error_reason_pb2.ERROR_REASON_REQUEST_ID_REUSED, request_id=call.request_id)
            if found is Standing.START:
                job = await self._admit(tool, request, proposal, call)
                task = asyncio.create_task(self._attempt(job))
                self._running.add(task)
                task.add_done_callback(self._finished)
                # A caller that hangs up does not interrupt what was begun.
                return await asyncio.shield(task)
            if effect is None or found is Standing.IN_FLIGHT:
                break
            if found is Standing.ANSWER:
                return answer(effect, tool)
            await self._resolver.resolve(effect.key)
        raise in_flight(await self._store.read(proposal.key), proposal.key)

    def _finished(self, task: asyncio.Task[Message]) -> None:
        """Forget a task; its exception belongs to a caller who may have hung up."""
        self._running.discard(task)
        if not task.cancelled():
            task.exception()

    async def _admit(self, tool: Tool, request: Message, proposal: Proposal, call: Call) -> Job:
        """Check all that can be checked before anything is written: grant, then lease, policy set and kills."""
        raw = self._reader.read(call.metadata.get(grants.METADATA_KEY), tool.name)
        grant = grants.to_domain(raw)
        if what := domain.misfit(grant, proposal, datetime.now(UTC)):
            raise grants.invalid(what)
        job = Job(tool, request, proposal, raw, call)
        if job.guarded:
            await self._lease.check(grant, about(grant))
        return job

    async def _attempt(self, job: Job) -> Message:
        """Do one try, from transaction 1 to transaction 2, in a time of its own."""
        call = job.call
        behalf = job.grant.on_behalf_of
        request_id = str(job.proposal.key.request_id)
        with working(
            call.identity, job.tool.name, job.seconds, trace=call.trace, request_id=request_id, on_behalf_of=behalf
        ):
            tries = await self._start(job)
            attempt = Try(job.proposal.key, tries, call.identity, job.proposal.digest, call.trace_id, job.grant)
            sent = False
            try:
                if job.intends:
                    sent = True
                    await self._audit.append(attempt.intent())
                await self._last_checks(job)
            except Exception as error:
                await self._give_up(job, attempt, error, sent=sent)
                raise
            return await self._act(job, attempt)

    async def _start(self, job: Job) -> int:
        """Transaction 1."""
        proposal, grant = job.proposal, job.grant
        start = Start(
            key=proposal.key,
            digest=proposal.digest,
            caller=proposal.caller,
            request=job.request.SerializeToString(deterministic=True),
            authority=grant.SerializeToString(),
            target_id=proposal.target_id,
            environment=grant.environment,
            fence=grant.fence if job.guarded else 0,
            incident_id=grant.incident_id,
            execution_id=grant.execution_id,
            step_id=grant.step_id,
            trace_id=job.call.trace_id,
            seconds=job.seconds + DUE_MARGIN,
        )
        try:
            tries = await self._store.start(start)
        except FenceStaleError as error:
            raise fence_stale(grant, error.current) from None
        except TargetBusyError as error:
            raise busy(error.request_id, error.deadline_time) from None
        if tries is None:
            raise in_flight(await self._store.read(proposal.key), proposal.key)
        return tries

    async def _last_checks(self, job: Job) -> None:
        """Check again, as late as possible, what may have changed: precondition, fence, lease, kills, deadline."""
        if read := precondition.read_of(job.tool, job.proposal.target_id):
            found = precondition.snapshot(await self._read(*read), job.tool.spec.precondition_fields)
            if diff := domain.difference(job.grant.precondition, found):
                raise Refusal(error_reason_pb2.ERROR_REASON_STATE_CHANGED, target=job.proposal.target_id, diff=diff)
        if job.guarded:
            if (highest := await self._store.fence(job.proposal.target_id)) > job.grant.fence:
                # Whoever took the lock while the intent was on its way has begun to act.
                raise fence_stale(job.grant, highest)
            grant = grants.to_domain(job.grant)
            await self._lease.check(grant, about(grant))
        in_time(job)

    def _gate(self, job: Job) -> Gate | None:
        """Return what is looked at once more when the tool's connection stands; whatever is told by then counts."""
        if not job.guarded:
            return None
        grant = grants.to_domain(job.grant)
        facts = about(grant)

        def look() -> None:
            self._lease.look(grant, facts)
            in_time(job)

        return Gate(look)

    async def _act(self, job: Job, attempt: Try) -> Message:
        """Act, and transaction 2. Whatever is not certain stays STARTED and is resolved after the deadline."""
        key = job.proposal.key
        response: Message | None = None
        try:
            async with asyncio.timeout(current().remaining):
                with guarding(self._gate(job)):
                    response = await self._toolbox[job.tool.name].act(job.request, dict(job.grant.precondition))
            ending = domain.succeeded(response.SerializeToString(deterministic=True))
        except EffectFailedError as error:
            ending = domain.failed(error.detail)
        except Refusal as refusal:
            await self._give_up(job, attempt, refusal, sent=job.intends)
            raise
        except Exception:
            log.exception("outcome not known yet", method=key.method, request_id=str(key.request_id))
            raise in_flight(await self._store.read(key), key) from None
        event = attempt.outcome(ending) if job.intends else attempt.record(ending)
        if await self._store.end(key, attempt.tries, ending, [event]):
            EFFECTS.labels(key.method, ending.state.value).inc()
            if response is not None:
                return response
        effect = await self._store.read(key)
        if effect is None or effect.state in {State.STARTED, State.NOT_STARTED}:
            raise in_flight(effect, key)
        return answer(effect, job.tool)

    async def _give_up(self, job: Job, attempt: Try, error: Exception, *, sent: bool) -> None:
        """Write that nothing happened, at once; an intent that was sent, even without answer, gets its outcome."""
        reason = error.name if isinstance(error, Refusal) else "INTERNAL"
        detail = str(error) if isinstance(error, Refusal) else "an unexpected error before the act"
        ending = domain.not_started(reason, detail)
        await self._store.end(job.proposal.key, attempt.tries, ending, [attempt.outcome(ending)] if sent else [])
        EFFECTS.labels(job.tool.name, ending.state.value).inc()


def propose(tool: Tool, request: Any, caller: str) -> Proposal:
    """Derive what a call is about from its bytes."""
    return Proposal(
        key=Key(tool.name, uuid.UUID(request.request_id)),
        digest=policy.digest(tool.name, request),
        caller=caller,
        target_id=target_of(tool, request),
        precondition_fields=tuple(tool.spec.precondition_fields),
        needs_fence=tool.policy.access in policy.EFFECTS and bool(tool.spec.target_field),
    )


def target_of(tool: Tool, request: Message) -> str:
    """Return the target a request names; empty for tools without one."""
    return str(getattr(request, tool.spec.target_field)) if tool.spec.target_field else ""


def in_time(job: Job) -> None:
    """Refuse what comes too late: a process that was paused wakes up here, too."""
    if current().remaining <= 0:
        raise Refusal(error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED, method=job.tool.name)


def fence_stale(grant: grant_pb2.Grant, highest: int) -> Refusal:
    """Return the refusal for a holder whose lock was lost to another."""
    return Refusal(
        error_reason_pb2.ERROR_REASON_FENCE_STALE,
        fence=str(grant.fence),
        target=grant.target_id,
        current=str(highest),
    )


def unanswered(target: str, detail: str) -> Refusal:
    """Return the refusal for a backend that does not answer."""
    return Refusal(
        error_reason_pb2.ERROR_REASON_BACKEND_UNAVAILABLE, retry_after=1.0, target=target or "this tool", detail=detail
    )
