"""Hours in which rules apply, by the wall clock of a zone; pure."""

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo


@dataclass(frozen=True, slots=True)
class Window:
    """Hours of a week by the wall clock of a zone; `days` from 1 (Monday), none means all; `end` is exclusive.

    An end that is not after the start lies on the next day; days and dates are those on which it begins. An hour that
    the clock skips in spring is no part of it, one that it repeats in autumn is part of it twice.
    """

    days: frozenset[int]
    start: time
    end: time
    zone: str
    first: date | None = None
    last: date | None = None

    def contains(self, now: datetime) -> bool:
        """Say whether an instant lies in the window; an unknown zone is an error."""
        local = now.astimezone(ZoneInfo(self.zone))
        today, clock = local.date(), local.time()
        if self.start < self.end:
            return self._on(today) and self.start <= clock < self.end
        yesterday = today - timedelta(days=1)
        return (self._on(today) and clock >= self.start) or (self._on(yesterday) and clock < self.end)

    def _on(self, day: date) -> bool:
        """Say whether the window begins on a day."""
        return (
            (not self.days or day.isoweekday() in self.days)
            and (self.first is None or self.first <= day)
            and (self.last is None or day <= self.last)
        )


@dataclass(frozen=True, slots=True)
class ChangeWindow:
    """Hours that rules name; one of its windows is enough."""

    name: str
    windows: tuple[Window, ...]

    def contains(self, now: datetime) -> bool:
        """Say whether an instant lies in it; a window that the policy set does not know is an error."""
        if not self.windows:
            raise ValueError(f"change window {self.name} is not in the policy set")
        return any(window.contains(now) for window in self.windows)
