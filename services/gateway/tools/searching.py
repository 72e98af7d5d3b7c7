"""What a search for log lines asks and finds, whatever the store."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

# Numbers above this are milliseconds since 1970, not seconds.
SECONDS_MAX: Final = 100_000_000_000
WORD: Final = r'(-?)(?:"([^"]*)"|(\S+))'


@dataclass(frozen=True, slots=True)
class Search:
    """A search of one page; `position` is what `Found.position` of the page before said."""

    target: str
    start: datetime
    end: datetime
    query: str
    fields: tuple[str, ...]
    newest_first: bool
    size: int
    position: list[Any] | None


@dataclass(frozen=True, slots=True)
class Line:
    """One line as the store has it."""

    entry_id: str
    time: datetime
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """A page: `position` goes on after it and is None on the last; `partial` says why not everything was looked at."""

    lines: tuple[Line, ...]
    position: list[Any] | None
    total: int
    total_is_lower_bound: bool
    partial: str


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a query, case folded: all `wanted` and none of the `unwanted` occur."""

    wanted: tuple[str, ...]
    unwanted: tuple[str, ...]

    @classmethod
    def of(cls, query: str) -> "Words":
        """Read `word "a phrase" -word`; an unclosed quote is a character like others."""
        found = [(sign, (phrase or word).casefold()) for sign, phrase, word in re.findall(WORD, query)]
        return cls(
            wanted=tuple(text for sign, text in found if text and not sign),
            unwanted=tuple(text for sign, text in found if text and sign),
        )

    def match(self, text: str) -> bool:
        """Say whether a text is one of those looked for."""
        folded = text.casefold()
        return all(one in folded for one in self.wanted) and not any(one in folded for one in self.unwanted)


def value_of(document: Mapping[str, Any], field: str) -> Any:
    """Return a dotted field, whether the document nests it or names it with its dots; None when it has none."""
    if field in document:
        return document[field]
    value: Any = document
    for part in field.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def text_of(value: Any) -> str:
    """Return a field's value as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def time_of(value: Any) -> datetime | None:
    """Read a moment: ISO 8601 (UTC where it says nothing), or seconds or milliseconds since 1970."""
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value / 1000 if value > SECONDS_MAX else value, UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return None
