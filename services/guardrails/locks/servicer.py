"""TargetLockService: proto in, proto out."""
# ruff: noqa: N802  the names are those of the IDL

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from opsmesh.guardrails.v1 import target_lock_service_pb2 as pb
from opsmesh.guardrails.v1 import target_lock_service_pb2_grpc as rpc
from opsmesh.type.v1 import error_reason_pb2
from services.guardrails import checks
from services.guardrails.convert import timestamp
from services.guardrails.locks import claims
from services.guardrails.locks import queue as locks
from services.guardrails.policies.store import Policies
from services.guardrails.runs import store as runs
from services.guardrails.runs.domain import AGENTS, HOLDER, Run, holder_of
from services.mesh import paging, policy
from services.mesh.call import current
from services.mesh.errors import FieldViolation, Refusal
from services.mesh.postgres import Connection, Pool
from services.mesh.writes import Writes

# How long a lock or a claim holds without a renewal when nothing is asked for.
LOCK_SECONDS: Final = 30.0
CLAIM_SECONDS: Final = 60.0


class TargetLockServicer(rpc.TargetLockServiceServicer):
    """Takes, keeps and gives back target locks and claims."""

    def __init__(self, kept: Policies, writes: Writes, pool: Pool) -> None:
        self._policies = kept
        self._writes = writes
        self._pool = pool

    async def AcquireLock(self, request: pb.AcquireLockRequest, _: Any) -> pb.AcquireLockResponse:
        """Take a lock on a target of the inventory, or a place in its queue."""
        holder, rank = holder_for(request), locks.rank_of(current().identity)
        seconds = policy.seconds(request.ttl_duration) or LOCK_SECONDS

        async def change(connection: Connection) -> pb.AcquireLockResponse:
            await self._refuse_unknown(connection, request.target_id)
            if request.run_id:
                await open_run(connection, request.run_id, request.target_id)
            held = await locks.acquire(connection, request.target_id, holder, seconds, rank)
            return pb.AcquireLockResponse(lock=to_lock(held))

        attempt = self._writes.once(request, pb.AcquireLockResponse, change)
        return await locks.or_wait(self._pool, attempt, request.target_id, holder, rank)

    async def RenewLock(self, request: pb.RenewLockRequest, _: Any) -> pb.RenewLockResponse:
        """Keep a lock; a run that is over keeps none."""
        holder, seconds = holder_for(request), policy.seconds(request.ttl_duration) or LOCK_SECONDS
        if request.run_id:
            async with self._pool.acquire() as connection:
                await open_run(connection, request.run_id, request.target_id)
        held = await locks.renew(self._pool, request.target_id, holder, request.fence, seconds)
        return pb.RenewLockResponse(lock=to_lock(held))

    async def ReleaseLock(self, request: pb.ReleaseLockRequest, _: Any) -> pb.ReleaseLockResponse:
        """Give a lock back."""
        holder = holder_for(request)

        async def change(connection: Connection) -> pb.ReleaseLockResponse:
            await locks.release(connection, request.target_id, holder, request.fence)
            return pb.ReleaseLockResponse()

        return await self._writes.once(request, pb.ReleaseLockResponse, change)

    async def ListLocks(self, request: pb.ListLocksRequest, _: Any) -> pb.ListLocksResponse:
        """List the locks in force and who waits for them, by target."""
        size = paging.page_size(request.page_size)
        after = paging.read_token(request, str)
        found = await locks.page(self._pool, after[0] if after else "", size + 1)
        token = paging.write_token(request, found[size - 1][0].target_id) if len(found) > size else ""
        return pb.ListLocksResponse(locks=[to_lock(*one) for one in found[:size]], next_page_token=token)

    async def AcquireClaim(self, request: pb.AcquireClaimRequest, _: Any) -> pb.AcquireClaimResponse:
        """Claim a target of the inventory for an agent run, in the name of the first run of its path."""
        seconds = policy.seconds(request.ttl_duration) or CLAIM_SECONDS

        async def change(connection: Connection) -> pb.AcquireClaimResponse:
            await self._refuse_unknown(connection, request.target_id)
            run = await open_run(connection, request.run_id, request.target_id)
            claim = await claims.acquire(connection, request.target_id, run.root, seconds)
            return pb.AcquireClaimResponse(claim=to_claim(claim))

        return await self._writes.once(request, pb.AcquireClaimResponse, change)

    async def RenewClaim(self, request: pb.RenewClaimRequest, _: Any) -> pb.RenewClaimResponse:
        """Keep a claim."""
        seconds = policy.seconds(request.ttl_duration) or CLAIM_SECONDS
        async with self._pool.acquire() as connection:
            run = await open_run(connection, request.run_id, request.target_id)
        claim = await claims.renew(self._pool, request.target_id, run.root, seconds)
        return pb.RenewClaimResponse(claim=to_claim(claim))

    async def ReleaseClaim(self, request: pb.ReleaseClaimRequest, _: Any) -> pb.ReleaseClaimResponse:
        """Give a claim back; that of the first run of a path is not given back by those below it."""

        async def change(connection: Connection) -> pb.ReleaseClaimResponse:
            await claims.release(connection, request.target_id, UUID(request.run_id))
            return pb.ReleaseClaimResponse()

        return await self._writes.once(request, pb.ReleaseClaimResponse, change)

    async def _refuse_unknown(self, connection: Connection, target_id: str) -> None:
        """Refuse a target that the active inventory lacks, with the lines that add it."""
        active = await self._policies.active(connection)
        if target_id not in active.inventory:
            lines = checks.inventory_lines(target_id)
            raise Refusal(error_reason_pb2.ERROR_REASON_TARGET_UNKNOWN, target=target_id, lines=lines)


async def open_run(connection: Connection, run_id: str, target_id: str) -> Run:
    """Return an open run that works on a target, or refuse."""
    run = await runs.read(connection, UUID(run_id))
    why = run.over if run else "it was never registered"
    if run is None or why:
        raise Refusal(error_reason_pb2.ERROR_REASON_RUN_NOT_OPEN, run_id=run_id, why=why)
    if target_id not in run.target_ids:
        raise Refusal(error_reason_pb2.ERROR_REASON_TARGET_NOT_OF_RUN, target=target_id, run_id=run_id)
    return run


def holder_for(request: pb.AcquireLockRequest | pb.RenewLockRequest | pb.ReleaseLockRequest) -> str:
    """Return in whose name the caller holds locks: a person's own, a run's for agents, else an execution's."""
    caller = current().identity
    person, agents = caller.startswith(checks.HUMAN), caller == AGENTS
    wanted = {"execution_id": not person and not agents, "run_id": agents}
    words = "agents hold locks for a run, other services for an execution, a person in their own name"
    wrong = [FieldViolation(name, words) for name, given in wanted.items() if given != bool(getattr(request, name))]
    if wrong:
        raise Refusal(error_reason_pb2.ERROR_REASON_INVALID_ARGUMENT, violations=wrong)
    if agents:
        return holder_of(request.run_id)
    return caller if person else request.execution_id.lower()


def to_lock(held: locks.Held, waiters: Sequence[locks.Waiter] = ()) -> pb.TargetLock:
    """Return a lock as a message, with who waits for it."""
    return pb.TargetLock(
        target_id=held.target_id,
        holder=held.holder.removeprefix(HOLDER),
        fence=held.fence,
        expire_time=timestamp(held.expire_time),
        waiters=[
            pb.LockWaiter(
                holder=one.holder.removeprefix(HOLDER),
                rank=pb.LockWaiter.Rank.ValueType(one.rank),
                wait_time=timestamp(one.wait_time),
            )
            for one in waiters
        ],
    )


def to_claim(claim: claims.Claim) -> pb.TargetClaim:
    """Return a claim as a message."""
    return pb.TargetClaim(target_id=claim.target_id, run_id=str(claim.run_id), expire_time=timestamp(claim.expire_time))
