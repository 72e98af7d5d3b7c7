"""What a worker has of the streams: entries in turns, their number of deliveries, and trimming what is finished."""

import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final

from redis.exceptions import RedisError, ResponseError

from services.ingest.settings import IngestSettings
from services.ingest.stream import (
    ABSENT,
    ANSWER_SECONDS,
    FIELD,
    GROUP,
    READ_COUNT,
    STREAM,
    Claimed,
    connect,
    lanes,
    text_of,
)

BLOCK_SECONDS: Final = 2.0
# A consumer that has asked for nothing for so long is dead, and if nothing is pending its name can go.
CONSUMER_IDLE_SECONDS: Final = 3600


class Reader:
    """One consumer of the group on every stream, with a name nobody else has."""

    def __init__(self, settings: IngestSettings) -> None:
        self.consumer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._claim_milliseconds = int(settings.claim_seconds * 1000)
        self._client = connect(settings)
        self._blocking = connect(settings, BLOCK_SECONDS + ANSWER_SECONDS)
        self._lanes: list[str] = []

    async def close(self) -> None:
        """Close the connections; what is pending goes to another worker."""
        await self._client.aclose()
        await self._blocking.aclose()

    async def ensure_group(self) -> None:
        """Make streams and groups where they are missing; a new group begins with the oldest entry."""
        found = await lanes(self._client)
        for one in found:
            try:
                await self._client.xgroup_create(one, GROUP, id="0", mkstream=True)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise
        self._lanes = found

    async def read(self, counts: Mapping[str, int] | None = None) -> list[Claimed]:
        """Wait a bounded time for new entries, in turns; `counts` says how many at most of streams that are busy."""
        if not self._lanes:
            await self.ensure_group()
        found = await self._read_busy(counts) if counts else {}
        if not found:
            streams: dict[Any, Any] = dict.fromkeys(self._lanes, ">")
            block = int(BLOCK_SECONDS * 1000)
            answer = await self._blocking.xreadgroup(GROUP, self.consumer, streams, count=self._share(), block=block)
            found = _entries(answer)
        if STREAM in found:
            await self._listen()
        turns = max(map(len, found.values()), default=0)
        return [
            Claimed(entries[turn][0], entries[turn][1].get(FIELD, b""), stream=name)
            for turn in range(turns)
            for name, entries in found.items()
            if turn < len(entries)
        ]

    def _share(self) -> int:
        """Return how many entries of each stream are a batch together: what is in memory does not grow with them."""
        return max(1, READ_COUNT // len(self._lanes))

    async def _read_busy(self, counts: Mapping[str, int]) -> dict[str, list[Any]]:
        """Read what is there: of busy streams so many, of the others an equal share."""
        pipeline = self._client.pipeline(transaction=False)
        for name, count in counts.items():
            pipeline.xreadgroup(GROUP, self.consumer, {name: ">"}, count=count)
        others: dict[Any, Any] = {one: ">" for one in self._lanes if one not in counts}
        if others:
            pipeline.xreadgroup(GROUP, self.consumer, others, count=self._share())
        return {name: entries for answer in await pipeline.execute() for name, entries in _entries(answer).items()}

    async def _listen(self) -> None:
        """Listen to the streams of new sources, too."""
        if await lanes(self._client) != self._lanes:
            await self.ensure_group()

    async def claim(self) -> list[Claimed]:
        """Take over what was handed out and not acknowledged for too long, with its number of deliveries."""
        await self._listen()
        found: list[Claimed] = []
        for one in self._lanes:
            if len(found) < READ_COUNT:
                found += await self._claim(one)
        return found

    async def _claim(self, stream: str) -> list[Claimed]:
        answer = await self._client.xautoclaim(
            stream, GROUP, self.consumer, min_idle_time=self._claim_milliseconds, count=READ_COUNT
        )
        entries = {entry_id: fields for entry_id, fields in answer[1] if fields is not None}
        if not entries:
            return []
        first, last = min(entries, key=_order), max(entries, key=_order)
        pending = await self._client.xpending_range(
            stream, GROUP, min=first, max=last, count=10 * READ_COUNT, consumername=self.consumer
        )
        counts = {one["message_id"]: int(one["times_delivered"]) for one in pending}
        return [Claimed(one, fields.get(FIELD, b""), counts.get(one, 1), stream) for one, fields in entries.items()]

    async def acknowledge(self, entries: Sequence[Claimed]) -> None:
        """Say that these entries have their rows."""
        by_stream: dict[str, list[bytes]] = {}
        for one in entries:
            by_stream.setdefault(one.stream, []).append(one.entry_id)
        pipeline = self._client.pipeline(transaction=False)
        for name, entry_ids in by_stream.items():
            pipeline.xack(name, GROUP, *entry_ids)
        await pipeline.execute()

    async def trim(self) -> None:
        """Drop entries below everything that is pending or not yet handed out: never one without its row."""
        for one in self._lanes:
            if await self._client.xlen(one):
                await self._trim(one)

    async def _trim(self, stream: str) -> None:
        groups = await self._client.xinfo_groups(stream)
        handed_out = next((one["last-delivered-id"] for one in groups if text_of(one["name"]) == GROUP), None)
        if handed_out is None or text_of(handed_out) == "0-0":
            return
        summary = await self._client.xpending(stream, GROUP)
        oldest = summary["min"] if summary["pending"] else None
        time, _, sequence = text_of(handed_out).partition("-")
        after = f"{time}-{int(sequence) + 1}".encode()
        keep = after if oldest is None else min(after, oldest, key=_order)
        await self._client.xtrim(stream, minid=keep, approximate=False)

    async def forget_consumers(self) -> None:
        """Remove the names of consumers that are long dead and owe nothing."""
        for stream in self._lanes:
            for one in await self._client.xinfo_consumers(stream, GROUP):
                if one["pending"] == 0 and one["idle"] > CONSUMER_IDLE_SECONDS * 1000:
                    await self._client.xgroup_delconsumer(stream, GROUP, one["name"])

    async def answers(self) -> bool:
        """Say whether the store answers."""
        try:
            return bool(await self._client.ping())
        except (RedisError, *ABSENT):
            return False


def _entries(answer: Any) -> dict[str, list[Any]]:
    """Return (id, fields) pairs by stream, one level less where the protocol nests them."""
    pairs = answer.items() if isinstance(answer, Mapping) else answer or ()
    return {text_of(name): list(found[0] if found and isinstance(found[0], list) else found) for name, found in pairs}


def _order(entry_id: bytes) -> tuple[int, int]:
    """Return the order of an entry id."""
    time, _, sequence = entry_id.partition(b"-")
    return int(time), int(sequence)
