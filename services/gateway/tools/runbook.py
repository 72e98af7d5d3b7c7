"""Tools for runbooks: Markdown files in one folder, found by listing it, so that no id can lead out of it."""

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from opsmesh.tools.runbook.v1 import runbook_tool_service_pb2 as pb
from opsmesh.tools.runbook.v1 import runbook_tool_service_pb2_grpc as rpc
from opsmesh.type.v1 import error_reason_pb2
from services.gateway.domain import plain
from services.gateway.runbook_index import Hit, Indexed, RunbookIndex, sections
from services.mesh import paging
from services.mesh.errors import Refusal

FILES_MAX: Final = 1000
FILE_BYTES_MAX: Final = 256 * 1024
ID_MAX: Final = 128
TITLE_MAX: Final = 200
EXCERPT_MAX: Final = 512
HITS: Final = 10
# Part of each digest: another one indexes everything anew.
INDEXED_AS: Final = 1

# Inode, time of change in nanoseconds, size.
Stamp = tuple[int, int, int]


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

    def all(self) -> list[pb.Runbook]:
        """Return every runbook without its text."""
        return [self.read(path)[0] for path in self.files().values()]

    def stamps(self) -> dict[str, Stamp]:
        """Return by id what changes when a file does."""
        found = {}
        for name, path in self.files().items():
            stat = path.stat()
            found[name] = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        return found

    def indexed(self, name: str) -> Indexed | None:
        """Return a runbook as it is indexed; None when it is gone."""
        path = self.files().get(name)
        if path is None:
            return None
        runbook, text, _ = self.read(path)
        return Indexed(
            runbook_id=name,
            title=runbook.title,
            size_bytes=runbook.size_bytes,
            digest=hashlib.sha256(f"{INDEXED_AS}\0{runbook.title}\0{text}".encode()).digest(),
            sections=sections(runbook.title, text),
        )


class RunbookTools:
    """RunbookToolService on a folder of Markdown."""

    service = pb.DESCRIPTOR.services_by_name["RunbookToolService"]
    add = staticmethod(rpc.add_RunbookToolServiceServicer_to_server)

    def __init__(self, folder: Path | None, index: RunbookIndex) -> None:
        self._shelf = Shelf(folder)
        self._index = index
        self._known: dict[str, Stamp] | None = None
        self._indexing = asyncio.Lock()

    async def refresh(self) -> None:
        """Index what has changed since the last time; what was done stays done when it is interrupted."""
        async with self._indexing:
            stamps = await asyncio.to_thread(self._shelf.stamps)
            if stamps == self._known:
                return
            known = {} if self._known is None else self._known
            if self._known is None or known.keys() - stamps.keys():
                await self._index.keep(list(stamps))
                self._known = known = {name: stamp for name, stamp in known.items() if name in stamps}
            for name, stamp in stamps.items():
                if known.get(name) != stamp:
                    if runbook := await asyncio.to_thread(self._shelf.indexed, name):
                        await self._index.put(runbook)
                    known[name] = stamp

    async def list_runbooks(
        self, request: pb.ListRunbooksRequest, _precondition: Mapping[str, str]
    ) -> pb.ListRunbooksResponse:
        """List them by id."""
        position, size = paging.read_token(request, str), paging.page_size(request.page_size)
        runbooks = await asyncio.to_thread(self._shelf.all)
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
        """Find the sections that fit, best first."""
        await self.refresh()
        hits = await self._index.search(request.query, request.max_results or HITS)
        return pb.SearchRunbooksResponse(hits=[_hit(one) for one in hits])


def _hit(hit: Hit) -> pb.RunbookHit:
    """Return a hit as it is handed on."""
    return pb.RunbookHit(
        runbook=pb.Runbook(runbook_id=hit.runbook_id, title=hit.title, size_bytes=hit.size_bytes),
        line=hit.line,
        heading=plain(hit.heading, TITLE_MAX),
        excerpt=plain(hit.excerpt, EXCERPT_MAX),
        rank=hit.rank,
    )
