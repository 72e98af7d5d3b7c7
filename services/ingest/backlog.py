"""Since when signals wait to be recorded: until they are, silence of a sender proves nothing."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final, cast

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.ingest.stream import ABSENT, lanes

UNKNOWN: Final = datetime(1970, 1, 1, tzinfo=UTC)
Oldest = Callable[[], Awaitable[datetime | None]]
log = structlog.get_logger("opsmesh.backlog")


async def oldest(client: Redis) -> datetime | None:
    """Return when the oldest entry of all streams came in, None without any; a finished one counts until trimmed.

    Of a stream that does not answer it is not known, so anything may wait there: then it is 1970.
    """
    found: list[int] = []
    try:
        for one in await lanes(client):
            entries = cast("list[tuple[bytes, Any]]", await client.xrange(one, count=1))
            found += [int(entry_id.partition(b"-")[0]) for entry_id, _ in entries]
    except (RedisError, *ABSENT) as error:
        log.warning("the stream does not answer: no occurrence ends meanwhile", error=repr(error))
        return UNKNOWN
    return datetime.fromtimestamp(min(found) / 1000, UTC) if found else None


async def none_waits() -> datetime | None:
    """Say that nothing waits."""
    return None
