"""How much of a server one identity may take: a certificate must not keep those out who come to stop something.

The kill switch and health are never paced. Services have a pace of their own, larger by far: they work for many, and
what bounds one person would strangle the mesh.
Streams last for as long as their caller likes, so they are bounded lower than calls.
"""

import time
from collections import Counter, OrderedDict
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
FREE: Final = ("opsmesh.guardrails.v1.KillSwitchService/", "grpc.health.v1.Health/")
# Whoever has a certificate of this mesh may come; those seen last are remembered.
CLIENTS_MAX: Final = 10_000


class Shares:
    """Counts what each identity has open at one server, and its calls within a minute; 0 means no such limit."""

    def __init__(
        self, per_minute: int = 0, clock: Callable[[], float] = time.monotonic, service_per_minute: int = 0
    ) -> None:
        self._open: Counter[tuple[str, bool]] = Counter()
        self._per_minute = {True: per_minute, False: service_per_minute if per_minute else 0}
        self._clock = clock
        self._paces: OrderedDict[str, Bucket] = OrderedDict()

    def pace(self, identity: str, method: str) -> None:
        """Count a call, or refuse with OVERLOADED and when to come again, if there were too many within a minute."""
        most = self._per_minute[identity.startswith(HUMAN)]
        if not most or method.startswith(FREE):
            return
        now = self._clock()
        bucket = self._paces.pop(identity, None) or Bucket(most / MINUTE, most, now)
        self._paces[identity] = bucket
        if len(self._paces) > CLIENTS_MAX:
            self._paces.popitem(last=False)
        if seconds := bucket.take(now):
            limit = f"{most} calls a minute of {identity}"
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
