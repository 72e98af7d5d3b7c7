"""A circuit breaker per provider: what fails again and again is left alone for a while, then tried with one call.

Own lines, for what the index offers is unmaintained, synchronous or a large beta: see the decision log.
"""

import time
from collections.abc import Callable
from enum import Enum
from typing import Final

FAILURES_MAX: Final = 5
OPEN_SECONDS: Final = 15.0
OPEN_SECONDS_MAX: Final = 300.0


class State(Enum):
    """What becomes of the next call."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


class Breaker:
    """Opens after 5 failures in a row, for 15 s, twice as long each time the probe fails too, up to 5 min."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._openings = 0
        self._until = 0.0
        self._probing_until = 0.0
        self.last_failure = ""

    @property
    def state(self) -> State:
        """Return what becomes of the next call."""
        if self._clock() < self._until:
            return State.OPEN
        return State.HALF_OPEN if self._openings else State.CLOSED

    @property
    def seconds_left(self) -> float:
        """Return how long it stays open."""
        return max(0.0, self._until - self._clock())

    def enter(self, seconds: float) -> bool:
        """Say whether a call of at most `seconds` may go out; half open, only one at a time may."""
        state = self.state
        if state is State.HALF_OPEN:
            if self._clock() < self._probing_until:
                return False
            # A probe that never reports must not hold the place for ever.
            self._probing_until = self._clock() + seconds
        return state is not State.OPEN

    def leave(self) -> None:
        """Give the place of a probe back without a verdict: its call was cancelled, or was itself at fault."""
        self._probing_until = 0.0

    def succeeded(self) -> None:
        """Note a reply."""
        self._failures = self._openings = 0
        self._until = self._probing_until = 0.0
        self.last_failure = ""

    def failed(self, detail: str, retry_after: float | None = None) -> None:
        """Note a failure; with `retry_after` (seconds) the provider has said itself when to come back."""
        probing, self._probing_until = self._openings > 0, 0.0
        self._failures += 1
        self.last_failure = detail
        if retry_after is not None:
            self._until = max(self._until, self._clock() + min(retry_after, OPEN_SECONDS_MAX))
            self._openings = max(self._openings, 1)
        elif probing or self._failures >= FAILURES_MAX:
            self._openings += 1
            pause = min(OPEN_SECONDS * 2 ** (min(self._openings, 16) - 1), OPEN_SECONDS_MAX)
            self._until = max(self._until, self._clock() + pause)
