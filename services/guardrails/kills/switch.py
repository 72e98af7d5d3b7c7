"""The kill switch: engages within a second whatever else is down, releases on record, and tells who has stopped."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar
from uuid import UUID

import asyncpg
import structlog
from google.protobuf.message import DecodeError

from opsmesh.audit.v1 import audit_service_pb2
from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from opsmesh.type.v1 import error_reason_pb2
from services.guardrails import domain
from services.guardrails.convert import timestamp
from services.guardrails.kills import status as kill_status
from services.guardrails.kills import store as kill_store
from services.guardrails.kills.file import KillFile, Order, kill_id_of
from services.guardrails.kills.lease import LeaseBoard
from services.guardrails.kills.store import KillRow
from services.guardrails.policies.store import Policies
from services.mesh import kills, policy
from services.mesh.call import current
from services.mesh.errors import Refusal
from services.mesh.identities import Identities
from services.mesh.policy import method_policy
from services.mesh.postgres import Connection, Pool, answers
from services.mesh.writes import Event, Subject, Writes, event

T = TypeVar("T")
# How long PostgreSQL may take before a kill goes into the file, in seconds.
DURABLE_SECONDS: Final = 1.0
METHOD: Final = "opsmesh.guardrails.v1.KillSwitchService"
NOT_SO: Final = frozenset({error_reason_pb2.ERROR_REASON_REQUEST_ID_REUSED, error_reason_pb2.ERROR_REASON_OVERLOADED})
# What is wrong with a kill itself, however often it is tried.
UNFIT: Final = (DecodeError, Refusal, asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
UNTOLD: Final = "a kill of kills.jsonl could not be stored as it was told"
log = structlog.get_logger("opsmesh.guardrails.kills")


class KillSwitch:
    """Engages, releases, and tells.

    `pool` and the writes on it are the kill switch's own, so that an Engage never waits behind judgements; `writes` is
    everybody's: it delivers the outbox, and a Release may wait.
    """

    def __init__(
        self,
        pool: Pool,
        own: Writes,
        writes: Writes,
        file: KillFile,
        board: LeaseBoard,
        *,
        policies: Policies,
        identities: Identities,
    ) -> None:
        self._pool = pool
        self._own = own
        self._writes = writes
        self._file = file
        self._board = board
        self._policies = policies
        self._reporters = identities.holders(method_policy(f"{METHOD}/ReportStops").permission)
        self._late: set[asyncio.Task[Any]] = set()

    async def engage(self, request: pb.EngageRequest) -> pb.EngageResponse:
        """Return once it is on disk: in PostgreSQL, or, when that does not answer in a second, in the file."""
        order = _order(request)
        stored = None if self._file.orders else await self._try(request, order)
        if stored is None:
            order = self._file.place_for(order)
            await self._file.append(order)
            self._board.changed()
            log.error("kill engaged without PostgreSQL: no leases until it is back", kill_id=str(order.kill_id))
            return pb.EngageResponse(kill=self._waiting(order))
        self._board.changed()
        self._writes.wake()
        return stored

    async def _try(self, request: pb.EngageRequest, order: Order) -> pb.EngageResponse | None:
        """Store a kill, or return None when that takes too long or fails; a refusal for a reason is raised.

        What takes too long is left alone, not cancelled: a cancelled statement may hang for as long again. Should it
        succeed after all, the file's copy has the same id and changes nothing.
        """

        async def change(connection: Connection) -> pb.EngageResponse:
            return pb.EngageResponse(kill=self._message(await kill_store.engage(connection, order)))

        subject = _subject(request, order.kill_id)
        trying = await self._soon(self._own.once(request, pb.EngageResponse, change, subject))
        if trying is None:
            return None
        error = trying.exception()
        if error is None:
            return trying.result()
        if isinstance(error, Refusal) and error.reason in NOT_SO:
            raise error
        # Whatever the database said: a kill that cannot be stored there is stored here.
        log.warning("a kill could not be stored in PostgreSQL", error=repr(error))
        return None

    async def _soon(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T] | None":
        """Return what has ended within a second, or None; what has not goes on by itself and is told in the log."""
        task = asyncio.create_task(work)
        await asyncio.wait({task}, timeout=DURABLE_SECONDS)
        if task.done():
            return task
        self._late.add(task)
        task.add_done_callback(self._forget)
        return None

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        """Let a late attempt go, and say how it ended."""
        self._late.discard(task)
        error = None if task.cancelled() else task.exception()
        log.info("late work on a kill has ended", error=repr(error))

    async def stand_by(self) -> None:
        """Do what an Engage left to do: store what the file holds, void what was being answered.

        The policy set is read ahead, too, so that an Engage can say how many must release it without compiling one.
        """
        if not await answers(self._pool):
            return
        await self._bring_in()
        async with self._pool.acquire() as connection:
            await kill_store.sweep(connection)
            await self._needed(connection)

    async def _bring_in(self) -> None:
        """Store the kills of the file, then drop them there: leases are given again only after that."""
        orders = self._file.orders
        if not orders:
            return
        for order in orders:
            try:
                await self._bring(order)
            except UNFIT as error:
                # One that can never be stored as it was told would take all leases away for ever.
                log.exception("stored as a kill of everything", kill_id=str(order.kill_id), error=repr(error))
                everything = replace(order, scope=pb.KillScope(everything=True), reason=UNTOLD, event=b"")
                await self._bring(everything)
        await self._file.remove([order.kill_id for order in orders])
        self._board.changed()
        self._writes.wake()
        log.info("kills of the file are stored", count=len(orders))

    async def _bring(self, order: Order) -> None:
        """Store one kill of the file as if it had been stored at once: with its answer and its audit record."""
        async with self._pool.acquire() as connection, connection.transaction():
            if await kill_store.known(connection, order.kill_id):
                return
            kill = await kill_store.engage(connection, order, when=order.engage_time, limited=False)
            response = pb.EngageResponse(kill=self._message(kill))
            await kill_store.remember(connection, f"{METHOD}/Engage", order, response.SerializeToString())
            if order.event:
                await self._own.enqueue(connection, audit_service_pb2.AuditEvent.FromString(order.event))

    async def release(self, request: pb.ReleaseRequest) -> pb.ReleaseResponse:
        """Let one more person agree; audit must acknowledge it before."""
        releaser, kill_id = current().identity, UUID(request.kill_id)

        async def change(connection: Connection) -> pb.ReleaseResponse:
            then = await kill_store.policy_at(connection, kill_id)
            # Whoever publishes must not be able to release alone: what was asked for when it was engaged stays.
            both = [await self._needed(connection, version) for version in (then, None)]
            needed = max(one[0] for one in both), max(one[1] for one in both)
            kill = await kill_store.release(connection, kill_id, releaser, request.reason, needed)
            return pb.ReleaseResponse(kill=self._message(kill))

        subject = Subject(detail={"kill_id": request.kill_id, "reason": request.reason})
        response = await self._writes.once(request, pb.ReleaseResponse, change, subject)
        self._board.changed()
        return response

    async def _needed(self, connection: Connection, version: int | None = None) -> tuple[int, int]:
        """Return how many people must release everything, and anything else, by the active policy set or another."""
        if version is None:
            version = await self._policies.active_version(connection)
        found = await self._policies.at(version, connection) if version else domain.PolicySet()
        return found.kill_release

    async def status(
        self, before: int, kill_id: UUID | None, limit: int, *, released: bool
    ) -> tuple[Sequence[pb.Kill], bool]:
        """Return kills below an epoch, newest first, and whether there are more; those of the file come first.

        While the database is away the file's are all that can be told.
        """
        orders = [one for one in self._file.orders if kill_id in {None, one.kill_id}]
        waiting = [self._waiting(order) for order in reversed(orders)] if before >= kill_store.NO_EPOCH else []
        reading = kill_status.page(self._pool, before, kill_id, limit + 1, released=released)
        if waiting:
            done = await self._soon(reading)
            if done is None or done.exception():
                return waiting[:limit], False
            rows, stops, reporters = done.result()
        else:
            rows, stops, reporters = await reading
        made = []
        for row in rows[:limit]:
            told = [_stop(one) for one in stops[row.kill_id]]
            silent = sorted(self._reporters - reporters[row.kill_id])
            made.append(self._message(row, [*_silence(silent), *told][: kill_status.STOPS_MAX]))
        return [*waiting, *made][:1000], len(rows) > limit

    async def report(self, request: pb.ReportStopsRequest) -> None:
        """Keep what the caller says about what it runs."""
        if any(str(one.kill_id) == request.kill_id for one in self._file.orders):
            raise Refusal(error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE, store="PostgreSQL", retry_after=1.0)
        await kill_status.report(self._pool, UUID(request.kill_id), current().identity, request.stops)

    def _waiting(self, order: Order) -> pb.Kill:
        """Return a kill of the file as a message."""
        kill = order.kill()
        kill.releasers_needed = self._people(order.scope)
        kill.stops.extend(_silence(sorted(self._reporters)))
        return kill

    def _people(self, scope: pb.KillScope) -> int:
        """Return how many people must release a scope, as far as is known without the database."""
        everything, others = self._policies.kept.kill_release
        return everything if scope.WhichOneof("scope") == "everything" else others

    def _message(self, row: KillRow, stops: Sequence[pb.Stop] = ()) -> pb.Kill:
        """Return a stored kill as a message."""
        state = pb.Kill.STATE_RELEASE_PENDING if row.releasers else pb.Kill.STATE_ENGAGED
        return pb.Kill(
            kill_id=str(row.kill_id),
            scope=row.scope,
            epoch=row.epoch,
            state=pb.Kill.STATE_RELEASED if row.release_time else state,
            reason=row.reason,
            engager=row.engager,
            engage_time=timestamp(row.engage_time),
            releasers=row.releasers[:8],
            releasers_needed=row.releasers_needed or self._people(row.scope),
            release_time=timestamp(row.release_time) if row.release_time else None,
            durable=True,
            stops=stops,
        )


def _order(request: pb.EngageRequest) -> Order:
    """Return what the call being served tells to stop."""
    call = current()
    digest = policy.digest(call.method, request)
    kill_id = kill_id_of(call.identity, request.request_id, digest)
    record = event(Event.PHASE_RECORD, Event.OUTCOME_SUCCEEDED, _subject(request, kill_id), request=request)
    return Order(
        kill_id=kill_id,
        caller=call.identity,
        request_id=UUID(request.request_id),
        digest=digest,
        scope=request.scope,
        reason=request.reason,
        engage_time=datetime.now(UTC),
        event=record.SerializeToString(),
    )


def _subject(request: pb.EngageRequest, kill_id: UUID) -> Subject:
    """Return what audit writes down about an Engage."""
    scope = request.scope
    detail = {"kill_id": str(kill_id), "scope": kills.words(scope), "reason": request.reason}
    return Subject(
        target=scope.target_id,
        environment=scope.environment,
        execution_id=scope.execution_id or scope.run_id,
        detail=detail,
    )


def _silence(reporters: Sequence[str]) -> list[pb.Stop]:
    """Return what stands for services that must report and have not."""
    words = "has not reported yet: what it runs may go on, but nothing in scope is let through"
    return [pb.Stop(state=pb.Stop.STATE_NOT_REPORTED, reporter=one, detail=words) for one in reporters]


def _stop(row: Any) -> pb.Stop:
    """Return a reported stop as a message."""
    return pb.Stop(
        kind=row["kind"],
        subject=row["subject"],
        state=row["state"],
        detail=row["detail"],
        deadline_time=timestamp(row["deadline_time"]) if row["deadline_time"] else None,
        reporter=row["reporter"],
        report_time=timestamp(row["report_time"]),
    )
