"""Searches log lines in files of this machine, a JSON object a line; reads the disk in a thread, for a bounded time."""

import asyncio
import heapq
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

import orjson

from opsmesh.type.v1 import error_reason_pb2
from services.gateway.backends import JsonLines, LogSource
from services.gateway.tools.asking import seconds_left, unavailable
from services.gateway.tools.searching import Found, Line, Search, Words, text_of, time_of, value_of
from services.mesh.errors import Refusal

# Of each file the end is searched, this many bytes of it.
TAIL_BYTES: Final = 64 * 1024 * 1024
LINE_BYTES_MAX: Final = 1024 * 1024
# How often, in lines, the clock is looked at.
LOOK: Final = 1000
MEGA: Final = 1_000_000

Place = tuple[int, int, int]


class JsonLinesLogs:
    """One store: some files."""

    def __init__(self, store: JsonLines) -> None:
        self._store = store

    async def close(self) -> None:
        """Hold nothing open."""

    async def search(self, search: Search, source: LogSource) -> Found:
        """Return one page."""
        if search.position is not None and [type(one) for one in search.position] != [int, int, int]:
            raise Refusal(error_reason_pb2.ERROR_REASON_INVALID_PAGE_TOKEN)
        scan = Scan(search, source, time.monotonic() + seconds_left())
        found = await asyncio.to_thread(scan.run, self._store.paths)
        if scan.unreadable == len(self._store.paths):
            raise unavailable(search.target, found.partial)
        return found


@dataclass(slots=True)
class Scan:
    """One pass over the files until the monotonic second `deadline`; remembers what it could not look at."""

    search: Search
    source: LogSource
    deadline: float
    unreadable: int = 0
    total: int = 0
    partial: list[str] = field(default_factory=list)

    def run(self, paths: tuple[Path, ...]) -> Found:
        """Return the first lines in the order asked for, after the page before."""
        most = self.search.size + 1
        pick = heapq.nlargest if self.search.newest_first else heapq.nsmallest
        lines = (one for number, path in enumerate(paths) for one in self._file(number, path) if self._after(one[0]))
        best = pick(most, lines, key=lambda one: one[0])
        page = best[: self.search.size]
        return Found(
            lines=tuple(line for _, line in page),
            position=list(page[-1][0]) if len(best) == most else None,
            total=self.total,
            total_is_lower_bound=bool(self.partial),
            partial="; ".join(self.partial),
        )

    def _after(self, place: Place) -> bool:
        """Say whether a line belongs to this page or a later one."""
        if self.search.position is None:
            return True
        last = tuple(self.search.position)
        return place < last if self.search.newest_first else place > last

    def _file(self, number: int, path: Path) -> Iterator[tuple[Place, Line]]:
        """Yield the lines of a file that match, each with its place: time in microseconds, file, offset."""
        try:
            if not path.is_file():
                raise FileNotFoundError(path)
            with path.open("rb") as file:
                yield from self._lines(number, path.name, file)
        except OSError as error:
            self.unreadable += 1
            self.partial.append(f"{path.name} cannot be read ({type(error).__name__})")

    def _lines(self, number: int, name: str, file: BinaryIO) -> Iterator[tuple[Place, Line]]:
        """Yield the matching lines of an open file's end."""
        words, size = Words.of(self.search.query), file.seek(0, 2)
        offset = max(0, size - TAIL_BYTES)
        cut = bool(offset)
        file.seek(offset)
        if cut:
            offset += len(file.readline(LINE_BYTES_MAX))
        count = 0
        while offset < size and (raw := file.readline(LINE_BYTES_MAX)):
            begin, offset, count = offset, offset + len(raw), count + 1
            if count % LOOK == 0 and time.monotonic() > self.deadline:
                self.partial.append(f"{name} was not read to its end in time")
                return
            line = self._read(f"{name}:{begin}", raw)
            if line is None:
                continue
            if cut and line.time > self.search.start:
                self.partial.append(f"of {name} only the last {TAIL_BYTES // 1024 // 1024} MiB were searched")
            cut = False
            if self._fits(line, words):
                self.total += 1
                yield (round(line.time.timestamp() * MEGA), number, begin), line

    def _read(self, entry_id: str, raw: bytes) -> Line | None:
        """Return a line that is an object with a time."""
        try:
            document = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return None
        moment = time_of(value_of(document, self.source.time_field)) if isinstance(document, dict) else None
        return None if moment is None else Line(entry_id, moment, document)

    def _fits(self, line: Line, words: Words) -> bool:
        """Say whether a line is of the range, of the target, and says the words."""
        return (
            self.search.start <= line.time < self.search.end
            and all(text_of(value_of(line.document, name)) == value for name, value in self.source.terms.items())
            and words.match(text_of(value_of(line.document, self.source.message_field)))
        )
