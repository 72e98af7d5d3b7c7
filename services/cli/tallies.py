"""What became of what was replayed, source by source, and how long the answers took. No input or output."""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Final

WHY_SHOWN: Final = 5
# Ids of what was accepted are remembered up to here, to know them again.
KNOWN_MAX: Final = 1_000_000


def percentile(seconds: Sequence[float], share: float) -> float:
    """Return the smallest of the measured values that is not below this share of them (nearest rank); 0 for none."""
    if not seconds:
        return 0.0
    return sorted(seconds)[max(0, ceil(share * len(seconds)) - 1)]


@dataclass(slots=True)
class Tally:
    """The deliveries of one source. Each that was sent is accepted, a duplicate, rejected or failed.

    A duplicate was answered as the same delivery had been before. Rejected: the sender would not try again. Failed: no
    room or no answer until patience ended. `answers` holds the seconds of every answer, also to further tries.
    """

    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    failed: int = 0
    retries: int = 0
    signals: int = 0
    answers: "array[float]" = field(default_factory=lambda: array("d"))
    why: Counter[str] = field(default_factory=Counter)

    @property
    def sent(self) -> int:
        """Return how many deliveries have an end."""
        return self.accepted + self.duplicates + self.lost

    @property
    def lost(self) -> int:
        """Return how many were not taken."""
        return self.rejected + self.failed

    def content(self) -> dict[str, Any]:
        """Return it for scripts; times in milliseconds."""
        return {
            "sent": self.sent,
            "accepted": self.accepted,
            "duplicates": self.duplicates,
            "rejected": self.rejected,
            "failed": self.failed,
            "retries": self.retries,
            "signals": self.signals,
            "p50_ms": round(percentile(self.answers, 0.5) * 1000, 2),
            "p99_ms": round(percentile(self.answers, 0.99) * 1000, 2),
            "why": [{"reason": text, "count": count} for text, count in self.why.most_common(WHY_SHOWN)],
        }


class Tallies:
    """All sources together."""

    def __init__(self) -> None:
        self.by_source: dict[str, Tally] = {}
        self._known: set[tuple[str, str]] = set()

    def of(self, source: str) -> Tally:
        """Return the tally of a source."""
        return self.by_source.setdefault(source, Tally())

    def accepted(self, source: str, ids: Sequence[str]) -> None:
        """Count a 202: the ids of its signals tell whether the same was answered before."""
        tally = self.of(source)
        if ids and (source, ids[0]) in self._known:
            tally.duplicates += 1
            return
        tally.accepted += 1
        tally.signals += len(ids)
        if ids and len(self._known) < KNOWN_MAX:
            self._known.add((source, ids[0]))

    @property
    def total(self) -> Tally:
        """Return the sum of all sources."""
        whole = Tally()
        for one in self.by_source.values():
            for name in ("accepted", "duplicates", "rejected", "failed", "retries", "signals"):
                setattr(whole, name, getattr(whole, name) + getattr(one, name))
            whole.answers.extend(one.answers)
            whole.why.update(one.why)
        return whole
