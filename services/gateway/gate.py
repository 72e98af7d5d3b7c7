"""The last look before an effect leaves this process, taken when its connection stands and nothing was sent yet.

Connecting takes as long as the other side likes, and a process may be paused anywhere: what was checked before is old
by then. Whatever sends an effect (`tools/http.py`) looks through the gate of its task just before the first byte.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from prometheus_client import Gauge, Histogram

WINDOW: Final = Histogram(
    "opsmesh_gateway_act_window_seconds",
    "Time from the last check of an effect until the first request of its tool was sent: what a kill cannot stop.",
    buckets=(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0),
)
WINDOW_MAX: Final = Gauge("opsmesh_gateway_act_window_max_seconds", "The largest such time since this process began.")


class Gate:
    """The gate of one effect; `look` refuses (by raising) what may not start any more."""

    __slots__ = ("_begun", "_look", "_told")

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look
        self._begun: float | None = None
        self._told = False

    def look(self) -> None:
        """Look, unless the effect has begun: from the first byte on it is finished, never left half done."""
        if self._begun is None:
            self._look()
            self._begun = time.perf_counter()

    def sent(self) -> None:
        """Note that the first request is on its way."""
        if self._begun is not None and not self._told:
            self._told = True
            window = time.perf_counter() - self._begun
            WINDOW.observe(window)
            _Largest.note(window)


class _Largest:
    """The largest window: a histogram cannot tell it."""

    seconds = 0.0

    @classmethod
    def note(cls, window: float) -> None:
        """Keep the larger one."""
        if window > cls.seconds:
            cls.seconds = window
            WINDOW_MAX.set(window)


_gate: ContextVar[Gate | None] = ContextVar("opsmesh_gateway_gate", default=None)


@contextmanager
def guarding(gate: Gate | None) -> Iterator[None]:
    """Put a gate before whatever this task sends."""
    token = _gate.set(gate)
    try:
        yield
    finally:
        _gate.reset(token)


def current_gate() -> Gate | None:
    """Return the gate of this task; reads and notices have none."""
    return _gate.get()
