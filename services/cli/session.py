"""One command's way to the mesh: endpoints, a person's certificate, channels, and how to answer.

gRPC and the generated code are imported by the first call, so that a command without one starts at once.
"""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from services.local.layout import DEFAULT_CONFIG, Mesh

if TYPE_CHECKING:
    from services.mesh.client import MeshChannel

Answer = TypeVar("Answer")

PAGE = 1000


class UsageError(Exception):
    """The command cannot be carried out as it was given; the text says how to mend it. Exit code 2."""


class UnreachableError(Exception):
    """The mesh does not answer; the text says what to start. Exit code 3."""


class RefusedError(Exception):
    """The answer is no, found out on this side; exit code 1."""


class Session:
    """What every command gets; closed by the one that opened it."""

    def __init__(self, state: Path, person: str, *, as_json: bool) -> None:
        self.state = state
        self.person = person
        self.as_json = as_json
        self._endpoints: dict[str, Any] | None = None
        self._channels: dict[str, MeshChannel] = {}

    @property
    def endpoints(self) -> dict[str, Any]:
        """Return the content of endpoints.json. Raises UnreachableError when no mesh runs on this state."""
        if self._endpoints is None:
            path = self.state / "endpoints.json"
            try:
                self._endpoints = json.loads(path.read_text(encoding="utf-8"))
            except (FileNotFoundError, NotADirectoryError):
                raise UnreachableError(
                    f"no mesh runs on {self.state}: there is no {path}\n"
                    f"NEXT: start one: opsmesh up --state {self.state}, or name another with --state"
                ) from None
            except ValueError as error:
                raise UnreachableError(f"{path} is not what `opsmesh up` writes: {error}\nNEXT: opsmesh up") from None
        return self._endpoints

    def config(self, chosen: Path | None) -> Path:
        """Return the CHOSEN configuration folder; else the one the mesh was started with; else the one that ships."""
        note = Mesh(self.state).config_note
        if chosen is None and note.exists():
            return Path(note.read_text(encoding="utf-8"))
        return chosen or DEFAULT_CONFIG

    def models(self, chosen: Path | None, config: Path | None) -> Path | None:
        """Return the CHOSEN models file; else the one the mesh was started with; else None: that of CONFIG."""
        note = Mesh(self.state).models_note
        if chosen is None and config is None and note.exists():
            text = note.read_text(encoding="utf-8")
            return Path(text) if text else None
        return chosen

    def channel(self, service: str) -> "MeshChannel":
        """Return the channel to SERVICE with the certificate of this session's person."""
        if service not in self._channels:
            tls = self.endpoints["tls"]
            if self.person not in tls or self.person == "ca":
                people = ", ".join(sorted(name for name in tls if name != "ca"))
                raise UsageError(f"there is no certificate of {self.person!r}\nNEXT: --as one of: {people}")
            if service not in self.endpoints["services"]:
                raise UnreachableError(f"this mesh has no service {service}\nNEXT: opsmesh status")
            import grpc  # noqa: PLC0415  see above

            from services.mesh.client import connect  # noqa: PLC0415  see above

            credentials = grpc.ssl_channel_credentials(
                Path(tls["ca"]).read_bytes(),
                Path(tls[self.person]["key"]).read_bytes(),
                Path(tls[self.person]["cert"]).read_bytes(),
            )
            self._channels[service] = connect(self.endpoints["services"][service], service, credentials)
        return self._channels[service]

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._channels.values():
            await channel.close()


async def pages(call: Callable[..., Awaitable[Answer]], request: Any, field: str, limit: int) -> Answer:
    """Return one list response with at most LIMIT items of FIELD, fetching as many pages as that takes.

    REQUEST's page_token is where to begin; the answer's next_page_token goes on after the last item.
    """
    request.page_size = min(limit, PAGE)
    whole: Any = await call(request)
    items = getattr(whole, field)
    while whole.next_page_token and len(items) < limit:
        request.page_size = min(limit - len(items), PAGE)
        request.page_token = whole.next_page_token
        page: Any = await call(request)
        if not getattr(page, field):
            break
        items.extend(getattr(page, field))
        whole.next_page_token = page.next_page_token
    return whole  # type: ignore[no-any-return]  # the first page, grown
