"""From the stream into PostgreSQL: a row per signal, acknowledged after the commit, poison put aside."""

import asyncio
from collections import Counter as Tally
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, Protocol
from uuid import NAMESPACE_OID, uuid5

import asyncpg
import structlog
from google.protobuf.message import DecodeError
from prometheus_client import Counter
from redis.exceptions import ResponseError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from services.ingest import stream
from services.ingest.domain import Inventory
from services.ingest.letters import DeadLetter, without_body
from services.ingest.mapping import signal_id_of
from services.ingest.signal import SIGNALS_MAX
from services.ingest.stream import Claimed
from services.mesh import policy, postgres
from services.mesh.loop import every, wait

DELIVERIES_MAX: Final = 5
CLAIM_PERIOD_MAX: Final = 5.0
TRIM_SECONDS: Final = 1.0
SWEEP_SECONDS: Final = 600.0
PAUSE_SECONDS: Final = 0.25
# So many signals at once cost the least each; with more of them a sender who is new waits longer than it must.
BATCH_SIGNALS: Final = 256
BUSY_COUNT: Final = 8
BUSY_SECONDS: Final = 0.03
# PostgreSQL cannot be used now, whatever it is asked: it is away, refuses us, is full, only read, or lacks what a
# migration makes (a bad deploy). None of it is the fault of an entry.
AWAY: Final = (
    *postgres.ABSENT,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.TransactionRollbackError,
    asyncpg.SyntaxOrAccessError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.PostgresSystemError,
    # A migration has changed a table under a prepared statement; the next try prepares it anew.
    asyncpg.InvalidCachedStatementError,
)
RECORDED: Final = Counter("opsmesh_ingest_entries_total", "Stream entries that were processed.", ["outcome"])
Readable = tuple[Claimed, pb.StreamEntry]
Failed = tuple[Claimed, str]
Counts = Tally[str]
log = structlog.get_logger("opsmesh.worker")


class Queue(Protocol):
    """What the worker needs of the stream."""

    async def ensure_group(self) -> None:
        """Make stream and group where they are missing."""

    async def read(self, counts: Mapping[str, int]) -> list[Claimed]:
        """Wait a bounded time for new entries, in turns; `counts` says how many at most of streams that are busy."""

    async def claim(self) -> list[Claimed]:
        """Take over entries that were not acknowledged for too long."""

    async def acknowledge(self, entries: Sequence[Claimed]) -> None:
        """Say that these entries have their rows."""

    async def trim(self) -> None:
        """Drop what has its rows."""

    async def forget_consumers(self) -> None:
        """Remove the names of dead consumers."""


class Records(Protocol):
    """What the worker needs of the store."""

    async def record(self, entries: Sequence[pb.StreamEntry], inventory: Inventory) -> bool:
        """Write a batch in one transaction; say whether an incident waits for a decision now."""

    async def answers(self) -> bool:
        """Say whether the store answers."""

    async def put_aside(self, letter: DeadLetter) -> None:
        """Keep what cannot be processed."""


