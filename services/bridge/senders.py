"""The configured senders with their secrets, checked at boot: nobody is let in by a missing file."""

from collections.abc import Mapping
from pathlib import Path

import structlog

from opsmesh.config.v1 import sources_pb2
from opsmesh.ingest.v1 import signal_pb2
from services.bridge.domain import Scheme, Sender, proves, read_secrets
from services.mesh.config import load_yaml
from services.mesh.errors import BootError
from services.mesh.settings import require_private

METHODS = {
    Scheme.NONE: signal_pb2.Authenticity.METHOD_NONE,
    Scheme.BEARER: signal_pb2.Authenticity.METHOD_BEARER,
    Scheme.BASIC: signal_pb2.Authenticity.METHOD_BASIC,
    Scheme.HEADER: signal_pb2.Authenticity.METHOD_HEADER,
}
log = structlog.get_logger("opsmesh.bridge")


class Door:
    """One source: its sender and the secrets of its file, read again when the file changes."""

    def __init__(self, sender: Sender, file: Path | None) -> None:
        self.sender = sender
        self._file = file
        self._changed = 0
        self._secrets: tuple[bytes, ...] = ()
        self._told = False
        if file is not None:
            self._read(file)

    def authenticity(self, headers: Mapping[str, str]) -> signal_pb2.Authenticity | None:
        """Return how HEADERS (names in lower case) prove the sender, or None when they do not."""
        self._follow()
        if not proves(self.sender, headers, self._secrets):
            return None
        verified = self.sender.scheme is not Scheme.NONE
        return signal_pb2.Authenticity(method=METHODS[self.sender.scheme], verified=verified)

    def _follow(self) -> None:
        """Read the secrets again when their file changed: before every look, or a revoked one would go on opening.

        A file that is gone or unreadable keeps the last ones: a slip of the hand must not lose signals.
        """
        if self._file is None:
            return
        try:
            changed = self._file.stat().st_mtime_ns
            if changed == self._changed:
                return
            self._read(self._file)
        except (OSError, UnicodeDecodeError, BootError) as error:
            if not self._told:
                log.warning("the secrets cannot be read again, the last ones stay", why=str(error).splitlines()[0])
            self._told = True

    def _read(self, file: Path) -> None:
        require_private(file, f"the secret of source {self.sender.source}")
        try:
            changed = file.stat().st_mtime_ns
            secrets = read_secrets(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise BootError(
                f"the secret of source {self.sender.source} cannot be read: {file}: {error.strerror}\n"
                "NEXT: write it there, one secret a line, or say `none: {}` for this source in sources.yaml"
            ) from error
        if not secrets:
            raise BootError(
                f"the secret file of source {self.sender.source} is empty: {file}\n"
                "NEXT: write a secret into it, or say `none: {}` for this source in sources.yaml"
            )
        self._changed, self._secrets, self._told = changed, secrets, False


def load_doors(config: Path, secrets: Path) -> dict[str, Door]:
    """Return the doors by source name. Raises BootError for a missing secret and ConfigError for a bad file."""
    doors: dict[str, Door] = {}
    for source in load_yaml(config / "sources.yaml", sources_pb2.Sources).sources:
        if source.source in doors:
            raise BootError(f"sources.yaml names {source.source} twice\nNEXT: give each source a name of its own")
        doors[source.source] = _door(source, secrets)
    return doors


def _door(source: sources_pb2.Source, secrets: Path) -> Door:
    accept = source.malformed_answer == sources_pb2.Source.MALFORMED_ANSWER_ACCEPT
    scheme = Scheme(source.WhichOneof("auth"))
    if scheme is Scheme.NONE:
        return Door(Sender(source.source, scheme, accept_malformed=accept), None)
    settings = getattr(source, scheme.value)
    header = settings.header.lower() if scheme is Scheme.HEADER else "authorization"
    return Door(Sender(source.source, scheme, header, accept), secrets / (settings.secret_file or source.source))
