"""The streams of accepted deliveries in Redis or Valkey: appended in coalesced batches, on disk before any answer.

Each source has a stream of its own, `signals:SOURCE`, read in turns: what waits of one delays none of the others.
`signals` itself takes what has no source, what an older version left, and the first delivery of a source: every reader
listens there, and so hears of a new stream at once.
"""

import asyncio
import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, OutOfMemoryError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from opsmesh.type.v1 import error_reason_pb2
from services.ingest.settings import IngestSettings
from services.mesh.errors import BootError, Refusal
from services.mesh.loop import wait

STREAM: Final = "signals"
GROUP: Final = "ingest"
FIELD: Final = b"e"
# Which sources have streams. It changes in the same step as the first delivery of a source is appended.
LANES: Final = "ingest:lanes"
# All entries of a caller, or none, with one command and one answer: a command for each costs four times as much here.
APPEND: Final = """
local known = redis.call('GET', KEYS[2]) or ' '
for at = 1, #ARGV, 2 do
  local lane, key = ARGV[at], KEYS[1]
  if lane ~= '' then
    if string.find(known, ' ' .. lane .. ' ', 1, true) then
      key = KEYS[1] .. ':' .. lane
    else
      known = known .. lane .. ' '
      redis.call('SET', KEYS[2], known)
    end
  end
  redis.call('XADD', key, '*', 'e', ARGV[at + 1])
end
"""
READ_COUNT: Final = 128
BLOCK_SECONDS: Final = 2.0
ANSWER_SECONDS: Final = 3.0
MEMORY_SECONDS: Final = 0.5
PENDING_BYTES_MAX: Final = 48 * 1024 * 1024
# A consumer that has asked for nothing for so long is dead, and if nothing is pending its name can go.
CONSUMER_IDLE_SECONDS: Final = 3600
ABSENT: Final = (RedisConnectionError, RedisTimeoutError, OSError, TimeoutError)
STORE: Final = "Valkey"
UNKNOWN: Final = "not told (the user lacks +config|get)"
log = structlog.get_logger("opsmesh.stream")


@dataclass(frozen=True, slots=True)
class Claimed:
    """One entry as its stream handed it out; `deliveries` counts how often."""

    entry_id: bytes
    content: bytes
    deliveries: int = 1
    stream: str = STREAM


class Inbox(Protocol):
    """What the servicer needs of the stream."""

    async def append(self, contents: Sequence[bytes], lanes: Sequence[str] = ()) -> None:
        """Append entries; returns once they are on disk, else raises a Refusal. `lanes` are their sources."""


def connect(settings: IngestSettings, answer_seconds: float = ANSWER_SECONDS) -> "Redis":
    """Return a client whose every answer is awaited for a bounded time, and which never repeats by itself."""
    try:
        password = settings.redis_password_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BootError(
            f"cannot read OPSMESH_REDIS_PASSWORD_FILE={settings.redis_password_file}: {error.strerror}. "
            "NEXT: `opsmesh up` makes it; elsewhere put the password of the URL's user into that file"
        ) from None
    return Redis.from_url(
        settings.redis_url,
        password=password,
        socket_timeout=answer_seconds,
        socket_connect_timeout=1.0,
        retry=Retry(NoBackoff(), 0),
        max_connections=8,
    )


def absent(error: Exception) -> Refusal:
    """Return the refusal that says the store does not answer."""
    log.warning("the stream does not answer", error=repr(error))
    return Refusal(error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE, store=STORE, retry_after=1.0)


async def lanes(client: "Redis") -> list[str]:
    """Return every stream there may be."""
    return [STREAM, *(f"{STREAM}:{one}" for one in _text(await client.get(LANES) or b"").split())]


async def waiting(client: "Redis") -> int:
    """Return how many entries have no acknowledged row yet, in all streams."""
    found = 0
    for one in await lanes(client):
        if await client.exists(one):
            groups = await client.xinfo_groups(one)
            found += sum(int(group["pending"]) + int(group["lag"] or 0) for group in groups)
    return found


async def left(client: "Redis") -> int:
    """Return how many entries are in all streams: those that wait, and those that are not trimmed yet."""
    return sum([int(await client.xlen(one)) for one in await lanes(client)])


