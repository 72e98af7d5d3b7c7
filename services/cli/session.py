"""One command's way to the mesh: endpoints, a person's certificate, channels, and how to answer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc

from services.mesh.client import MeshChannel, connect

Stub = TypeVar("Stub")

DEADLINE = 10.0


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
            except FileNotFoundError:
                raise UnreachableError(
                    f"no mesh runs on {self.state}: there is no {path}\n"
                    f"NEXT: start one: opsmesh up --state {self.state}, or name another with --state"
                ) from None
        return self._endpoints

    def channel(self, service: str) -> MeshChannel:
        """Return the channel to SERVICE with the certificate of this session's person."""
        if service not in self._channels:
            tls = self.endpoints["tls"]
            if self.person not in tls:
                people = ", ".join(sorted(name for name in tls if name != "ca"))
                raise UsageError(f"there is no certificate of {self.person!r}\nNEXT: --as one of: {people}")
            credentials = grpc.ssl_channel_credentials(
                Path(tls["ca"]).read_bytes(),
                Path(tls[self.person]["key"]).read_bytes(),
                Path(tls[self.person]["cert"]).read_bytes(),
            )
            self._channels[service] = connect(self.endpoints["services"][service], service, credentials)
        return self._channels[service]

    def stub(self, kind: Callable[[grpc.aio.Channel], Stub], service: str) -> Stub:
        """Return a stub of KIND on SERVICE."""
        return kind(self.channel(service))

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._channels.values():
            await channel.close()
