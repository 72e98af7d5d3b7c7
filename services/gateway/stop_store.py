"""Which effects a kill found under way, in PostgreSQL: a gateway that dies must not forget to tell how they ended."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from services.gateway.domain import Effect, Key, State
from services.gateway.store import COLUMNS, to_effect
from services.mesh.postgres import Pool

STARTED: Final = f"SELECT {COLUMNS} FROM effects WHERE state = 'STARTED' ORDER BY start_time LIMIT $1"  # noqa: S608  constants only
NOTE: Final = """
INSERT INTO stops (kill_id, method, request_id) SELECT $1, * FROM unnest($2::text[], $3::uuid[]) ON CONFLICT DO NOTHING
"""
NOTED: Final = """
SELECT stops.kill_id, stops.method, stops.request_id, effects.state, effects.deadline_time
FROM stops LEFT JOIN effects USING (method, request_id) ORDER BY stops.kill_id LIMIT $1
"""
FORGET: Final = """
DELETE FROM stops WHERE kill_id = $1 AND (method, request_id) IN (SELECT * FROM unnest($2::text[], $3::uuid[]))
"""


@dataclass(frozen=True, slots=True)
class Noted:
    """An effect that a kill found under way; `state` is None when its row is gone."""

    kill_id: str
    key: Key
    state: State | None
    deadline_time: datetime | None


class PostgresStops:
    """The stops of the gateway's schema."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def started(self, limit: int) -> list[Effect]:
        """Return the effects under way, the oldest first."""
        return [to_effect(row) for row in await self._pool.fetch(STARTED, limit)]

    async def note(self, kill_id: str, keys: Iterable[Key]) -> None:
        """Keep in mind that a kill found these under way."""
        methods, ids = _columns(keys)
        if ids:
            await self._pool.execute(NOTE, uuid.UUID(kill_id), methods, ids)

    async def noted(self, limit: int) -> list[Noted]:
        """Return what is kept in mind, with how each stands now."""
        return [
            Noted(
                str(row["kill_id"]),
                Key(row["method"], row["request_id"]),
                State(row["state"]) if row["state"] else None,
                row["deadline_time"],
            )
            for row in await self._pool.fetch(NOTED, limit)
        ]

    async def forget(self, kill_id: str, keys: Iterable[Key]) -> None:
        """Forget what guardrails knows the end of."""
        methods, ids = _columns(keys)
        if ids:
            await self._pool.execute(FORGET, uuid.UUID(kill_id), methods, ids)


def _columns(keys: Iterable[Key]) -> tuple[list[str], list[uuid.UUID]]:
    """Return keys as two columns."""
    both = list(keys)
    return [key.method for key in both], [key.request_id for key in both]
