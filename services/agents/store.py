"""The ledger of model calls: reserved before, settled after, in PostgreSQL, so that a crash leaves nothing uncounted.

A reservation whose process died stays spent: the provider may have answered. Budgets are counters raised by one
statement with its limit, so that no two calls together pass what neither may pass alone.
"""

from dataclasses import dataclass
from datetime import date
from typing import Final, Protocol
from uuid import UUID, uuid4

from opsmesh.agents.v1 import model_service_pb2 as pb
from opsmesh.audit.v1 import audit_service_pb2 as audit_pb
from opsmesh.type.v1 import error_reason_pb2
from services.agents.domain import Attribution, Endpoint, Limit, Limits, Usage
from services.mesh.errors import Refusal
from services.mesh.postgres import Connection, Pool
from services.mesh.retention import TooOld
from services.mesh.writes import Writes

METHOD: Final = "opsmesh.agents.v1.ModelService/Generate"
# An incident's budget has no day.
EVER: Final = date(1970, 1, 1)
DAY: Final = "DAY"
INCIDENT: Final = "INCIDENT"
REQUESTER: Final = "REQUESTER"
DETAIL_MAX: Final = 300

RESERVE: Final = """
    INSERT INTO spending AS kept (scope, subject, day, tokens, cost_micros) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (scope, subject, day) DO UPDATE
    SET tokens = kept.tokens + $4, cost_micros = kept.cost_micros + $5, update_time = clock_timestamp()
    WHERE kept.tokens + $4 <= $6 AND kept.cost_micros + $5 <= $7
    RETURNING true
"""
CORRECT: Final = """
    UPDATE spending SET tokens = tokens + $4, cost_micros = cost_micros + $5, update_time = clock_timestamp()
    WHERE scope = $1 AND subject = $2 AND day = $3
"""
BEGIN: Final = """
    INSERT INTO model_calls (call_id, request_id, caller, requester, incident_id, decision_id, run_id, conversation_id,
        role, model, provider, recorded, prompt_digest, state, input_tokens, output_tokens, cost_micros, day, deadline)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, 'RUNNING', $14, $15, $16,
        (now() AT TIME ZONE 'UTC')::date, clock_timestamp() + make_interval(secs => $17))
    ON CONFLICT (request_id) WHERE state = 'RUNNING' DO NOTHING
    RETURNING day
"""
SWEEP: Final = """
    UPDATE model_calls SET state = 'UNKNOWN', end_time = clock_timestamp(), detail = 'its process did not come back'
    WHERE state = 'RUNNING' AND deadline < clock_timestamp() AND ($1::uuid IS NULL OR request_id = $1)
"""


@dataclass(frozen=True, slots=True)
class Purpose:
    """Which request a call answers, and for whom."""

    request_id: UUID
    digest: bytes
    attribution: Attribution
    role: str
    prompt_digest: str


@dataclass(frozen=True, slots=True)
class Hold:
    """A reservation: what is counted until it is settled."""

    call_id: UUID
    day: date
    usage: Usage
    cost_micros: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a call ended and what it used; UNKNOWN keeps the reservation spent."""

    state: str
    usage: Usage
    cost_micros: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Left:
    """A budget and what of it is left, never below zero."""

    scope: str
    subject: str
    limit: Limit
    tokens: int
    cost_micros: int


class Ledger(Protocol):
    """Keeps what is spent and what was answered."""

    async def stored(self, purpose: Purpose) -> pb.GenerateResponse | None:
        """Return the answer this request got before; refuses when its id was another's."""
        ...

    async def reserve(self, purpose: Purpose, endpoint: Endpoint, usage: Usage, seconds: float) -> Hold:
        """Count what a call may use; refuses when a budget does not allow it, or the request is being answered."""
        ...

    async def settle(
        self,
        purpose: Purpose,
        hold: Hold,
        verdict: Verdict,
        answer: pb.GenerateResponse | None = None,
        event: audit_pb.AuditEvent | None = None,
    ) -> None:
        """Count what it used instead; with an `answer`, keep that for the same request, in one transaction."""
        ...

    async def record(self, event: audit_pb.AuditEvent) -> None:
        """Hand an event to audit, later."""
        ...

    async def left(self, incident_id: str, requester: str) -> list[Left]:
        """Return the day's budget, and the incident's and requester's where they are named."""
        ...


def forgotten(days: int) -> tuple[TooOld, TooOld]:
    """Return what is deleted after `days`: calls, and the counters of budgets that nobody touched since."""
    return (
        TooOld("model_calls", "start_time < now() - $1::interval AND state <> 'RUNNING'", days),
        TooOld("spending", "update_time < now() - $1::interval", days),
    )


