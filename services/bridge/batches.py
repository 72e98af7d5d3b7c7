"""Adaptive batches: what arrives in one turn of the event loop, or while calls are on their way, goes together.

No timer: an idle bridge sends at once, a busy one fills its batches by itself.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Container
from typing import Protocol

import structlog

from opsmesh.ingest.v1 import ingest_service_pb2 as ingest
from services.bridge.waiting import FairQueue, Waiting

ITEMS_MAX = 128
# Of bodies in a call: as much as is parsed in some 50 ms, for whoever comes next waits for it.
BODIES_MAX = 256 << 10
LANES = 2
# Beside these, for sources that have nothing on its way: they do not wait for those that have.
FRESH_LANES = 2
# Worth a second call beside the first: a call costs as much as some ten deliveries in it.
SECOND_ITEMS = 32
SECOND_BYTES = 1 << 20
# An answer tells of each alert, of which there are at most 1000: its signal's id, or why it has none, in some 100
# bytes for an alert of three (`{},`), less for one of two. An answer above 4 MiB would not arrive, and all come again.
ANSWERS_MAX = 3 << 20
ALERTS_MAX = 1000
ALERT_BYTES_MIN = 3
ANSWER_BYTES = 112
DEADLINE = 4.0
log = structlog.get_logger("opsmesh.bridge")


class Ingest(Protocol):
    """Where batches go."""

    def SubmitSignals(  # noqa: N802  the name of the RPC
        self, request: ingest.SubmitSignalsRequest, *, timeout: float
    ) -> Awaitable[ingest.SubmitSignalsResponse]:
        """Append the deliveries durably and answer each."""


class Batches:
    """Collects deliveries for ingest, source by source in turn. Bounded by items and bytes; beyond them FullError."""

    def __init__(self, target: Ingest, items_max: int, bytes_max: int) -> None:
        self._target = target
        self._waiting = FairQueue(items_max, bytes_max)
        self._tasks: set[asyncio.Task[None]] = set()
        # How many deliveries of each source are on their way.
        self._away: Counter[str] = Counter()
        self._scheduled = False

    async def submit(self, delivery: ingest.Delivery) -> ingest.DeliveryResult:
        """Return ingest's answer to DELIVERY. Raises FullError, or the AioRpcError of the call that carried it."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[ingest.DeliveryResult] = loop.create_future()
        self._waiting.put(Waiting(delivery, answer))
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._flush)
        return await answer

    async def drain(self) -> None:
        """Wait until everything accepted so far is answered."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _flush(self) -> None:
        self._scheduled = False
        while self._waiting and len(self._tasks) < LANES and (not self._tasks or self._many()):
            self._start(self._take(()))
        while len(self._tasks) < LANES + FRESH_LANES and self._waiting.first(self._away):
            self._start(self._take(self._away))

    def _start(self, batch: list[Waiting]) -> None:
        self._away.update(one.delivery.source for one in batch)
        task = asyncio.create_task(self._send(batch))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _many(self) -> bool:
        """Say whether what waits is worth a call of its own while another is on its way."""
        return len(self._waiting) >= SECOND_ITEMS or self._waiting.bytes >= SECOND_BYTES

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._flush()

    def _take(self, away: Container[str]) -> list[Waiting]:
        batch: list[Waiting] = []
        bodies = answers = 0
        while len(batch) < ITEMS_MAX and (following := self._waiting.first(away)):
            bodies += following.size
            answers += ANSWER_BYTES * min(ALERTS_MAX, following.size // ALERT_BYTES_MIN)
            if batch and (bodies > BODIES_MAX or answers > ANSWERS_MAX):
                break
            batch.append(self._waiting.take(away))
        return batch

    async def _send(self, batch: list[Waiting]) -> None:
        request = ingest.SubmitSignalsRequest(deliveries=[one.delivery for one in batch])
        try:
            response = await self._target.SubmitSignals(request, timeout=DEADLINE)
            results = {result.delivery_id: result for result in response.results}
            outcome: list[ingest.DeliveryResult | Exception] = [
                results.get(one.delivery.delivery_id) or LookupError("ingest did not answer this delivery")
                for one in batch
            ]
        except Exception as error:  # noqa: BLE001  every sender of the batch must hear of it, whatever it is
            # Once a batch, not once a sender: when ingest is down there are many.
            log.warning("a batch was not accepted", deliveries=len(batch), error=repr(error)[:500])
            outcome = [error] * len(batch)
        for one, result in zip(batch, outcome, strict=True):
            self._back(one.delivery.source)
            if one.answer.done():
                continue
            if isinstance(result, Exception):
                one.answer.set_exception(result)
            else:
                one.answer.set_result(result)

    def _back(self, source: str) -> None:
        self._away[source] -= 1
        if not self._away[source]:
            del self._away[source]
