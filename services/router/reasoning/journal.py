"""What models were asked and what they answered, written before and after each call.

Whoever goes on after a crash sends the very same request again: agents has kept its answer, so nothing is paid twice.
Prompts and replies are kept only while a case is open; what stays is what a decision shows.
"""

import asyncio
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

from opsmesh.agents.v1 import model_service_pb2
from opsmesh.router.v1 import decision_service_pb2
from services.mesh.loop import every
from services.mesh.postgres import Pool
from services.mesh.retention import TooOld

# A prompt older than this tells of another world: it is made anew.
FRESH: Final = timedelta(minutes=10)
OPEN: Final = """
SELECT first_number, prompt_id, token, offered, sources FROM model_cases
WHERE subject = $1 AND open AND begin_time > clock_timestamp() - $2::interval
"""
BEGIN: Final = """
INSERT INTO model_cases (subject, open, first_number, prompt_id, token, offered, sources)
VALUES ($1, true, 1, $2, $3, $4, $5)
ON CONFLICT (subject) DO UPDATE
SET open = true, prompt_id = $2, token = $3, offered = $4, sources = $5, begin_time = clock_timestamp(),
    first_number = 1 + coalesce((SELECT max(number) FROM model_calls WHERE model_calls.subject = $1), 0)
RETURNING first_number
"""
CALLS: Final = """
SELECT number, request, response, call FROM model_calls WHERE subject = $1 AND number >= $2 ORDER BY number
"""
ASK: Final = "INSERT INTO model_calls (subject, number, request) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"
ANSWER: Final = "UPDATE model_calls SET response = $3, call = $4 WHERE subject = $1 AND number = $2"
CLOSE: Final = """
WITH closed AS (UPDATE model_cases SET open = false WHERE subject = $1),
     unanswered AS (DELETE FROM model_calls WHERE subject = $1 AND call = '')
UPDATE model_calls SET request = '', response = '' WHERE subject = $1 AND call <> ''
"""
LEFT: Final = "SELECT subject FROM model_cases WHERE open AND begin_time < clock_timestamp() - $1::interval LIMIT $2"
SWEEP_MAX: Final = 1000
TOLD: Final = """
SELECT call, (SELECT sources FROM model_cases WHERE subject = $1) AS sources FROM model_calls
WHERE subject = $1 AND call <> '' ORDER BY number
"""
SOURCES: Final = "SELECT sources FROM model_cases WHERE subject = $1"


@dataclass(frozen=True, slots=True)
class Offered:
    """Names of what a model could choose from; `reads` are full names of tools."""

    playbooks: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Opened:
    """An attempt under way; `first` is the number of its first call."""

    first: int
    prompt_id: str
    token: str
    offered: Offered
    sources: tuple[decision_service_pb2.ContextSource, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """One call; without a `response` nobody has seen its answer, or, with a `call`, it was refused."""

    number: int
    request: model_service_pb2.GenerateRequest
    response: model_service_pb2.GenerateResponse | None
    call: decision_service_pb2.ModelCall | None


@dataclass(frozen=True, slots=True)
class Record:
    """What stays: the calls that were answered, and what the model was told."""

    calls: tuple[decision_service_pb2.ModelCall, ...] = ()
    sources: tuple[decision_service_pb2.ContextSource, ...] = ()


class Journal(Protocol):
    """Keeps attempts and calls, by the decision or message that they are for."""

    async def opened(self, subject: uuid.UUID) -> Opened | None:
        """Return the attempt under way, unless it is too old to go on with."""

    async def begin(self, subject: uuid.UUID, opened: Opened) -> int:
        """Begin an attempt (its `first` is not looked at); return the number of its first call."""

    async def calls(self, subject: uuid.UUID, first: int) -> list[Asked]:
        """Return the calls from a number on, in order."""

    async def ask(self, subject: uuid.UUID, number: int, request: model_service_pb2.GenerateRequest) -> None:
        """Note a request before it is sent."""

    async def answer(self, subject: uuid.UUID, asked: Asked) -> None:
        """Note an answer and what came of it."""

    async def close(self, subject: uuid.UUID) -> None:
        """End the attempt: prompts and replies are forgotten, figures stay."""

    async def record(self, subject: uuid.UUID) -> Record:
        """Return what is shown of all attempts."""


class PostgresJournal:
    """Journal in the router's schema."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def opened(self, subject: uuid.UUID) -> Opened | None:
        """See Journal."""
        row = await self._pool.fetchrow(OPEN, subject, FRESH)
        if row is None:
            return None
        offered = Offered(**{name: tuple(names) for name, names in json.loads(row["offered"]).items()})
        return Opened(row["first_number"], row["prompt_id"], row["token"], offered, _sources(row["sources"]))

    async def begin(self, subject: uuid.UUID, opened: Opened) -> int:
        """See Journal."""
        names = {name: getattr(opened.offered, name) for name in ("playbooks", "templates", "targets", "reads")}
        sources = decision_service_pb2.Decision(context_sources=opened.sources).SerializeToString()
        return int(
            await self._pool.fetchval(BEGIN, subject, opened.prompt_id, opened.token, json.dumps(names), sources)
        )

    async def calls(self, subject: uuid.UUID, first: int) -> list[Asked]:
        """See Journal."""
        return [
            Asked(
                row["number"],
                model_service_pb2.GenerateRequest.FromString(row["request"]),
                model_service_pb2.GenerateResponse.FromString(row["response"]) if row["response"] else None,
                decision_service_pb2.ModelCall.FromString(row["call"]) if row["call"] else None,
            )
            for row in await self._pool.fetch(CALLS, subject, first)
        ]

    async def ask(self, subject: uuid.UUID, number: int, request: model_service_pb2.GenerateRequest) -> None:
        """See Journal."""
        await self._pool.execute(ASK, subject, number, request.SerializeToString())

    async def answer(self, subject: uuid.UUID, asked: Asked) -> None:
        """See Journal."""
        response = asked.response.SerializeToString() if asked.response else b""
        call = asked.call.SerializeToString() if asked.call else b""
        await self._pool.execute(ANSWER, subject, asked.number, response, call)

    async def close(self, subject: uuid.UUID) -> None:
        """See Journal."""
        await self._pool.execute(CLOSE, subject)

    async def sweep(self) -> None:
        """End attempts that nobody came back to: their prompts and replies are forgotten, too."""
        for row in await self._pool.fetch(LEFT, 6 * FRESH, SWEEP_MAX):
            await self.close(row["subject"])

    async def run(self, stop: asyncio.Event) -> None:
        """Sweep every ten minutes until `stop`."""
        await every(stop, FRESH.total_seconds(), self.sweep)

    async def record(self, subject: uuid.UUID) -> Record:
        """See Journal."""
        rows = await self._pool.fetch(TOLD, subject)
        sources = rows[0]["sources"] if rows else await self._pool.fetchval(SOURCES, subject)
        calls = tuple(decision_service_pb2.ModelCall.FromString(row["call"]) for row in rows)
        return Record(calls, _sources(sources or b""))


def forgotten(days: int) -> TooOld:
    """Return what is deleted `days` after it began; nothing is reasoned about for so long."""
    return TooOld("model_cases", "create_time < now() - $1::interval", days)


def _sources(content: bytes) -> tuple[decision_service_pb2.ContextSource, ...]:
    """Return stored sources."""
    sources: Sequence[decision_service_pb2.ContextSource] = decision_service_pb2.Decision.FromString(
        content
    ).context_sources
    return tuple(sources)
