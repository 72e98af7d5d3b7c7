"""How often a model is asked again: seldom, later each time, and never so that retries become the load."""

from collections.abc import Callable
from typing import Final

from tenacity import RetryCallState, wait_random_exponential

from services.agents.providers import Kind, ProviderError

TRIES: Final = {Kind.TRANSIENT: 3, Kind.UNKNOWN: 2, Kind.PERMANENT: 1}
TOKENS_MAX: Final = 10.0
# A reply of no use is asked for again so often, with why it was not taken; then a person is.
USELESS_RETRIES_MAX: Final = 2
# What one reply earns: in the long run one retry for five of them.
EARNED: Final = 0.2
LONGEST_PAUSE: Final = 8.0
# Less than this left is no time for another try, in seconds.
WORTH: Final = 1.0
_backoff: Final = wait_random_exponential(multiplier=0.25, max=LONGEST_PAUSE)


class RetryBudget:
    """Tokens for retries, shared by all calls of this process."""

    def __init__(self) -> None:
        self._tokens = TOKENS_MAX

    def earn(self) -> None:
        """Note a reply."""
        self._tokens = min(TOKENS_MAX, self._tokens + EARNED)

    def take(self) -> bool:
        """Take the token of one retry, if there is one."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def pause(state: RetryCallState) -> float:
    """Return the seconds before the next try: with jitter, and not before the provider wants it."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, ProviderError) and error.retry_after else 0.0
    return asked + _backoff(state)


def stop_when(
    budget: RetryBudget, remaining: Callable[[], float], useless: Callable[[], int], *, more: bool = False
) -> Callable[[RetryCallState], bool]:
    """Return tenacity's `stop`: tries of this kind of failure, time left, then the budget.

    While `more` models come after this one, they are asked rather than this one again after an unknown outcome. Who
    gave a reply of no use works: the limit is how many of these there were for one question, from whichever model, and
    a last one is left for a model that comes after.
    """

    def stop(state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        if not isinstance(error, ProviderError):
            return True
        if error.said is not None:
            return useless() + more > USELESS_RETRIES_MAX or remaining() < LONGEST_PAUSE / 4 + WORTH
        if state.attempt_number >= TRIES[error.kind]:
            return True
        if more and error.kind is Kind.UNKNOWN:
            return True
        longest = (error.retry_after or 0.0) + LONGEST_PAUSE / 4
        return remaining() < longest + WORTH or not budget.take()

    return stop
