"""Alerts that fire and are over again and again: recognised by how often they change within a window. Pure.

As Icinga and Nagios do it: a checkable flaps above a share of state changes among its last twenty checks (Icinga: 30
percent, which is six), notifications stop while it does, and one is sent when it begins. A sender of alerts tells
changes and no checks, so time takes the place of the twenty, and calm is a time without any change.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

CHANGES: Final = 6
CHANGES_MAX: Final = 100
WINDOW: Final = timedelta(minutes=10)
CALM: Final = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Flapping:
    """An alert that changes its state so often within the window flaps, until it did not for `calm`; 0 means never."""

    changes: int = CHANGES
    window: timedelta = WINDOW
    calm: timedelta = CALM


USUAL: Final = Flapping()


@dataclass(frozen=True, slots=True)
class Turns:
    """When an alert changed its state last, in order: as often as is needed to say whether it flaps."""

    times: tuple[datetime, ...] = ()

    def flap(self, flapping: Flapping) -> bool:
        """Say whether the last changes came so close to each other."""
        last = self.times[-flapping.changes :] if flapping.changes else ()
        return bool(last) and len(last) == flapping.changes and last[-1] - last[0] <= flapping.window


def turned(known: Turns, times: Iterable[datetime], flapping: Flapping) -> Turns:
    """Return the changes with some more of them, each once; a change told late takes its place in the order."""
    found = sorted({*known.times, *times})
    return Turns(tuple(found[-max(flapping.changes, 1) :]))