class Worker:
    """Reads new entries, takes over abandoned ones and trims; `decide` is set when an incident waits for a decision."""

    def __init__(
        self,
        queue: Queue,
        store: Records,
        inventory: Callable[[], Inventory],
        decide: asyncio.Event,
        claim_seconds: float,
    ) -> None:
        self._queue = queue
        self._store = store
        self._inventory = inventory
        self._decide = decide
        self._claim_period = min(CLAIM_PERIOD_MAX, claim_seconds / 2)
        self._stop = asyncio.Event()
        self._counts: Mapping[str, int] = {}
        self._refused: set[object] = set()

    async def records(self) -> bool:
        """Say whether rows can be written, for a `ready` check; a store that answers may lack a table or a right."""
        return not self._refused

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`; every lane outlives its mistakes."""
        self._stop = stop
        async with asyncio.TaskGroup() as group:
            group.create_task(every(stop, 0, partial(self._calmly, self.take_new)))
            group.create_task(every(stop, self._claim_period, partial(self._calmly, self.take_over)))
            group.create_task(every(stop, TRIM_SECONDS, partial(self._calmly, self._queue.trim)))
            group.create_task(every(stop, SWEEP_SECONDS, partial(self._calmly, self._queue.forget_consumers)))

    async def _calmly(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do one round; a stream that is away is asked again soon, one that is new gets its group."""
        try:
            await work()
        except stream.ABSENT as error:
            log.warning("the stream does not answer", error=repr(error))
            await wait(self._stop, PAUSE_SECONDS)
        except ResponseError as error:
            if "NOGROUP" not in str(error) and "no such key" not in str(error):
                raise
            await self._queue.ensure_group()

    async def take_new(self) -> None:
        """Process what was never handed out; under load a short pause makes batches of what comes meanwhile."""
        taken = await self._queue.read(self._counts)
        self._counts = shares(taken, await self.process(taken))
        if len(taken) >= BUSY_COUNT:
            # Where several wait, somebody is waited for.
            await wait(self._stop, BUSY_SECONDS / len(self._counts))

    async def take_over(self) -> None:
        """Process what a dead or failing consumer left, as long as there is any."""
        # Without the store a delivery would count against an entry that has done nothing wrong.
        while not self._stop.is_set() and not self._refused and await self._store.answers():
            claimed = await self._queue.claim()
            await self.process(claimed)
            if not claimed:
                return

    async def process(self, claimed: Sequence[Claimed]) -> Counts:
        """Give each entry its rows, then acknowledge it; one that fails waits for its next delivery, up to five.

        Returns how many signals each stream's entries carried.
        """
        readable: list[Readable] = []
        bad: list[Failed] = []
        for one in claimed:
            if one.deliveries > DELIVERIES_MAX:
                bad.append((one, "it was handed out five times and never finished"))
                continue
            try:
                readable.append((one, read_entry(one.content)))
            except ValueError as error:
                bad.append((one, str(error)))
        for batch in batches(readable):
            good, failed = await self._record_or_part(batch)
            bad += failed
            if good:
                await self._queue.acknowledge([one for one, _ in good])
            RECORDED.labels("recorded").inc(len(good))
        for one, reason in bad:
            await self._failed(one, reason)
        signals: Counts = Tally()
        for one, entry in readable:
            signals[one.stream] += len(entry.signals)
        return signals

    async def _record_or_part(self, batch: list[Readable]) -> tuple[list[Readable], list[Failed]]:
        """Record a batch; when that fails, its halves apart, until only the culprits are left waiting.

        One culprit among N entries costs the others about 2 log2 N transactions, not N.
        """
        try:
            await self._record([entry for _, entry in batch])
        except Exception as error:
            if is_away(error) and not (is_slow(error) and len(batch) > 1):
                raise
            if len(batch) == 1:
                one = batch[0][0]
                log.warning("an entry cannot be recorded", entry_id=one.entry_id.decode(), error=repr(error)[:500])
                return [], [(one, f"it cannot be stored: {type(error).__name__}")]
        else:
            return batch, []
        middle = len(batch) // 2
        good, failed = await self._record_or_part(batch[:middle])
        more, broken = await self._record_or_part(batch[middle:])
        return good + more, failed + broken

    async def _failed(self, one: Claimed, reason: str) -> None:
        """Put an entry aside after its last delivery, before it is acknowledged."""
        if one.deliveries < DELIVERIES_MAX:
            RECORDED.labels("failed").inc()
            return
        letter = letter_of(one, reason)
        log.error(
            "an entry is put aside", entry_id=one.entry_id.decode(), delivery_id=letter.delivery_id, reason=reason
        )
        await self._patiently(self._store.put_aside, letter)
        await self._queue.acknowledge([one])
        RECORDED.labels("dead_letter").inc()

    async def _record(self, entries: Sequence[pb.StreamEntry]) -> None:
        """Record a batch, however long the store is away; what takes too long together is tried in parts."""
        together = len(entries) > 1
        if entries and await self._patiently(self._store.record, entries, self._inventory(), together=together):
            self._decide.set()

    async def _patiently(
        self, work: Callable[..., Awaitable[bool | None]], *arguments: object, together: bool = False
    ) -> bool | None:
        """Repeat work while PostgreSQL cannot be used; the stream keeps what comes meanwhile."""
        whose = object()

        def tell(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            if isinstance(error, postgres.ABSENT):
                log.warning("PostgreSQL does not answer", tries=state.attempt_number)
                return
            self._refused.add(whose)
            log.error(
                "PostgreSQL CANNOT BE USED: signals are taken and wait in the stream",
                tries=state.attempt_number,
                error=repr(error)[:500],
                next="opsmesh migrate; look at the rights of opsmesh_ingest and at the server's own log",
            )

        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: is_away(error) and not (together and is_slow(error))),
            wait=wait_random_exponential(multiplier=0.1, max=1),
            stop=lambda _: self._stop.is_set(),
            before_sleep=tell,
            reraise=True,
        )
        try:
            return await retrying(work, *arguments)
        finally:
            self._refused.discard(whose)


def shares(taken: Sequence[Claimed], signals: Counts) -> dict[str, int]:
    """Return how many entries of each stream make a batch together, if the next ones carry as much as these."""
    entries = Tally(one.stream for one in taken)
    room = BATCH_SIGNALS // max(1, len(entries))
    return {
        name: min(stream.READ_COUNT, max(1, room * count // max(signals[name], count)))
        for name, count in entries.items()
    }


def batches(entries: Sequence[Readable]) -> Iterator[list[Readable]]:
    """Return entries in batches that are recorded together."""
    batch: list[Readable] = []
    signals = 0
    for one in entries:
        if batch and signals + len(one[1].signals) > BATCH_SIGNALS:
            yield batch
            batch, signals = [], 0
        batch.append(one)
        signals += len(one[1].signals)
    if batch:
        yield batch


def is_away(error: BaseException) -> bool:
    """Say whether PostgreSQL cannot be used; what it cannot take (asyncpg's own ValueErrors) is another thing."""
    return isinstance(error, AWAY) and not isinstance(error, ValueError)


def is_slow(error: BaseException) -> bool:
    """Say whether it took too long: a lock of somebody else, or too much at once, of which parts may pass."""
    return isinstance(error, asyncpg.QueryCanceledError | TimeoutError)


def read_entry(content: bytes) -> pb.StreamEntry:
    """Return an entry of the stream; a ValueError says what is wrong with one that is not ours."""
    try:
        entry = pb.StreamEntry.FromString(content)
    except DecodeError:
        raise ValueError("it is not an entry of the stream") from None
    found = policy.violations(entry)
    if found or not entry.HasField("delivery"):
        what = f"{found[0].field}: {found[0].description}" if found else "it has no delivery"
        raise ValueError(f"it breaks its bounds: {what}")
    return entry


def letter_of(one: Claimed, reason: str) -> DeadLetter:
    """Return the dead letter of an entry, with its delivery's bytes where these can be read."""
    try:
        entry = pb.StreamEntry.FromString(one.content)
    except DecodeError:
        entry = pb.StreamEntry()
    delivery = entry.delivery
    if policy.violations(delivery):
        # Entries of two streams may have the same id.
        made = uuid5(NAMESPACE_OID, f"{one.stream} {one.entry_id.decode()}")
        return DeadLetter(str(made), "", reason, one.deliveries, one.content)
    ids = [signal.signal_id for signal in entry.signals if not policy.violations(signal)]
    if entry.errors:
        ids = [signal_id_of(delivery.delivery_id, 0)]
    told = without_body(delivery)
    return DeadLetter(
        delivery.delivery_id, delivery.source, reason, one.deliveries, delivery.body, ids[:SIGNALS_MAX], told
    )
