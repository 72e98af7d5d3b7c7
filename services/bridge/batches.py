"""Adaptive batches: what arrives in one turn of the event loop, or while calls are on their way, goes together.

No timer: an idle bridge sends at once, a busy one fills its batches by itself.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable
from typing import Protocol

import structlog

from opsmesh.ingest.v1 import ingest_service_pb2 as ingest

ITEMS_MAX = 128
BYTES_MAX = 3 << 20
LANES = 2
# Worth a second call beside the first: a call costs as much as some ten deliveries in it.
SECOND_ITEMS = 32
SECOND_BYTES = 1 << 20
# An answer names each signal: at most one for every three bytes of a body, and 1000.
SIGNALS_MAX = 1000
SIGNAL_BYTES_MIN = 3
ANSWER_BYTES = 40
DEADLINE = 4.0
log = structlog.get_logger("opsmesh.bridge")


class Ingest(Protocol):
    """Where batches go."""

    def SubmitSignals(  # noqa: N802  the name of the RPC
        self, request: ingest.SubmitSignalsRequest, *, timeout: float
    ) -> Awaitable[ingest.SubmitSignalsResponse]:
        """Append the deliveries durably and answer each."""


class FullError(Exception):
    """Too much waits for ingest already; the sender must come again."""


class Batches:
    """Collects deliveries for ingest. Bounded by items and bytes; beyond them FullError."""

    def __init__(self, target: Ingest, items_max: int, bytes_max: int) -> None:
        self._target = target
        self._items_max = items_max
        self._bytes_max = bytes_max
        self._waiting: deque[tuple[ingest.Delivery, asyncio.Future[ingest.DeliveryResult]]] = deque()
        self._bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._scheduled = False

    async def submit(self, delivery: ingest.Delivery) -> ingest.DeliveryResult:
        """Return ingest's answer to DELIVERY. Raises FullError, or the AioRpcError of the call that carried it."""
        size = len(delivery.body)
        if len(self._waiting) >= self._items_max or self._bytes + size > self._bytes_max:
            raise FullError
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[ingest.DeliveryResult] = loop.create_future()
        self._waiting.append((delivery, answer))
        self._bytes += size
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
            task = asyncio.create_task(self._send(self._take()))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _many(self) -> bool:
        """Say whether what waits is worth a call of its own while another is on its way."""
        return len(self._waiting) >= SECOND_ITEMS or self._bytes >= SECOND_BYTES

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._flush()

    def _take(self) -> list[tuple[ingest.Delivery, asyncio.Future[ingest.DeliveryResult]]]:
        batch: list[tuple[ingest.Delivery, asyncio.Future[ingest.DeliveryResult]]] = []
        size = 0
        while self._waiting and len(batch) < ITEMS_MAX:
            body = len(self._waiting[0][0].body)
            weight = body + ANSWER_BYTES * min(SIGNALS_MAX, body // SIGNAL_BYTES_MIN)
            if batch and size + weight > BYTES_MAX:
                break
            batch.append(self._waiting.popleft())
            size += weight
            self._bytes -= body
        return batch

    async def _send(self, batch: list[tuple[ingest.Delivery, asyncio.Future[ingest.DeliveryResult]]]) -> None:
        request = ingest.SubmitSignalsRequest(deliveries=[delivery for delivery, _ in batch])
        try:
            response = await self._target.SubmitSignals(request, timeout=DEADLINE)
            results = {result.delivery_id: result for result in response.results}
            outcome: list[ingest.DeliveryResult | Exception] = [
                results.get(delivery.delivery_id) or LookupError("ingest did not answer this delivery")
                for delivery, _ in batch
            ]
        except Exception as error:  # noqa: BLE001  every sender of the batch must hear of it, whatever it is
            # Once a batch, not once a sender: when ingest is down there are many.
            log.warning("a batch was not accepted", deliveries=len(batch), error=repr(error)[:500])
            outcome = [error] * len(batch)
        for (_, answer), result in zip(batch, outcome, strict=True):
            if answer.done():
                continue
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)
