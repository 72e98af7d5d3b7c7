"""How much a source, and a client, may hand in; and how each sender is told to come again. No input or output."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network
from typing import Final

from opsmesh.config.v1 import sources_pb2
from services.mesh.pace import Bucket

CLIENTS_MAX: Final = 10_000
MINUTE: Final = 60.0
BURST_SECONDS: Final = 10
TOO_MANY: Final = 429
UNAVAILABLE: Final = 503
# These come again after a 429, and are told so by their documentation. All others drop what is answered with 4xx, or
# count it as delivered, and come again only after a 503.
SENDERS_OF_429: Final = frozenset({"pagerduty", "azure-monitor", "cloudevents", "pagerduty-events"})


@dataclass(frozen=True, slots=True)
class Busy:
    """Too much: what is said, and after how many seconds it is worth another try."""

    text: str
    seconds: float


class Limits:
    """The quota of each source, and the limit of each client; the clients seen last are remembered, boundedly."""

    def __init__(self, sources: Iterable[sources_pb2.Source], per_minute: int, clock: Callable[[], float]) -> None:
        now = clock()
        self._clock = clock
        self._per_minute = per_minute
        self._status: dict[str, int] = {}
        self._quotas: dict[str, Bucket] = {}
        self._rates: dict[str, int] = {}
        self._clients: OrderedDict[str, Bucket] = OrderedDict()
        for one in sources:
            self._status[one.source] = _status(one)
            if rate := one.quota.per_second:
                self._rates[one.source] = int(rate * MINUTE)
                self._quotas[one.source] = Bucket(rate, one.quota.burst or rate * BURST_SECONDS, now)

    def status(self, source: str) -> int:
        """Return the code after which this sender comes again."""
        return self._status.get(source, TOO_MANY)

    def a_minute(self, source: str) -> int:
        """Return how many requests a minute one sender of a source may send; 0 is no limit."""
        return min((one for one in (self._rates.get(source, 0), self._per_minute) if one), default=0)

    def client(self, address: str) -> Busy | None:
        """Count a request of a client; Busy when there were too many within a minute."""
        if not self._per_minute:
            return None
        now, client = self._clock(), client_of(address)
        bucket = self._clients.pop(client, None) or Bucket(self._per_minute / MINUTE, self._per_minute, now)
        self._clients[client] = bucket
        if len(self._clients) > CLIENTS_MAX:
            self._clients.popitem(last=False)
        seconds = bucket.take(now)
        return Busy(f"more than {self._per_minute} requests a minute", seconds) if seconds else None

    def source(self, source: str) -> Busy | None:
        """Count a delivery of a source that has proved itself; Busy above its quota."""
        bucket = self._quotas.get(source)
        seconds = bucket.take(self._clock()) if bucket else 0.0
        return Busy("more deliveries than the quota of this source", seconds) if seconds else None


def client_of(address: str) -> str:
    """Return who has an address: of IPv6 a whole /64, which is the least that anybody is given."""
    if ":" not in address:
        return address
    try:
        parsed = IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(parsed.ipv4_mapped or IPv6Network((int(parsed), 64), strict=False))


def _status(source: sources_pb2.Source) -> int:
    """Return what a source says, else what its sender is known to understand."""
    said: Mapping[int, int] = {
        sources_pb2.Source.BUSY_ANSWER_UNAVAILABLE: UNAVAILABLE,
        sources_pb2.Source.BUSY_ANSWER_TOO_MANY_REQUESTS: TOO_MANY,
    }
    known = TOO_MANY if (source.parser or source.source) in SENDERS_OF_429 else UNAVAILABLE
    return said.get(source.busy_answer, known)
