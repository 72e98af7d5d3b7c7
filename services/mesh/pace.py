"""Token buckets: how often something may happen, evenly over time. No input or output."""


class Bucket:
    """Tokens that come back evenly, RATE a second, at most BURST."""

    __slots__ = ("_burst", "_rate", "_time", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate, max(1.0, burst)
        self._tokens, self._time = self._burst, now

    def take(self, now: float) -> float:
        """Take one; return 0, or the seconds until there is one."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._time) * self._rate)
        self._time = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate
