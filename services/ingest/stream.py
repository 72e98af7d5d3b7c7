"""The streams of accepted deliveries in Redis or Valkey: appended in coalesced batches, on disk before any answer.

Each source has a stream of its own, `signals:SOURCE`, read in turns: what waits of one delays none of the others.
`signals` itself takes what has no source, what an older version left, and the first delivery of a source: every reader
listens there, and so hears of a new stream at once.
"""

import asyncio
from collections.abc import Sequence
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
ANSWER_SECONDS: Final = 3.0
MEMORY_SECONDS: Final = 0.5
PENDING_BYTES_MAX: Final = 48 * 1024 * 1024
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
    return [STREAM, *(f"{STREAM}:{one}" for one in text_of(await client.get(LANES) or b"").split())]


def text_of(value: Any) -> str:
    """Return what the store answers as text."""
    return value.decode() if isinstance(value, bytes) else str(value)


async def waiting(client: "Redis") -> int:
    """Return how many entries have no acknowledged row yet, in all streams."""
    found = 0
    for one in await lanes(client):
        if not await client.exists(one):
            continue
        groups = [group for group in await client.xinfo_groups(one) if text_of(group["name"]) == GROUP]
        lags = [int(group["pending"]) + int(group["lag"]) for group in groups if group["lag"] is not None]
        # Before somebody reads a stream all of it waits, and where the lag is not known nobody can say less.
        found += sum(lags) if lags else int(await client.xlen(one))
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