class PostgresLedger:
    """The ledger in the schema `agents`."""

    def __init__(self, pool: Pool, writes: Writes, limits: Limits) -> None:
        self._pool = pool
        self._writes = writes
        self._limits = limits

    async def stored(self, purpose: Purpose) -> pb.GenerateResponse | None:
        """See Ledger."""
        sql = "SELECT caller, digest, response FROM requests WHERE method = $1 AND request_id = $2"
        row = await self._pool.fetchrow(sql, METHOD, purpose.request_id)
        if row is None:
            return None
        if row["digest"] != purpose.digest or row["caller"] != purpose.attribution.caller:
            raise Refusal(error_reason_pb2.ERROR_REASON_REQUEST_ID_REUSED, request_id=str(purpose.request_id))
        return pb.GenerateResponse.FromString(row["response"])

    async def reserve(self, purpose: Purpose, endpoint: Endpoint, usage: Usage, seconds: float) -> Hold:
        """See Ledger."""
        made, whom, cost = uuid4(), purpose.attribution, endpoint.price.cost(usage)
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(SWEEP, purpose.request_id)
            day = await connection.fetchval(
                BEGIN,
                made,
                purpose.request_id,
                whom.caller,
                whom.requester,
                whom.incident_id,
                whom.decision_id,
                whom.run_id,
                whom.conversation_id,
                purpose.role,
                endpoint.model,
                endpoint.provider,
                bool(endpoint.replays),
                purpose.prompt_digest,
                usage.input_tokens,
                usage.output_tokens,
                cost,
                seconds,
            )
            if day is None:
                request_id = str(purpose.request_id)
                reason = error_reason_pb2.ERROR_REASON_GENERATION_IN_FLIGHT
                raise Refusal(reason, request_id=request_id, retry_after=1.0)
            # Always in this order: two calls never wait for each other.
            for scope, subject, counted_day, limit in self._counters(whom, day):
                fits = usage.total <= limit.tokens and cost <= limit.cost_micros
                arguments = (scope, subject, counted_day, usage.total, cost, limit.tokens, limit.cost_micros)
                if not fits or not await connection.fetchval(RESERVE, *arguments):
                    raise await _exhausted(connection, scope, subject, counted_day, limit)
        return Hold(made, day, usage, cost)

    async def settle(
        self,
        purpose: Purpose,
        hold: Hold,
        verdict: Verdict,
        answer: pb.GenerateResponse | None = None,
        event: audit_pb.AuditEvent | None = None,
    ) -> None:
        """See Ledger."""
        tokens, cost = verdict.usage.total - hold.usage.total, verdict.cost_micros - hold.cost_micros
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(
                "UPDATE model_calls SET state = $2, detail = $3, input_tokens = $4, output_tokens = $5, "
                "estimated = $6, cost_micros = $7, end_time = clock_timestamp() WHERE call_id = $1",
                hold.call_id,
                verdict.state,
                verdict.detail[:DETAIL_MAX],
                verdict.usage.input_tokens,
                verdict.usage.output_tokens,
                verdict.usage.estimated,
                verdict.cost_micros,
            )
            for scope, subject, day, _ in self._counters(purpose.attribution, hold.day):
                await connection.execute(CORRECT, scope, subject, day, tokens, cost)
            if answer is not None:
                await connection.execute(
                    "INSERT INTO requests (caller, method, request_id, digest, response) VALUES ($1, $2, $3, $4, $5) "
                    "ON CONFLICT (method, request_id) DO NOTHING",
                    purpose.attribution.caller,
                    METHOD,
                    purpose.request_id,
                    purpose.digest,
                    answer.SerializeToString(),
                )
            if event is not None:
                await self._writes.enqueue(connection, event)
        if event is not None:
            self._writes.wake()

    async def record(self, event: audit_pb.AuditEvent) -> None:
        """See Ledger."""
        async with self._pool.acquire() as connection:
            await self._writes.enqueue(connection, event)
        self._writes.wake()

    async def left(self, incident_id: str, requester: str) -> list[Left]:
        """See Ledger."""
        today = await self._pool.fetchval("SELECT (now() AT TIME ZONE 'UTC')::date")
        whom = Attribution(caller="", requester=requester, incident_id=incident_id)
        sql = "SELECT tokens, cost_micros FROM spending WHERE scope = $1 AND subject = $2 AND day = $3"
        found = []
        for scope, subject, day, limit in self._counters(whom, today):
            row = await self._pool.fetchrow(sql, scope, subject, day)
            tokens, cost = (row["tokens"], row["cost_micros"]) if row else (0, 0)
            found.append(Left(scope, subject, limit, max(0, limit.tokens - tokens), max(0, limit.cost_micros - cost)))
        return found

    async def sweep(self) -> None:
        """Mark the calls whose process is gone: nobody will ever say what they used."""
        await self._pool.execute(SWEEP, None)

    def _counters(self, whom: Attribution, day: date) -> list[tuple[str, str, date, Limit]]:
        """Return the budgets that a call counts in: scope, subject, day, limit."""
        found = [(DAY, "", day, self._limits.day)]
        if whom.incident_id:
            found.append((INCIDENT, whom.incident_id, EVER, self._limits.incident))
        if whom.requester:
            found.append((REQUESTER, whom.requester, day, self._limits.requester))
        return found


async def _exhausted(connection: Connection, scope: str, subject: str, day: date, limit: Limit) -> Refusal:
    """Return the refusal that says which budget is used up."""
    sql = "SELECT tokens, cost_micros FROM spending WHERE scope = $1 AND subject = $2 AND day = $3"
    row = await connection.fetchrow(sql, scope, subject, day)
    tokens, cost = (row["tokens"], row["cost_micros"]) if row else (0, 0)
    return Refusal(
        error_reason_pb2.ERROR_REASON_BUDGET_EXHAUSTED,
        scope=scope.lower(),
        subject=subject or day.isoformat(),
        left=f"{max(0, limit.tokens - tokens)} tokens and {max(0, limit.cost_micros - cost)} micros are left",
    )
