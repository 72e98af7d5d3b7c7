"""How much of a server one identity may take: a certificate must not keep those out who come to stop something.

Streams last for as long as their caller likes, so they are bounded lower than calls.
"""

from collections import Counter
from typing import Final

from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal

# Of the 1000 calls that a server takes at once.
CALLS_MAX: Final = 400
STREAMS_MAX: Final = 64
RETRY_SECONDS: Final = 0.5


class Shares:
    """Counts what each identity has open at one server; identities are those that identities.yaml lists."""

    def __init__(self) -> None:
        self._open: Counter[tuple[str, bool]] = Counter()

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
