"""Asks a backend that answers with JSON, and says in the words of a refusal why it gave no answer to use."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from opsmesh.type.v1 import error_reason_pb2
from services.gateway.backends import ConfiguredUrl
from services.gateway.domain import plain
from services.gateway.tools.http import Http, NoAnswerError, NotDeliveredError
from services.mesh.call import current
from services.mesh.errors import FieldViolation, Refusal

# No backend may take longer for one question, in seconds, or answer with more bytes.
SECONDS: Final = 8.0
ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
# What is left of the caller's time to say that there was no answer, in seconds.
MARGIN: Final = 0.2
DETAIL_MAX: Final = 500
NOT_NOW: Final = frozenset({408, 425, 429})
NOT_ALLOWED: Final = frozenset({401, 403})


@dataclass(frozen=True, slots=True)
class Answer:
    """A JSON object, and the HTTP status it came with: 2xx, or a 4xx or 5xx that carries one."""

    status: int
    document: Mapping[str, Any]


def seconds_left() -> float:
    """Return how long a backend may take: its own limit, or what is left of the call."""
    return min(SECONDS, current().remaining - MARGIN)


async def ask(http: Http, url: ConfiguredUrl, target: str, content: bytes, headers: Mapping[str, str]) -> Answer:
    """Post a question and return the JSON object that came back; refuse with what was wrong otherwise."""
    try:
        reply = await http.request(
            "POST", url, seconds=seconds_left(), limit=ANSWER_BYTES_MAX, content=content, headers=dict(headers)
        )
    except (NotDeliveredError, NoAnswerError) as error:
        raise unavailable(target, str(error)) from error
    if reply.status in NOT_ALLOWED:
        raise unavailable(target, f"it answered with HTTP status {reply.status}: its credentials do not suffice")
    if reply.truncated:
        raise too_large(target)
    try:
        document = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict) or reply.status in NOT_NOW:
        raise unavailable(target, f"it answered with HTTP status {reply.status} and nothing to use")
    return Answer(reply.status, document)


def missing(target: str, lines: str) -> Refusal:
    """Return the refusal for a target without a backend, with the lines to add (YAML in one line)."""
    return Refusal(error_reason_pb2.ERROR_REASON_BACKEND_MISSING, target=target, lines=lines)


def unavailable(target: str, detail: str) -> Refusal:
    """Return the refusal for a backend that does not answer."""
    return Refusal(error_reason_pb2.ERROR_REASON_BACKEND_UNAVAILABLE, retry_after=1.0, target=target, detail=detail)


def refused(target: str, detail: str) -> Refusal:
    """Return the refusal for a question that the backend calls wrong; its words are bounded."""
    return Refusal(error_reason_pb2.ERROR_REASON_BACKEND_REFUSED, target=target, detail=plain(detail, DETAIL_MAX))


def too_large(target: str) -> Refusal:
    """Return the refusal for an answer that no tool may hand on."""
    limit = f"{ANSWER_BYTES_MAX // 1024 // 1024} MiB"
    return Refusal(error_reason_pb2.ERROR_REASON_ANSWER_TOO_LARGE, target=target, limit=limit)


def wrong(field: str, description: str) -> Refusal:
    """Return the refusal for a request whose fields do not go together."""
    return Refusal(error_reason_pb2.ERROR_REASON_INVALID_ARGUMENT, violations=[FieldViolation(field, description)])
