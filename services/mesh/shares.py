"""How much of a server one identity may take: a certificate must not keep those out who come to stop something.

The kill switch is never paced. Services are not, either: they work for many, and their places are bounded.
Streams last for as long as their caller likes, so they are bounded lower than calls.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal
from services.mesh.pace import Bucket

# Of the 1000 calls that a server takes at once.
CALLS_MAX: Final = 400
STREAMS_MAX: Final = 64
RETRY_SECONDS: Final = 0.5
MINUTE: Final = 60.0
HUMAN: Final = "human/"
STOPS: Final = "opsmesh.guardrails.v1.KillSwitchService/"


class Shares:
    """Counts what each identity has open at one server; identities are those that identities.yaml lists."""

    def __init__(self, per_minute: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._open: Counter[tuple[str, bool]] = Counter()
        self._per_minute = per_minute
        self._clock = clock
        self._paces: dict[str, Bucket] = {}

    def pace(self, identity: str, method: str) -> None:
        """Count a call of a person, or refuse with OVERLOADED when there were too many within a minute."""
        if not self._per_minute or not identity.startswith(HUMAN) or method.startswith(STOPS):
            return
        now = self._clock()
        bucket = self._paces.get(identity)
        if bucket is None:
            bucket = self._paces[identity] = Bucket(self._per_minute / MINUTE, self._per_minute, now)
        if seconds := bucket.take(now):
            limit = f"{self._per_minute} calls a minute of {identity}"
            raise Refusal(error_reason_pb2.ERROR_REASON_OVERLOADED, retry_after=seconds, limit=limit)

    def enter(self, identity: str, *, stream: bool) -> None:
        """Take a place, or refuse with OVERLOADED; whoever took one must `leave` it."""
        most = STREAMS_MAX if stream else CALLS_MAX
        if self._open[identity, stream] >= most:
            limit = f"{most} {'streams' if stream else 'calls'} of {identity}"
            raise Refusal(error_reason_pb2.ERROR_REASON_OVERLOADED, retry_after=RETRY_SECONDS, limit=limit)
        self._open[identity, stream] += 1

    def leave(self, identity: str, *, stream: bool) -> None:
        """Give a place back."""
        self._open[identity, stream] -= 1
