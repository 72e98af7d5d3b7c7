"""Where events go in the log: the head of the chain, places of known events, and what a list may ask for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Head:
    """The newest row: its sequence (0 for an empty log) and its chain hash."""

    sequence: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Place:
    """Where an event stands, and who wrote it."""

    sequence: int
    writer: str


@dataclass(frozen=True, slots=True)
class Filter:
    """What events a reader wants; empty fields match everything, `start_time` inclusive, `end_time` exclusive."""

    incident_id: str = ""
    actor: str = ""
    action: str = ""
    target: str = ""
    environment: str = ""
    phase: int = 0
    outcome: int = 0
    execution_id: str = ""
    request_id: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None
    descending: bool = False


def taken_by_other(event_ids: Iterable[str], writer: str, placed: Mapping[str, Place]) -> str | None:
    """Return the first id that another writer used already, or None.

    Event ids can be guessed (uuid5 of method and request): whoever took one first must not make the true writer
    believe that its own intent is on record.
    """
    return next((one for one in event_ids if one in placed and placed[one].writer != writer), None)
