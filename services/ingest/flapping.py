"""Alerts that fire and are over again and again: recognised by how often they change within a window. Pure.

After the idea of Nagios and Icinga, not their arithmetic: there a check flaps above a weighted share of state changes
among its last results (Nagios keeps 21, Icinga 20 and starts at 30 percent unless told otherwise: about six), and stops
below a lower one; people are told when it begins and ends, and of nothing between. A sender of alerts tells changes and
no checks, so six changes within a time take the place of the share, unweighted, and calm is a time without any change.
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
