"""What a failed call means for the try of a step it was part of: for whoever runs executions or agents."""

import re
from collections.abc import Awaitable, Mapping
from enum import StrEnum
from typing import Final, TypeVar

import grpc
import grpc.aio

from services.mesh.client import refusal_of

T = TypeVar("T")


class After(StrEnum):
    """What a failed call means for the try it was part of."""

    # Nothing happened, or the stored answer can be asked for: the same request_id after a pause.
    AGAIN = "AGAIN"
    # The grant or the lock is outdated: authorise anew at once.
    AUTHORISE = "AUTHORISE"
    # This try has failed; another one may do better.
    RETRY = "RETRY"
    # No other try would do better.
    FAIL = "FAIL"
    # Nobody knows what happened; never repeated.
    UNKNOWN = "UNKNOWN"


_AFTER: Final[Mapping[str, After]] = {
    "STORE_UNAVAILABLE": After.AGAIN,
    "OVERLOADED": After.AGAIN,
    "LEASE_STALE": After.AGAIN,
    "AUDIT_UNAVAILABLE": After.AGAIN,
    "BACKEND_UNAVAILABLE": After.AGAIN,
    "LOCK_HELD": After.AGAIN,
    "LOCK_REQUIRED": After.AGAIN,
    "FENCE_STALE": After.AGAIN,
    "EFFECT_IN_FLIGHT": After.AGAIN,
    "GRANT_STALE": After.AUTHORISE,
    "GRANT_INVALID": After.AUTHORISE,
    "EFFECT_FAILED": After.RETRY,
    "STATE_CHANGED": After.RETRY,
    "EFFECT_UNKNOWN": After.UNKNOWN,
}
# Statuses that a caller sees when the connection, not the callee, ended the call.
_TRANSPORT: Final = frozenset({"UNAVAILABLE", "CANCELLED", "UNKNOWN", "INTERNAL", "RESOURCE_EXHAUSTED", "ABORTED"})


def after_failure(reason: str, status: str, *, effect: bool) -> After:
    """Say what a failed call means: `reason` is the refusal's (empty when the peer gave none), `status` gRPC's.

    An effect without a clear answer is asked for again under its request_id, which the gateway answers from its store.
    """
    if found := _AFTER.get(reason):
        return found
    if reason == "DEADLINE_EXCEEDED" or status == "DEADLINE_EXCEEDED":
        return After.AGAIN if effect else After.RETRY
    if reason == "INTERNAL" or (not reason and status in _TRANSPORT):
        return After.AGAIN
    return After.FAIL


_KILL: Final = re.compile(r"\bkill ([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\b")


def kill_named(text: str) -> str:
    """Return the kill that a refusal names, empty when it names none."""
    found = _KILL.search(text)
    return found.group(1) if found else ""


def sentence(text: str, limit: int = 1024) -> str:
    """Return `text` within a bound of characters, showing that something was cut off."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


class CallError(Exception):
    """A call failed. `reason` is the peer's error reason or gRPC's status; `after` says what a try makes of it."""

    def __init__(self, reason: str, detail: str, after: After, retry_after: float | None) -> None:
        self.reason = reason
        self.detail = sentence(detail)
        self.after = after
        self.retry_after = retry_after
        super().__init__(f"{reason}: {detail}")


def failure(error: grpc.aio.AioRpcError, *, effect: bool) -> CallError:
    """Say what a failed call means."""
    status = error.code().name
    refusal = refusal_of(error)
    reason = refusal.name if refusal else ""
    after = after_failure(reason, status, effect=effect)
    detail = error.details() or "no answer"
    return CallError(reason or status, detail, after, refusal.retry_after if refusal else None)


async def answered(call: Awaitable[T], *, effect: bool = False) -> T:
    """Await a call, which has an effect or has none; raises CallError."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise failure(error, effect=effect) from None
