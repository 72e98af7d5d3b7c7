"""What lanes and activities write about running executions: each a single-row compare-and-set, harmless to repeat."""

from dataclasses import dataclass

from services.automation.domain import ExecutionState, StepState
from services.automation.store import OPEN
from services.mesh.postgres import Connection, Pool

OPEN_STEPS = "('PENDING', 'RUNNING', 'AWAITING_APPROVAL')"


@dataclass(frozen=True, slots=True)
class Due:
    """An open execution that a lane has claimed until its check_time."""

    execution_id: str
    digest: str
    state: ExecutionState
    cancel_requested: bool
    engine_starts: int
    kill_id: str = ""
    # Seconds since it was told to stop by that kill.
    kill_age: float = 0.0


@dataclass(frozen=True, slots=True)
class Begin:
    """A try that begins."""

    execution_id: str
    step_id: str
    position: int
    tool: str
    attempt: int
    request_id: str
    target_id: str
    request_json: str


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a try; an open `state` keeps the step going."""

    execution_id: str
    step_id: str
    attempt: int
    state: StepState
    reason: str = ""
    detail: str = ""
    approval_id: str = ""
    response_json: str = ""
    response: bytes | None = None
    environment: str = ""


class Progress:
    """The progress of executions in schema `automation`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def claim_pending(self, limit: int) -> list[Due]:
        """Claim executions that the engine has not got; a claim that dies is free again after 5 s, later each time."""
        return await self._claim("state = 'PENDING'", "least(60, 5 * 2 ^ least(engine_starts, 4))", limit, starts=1)

    async def claim_running(self, limit: int) -> list[Due]:
        """Claim executions to look after: those asked to stop every quarter of a second, the others every 10 s.

        One that does not stop for all that is looked at every 2 s.
        """
        seconds = "CASE WHEN unstopped THEN 2 WHEN cancel_requested THEN 0.25 ELSE 10 END"
        return await self._claim("state IN ('RUNNING', 'AWAITING_APPROVAL')", seconds, limit, starts=0)

    async def _claim(self, condition: str, seconds: str, limit: int, starts: int) -> list[Due]:
        rows = await self._pool.fetch(
            "UPDATE automation.executions SET engine_starts = engine_starts + $2, "  # noqa: S608  constants
            f"check_time = now() + make_interval(secs => {seconds}) WHERE execution_id IN ("
            f"SELECT execution_id FROM automation.executions WHERE {condition} AND check_time <= now() "
            "ORDER BY check_time LIMIT $1 FOR UPDATE SKIP LOCKED) "
            "RETURNING execution_id::text, playbook_digest, state, cancel_requested, engine_starts, kill_id, "
            "coalesce(extract(epoch FROM now() - kill_time), 0)::float8 AS kill_age",
            limit,
            starts,
        )
        return [
            Due(
                row["execution_id"],
                row["playbook_digest"],
                ExecutionState(row["state"]),
                row["cancel_requested"],
                row["engine_starts"],
                row["kill_id"],
                row["kill_age"],
            )
            for row in rows
        ]

    async def began(self, execution_id: str) -> bool:
        """Note that the engine has it; False when it was not PENDING any more."""
        found = await self._pool.fetchval(
            "UPDATE automation.executions SET state = 'RUNNING', start_time = now(), engine_starts = 1, "
            "check_time = now() + interval '10 seconds' WHERE execution_id = $1 AND state = 'PENDING' RETURNING true",
            execution_id,
        )
        return bool(found)

    async def starting_again(self, execution_id: str) -> None:
        """Count another start at the engine and look again soon."""
        await self._pool.execute(
            "UPDATE automation.executions SET engine_starts = engine_starts + 1, "
            "check_time = now() + make_interval(secs => least(60, 2 ^ least(engine_starts, 6))) "
            "WHERE execution_id = $1",
            execution_id,
        )

    async def begin(self, one: Begin) -> bool:
        """Record that a try begins; False when the step has ended or is at a later try."""
        found = await self._pool.fetchval(
            "INSERT INTO automation.steps AS step (execution_id, step_id, position, state, tool, attempt, request_id, "  # noqa: S608  constants
            "target_id, request_json, start_time) VALUES ($1, $2, $3, 'RUNNING', $4, $5, $6, $7, $8, now()) "
            "ON CONFLICT (execution_id, step_id) DO UPDATE SET state = 'RUNNING', tool = excluded.tool, "
            "attempt = excluded.attempt, request_id = excluded.request_id, target_id = excluded.target_id, "
            "request_json = excluded.request_json, sent = step.sent AND step.attempt = excluded.attempt, "
            "approval_id = CASE WHEN step.attempt = excluded.attempt THEN step.approval_id ELSE '' END, "
            "renewals = CASE WHEN step.attempt = excluded.attempt THEN step.renewals ELSE 0 END, "
            "start_time = coalesce(step.start_time, now()) "
            f"WHERE step.state IN {OPEN_STEPS} AND step.attempt <= excluded.attempt RETURNING 1",
            one.execution_id,
            one.step_id,
            one.position,
            one.tool,
            one.attempt,
            one.request_id,
            one.target_id,
            one.request_json,
        )
        return found is not None

    async def sending(self, execution_id: str, step_id: str, attempt: int) -> bool:
        """Record that the gateway is about to be asked for an effect; False when somebody asked to stop before."""
        found = await self._pool.fetchval(
            "WITH open AS (UPDATE automation.executions SET state = 'RUNNING' WHERE execution_id = $1 "  # noqa: S608  constants
            "AND state IN ('RUNNING', 'AWAITING_APPROVAL') AND NOT cancel_requested RETURNING 1) "
            "UPDATE automation.steps SET sent = true WHERE execution_id = $1 AND step_id = $2 AND attempt = $3 "
            f"AND state IN {OPEN_STEPS} AND EXISTS (SELECT FROM open) RETURNING 1",
            execution_id,
            step_id,
            attempt,
        )
        return found is not None

    async def end(self, one: Result) -> None:
        """Record what became of a try; the first word of it stays."""
        waits = one.state is StepState.AWAITING_APPROVAL
        await self._pool.execute(
            "WITH step AS (UPDATE automation.steps SET state = $4, reason = $5, detail = $6, approval_id = "  # noqa: S608  constants
            "CASE WHEN $7 = '' THEN approval_id ELSE $7 END, response_json = $8, response = $9, "
            "environment = CASE WHEN $13 = '' THEN environment ELSE $13 END, "
            "end_time = CASE WHEN $10 THEN NULL ELSE now() END "
            f"WHERE execution_id = $1 AND step_id = $2 AND attempt = $3 AND state IN {OPEN_STEPS} RETURNING 1) "
            "UPDATE automation.executions SET state = $11 WHERE execution_id = $1 AND state = $12 "
            "AND EXISTS (SELECT FROM step)",
            one.execution_id,
            one.step_id,
            one.attempt,
            one.state,
            one.reason,
            one.detail,
            one.approval_id,
            one.response_json,
            one.response,
            waits or one.state is StepState.RUNNING,
            "AWAITING_APPROVAL" if waits else "RUNNING",
            "RUNNING" if waits else "AWAITING_APPROVAL",
            one.environment,
        )

    async def waits(self, execution_id: str, step_id: str, approval_id: str) -> None:
        """Record that a step waits for another approval than before."""
        await self._pool.execute(
            "UPDATE automation.steps SET approval_id = $3 "  # noqa: S608  constants
            f"WHERE execution_id = $1 AND step_id = $2 AND state IN {OPEN_STEPS}",
            execution_id,
            step_id,
            approval_id,
        )

    async def renew(self, execution_id: str, step_id: str, attempt: int) -> bool:
        """Count that a try is judged anew because the state had changed; False when that was done once already."""
        found = await self._pool.fetchval(
            "UPDATE automation.steps SET renewals = 1 "
            "WHERE execution_id = $1 AND step_id = $2 AND attempt = $3 AND renewals = 0 RETURNING 1",
            execution_id,
            step_id,
            attempt,
        )
        return found is not None

    async def killed(self, execution_id: str, kill_id: str, reason: str) -> None:
        """Note that a kill stops an open execution: nothing of it is sent from now on."""
        await self._pool.execute(
            "UPDATE automation.executions SET cancel_requested = true, check_time = now(), "
            "kill_id = CASE WHEN kill_id = '' THEN $2 ELSE kill_id END, kill_time = coalesce(kill_time, now()), "
            "cancel_reason = CASE WHEN cancel_requested THEN cancel_reason ELSE $3 END "
            "WHERE execution_id = $1 AND state = ANY($4)",
            execution_id,
            kill_id,
            reason,
            OPEN,
        )

    async def unstopped(self, execution_id: str) -> None:
        """Record that an execution goes on at its engine although it was told to stop, and terminated."""
        await self._pool.execute(
            "UPDATE automation.executions SET unstopped = true WHERE execution_id = $1 AND state = ANY($2)",
            execution_id,
            OPEN,
        )

    async def compensated(self, execution_id: str, step_id: str) -> None:
        """Record that a step was undone."""
        await self._pool.execute(
            "UPDATE automation.steps SET state = 'COMPENSATED' "
            "WHERE execution_id = $1 AND step_id = $2 AND state = 'SUCCEEDED'",
            execution_id,
            step_id,
        )

    async def leave(
        self,
        execution_id: str,
        step_id: str,
        state: StepState,
        detail: str,
        *,
        request_json: str = "",
        about: tuple[str, str] = ("", ""),
    ) -> None:
        """Record that a step which never began will not run; `about`: the target that was judged, its environment."""
        await self._pool.execute(
            "UPDATE automation.steps SET state = $3, detail = $4, request_json = $5, target_id = $6, environment = $7 "
            "WHERE execution_id = $1 AND step_id = $2 AND state = 'PENDING'",
            execution_id,
            step_id,
            state,
            detail,
            request_json,
            *about,
        )

    async def finish(self, execution_id: str, state: ExecutionState, detail: str, *, healthy: bool = False) -> bool:
        """Record the end of an open execution and of the steps that never began; False when it had ended."""
        rest = StepState.CANCELLED if state is ExecutionState.CANCELLED else StepState.SKIPPED
        async with self._pool.acquire() as connection, connection.transaction():
            found = await connection.fetchval(
                "UPDATE automation.executions SET state = $2, detail = $3, health_proved = $4, end_time = now(), "
                "unstopped = false "
                "WHERE execution_id = $1 AND state = ANY($5) RETURNING 1",
                execution_id,
                state,
                detail,
                healthy,
                OPEN,
            )
            if found:
                await self._close_steps(connection, execution_id, rest)
        return found is not None

    async def _close_steps(self, connection: Connection, execution_id: str, rest: StepState) -> None:
        await connection.execute(
            f"UPDATE automation.steps SET state = $2, end_time = now() "  # noqa: S608  constants
            f"WHERE execution_id = $1 AND state IN {OPEN_STEPS}",
            execution_id,
            rest,
        )

    async def hold(self, execution_id: str, target_id: str, fence: int) -> None:
        """Record a lock that an execution holds."""
        await self._pool.execute(
            "INSERT INTO automation.locks (execution_id, target_id, fence) VALUES ($1, $2, $3) "
            "ON CONFLICT (execution_id, target_id) DO UPDATE SET fence = excluded.fence",
            execution_id,
            target_id,
            fence,
        )

    async def held(self, execution_id: str) -> dict[str, int]:
        """Return the locks of an execution: target to fence."""
        rows = await self._pool.fetch(
            "SELECT target_id, fence FROM automation.locks WHERE execution_id = $1", execution_id
        )
        return {row["target_id"]: row["fence"] for row in rows}

    async def let_go(self, execution_id: str, target_id: str, fence: int) -> None:
        """Forget a lock that was given back."""
        await self._pool.execute(
            "DELETE FROM automation.locks WHERE execution_id = $1 AND target_id = $2 AND fence = $3",
            execution_id,
            target_id,
            fence,
        )
