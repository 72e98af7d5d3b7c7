"""Tools for runbooks: Markdown files in one folder, found by listing it, so that no id can lead out of it."""

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from opsmesh.tools.runbook.v1 import runbook_tool_service_pb2 as pb
from opsmesh.tools.runbook.v1 import runbook_tool_service_pb2_grpc as rpc
from opsmesh.type.v1 import error_reason_pb2
from services.gateway.domain import plain
from services.mesh import paging
from services.mesh.errors import Refusal

FILES_MAX: Final = 1000
FILE_BYTES_MAX: Final = 256 * 1024
ID_MAX: Final = 128
TITLE_MAX: Final = 200
EXCERPT_MAX: Final = 512
HITS: Final = 10


class Shelf:
    """The runbooks of one folder; every method reads the disk and blocks."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def files(self) -> dict[str, Path]:
        """Return the runbooks by id: plain files *.md of the folder itself, no links, at most 1,000."""
        if self._folder is None or not self._folder.is_dir():
            return {}
        found = {path.stem: path for path in self._folder.glob("*.md") if path.is_file() and not path.is_symlink()}
        return {name: found[name] for name in sorted(found)[:FILES_MAX] if len(name) <= ID_MAX}

    def read(self, path: Path) -> tuple[pb.Runbook, str, bool]:
        """Return one runbook, its text and whether it was longer than 256 KiB."""
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
        text = raw[:FILE_BYTES_MAX].decode(errors="replace").replace("\0", "")
        heading = next((line for line in text.splitlines() if line.startswith("# ")), path.stem)
        runbook = pb.Runbook(
            runbook_id=path.stem, title=plain(heading.removeprefix("# "), TITLE_MAX), size_bytes=path.stat().st_size
        )
        return runbook, text, len(raw) > FILE_BYTES_MAX

    def all(self) -> Iterator[tuple[pb.Runbook, str]]:
        """Yield every runbook with its text."""
        for path in self.files().values():
            runbook, text, _ = self.read(path)
            yield runbook, text

    def search(self, query: str, limit: int) -> list[pb.RunbookHit]:
        """Return the runbooks that mention all words, those that mention them most often first."""
        words = query.casefold().split()
        found: list[tuple[int, pb.RunbookHit]] = []
        for runbook, text in self.all():
            folded = text.casefold()
            if words and all(word in folded for word in words):
                count = sum(folded.count(word) for word in words)
                found.append((count, _hit(runbook, text, words)))
        found.sort(key=lambda one: (-one[0], one[1].runbook.runbook_id))
        return [hit for _, hit in found[:limit]]


class RunbookTools:
    """RunbookToolService on a folder of Markdown."""

    service = pb.DESCRIPTOR.services_by_name["RunbookToolService"]
    add = staticmethod(rpc.add_RunbookToolServiceServicer_to_server)

    def __init__(self, folder: Path | None) -> None:
        self._shelf = Shelf(folder)

    async def list_runbooks(
        self, request: pb.ListRunbooksRequest, _precondition: Mapping[str, str]
    ) -> pb.ListRunbooksResponse:
        """List them by id."""
        position, size = paging.read_token(request, str), paging.page_size(request.page_size)
        runbooks = await asyncio.to_thread(lambda: [runbook for runbook, _ in self._shelf.all()])
        left = [one for one in runbooks if position is None or one.runbook_id > position[0]]
        more = paging.write_token(request, left[size - 1].runbook_id) if len(left) > size else ""
        return pb.ListRunbooksResponse(runbooks=left[:size], next_page_token=more)

    async def read_runbook(
        self, request: pb.ReadRunbookRequest, _precondition: Mapping[str, str]
    ) -> pb.ReadRunbookResponse:
        """Read one."""
        path = (await asyncio.to_thread(self._shelf.files)).get(request.runbook_id)
        if path is None:
            raise Refusal(
                error_reason_pb2.ERROR_REASON_NOT_FOUND,
                resource="runbook",
                id=request.runbook_id,
                list="tools call ListRunbooks",
            )
        runbook, text, truncated = await asyncio.to_thread(self._shelf.read, path)
        return pb.ReadRunbookResponse(runbook=runbook, markdown=text, truncated=truncated)

    async def search_runbooks(
        self, request: pb.SearchRunbooksRequest, _precondition: Mapping[str, str]
    ) -> pb.SearchRunbooksResponse:
        """Find those that mention all words."""
        hits = await asyncio.to_thread(self._shelf.search, request.query, request.max_results or HITS)
        return pb.SearchRunbooksResponse(hits=hits)


def _hit(runbook: pb.Runbook, text: str, words: list[str]) -> pb.RunbookHit:
    """Return a hit with the line that mentions most of the words."""
    lines = text.splitlines()
    counts = [sum(word in line.casefold() for word in words) for line in lines]
    best = counts.index(max(counts))
    return pb.RunbookHit(runbook=runbook, line=best + 1, excerpt=plain(lines[best], EXCERPT_MAX))
