"""The one place that numbers and links events: whoever asks while a commit is under way shares the next one."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import asyncpg
import structlog
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_when_event_set,
    wait_random_exponential,
)

from opsmesh.audit.v1 import audit_service_pb2 as audit
from opsmesh.type.v1 import error_reason_pb2
from services.audit.chain import link_hash
from services.audit.domain import Head, Place, taken_by_other
from services.audit.events import make_storable, to_row, to_stamp
from services.audit.store import Appender, LogIsTaken, Look
from services.audit.waiting import Waiter, WaitingRoom
from services.mesh.errors import Refusal
from services.mesh.loop import wait

PAUSE_MAX: Final = 2.0
IDLE_SECONDS: Final = 5.0
# The last is what asyncpg raises when a connection is used that the server has just ended.
STORE_ERRORS: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
log = structlog.get_logger("opsmesh.audit")


class Sequencer:
    """Appends events in batches, each one transaction; `open_log` connects and takes the log's lock.

    `on_lost_head` is told of an acknowledged head that the database no longer has: somebody changed the log.
    `known` is the newest head acknowledged before this process, as far as it is kept outside the database.
    """

    def __init__(
        self,
        open_log: Callable[[], Awaitable[Appender]],
        on_lost_head: Callable[[Head], Awaitable[object]],
        known: Head | None = None,
    ) -> None:
        self._open_log = open_log
        self._on_lost_head = on_lost_head
        self._waiters = WaitingRoom()
        self._wake = asyncio.Event()
        self._head = known
        self._is_open = False

    @property
    def head(self) -> Head:
        """Return the newest acknowledged row; refuses while the log is not open."""
        if self._head is None or not self._is_open:
            raise _not_open()
        return self._head

    @property
    def last_head(self) -> Head | None:
        """Return the newest row this process knows, also while the database is away."""
        return self._head

    async def ready(self) -> bool:
        """Say whether events can be appended now."""
        return self._is_open

    async def append(self, events: Sequence[audit.AuditEvent], writer: str) -> list[int]:
        """Return the sequences of `events` once they are durable; the same event_id again has the same sequence."""
        for event in events:
            make_storable(event, writer)
        if not self._is_open:
            raise _not_open()
        waiter = Waiter(writer, events, asyncio.get_running_loop().create_future())
        self._waiters.add(waiter)
        self._wake.set()
        return await waiter.sequences

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the log open and append until `stop`; what waits then is still appended."""

        async def pause(seconds: float) -> None:
            await wait(stop, seconds)

        while not stop.is_set():
            retrying = AsyncRetrying(
                retry=retry_if_exception_type((*STORE_ERRORS, LogIsTaken)),
                wait=wait_random_exponential(multiplier=0.1, max=PAUSE_MAX),
                stop=stop_when_event_set(stop),  # type: ignore[arg-type]  # it only asks is_set()
                sleep=pause,
                before_sleep=_say_why,
                retry_error_callback=lambda _: None,
            )
            await retrying(self._session, stop)
            if not stop.is_set():
                await wait(stop, 0.1)

    async def _session(self, stop: asyncio.Event) -> None:
        """Open the log and append until it is lost or `stop`."""
        appender = await self._open_log()
        try:
            await self._adopt(appender)
            self._is_open = True
            while not (stop.is_set() and not self._waiters):
                if not self._waiters:
                    # an idle connection is asked now and then, so that a lost lock is noticed before an event comes
                    if not await wait(stop, IDLE_SECONDS, self._wake) and not self._waiters:
                        await appender.head()
                    continue
                await self._commit(appender, self._waiters.take())
        except STORE_ERRORS as error:
            if not self._is_open:
                raise
            log.warning("the log was lost, opening it again", error=repr(error))
        finally:
            self._is_open = False
            self._refuse_all()
            await appender.close()

    async def _adopt(self, appender: Appender) -> None:
        """Take over the database's head; an acknowledged one that it lost is sworn to outside the database."""
        if self._head is not None and await appender.hash_at(self._head.sequence) != self._head.hash:
            log.error("the database lost acknowledged events: run opsmesh audit verify", head=self._head.sequence)
            await self._on_lost_head(self._head)
        self._head = await appender.head()
        log.info("the log is open", sequence=self._head.sequence)

    async def _commit(self, appender: Appender, waiters: Sequence[Waiter]) -> None:
        """Append the events of `waiters` in one transaction and answer them."""
        if not waiters:
            return
        try:
            look = await appender.look([event.event_id for waiter in waiters for event in waiter.events])
            head, rows, answers = self._link(waiters, look)
            if rows:
                await appender.append(rows)
        except BaseException as error:
            failure = _not_open() if isinstance(error, STORE_ERRORS) else error
            for waiter in waiters:
                _fail(waiter, failure)
            raise
        self._head = head
        for waiter, sequences in answers:
            if not waiter.sequences.done():
                waiter.sequences.set_result(sequences)

    def _link(
        self, waiters: Sequence[Waiter], look: Look
    ) -> tuple[Head, list[tuple[Any, ...]], list[tuple[Waiter, list[int]]]]:
        """Give numbers and hashes to what is new; return the head after it, the rows, and the answers."""
        assert self._head is not None  # noqa: S101  a session adopts a head first
        sequence, previous = self._head.sequence, self._head.hash
        placed = dict(look.known)
        rows: list[tuple[Any, ...]] = []
        answers: list[tuple[Waiter, list[int]]] = []
        for waiter in waiters:
            taken = taken_by_other((event.event_id for event in waiter.events), waiter.writer, placed)
            if taken is not None:
                state = f"written by {placed[taken].writer}"
                conflict = error_reason_pb2.ERROR_REASON_CONFLICT
                _fail(waiter, Refusal(conflict, resource="event", id=taken, state=state))
                continue
            for event in waiter.events:
                if event.event_id in placed:
                    continue
                sequence += 1
                event.sequence = sequence
                to_stamp(look.now, event.append_time)
                link = link_hash(previous, event)
                rows.append(to_row(event, look.now, previous, link))
                placed[event.event_id] = Place(sequence, waiter.writer)
                previous = link
            answers.append((waiter, [placed[event.event_id].sequence for event in waiter.events]))
        return Head(sequence, previous), rows, answers

    def _refuse_all(self) -> None:
        """Answer everybody who waits: the log is not open."""
        for waiter in self._waiters.take_all():
            _fail(waiter, _not_open())


def _not_open() -> Refusal:
    return Refusal(error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE, retry_after=0.5, store="the audit log")


def _fail(waiter: Waiter, error: BaseException) -> None:
    """Give a waiter its error, unless it left."""
    if not waiter.sequences.done():
        waiter.sequences.set_exception(error)


def _say_why(state: RetryCallState) -> None:
    """Log why the log is not open."""
    error = state.outcome.exception() if state.outcome else None
    why = "another sequencer holds it" if isinstance(error, LogIsTaken) else repr(error)
    log.warning("the log cannot be opened yet", why=why, attempt=state.attempt_number)