class Appender:
    """Appends what arrives meanwhile in one pipeline: one round trip and one fsync for many callers."""

    def __init__(self, client: "Redis", settings: IngestSettings) -> None:
        self._client = client
        self._settings = settings
        self._queue: list[tuple[Sequence[bytes | str], asyncio.Future[None]]] = []
        self._queued_bytes = 0
        self._running: asyncio.Task[None] | None = None
        self._checked = False
        self._full = False
        # What is wrong with how the store keeps things; empty when nothing acknowledged can be lost.
        self.lossy = ""

    async def append(self, contents: Sequence[bytes], lanes: Sequence[str] = ()) -> None:
        """Append entries; returns once they are on disk, else raises a Refusal and nothing may be assumed.

        `lanes` are their sources, each of which waits for itself; without them all wait together.
        """
        size = sum(map(len, contents))
        if self._full:
            raise self._shed()
        if self._queued_bytes + size > PENDING_BYTES_MAX:
            limit = f"{PENDING_BYTES_MAX} bytes that wait for the stream"
            raise Refusal(error_reason_pb2.ERROR_REASON_OVERLOADED, limit=limit, retry_after=1.0)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        arguments = [one for pair in zip(lanes or [""] * len(contents), contents, strict=True) for one in pair]
        self._queue.append((arguments, done))
        self._queued_bytes += size
        if self._running is None:
            self._running = asyncio.create_task(self._drain())
        await done

    async def run(self, stop: asyncio.Event) -> None:
        """Keep an eye on the store's memory until `stop`."""
        while not await wait(stop, MEMORY_SECONDS):
            try:
                await self.watch()
            except (RedisError, *ABSENT):
                continue

    async def watch(self) -> None:
        """Look whether the store is close to its memory limit."""
        info = await self._client.info("memory")
        limit = int(info.get("maxmemory", 0))
        self._full = bool(limit) and int(info["used_memory"]) * 100 >= limit * self._settings.shed_percent

    async def check(self) -> None:
        """Raise BootError when the store may lose what it has acknowledged, unless that is accepted."""
        try:
            found = await self._client.config_get("append*")
            found |= await self._client.config_get("maxmemory-policy")
        except (NoPermissionError, ResponseError) as error:
            # A store that does not say how it keeps things gets no benefit of the doubt.
            log.warning("the durability of the stream cannot be checked", error=repr(error))
            found = {}
        wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
        wrong = [
            f"{name} is {found.get(name, UNKNOWN)}, not {value}"
            for name, value in wanted.items()
            if found.get(name) != value
        ]
        self.lossy = "; ".join(wrong)
        if wrong and not self._settings.redis_lossy:
            raise BootError(
                f"the store at OPSMESH_REDIS_URL may lose acknowledged signals: {self.lossy}. "
                "NEXT: configure it so (and give the URL's user +config|get), or accept the loss, for development, "
                "with OPSMESH_REDIS_LOSSY=true"
            )
        if wrong:
            log.error(
                "ACKNOWLEDGED SIGNALS MAY BE LOST: the store does not keep them, and OPSMESH_REDIS_LOSSY accepts that",
                wrong=self.lossy,
                next="configure the store so, and unset OPSMESH_REDIS_LOSSY; it is for development only",
            )
        self._checked = True

    async def durable(self) -> bool:
        """Say whether nothing acknowledged can be lost, as far as the store's configuration tells."""
        return not self.lossy

    @property
    def takes(self) -> bool:
        """Say whether the store is one that signals may be given to; true while it was not looked at yet."""
        return not self.lossy or self._settings.redis_lossy

    def _shed(self) -> Refusal:
        percent = str(self._settings.shed_percent)
        return Refusal(error_reason_pb2.ERROR_REASON_INTAKE_FULL, percent=percent, retry_after=5.0)

    async def _drain(self) -> None:
        """Append until nothing waits."""
        try:
            while self._queue:
                batch, self._queue = self._queue, []
                self._queued_bytes = 0
                await self._append(batch)
        finally:
            self._running = None

    async def _append(self, batch: list[tuple[Sequence[bytes | str], asyncio.Future[None]]]) -> None:
        """Send one pipeline and tell each caller what became of its entries."""
        error: Exception | None = None
        answers: list[Any] = []
        try:
            if not self._checked:
                await self.check()
            pipeline = self._client.pipeline(transaction=False)
            for arguments, _ in batch:
                pipeline.eval(APPEND, 2, STREAM, LANES, *arguments)
            answers = await pipeline.execute(raise_on_error=False)
        except (RedisError, *ABSENT) as failure:
            # Whoever comes back may be another one, or keep things otherwise.
            self._checked = False
            error = absent(failure)
        except BootError as failure:
            log.error("the stream is not durable", error=str(failure))  # noqa: TRY400  the message says it all
            error = absent(failure)
        for index, (_, done) in enumerate(batch):
            failed = error or (self._refused(answers[index]) if isinstance(answers[index], Exception) else None)
            if done.done():
                continue
            if failed:
                done.set_exception(failed)
            else:
                done.set_result(None)

    def _refused(self, error: Exception) -> Refusal:
        """Say why a caller's entries were refused."""
        if isinstance(error, OutOfMemoryError):
            self._full = True
            return self._shed()
        return absent(error)


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
            answer = await self._blocking.xreadgroup(GROUP, self.consumer, streams, count=READ_COUNT, block=block)
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

    async def _read_busy(self, counts: Mapping[str, int]) -> dict[str, list[Any]]:
        """Read what is there: of busy streams so many, of the others an equal share."""
        pipeline = self._client.pipeline(transaction=False)
        for name, count in counts.items():
            pipeline.xreadgroup(GROUP, self.consumer, {name: ">"}, count=count)
        others: dict[Any, Any] = {one: ">" for one in self._lanes if one not in counts}
        if others:
            pipeline.xreadgroup(GROUP, self.consumer, others, count=max(1, READ_COUNT // (len(counts) + 1)))
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
        handed_out = next((one["last-delivered-id"] for one in groups if _text(one["name"]) == GROUP), None)
        if handed_out is None or _text(handed_out) == "0-0":
            return
        summary = await self._client.xpending(stream, GROUP)
        oldest = summary["min"] if summary["pending"] else None
        time, _, sequence = _text(handed_out).partition("-")
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
    return {_text(name): list(found[0] if found and isinstance(found[0], list) else found) for name, found in pairs}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _order(entry_id: bytes) -> tuple[int, int]:
    """Return the order of an entry id."""
    time, _, sequence = entry_id.partition(b"-")
    return int(time), int(sequence)
